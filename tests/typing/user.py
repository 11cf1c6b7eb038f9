"""What a user writes, read by mypy --strict in `make check`: an error here is an error in everybody's own check.

Nothing runs this file. `assert_type` fails the check when a type is not what it says, and an unused `type: ignore`
fails it when a mistake is no longer seen.
"""

from typing_extensions import assert_type

import gradwatch


@gradwatch.watch
def plain(x: float, y: float) -> float:
    return x * y


@gradwatch.watch(policy="median(2)", name="generator", update_limit=0.05)
def with_options(x: float, *, training: bool = True) -> tuple[float, bool]:
    return x, training


class Trainer:
    @gradwatch.watch(policy=gradwatch.policies.percentile(90))
    def step(self, x: float) -> float:
        return x


# a watched step is called as the step below the decorator, and returns what it returns
assert_type(plain(1.0, y=2.0), float)
assert_type(with_options(1.0, training=False), tuple[float, bool])
assert_type(Trainer().step(1.0), float)
plain("one", 2.0)  # type: ignore[arg-type]
with_options(1.0, trainig=True)  # type: ignore[call-arg]
Trainer().step()  # type: ignore[call-arg]

# its monitor, and what the monitor says
assert_type(plain.monitor, gradwatch.Monitor)
assert_type(with_options.monitors["generator"], gradwatch.Monitor)
assert_type(Trainer().step.monitor, gradwatch.Monitor)
assert_type(plain.monitor.snapshot(), gradwatch.Snapshot)
assert_type(plain.monitor.snapshot().clip_norm, float)

# the other ways in and out
monitor = gradwatch.Monitor("by hand", policy="percentile(95)", detectors=["spike(6)", gradwatch.detectors.trend()])
callback = gradwatch.KerasCallback(monitor, stop_after=100)
assert_type(callback.monitor, gradwatch.Monitor)


def told(alert: gradwatch.Alert) -> None:
    print(alert.severity)


alarmed = gradwatch.Monitor(on_alert=[told, gradwatch.notify.Slack("https://hooks.slack.com/services/x")])
with gradwatch.serve(port=0) as server:
    assert_type(server, gradwatch.Server)
    assert_type(server.url, str)
