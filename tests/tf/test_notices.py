"""What is said once, at the first step, of what an optimizer does beside gradwatch."""

from __future__ import annotations

import logging

import keras
import pytest
import support
import tensorflow as tf

from gradwatch import policies


def told(caplog, optimizer, *, steps=2, mode="function inside", **options):
    """The lines of the first steps, and the watched step."""
    net = support.model()
    step = support.MODES[mode](support.watch(**options), support.train_step(net, optimizer))
    with caplog.at_level(logging.INFO, "gradwatch"):
        for _ in range(steps):
            step(*support.batches(1)[0])
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING], step


@pytest.mark.parametrize("mode", ["eager", "function inside"])
@pytest.mark.parametrize("own", [{"clipnorm": 1.0}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}])
def test_an_optimizer_that_clips_too_is_told_once_with_what_to_do(own, mode, caplog):
    lines, _ = told(caplog, keras.optimizers.Adam(0.01, **own), mode=mode, policy=policies.fixed(1.0))
    (line,) = [line for line in lines if "clips as well" in line]
    (name,) = own
    assert f"Adam({name}={own[name]})" in line
    assert "gradwatch clips first" in line
    assert f"Remove {name}" in line
    assert "observe()" in line


def test_the_clipping_of_a_wrapped_optimizer_is_told_too(caplog):
    optimizer = keras.optimizers.LossScaleOptimizer(support.sgd(clipnorm=1.0), initial_scale=8.0)
    lines, _ = told(caplog, optimizer, policy=policies.fixed(1.0))
    assert sum("SGD(clipnorm=1.0) clips as well" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("policy", "own"), [(policies.observe(), {"clipnorm": 1.0}), (policies.fixed(1.0), {}), (policies.auto(), {})]
)
def test_nothing_is_said_where_only_one_of_them_clips(policy, own, caplog):
    lines, _ = told(caplog, support.sgd(**own), policy=policy)
    assert not [line for line in lines if "clips as well" in line]


def test_micro_batches_that_a_loss_scaler_drops_unseen_are_told_and_the_scale_is_shown(caplog):
    inner = support.sgd(gradient_accumulation_steps=2)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    lines, step = told(caplog, optimizer, steps=4, policy=policies.fixed(1.0))
    assert sum("LossScaleOptimizer drops a micro-batch that overflows" in line for line in lines) == 1
    assert step.monitor.snapshot().loss_scale == 64.0
    x, y = support.batches(1)[0]
    step(tf.fill(x.shape, float("nan")), y)
    assert step.monitor.snapshot().loss_scale == 32.0


def test_plain_accumulation_and_plain_loss_scaling_need_no_word(caplog):
    lines, _ = told(caplog, support.sgd(gradient_accumulation_steps=2), policy=policies.fixed(1.0))
    lines += told(caplog, keras.optimizers.LossScaleOptimizer(support.sgd()), policy=policies.fixed(1.0))[0]
    assert not [line for line in lines if "micro-batch" in line]
