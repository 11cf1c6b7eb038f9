"""`auto` against a loop in plain numbers that was written from its docstrings, and what it does with bad input."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gradwatch.core import norms as _norms
from gradwatch.core import policies
from gradwatch.core.guard import Guard
from gradwatch.core.policies.auto import (
    descent_bound,
    displacement_bound,
    first_gradients_bound,
    quantile_bound,
)
from gradwatch.core.xp import NUMPY
from gradwatch.errors import ConfigError
from gradwatch.testing import replay, streams

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Numbers:
    """The numbers of the rule, as its docstrings have them. A number that is tuned changes here and there."""

    # the arguments of the policy
    factor: float = 2.0
    window: int = 300
    share: float = 0.1
    least_share: float = 0.03
    trust: float = 0.7
    first: float = 0.1
    alarm: float = 5.0
    backoff: float = 0.5
    # the rest
    winsorise: float = 3.0  # times the median
    few: int = 10  # norms that correct the first one, and losses of the loss at the start
    far: float = 10.0  # times the median of the first ten that the first norm may be
    start: float = 0.7  # exponent of L_0 in the descent bound; L has the rest
    settling: float = 300.0  # steps
    warmup: float = 100.0  # steps
    drift: float = 0.0005  # per step
    memory: float = 50.0  # losses
    clamp: float = 2.5  # deviations of the log loss
    least_deviation: float = 0.1
    setback: float = 0.4  # deviations of the log loss above the best level
    least_setback: float = 0.05
    sure: int = 60  # losses
    between: int = 20  # steps
    shrink: float = 0.7
    least_care: float = 0.05
    regrow: float = 0.002  # per step
    together: int = 20  # steps between two outliers of an alarm
    burst: int = 6  # steps after an alarm in which another one is the same
    rest: int = 5  # steps after an alarm without growth
    least_gain: float = 0.03
    young: float = 10.0  # steps


ARGUMENTS = [field.name for field in dataclasses.fields(Numbers)][:8]


def policy_with(numbers):
    return policies.auto(**{name: getattr(numbers, name) for name in ARGUMENTS})


# -- the rule in plain numbers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """What is known of the loss."""

    count: int = 0
    level: float = NAN
    var: float = 0.0
    first: float = NAN
    best: float = NAN
    signed: bool = False  # whether one was negative
    known: bool = False  # in this step

    def after(self, loss, c):
        signed = self.signed or loss < 0
        if signed or math.isnan(loss) or loss == 0 or loss >= 1e36:
            return replace(self, signed=signed, known=False)
        count, log_loss = self.count + 1, math.log(loss)
        if count == 1:
            return replace(self, count=1, level=log_loss, first=log_loss, best=log_loss, known=True)
        most = c.clamp * max(math.sqrt(self.var), c.least_deviation)
        d = max(-most, min(log_loss - self.level, most))
        m = min(count, c.memory)
        level = self.level + d / m
        return replace(
            self,
            count=count,
            level=level,
            var=self.var + (d * d - self.var) / m,
            first=level if count <= c.few else self.first,
            best=min(self.best + c.drift, level),
            known=True,
        )

    def risen(self, c):
        above = max(c.setback * max(math.sqrt(self.var), 0.01), c.least_setback)
        return self.known and self.count > c.sure and self.level > self.best + above


def median(entered, window):
    """The exact median of all norms so far, each weighing 1 - 1 / window of the next one."""
    weighed = sorted((x, (1 - 1 / window) ** age) for age, x in enumerate(reversed(entered)))
    half, below = 0.5 * sum(w for _, w in weighed), 0.0
    for x, w in weighed:
        below += w
        if below >= half * (1 - 2e-6):
            return x
    raise AssertionError


def by_hand(stream, c=Numbers()):
    """(clip_norm, name of the bound that gave it) of each step; a step is (norm, reach, loss, weights)."""
    entered, loss, held = [], Loss(), NAN
    gain, since_outlier, since_alarm, care, since_setback = 1.0, INF, INF, 1.0, INF
    out = []
    for norm, reach, now, weights in stream:
        p50 = median(entered, c.window) if entered else NAN
        loss_after = loss.after(now, c)
        held_after = held
        if len(entered) == 1:
            held_after = p50
        elif 1 < len(entered) <= c.few:
            held_after = min(max(held, p50 / c.far), c.far * p50)
        since_setback_after, care_after = since_setback + 1, care
        if not loss_after.risen(c):
            care_after = min(1.0, care * (1 + c.regrow))
        elif since_setback_after > c.between:
            since_setback_after, care_after = 0, max(c.shrink * care, c.least_care)
        usual = {"quantile": c.factor * p50} if entered else {}
        if math.isnan(reach):
            bounds = usual or {"none": INF}
        elif math.isinf(reach):
            bounds = {"first step": 0.0}
            if entered:
                bounds = {"quantile": care_after * c.factor * p50, "first gradients": care_after * c.first * held_after}
        elif not entered:
            bounds = {"first step": 0.0}
        else:
            rho = max(c.least_share, c.share / math.sqrt(1 + len(entered) / c.settling))
            knows = loss_after.count and not loss_after.signed and weights > 0
            rho *= 1.0 if knows else min(1.0, len(entered) / c.warmup)
            bounds = {**usual, "displacement": care_after * gain * rho * reach}
            if knows:
                there_is = math.exp(c.start * loss_after.first + (1 - c.start) * loss_after.best)
                bounds["descent"] = care_after * c.trust * there_is / (p50 * weights) * reach
        name = min(bounds, key=bounds.get)
        out.append((bounds[name], name))

        if not (0 < norm < INF):
            continue
        loss, held = loss_after, held_after
        care, since_setback = care_after, since_setback_after
        since_outlier, since_alarm = since_outlier + 1, since_alarm + 1
        outlier = len(entered) > c.few and norm > c.alarm * p50
        alarmed = outlier and since_outlier <= c.together
        if alarmed:
            if since_alarm > c.burst:
                gain = max(c.backoff * gain, c.least_gain)
            since_alarm = 0
        elif since_alarm > c.rest:
            gain = min(1.0, gain * (1 + 1 / (len(entered) + c.young)))
        since_outlier = 0 if outlier else since_outlier
        entered.append(min(norm, c.winsorise * p50) if entered else norm)
    return out


# -- streams ------------------------------------------------------------------------------------------------


def steps(count, seed=0, reach=60.0, weights=20.0, lowest=0.4, sigma=0.3):
    """Steps of a run whose loss falls from 3 to `lowest` of it, shape [count, 4]: norm, reach, loss, weights."""
    rng = np.random.default_rng(seed)
    t = np.arange(count)
    loss = 3.0 * (lowest + (1 - lowest) * np.exp(-t / 40)) * np.exp(0.05 * rng.standard_normal(count))
    loss[0] = NAN  # of the step before the first
    norm = streams.lognormal(rng, count, sigma) * (0.5 + 1.5 * np.exp(-t / 60))
    return np.column_stack([norm, np.broadcast_to(reach, count), loss, np.full(count, weights)])


def changed(stream, column, at, value):
    stream = stream.copy()
    stream[at, ["norm", "reach", "loss", "weights"].index(column)] = value
    return stream


def spiked(stream, *at, times=50.0):
    stream = stream.copy()
    stream[list(at), 0] *= times
    return stream


def switching(count):
    kinds = [60.0, INF, NAN, 15.0]
    return steps(count, seed=3, reach=np.array(kinds)[np.arange(count) // 23 % 4])


def risen(count, at, until):
    """1, and from `at` to `until` 1.6."""
    return np.where((np.arange(count) >= at) & (np.arange(count) < until), 1.6, 1.0)


#: Streams, and the bounds that are the smallest in some steps of them.
STREAMS = {
    "a linear optimizer": (steps(260), {"first step", "quantile", "descent"}),
    "a linear optimizer at a high rate, without a loss": (
        changed(steps(260, reach=4.0), "loss", slice(None), NAN),
        {"first step", "displacement"},
    ),
    "a loss that stands still": (steps(260, reach=12.0, lowest=0.98, weights=5.0), {"displacement"}),
    "a loss without a norm of the weights": (
        changed(steps(200, reach=30.0), "weights", slice(None), NAN),
        {"quantile", "displacement"},
    ),
    "norms that fall while the loss does not": (
        steps(260, reach=20.0, lowest=0.98) * np.column_stack([np.exp(-np.arange(260) / 30), *np.ones((3, 260))]),
        {"descent", "quantile"},
    ),
    "an adaptive optimizer": (steps(260, reach=INF), {"first step", "first gradients"}),
    "an adaptive optimizer whose gradients fall soon": (
        steps(260, reach=INF) * np.column_stack([np.exp(-np.arange(260) / 12), *np.ones((3, 260))]),
        {"first step", "first gradients", "quantile"},
    ),
    "an optimizer that is not known": (steps(150, reach=NAN), {"none", "quantile"}),
    "one that is changed in mid-run": (switching(260), {"quantile", "descent", "first gradients"}),
    "one outlier alone": (spiked(steps(200, reach=10.0, weights=1.0), 60, 81, 150), {"displacement"}),
    "an alarm, and a burst": (
        spiked(steps(260, reach=10.0, weights=1.0), 60, 80, 120, 121, 124, 130, 131, 150),
        {"displacement"},
    ),
    "an alarm in the first steps": (spiked(steps(80, reach=10.0, weights=1.0), 4, 5, 6, 14, 15), {"displacement"}),
    "alarms without end": (spiked(steps(260, reach=10.0, weights=1.0), *range(40, 240, 7)), {"displacement"}),
    "steps that teach nothing": (
        changed(changed(steps(200), "norm", slice(20, 200, 9), NAN), "norm", slice(0, 200, 13), 0.0),
        {"quantile", "descent"},
    ),
    "a loss that is known in some steps only": (
        changed(steps(200), "loss", np.arange(200) % 3 > 0, NAN),
        {"quantile", "descent"},
    ),
    "a loss that is known later": (
        changed(steps(200, reach=12.0), "loss", slice(0, 90), NAN),
        {"displacement", "descent"},
    ),
    "a loss that disappears": (changed(steps(200), "loss", slice(60, None), NAN), {"quantile", "descent"}),
    "a loss that crosses zero": (changed(steps(200, reach=12.0), "loss", 80, -0.5), {"displacement", "descent"}),
    "a loss with outliers": (
        changed(changed(steps(120), "loss", slice(15, 200, 30), 1e4), "loss", slice(30, 200, 30), 1e-4),
        {"quantile", "descent"},
    ),
    "a loss that rises and falls again": (
        steps(260, reach=12.0) * np.column_stack([*np.ones((2, 260)), risen(260, 90, 170), np.ones(260)]),
        {"displacement", "descent"},
    ),
    "a loss that rises for good": (
        steps(260, reach=12.0, lowest=0.999) * np.column_stack([*np.ones((2, 260)), risen(260, 70, 260), np.ones(260)]),
        {"descent"},
    ),
    "a loss that disappears when it has risen": (
        changed(
            steps(200, reach=12.0) * np.column_stack([*np.ones((2, 200)), risen(200, 90, 200), np.ones(200)]),
            "loss",
            slice(120, None),
            NAN,
        ),
        {"descent"},
    ),
    "norms that rise for good": (
        steps(200, reach=NAN) * np.column_stack([np.repeat([1.0, 20.0], [60, 140]), *np.ones((3, 200))]),
        {"quantile"},
    ),
    "a rate that is set to ten times as much": (
        changed(steps(160, reach=40.0), "reach", slice(80, 120), 4.0),
        {"quantile", "descent"},
    ),
}
#: The rule with other numbers, each of which must count.
OTHER_STREAMS = (
    "a linear optimizer",
    "a linear optimizer at a high rate, without a loss",
    "one that is changed in mid-run",
    "an alarm, and a burst",
)
OTHERS = Numbers(factor=1.4, window=60, share=0.2, least_share=0.15, trust=0.4, first=0.2, alarm=8.0, backoff=0.7)


def assert_as_by_hand(stream, numbers=Numbers(), rtol=0.0105):
    """The policy's clip_norm is that of the loop within the 1 % of the sketch; answers the names of the bounds."""
    columns = {name: stream[:, i] for i, name in enumerate(("reach", "loss", "weights"), 1)}
    got = replay.policy(policy_with(numbers), stream[:, 0], **columns).clip_norm
    expected = by_hand(stream.tolist(), numbers)
    np.testing.assert_allclose(got, [bound for bound, _ in expected], rtol=rtol)
    return {name for _, name in expected}


