"""Scripts in the style of public tutorials run unchanged but for the one line that watches them."""

from __future__ import annotations

import keras
import pytest
import support
import tutorials

import gradwatch
from gradwatch import policies


class Watching:
    """The one line: a decorator, a list of callbacks, or a decorator for several optimizers."""

    def __init__(self):
        self.monitors = {}

    def monitor(self, name):
        self.monitors[name] = support.monitor(policies.observe(), name=name or "default")
        return self.monitors[name]

    def __call__(self, step):
        return gradwatch.watch(monitor=self.monitor(""))(step)

    def each(self, **optimizers):
        def decorate(step):
            watched = gradwatch.watch(optimizer=optimizers, **support.monitor_options(policies.observe()))(step)
            self.monitors = watched.monitors
            return watched

        return decorate

    def fit(self, **optimizers):
        if not optimizers:
            return [gradwatch.KerasCallback(self.monitor(""))]
        return [gradwatch.KerasCallback(self.monitor(name), optimizer=o) for name, o in optimizers.items()]


class Without:
    """The script as it was."""

    def __call__(self, step):
        return step

    def each(self, **optimizers):
        return lambda step: step

    def fit(self, **optimizers):
        return []


def trained(script, on):
    keras.utils.set_random_seed(0)
    things, steps = script(on)
    return support.weights(*things), steps


@pytest.mark.parametrize("script", tutorials.SCRIPTS, ids=lambda script: script.__name__)
def test_a_tutorial_is_watched_and_trains_exactly_as_before(script):
    on = Watching()
    watched, steps = trained(script, on)
    assert {name: monitor.snapshot().steps for name, monitor in on.monitors.items()} == steps
    for monitor in on.monitors.values():
        assert all(norm > 0 for norm in monitor.history()["norm"])
    unwatched, _ = trained(script, Without())
    support.assert_same(watched, unwatched)