@pytest.mark.parametrize("name", STREAMS)
def test_clip_norm_is_the_smallest_of_the_bounds_in_a_run_of(name):
    stream, bounds = STREAMS[name]
    # where most norms enter winsorised, the sketch's 1 % is in what enters, too
    assert bounds <= assert_as_by_hand(stream, rtol=0.03 if name == "norms that rise for good" else 0.0105)


@pytest.mark.parametrize("name", OTHER_STREAMS)
def test_every_argument_of_auto_means_what_its_docstring_says(name):
    stream, _ = STREAMS[name]
    assert_as_by_hand(stream, OTHERS)


# -- each bound by its formula ------------------------------------------------------------------------------


def f32(x):
    return np.float32(x)


def test_the_quantile_bound_is_a_multiple_of_the_median():
    got = quantile_bound(NUMPY, f32(math.log(7.0)), 2.5)
    assert math.exp(got) == pytest.approx(2.5 * 7.0, rel=1e-5)


@pytest.mark.parametrize(
    ("seen", "blind", "share"),
    [
        (0, False, 0.1),
        (1, True, 0.001 / math.sqrt(1 + 1 / 300)),
        (75, True, 0.075 / math.sqrt(1.25)),
        (300, True, 0.1 / math.sqrt(2)),
        (900, False, 0.05),
        (1e5, False, 0.03),
        (1e6, True, 0.03),
    ],
)
def test_the_displacement_bound_is_gain_times_a_share_of_the_reach_that_falls_and_grows_first_without_a_loss(
    seen, blind, share
):
    got = displacement_bound(NUMPY, f32(math.log(1e4)), f32(math.log(0.25)), f32(seen), np.bool_(blind), 0.1, 0.03)
    assert math.exp(got) == pytest.approx(0.25 * share * 1e4, rel=1e-5)


def test_a_step_at_the_descent_bound_promises_the_trusted_share_of_the_loss():
    """Polyak's own case, L = L_0: a step of rate * G * clip_norm lowers the linear model by trust * L."""
    rate, weights, level, loss, trust = 0.01, 50.0, 4.0, 3.0, 0.7
    log = {name: f32(math.log(x)) for name, x in {"reach": weights / rate, "w": weights, "g": level, "l": loss}.items()}
    got = descent_bound(NUMPY, log["reach"], log["w"], log["l"], log["l"], log["g"], trust)
    assert rate * level * math.exp(got) == pytest.approx(trust * loss, rel=1e-5)


def test_the_descent_bound_weighs_the_loss_at_the_start_and_the_best_one():
    logs = [f32(math.log(x)) for x in (1000.0, 20.0, 8.0, 2.0, 5.0)]  # reach, |w|, L_0, L, G
    expected = 0.5 * 8.0**Numbers.start * 2.0 ** (1 - Numbers.start) / (5.0 * 20.0) * 1000.0
    assert math.exp(descent_bound(NUMPY, *logs, 0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("seen", "held", "expected"),
    [
        (1, 99.0, 0.03 * 7.0),  # the first norm itself
        (2, 0.4, 0.4),
        (10, 0.4, 0.4),
        (10, 0.01, 0.03 * 0.7),  # a first norm of less than a tenth of the usual
        (10, 5.0, 0.03 * 70.0),  # and one of more than ten times
        (11, 5.0, 5.0),
        (5000, 0.01, 0.01),
    ],
)
def test_the_bound_of_the_first_gradients_is_a_share_of_the_first_norm_held_near_the_median_and_then_stands(
    seen, held, expected
):
    state = {"log_first_norms": f32(math.log(held))}
    got = first_gradients_bound(NUMPY, state, f32(math.log(7.0)), f32(seen), 0.03)
    assert math.exp(got) == pytest.approx(expected, rel=1e-5)


# -- bad input ----------------------------------------------------------------------------------------------


def clip_norms(stream, **options):
    return replay.policy(
        policies.auto(**options), stream[:, 0], reach=stream[:, 1], loss=stream[:, 2], weights=stream[:, 3]
    ).clip_norm


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, 1e-45], ids="reach {}".format)
def test_a_reach_that_is_none_leaves_the_quantile_bound_alone_and_clips_no_first_step(bad):
    stream = steps(60)
    got = clip_norms(changed(stream, "reach", slice(None), bad))
    expected = replay.policy(policies.auto(), stream[:, 0]).clip_norm
    assert got[0] == INF
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF], ids="weights {}".format)
def test_weights_without_a_norm_leave_the_displacement_bound_alone(bad):
    got = clip_norms(changed(steps(60, reach=10.0), "weights", slice(None), bad))
    t = np.arange(1, 60)
    assert got[1:] == pytest.approx(0.1 * 10.0 * t / 100 / np.sqrt(1 + t / 300), rel=1e-5)


def test_a_rate_that_is_set_to_ten_times_as_much_lowers_the_bound_to_a_tenth_in_that_very_step():
    stream = steps(160, reach=20.0)
    got, other = clip_norms(stream), clip_norms(changed(stream, "reach", slice(80, 90), 2.0))
    np.testing.assert_allclose(other[80:90], got[80:90] / 10, rtol=1e-4)
    np.testing.assert_array_equal(np.delete(other, np.s_[80:90]), np.delete(got, np.s_[80:90]))


def test_a_change_of_the_optimizer_is_answered_by_its_bounds_in_that_very_step():
    """The bound of the first gradients remembers the first ten norms of the run, whoever applied them."""
    sgd, adam, unknown = (clip_norms(steps(120, reach=reach)) for reach in (20.0, INF, NAN))
    mixed = clip_norms(steps(120, reach=np.repeat([20.0, INF, NAN, 20.0], 30)))
    expected = np.concatenate([sgd[:30], adam[30:60], unknown[60:90], sgd[90:]])
    np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 0.0, -3.0, 1e30, 1e-30], ids="loss {}".format)
def test_one_bad_loss_moves_the_bound_by_less_than_a_tenth(bad):
    stream = steps(140, reach=20.0, weights=5.0)
    got, other = clip_norms(stream), clip_norms(changed(stream, "loss", 100, bad))
    assert np.isfinite(other).all()
    np.testing.assert_allclose(other, got, rtol=0.1)


def test_a_loss_that_disappears_leaves_the_descent_bound_where_it_was():
    stream = changed(steps(200, reach=15.0, weights=40.0), "norm", slice(None), 1.0)
    got = clip_norms(changed(stream, "loss", slice(100, None), NAN))
    assert got[199] == pytest.approx(got[100], rel=1e-4)
    assert got[199] < 0.9 * clip_norms(changed(stream, "loss", slice(None), NAN))[199]


def test_a_loss_that_is_known_later_is_taken_from_there():
    """L_0 is the level of the first ten losses there are."""
    stream = steps(200, reach=12.0, lowest=0.999, weights=60.0)
    got = clip_norms(changed(stream, "loss", slice(0, 100), NAN))
    assert got[99] > 1.2 * got[100]
    np.testing.assert_allclose(got[100:], clip_norms(stream)[100:], rtol=0.15)


BAD = (NAN, INF, -INF, 0.0, -1.0, 1e-45, 1e-37, 1e-30, 1.0, 1e30, 3.4e38)


def test_whatever_comes_in_no_bound_is_nan_and_only_the_first_step_of_a_known_optimizer_is_held_back_whole():
    policy, rng = policies.auto(), np.random.default_rng(5)
    for first in BAD:
        state = policy.init(1)
        for t in range(60):
            norm, reach, loss, weights = (np.float32(x) for x in rng.choice(BAD, 4))
            reach = np.float32(first) if t == 0 else reach
            now = _norms.of(NUMPY, np.abs(norm)[None], reach, loss, weights)
            empty = state["seen"] == 0
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                state, clip_norm, info = policy.update(NUMPY, state, now)
            assert not math.isnan(clip_norm)
            assert all(np.isfinite(x) and x >= 0 for x in info.values()), info
            if not (empty and now.reach > 0) and not now.reach < 1e-30:
                assert clip_norm > 0, (norm, reach, loss, weights)
            assert all(np.all(np.isfinite(x)) for name, x in state.items() if name != "sketch")


def test_the_first_step_of_an_adaptive_optimizer_is_held_back_whole_unless_a_minimum_is_asked_for():
    stream = steps(3, reach=INF)
    assert clip_norms(stream)[0] == 0.0
    assert clip_norms(stream, minimum=0.2)[0] == np.float32(0.2)
    guard = Guard(policies.auto(), ())
    _, decision = guard.step(NUMPY, guard.init(1), np.ones(1, np.float32), reach=np.float32(INF))
    assert decision.scale == 0.0


@pytest.mark.parametrize("reach", [20.0, INF, NAN])
def test_minimum_and_maximum_bound_clip_norm_from_the_first_step_on(reach):
    stream = steps(80, reach=reach)
    got = clip_norms(stream, minimum=0.5, maximum=0.6)
    assert got.min() >= np.float32(0.5)
    assert got.max() <= np.float32(0.6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"factor": 1.0}, r"factor must be >= 1\.05 and <= 1e\+12, got 1\.0"),
        ({"window": 1}, "window must be >= 2"),
        ({"share": 0.0}, "share must be > 0"),
        ({"share": 10}, "share must be > 0 and <= 1, got 10; it is a share of the reach, 0.1 and not 10"),
        ({"least_share": 0.2}, r"least_share must be > 0 and <= 0\.1, got 0\.2; at most share"),
        ({"trust": -1}, "trust must be > 0, got -1"),
        ({"first": 30}, "first must be > 0 and <= 1, got 30"),
        ({"alarm": 1.0}, r"alarm must be >= 1\.05"),
        ({"backoff": 1.0}, "backoff must be > 0 and < 1"),
        ({"minimum": 2.0, "maximum": 1.0}, "minimum must not exceed maximum"),
    ],
)
def test_an_argument_that_is_out_of_range_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        policies.auto(**options)


# -- long runs ----------------------------------------------------------------------------------------------


def after_a_million_steps(state):
    """The state as if a million steps like the last had passed: counters at their end, the gain grown back."""
    counters = {"seen", "losses", "waited", "calm", "alone"}
    return {name: np.float32(1e6) if name in counters else x for name, x in state.items()}


def settled(reach, loss=1.0, count=150, norm=None):
    stream = (
        steps(count, reach=reach, lowest=0.999) if norm is None else changed(steps(count), "norm", slice(None), norm)
    )
    return replay.policy(policies.auto(), stream[:, 0], reach=reach, loss=stream[:, 2] * loss, weights=20.0).state


@pytest.mark.parametrize("loss", [1.0, NAN], ids=["a loss that stands still", "no loss"])
def test_a_calm_run_of_a_million_steps_keeps_the_least_share_of_the_reach(loss):
    state = after_a_million_steps(settled(12.0, loss))
    stream = steps(150, seed=1, reach=12.0, lowest=0.999)
    got = replay.policy(policies.auto(), stream[:, 0], state, reach=12.0, loss=stream[:, 2] * loss)
    assert got.clip_norm == pytest.approx(0.03 * 12.0, rel=1e-5)


def test_a_healthy_run_whose_steps_are_short_is_clipped_by_the_quantile_bound_alone_after_a_million_steps():
    """Norms of a thousandth of the reach: the displacement bound stands at 30 times their median."""
    state = after_a_million_steps(settled(1000.0))
    stream = steps(150, seed=1, reach=1000.0, lowest=0.999)
    got = replay.policy(policies.auto(), stream[:, 0], state, reach=1000.0, loss=stream[:, 2], weights=20.0).clip_norm
    alone = replay.policy(policies.auto(), stream[:, 0], state).clip_norm
    np.testing.assert_array_equal(got, alone)


def test_what_adam_is_given_after_a_million_steps_is_what_it_was_given_after_ten():
    state = settled(INF)
    first = replay.policy(policies.auto(), steps(50, seed=1)[:, 0], state, reach=INF).clip_norm
    later = replay.policy(policies.auto(), steps(50, seed=1)[:, 0], after_a_million_steps(state), reach=INF).clip_norm
    np.testing.assert_array_equal(first, later)
    assert len(set(later.tolist())) == 1


@pytest.mark.parametrize("reach", [20.0, INF, NAN])
def test_a_silent_stream_leaves_the_state_of_auto_to_the_bit(reach):
    for state in (policies.auto().init(1), settled(reach), after_a_million_steps(settled(reach))):
        after = replay.policy(policies.auto(), np.zeros(5), state, reach=reach, loss=np.full(5, 2.0), weights=20.0)
        for name in (name for name in state if name != "sketch"):
            np.testing.assert_array_equal(after.state[name], state[name])
        for name in state["sketch"]:
            np.testing.assert_array_equal(after.state["sketch"][name], state["sketch"][name])
        assert len(set(after.clip_norm.tolist())) == 1


def test_a_constant_stream_is_never_clipped_and_its_counters_stand_where_float32_can_still_count():
    state = after_a_million_steps(settled(1000.0, norm=1.0))
    got = replay.policy(policies.auto(), np.ones(40), state, reach=1000.0, loss=np.full(40, 1.0), weights=20.0)
    assert got.clip_norm == pytest.approx(2.0, rel=0.0105)
    for name in ("seen", "losses", "waited", "calm", "alone"):
        assert got.state[name] == 1e6, name


# -- what it is for -----------------------------------------------------------------------------------------


def descent_bounds(stream):
    policy, out = policies.auto(), []
    state = policy.init(1)
    for norm, reach, loss, weights in stream.astype(np.float32):
        state, _, info = policy.update(NUMPY, state, _norms.of(NUMPY, norm[None], reach, loss, weights))
        out.append(float(info["descent_bound"]))
    return out


def test_a_loss_in_other_units_lets_the_steps_be_as_long_as_before():
    """The gradient is as many times as long as the loss, and the rate is the same: so must be the bound."""
    stream = steps(80)
    assert descent_bounds(stream * [1000.0, 1.0, 1000.0, 1.0])[2:] == pytest.approx(
        descent_bounds(stream)[2:], rel=0.0205
    )


def test_one_norm_that_stands_out_alone_leaves_the_gain_where_it_was():
    """One step in a hundred is corrupt, whatever the gain: it must not be driven towards zero."""
    stream = spiked(steps(330, reach=12.0, lowest=0.999, weights=1.0), 100, 200, 300, times=1e4)
    calm = steps(330, reach=12.0, lowest=0.999, weights=1.0)
    np.testing.assert_array_equal(clip_norms(stream), clip_norms(calm))
