"""One step of the guard: order, verdicts, counters, histogram, history, episodes; read through decode."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gradwatch.core import counters, decode, detectors, policies
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import BOUNDS, COUNTERS, HISTORY, LIMB, Guard
from gradwatch.core.layout import Layout
from gradwatch.core.snapshot import FOLLOWERS, KINDS, Event
from gradwatch.core.xp import LARGEST, NUMPY
from gradwatch.testing import replay, streams

pytestmark = pytest.mark.filterwarnings("error")

PATHS = ("dense/kernel", "dense/bias", "out/kernel")
NAN, INF = math.nan, math.inf


class Run:
    """A guard and its state, fed with rows of per-variable norms (a number is split over three variables)."""

    def __init__(self, guard, variables=3):
        self.guard, self.variables = guard, variables
        self.state = guard.init(variables)
        self.decisions = []

    def feed(self, rows, applied=None):
        for row in rows:
            norms = np.asarray(row if np.ndim(row) else [row / math.sqrt(self.variables)] * self.variables, np.float32)
            self.state, decision = self.guard.step(NUMPY, self.state, norms, applied)
            self.decisions.append(decision)
        return self

    @property
    def last(self):
        return self.decisions[-1]

    def snapshot(self):
        return decode.snapshot(self.guard, self.state, name="m", paths=PATHS[: self.variables])

    def set_counter(self, name, value):
        i = COUNTERS.index(name)
        count = {limb: x.copy() for limb, x in self.state["count"].items()}
        count["low"][i], count["high"][i] = value % LIMB, value // LIMB
        self.state = {**self.state, "count": count}

    def counter(self, name):
        return counters.exact(self.state["count"])[name]


def healthy(steps=60, seed=0):
    return streams.lognormal(np.random.default_rng(seed), steps, 0.3)


def alarm_at(kind, *steps, cooldown_steps=10):
    """A detector that alarms at these steps, counted from 1."""

    def update(xp, state, norms):
        now = state["step"] + np.float32(1)
        alarm = np.isin(now, steps)
        return {"step": now}, alarm, {"score": now, "threshold": now * 0 + np.float32(2.5)}

    return Detector(kind, "scripted", lambda n: {"step": np.zeros((), np.float32)}, update, cooldown_steps)


# -- order --------------------------------------------------------------------------------------------------


def test_a_step_is_judged_with_the_statistics_before_it():
    run = Run(Guard(policies.percentile(), detectors.default())).feed(healthy(60))
    decision = {}
    for x in (1.0, 1000.0):
        branch = Run(run.guard)
        branch.state = run.state
        decision[x] = branch.feed([x]).last
    assert decision[1.0].clip_norm == decision[1000.0].clip_norm
    assert decision[1.0].threshold == decision[1000.0].threshold
    assert decision[1000.0].applied_norm == pytest.approx(decision[1.0].clip_norm)
    assert decision[1000.0].explosion == 1


def test_a_nan_in_between_changes_no_later_decision():
    norms = healthy(80)
    norms[70] = 50.0
    clean = Run(Guard(policies.percentile(), detectors.default())).feed(norms)
    dirty = Run(Guard(policies.percentile(), detectors.default())).feed([*norms[:40], NAN, INF, *norms[40:]])
    seen = [d for i, d in enumerate(dirty.decisions) if i not in (40, 41)]
    assert [tuple(map(float, d)) for d in seen] == [tuple(map(float, d)) for d in clean.decisions]
    for part in ("policy", "recent", "levels"):
        assert str(dirty.state[part]) == str(clean.state[part])
    assert dirty.snapshot().explosions == 1


# -- verdicts -----------------------------------------------------------------------------------------------

# what becomes of (an ordinary step, an exploding one, a NaN): verdict, scale, applied norm; the policy clips at 2
ORDINARY = ("pass", 1.0, 1.0)
ON_EXPLOSION = {"clip": ("clip", 0.02, 2.0), "skip": ("skip", 0.0, 0.0), "observe": ("pass", 1.0, 100.0)}
ON_NONFINITE = {"zero": ("zero", 0.0, 0.0), "skip": ("skip", 0.0, 0.0), "propagate": ("pass", 1.0, NAN)}


@pytest.mark.parametrize(("on_nonfinite", "on_explosion"), list(itertools.product(ON_NONFINITE, ON_EXPLOSION)))
def test_what_becomes_of_a_step_is_what_was_asked_for(on_nonfinite, on_explosion):
    run = Run(Guard(policies.fixed(2.0), alarm_at("explosion", 2), on_nonfinite, on_explosion))
    expected = ORDINARY, ON_EXPLOSION[on_explosion], ON_NONFINITE[on_nonfinite]
    for norm, (verdict, scale, applied) in zip((1.0, 100.0, NAN), expected):
        run.feed([norm])
        shot = run.snapshot()
        assert shot.verdict == verdict
        assert float(run.last.scale) == pytest.approx(scale)
        assert shot.applied_norm == pytest.approx(applied, nan_ok=True)
    assert shot.clipped_steps == (on_explosion == "clip")
    assert shot.nonfinite_steps == 1
    assert shot.skipped_by_reason == {
        "nonfinite": int(on_nonfinite == "skip"),
        "explosion": int(on_explosion == "skip"),
    }
    assert shot.skipped_updates == sum(shot.skipped_by_reason.values())


def test_an_observer_lets_nan_through_unless_told_otherwise():
    assert Guard(policies.observe(), ()).on_nonfinite == "propagate"
    assert Guard(policies.fixed(1.0), ()).on_nonfinite == "zero"
    assert Guard(policies.observe(), (), "zero").on_nonfinite == "zero"


@pytest.mark.parametrize(("arguments", "skips", "scales"), [
    ((policies.observe(), ()), False, False),
    ((policies.observe(), (), "zero"), False, True),
    ((policies.observe(), (), "skip"), True, True),
    ((policies.fixed(1.0), ()), False, True),
    ((policies.fixed(1.0), (), "zero", "skip"), True, True),
])  # fmt: skip
def test_a_guard_knows_whether_it_can_touch_gradients_at_all(arguments, skips, scales):
    guard = Guard(*arguments)
    assert (guard.skips, guard.scales) == (skips, scales)


def test_an_overflowing_norm_is_named_and_zeroed():
    run = Run(Guard(policies.fixed(1.0), detectors.default())).feed([3.4e38])
    assert run.snapshot().verdict == "zero"
    assert run.snapshot().nonfinite_steps == 1


def test_scope_variable_scales_each_variable_and_tells_the_joint_bound():
    run = Run(Guard(policies.per_variable_norm(2.0), ())).feed([[1.0, 8.0, 3.0]])
    assert np.allclose(run.last.scale, [1.0, 0.25, 2 / 3])
    assert run.last.applied_norm == pytest.approx(3.0)
    assert run.last.clip_norm == pytest.approx(math.sqrt(12))
    assert run.snapshot().verdict == "clip"
    # one small variable clipped: too little to show in the joint norm, but a clip
    run.feed([[1e-3, 2.1, 1e-3], [2.0, 2.0, 2.0]])
    assert run.decisions[1].verdict == 1
    assert run.decisions[2].verdict == 0
    assert np.all(run.last.scale == 1.0)


def test_scope_variable_without_a_bound_yet_reads_as_inf():
    run = Run(Guard(policies.per_variable(), ())).feed([[1.0, 8.0, 3.0]])
    assert run.snapshot().clip_norm == INF
    assert run.last.clip_norm == np.float32(LARGEST)
    assert run.snapshot().verdict == "pass"


def test_scope_value_reports_the_norm_after_clipping():
    run = Run(Guard(policies.value(0.5), detectors.default()))
    run.feed([[3.0, 4.0, 0.0]], applied=np.array([0.3, 0.4, 0.0], np.float32))
    shot = run.snapshot()
    assert (shot.norm, shot.applied_norm, shot.verdict) == (5.0, pytest.approx(0.5), "clip")
    assert shot.clip_norm == INF
    assert np.all(run.last.scale == 1.0), "the elements were clipped already"
    run.feed([[0.3, 0.4, 0.0]], applied=np.array([0.3, 0.4, 0.0], np.float32))
    assert run.snapshot().verdict == "pass"
    run.feed([[NAN, 0.4, 0.0]], applied=np.array([NAN, 0.4, 0.0], np.float32))
    assert run.snapshot().verdict == "zero"


# -- counters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [2**20 - 2, 2**24 - 1, 2**31 - 1, 2**40])
def test_counters_count_on_beyond_what_one_float32_can_hold(start):
    run = Run(Guard(policies.fixed(2.0), alarm_at("explosion", 2)))
    for name in ("steps", "clipped", "finite", "bound_48"):
        run.set_counter(name, start)
    run.feed([1.0, 5.0, 5.0])
    shot = run.snapshot()
    assert shot.steps == start + 3
    assert shot.clipped_steps == start + 2
    assert shot.norm_counts[-1] == start + 3
    assert run.counter("bound_48") == start + 3
    assert shot.last_explosion.step == start + 2
    assert decode.history(run.state)["step"].tolist()[-3:] == [start + 1, start + 2, start + 3]


def test_a_late_step_moves_the_levels_no_more_than_an_early_one():
    run = Run(Guard(policies.observe(), ())).feed([1.0] * 120)
    run.set_counter("finite", 2**20 - 1)  # the next one carries
    before = run.state["levels"].copy()
    run.feed([10.0, 10.0])
    assert np.all(run.state["levels"] - before < 0.05)


def test_histogram_is_cumulative_and_its_sum_is_exact():
    rng = np.random.default_rng(2)
    norms = np.concatenate([10 ** rng.uniform(-9, 9, 200), rng.lognormal(0, 0.3, 300), [0.0, 1e-8, 1.0, 1e8]])
    run = Run(Guard(policies.observe(), ()), variables=1).feed([*norms, NAN, INF])
    as_float32 = norms.astype(np.float32).astype(np.float64)
    shot = run.snapshot()
    bounds = np.asarray(BOUNDS, np.float32)
    assert shot.norm_bounds == BOUNDS
    assert list(shot.norm_counts) == [*(int(np.sum(as_float32 <= b)) for b in bounds), len(norms)]
    assert shot.norm_sum == pytest.approx(as_float32.sum(), rel=1e-9)
    assert shot.max_norm == as_float32.max()
    assert shot.nonfinite_steps == 2


def test_the_sum_of_norms_does_not_lose_small_ones_after_a_large_one():
    run = Run(Guard(policies.observe(), ()), variables=1).feed([1e8] + [0.125] * 400)
    assert run.snapshot().norm_sum == 1e8 + 50.0


def test_the_sum_of_norms_stays_finite():
    run = Run(Guard(policies.observe(), ()), variables=1).feed([1e36] * 400)
    assert math.isfinite(run.snapshot().norm_sum)


def test_bounds_are_three_a_decade_and_the_same_number_in_float32_and_text():
    assert len(BOUNDS) == 49
    assert BOUNDS[0] == 1e-8
    assert BOUNDS[24] == 1.0
    assert BOUNDS[-1] == 1e8
    assert np.all(np.diff(BOUNDS) > 0)


# -- history and quantiles ----------------------------------------------------------------------------------


def test_history_is_empty_before_the_first_step_and_then_oldest_first():
    run = Run(Guard(policies.fixed(2.0), detectors.default()), variables=1)
    assert all(len(column) == 0 for column in decode.history(run.state).values())
    run.feed([1.0, 4.0, NAN])
    history = decode.history(run.state)
    assert list(history) == ["step", "norm", "applied_norm", "clip_norm", "threshold", "score", "verdict", "reach",
                             "update_ratio", "loss", "learning_rate", "input_rms", "target_rms", "replica_ratio",
                             "replica"]  # fmt: skip
    assert history["step"].tolist() == [1, 2, 3]
    assert history["norm"][:2].tolist() == [1.0, 4.0]
    assert np.isnan(history["norm"][2])
    assert history["applied_norm"].tolist() == [1.0, 2.0, 0.0]
    assert history["clip_norm"].tolist() == [2.0, 2.0, 2.0]
    assert history["verdict"].tolist() == [0, 1, 2]


def test_history_keeps_the_last_1024_steps():
    run = Run(Guard(policies.observe(), ()), variables=1).feed(np.arange(1, HISTORY + 31, dtype=np.float32))
    history = decode.history(run.state)
    assert history["step"].tolist() == list(range(31, HISTORY + 31))
    assert history["norm"].tolist() == history["step"].tolist()


def test_quantiles_are_those_of_the_recent_norms():
    norms = healthy(400)
    shot = Run(Guard(policies.observe(), ()), variables=1).feed(norms).snapshot()
    for q, got in shot.quantiles.items():
        # the weights fall by a third over 400 steps
        assert got == pytest.approx(np.quantile(norms, q, method="inverted_cdf"), rel=0.06)
    assert shot.median == shot.quantiles[0.5]


# -- episodes -----------------------------------------------------------------------------------------------


def test_alarms_close_together_are_one_episode_and_all_steps_are_counted():
    steps = [5, 6, 9, 18, 40, 41]  # gaps below and above ten calm steps
    run = Run(Guard(policies.fixed(100.0), alarm_at("explosion", *steps))).feed([1.0] * 60)
    shot = run.snapshot()
    assert shot.explosions == 2
    assert shot.anomalous_steps["explosion"] == 6
    assert shot.last_explosion.step == 40
    assert not shot.active["explosion"]


def test_an_episode_is_active_until_enough_calm_steps_have_passed():
    run = Run(Guard(policies.observe(), alarm_at("trend", 3, cooldown_steps=4)))
    active = []
    for _ in range(9):
        run.feed([1.0])
        active.append(run.snapshot().active["trend"])
    assert active == [False, False, True, True, True, True, False, False, False]


def test_a_step_that_cannot_be_judged_is_not_calm():
    run = Run(Guard(policies.observe(), alarm_at("explosion", 1, cooldown_steps=2)))
    run.feed([1.0, 1.0, NAN, NAN, NAN])
    assert run.snapshot().active["explosion"]
    run.feed([1.0])
    assert not run.snapshot().active["explosion"]


def test_an_explosion_is_remembered_with_its_culprits():
    run = Run(Guard(policies.percentile(), detectors.default())).feed(healthy(100))
    threshold = float(run.feed([1.0]).last.threshold)
    run.feed([[0.3, 40.0, 30.0], 1.0])
    event = run.snapshot().last_explosion
    assert event.kind == "explosion"
    assert event.step == 102
    assert event.norm == pytest.approx(50.0, rel=1e-3)
    assert event.threshold == pytest.approx(threshold, rel=0.1)
    assert list(event.shares) == ["dense/bias", "out/kernel", "dense/kernel"], "largest first"
    assert event.shares["dense/bias"] == pytest.approx(0.64, abs=1e-3)
    assert sum(event.shares.values()) == pytest.approx(1.0)


def test_a_nan_is_remembered_with_the_variables_that_held_it():
    run = Run(Guard(policies.fixed(1.0), detectors.default())).feed([1.0, [NAN, 1.0, INF]])
    event = run.snapshot().last_events["nonfinite"]
    assert event.step == 2
    assert math.isnan(event.norm)
    assert event.shares == {"dense/kernel": 0.5, "out/kernel": 0.5, "dense/bias": 0.0}


def test_a_vanishing_gradient_names_the_variable_that_fell_furthest_below_its_own_level():
    # the last variable is small by nature; the first one dies, from far above
    rows = np.array([1.0, 0.5, 1e-3]) * healthy(100)[:, None]
    dying = rows[:20] * [1e-6, 1e-3, 1.0]
    run = Run(Guard(policies.percentile(), detectors.default())).feed([*rows, *dying])
    shot = run.snapshot()
    assert shot.anomalies["vanishing"] == 1
    shares = shot.last_events["vanishing"].shares
    assert next(iter(shares)) == "dense/kernel"
    assert shares["dense/kernel"] == pytest.approx(2 / 3, abs=0.05)  # log 1e-6 of log 1e-6 + log 1e-3
    assert shares["out/kernel"] == pytest.approx(0.0, abs=0.05)


def test_a_trend_is_remembered_where_it_was_recognised():
    norms = streams.growth(healthy(300), 250, 0.05)
    shot = Run(Guard(policies.percentile(), detectors.default())).feed(norms).snapshot()
    assert 251 <= shot.last_events["trend"].step <= 275
    assert shot.anomalies["trend"] == 1


def test_several_detectors_of_one_kind_alarm_together():
    both = alarm_at("explosion", 2), alarm_at("explosion", 4)
    shot = Run(Guard(policies.observe(), both)).feed([1.0] * 5).snapshot()
    assert shot.anomalous_steps["explosion"] == 2
    assert shot.explosions == 1


# -- what a reader sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budgets", "missing"), [((), 0), ((1000, 100), 1006), ((1000,), 20), ((100, 1), None)])
def test_a_reader_sees_how_many_steps_the_most_patient_budget_still_needs(budgets, missing):
    made = tuple(detectors.spike(false_alarms_per_million=b) for b in budgets)
    assert Run(Guard(policies.observe(), made)).feed([1.0] * 5).snapshot().budget_steps_missing == missing


def test_an_unused_monitor_reads_as_calm_and_knows_no_norm():
    guard = Guard(policies.percentile(), detectors.default())
    shot = decode.snapshot(guard, guard.init(0), name="m", paths=())
    assert shot.steps == 0
    assert math.isnan(shot.norm)
    assert shot.clip_norm == INF
    assert shot.explosion_threshold == INF
    assert shot.vanishing_threshold == 0.0
    assert shot.warmup
    assert shot.layer_norms == {}
    assert shot.last_explosion is None
    assert set(shot.anomalies) == set(shot.active) == set(shot.last_events) == set(KINDS)
    assert shot.norm_counts == (0,) * (len(BOUNDS) + 1)
    assert shot.norm_sum == 0.0
    assert shot.expected_clip_ratio == pytest.approx(0.1)


def test_warm_up_lasts_until_there_is_an_explosion_threshold():
    run = Run(Guard(policies.percentile(), detectors.spike(warmup_steps=5)))
    flags = [run.feed([1.0]).snapshot().warmup for _ in range(8)]
    assert flags == [True] * 5 + [False] * 3


def test_without_an_explosion_detector_there_is_nothing_to_warm_up():
    assert not Run(Guard(policies.fixed(1.0), ())).feed([1.0]).snapshot().warmup


def test_clip_scale_is_the_share_of_the_norm_that_was_applied():
    run = Run(Guard(policies.fixed(2.0), ()), variables=1)
    seen = [run.feed([x]).snapshot().clip_scale for x in (1.0, 4.0, 0.0, NAN, INF)]
    assert seen == [1.0, 0.5, 1.0, 0.0, 0.0]
    propagating = Run(Guard(policies.fixed(2.0), (), "propagate"), variables=1)
    assert [propagating.feed([x]).snapshot().clip_scale for x in (NAN, INF)] == [1.0, 1.0]


def test_layer_norms_are_those_of_the_last_step_by_variable():
    shot = Run(Guard(policies.observe(), ())).feed([[1.0, 2.0, 3.0]]).snapshot()
    assert shot.layer_norms == {"dense/kernel": 1.0, "dense/bias": 2.0, "out/kernel": 3.0}


def test_the_streak_of_nonfinite_steps_ends_with_a_finite_one():
    run = Run(Guard(policies.fixed(1.0), detectors.default()))
    assert [run.feed([x]).snapshot().nonfinite_streak for x in (1.0, NAN, INF, NAN, 1.0)] == [0, 1, 2, 3, 0]


def test_the_state_keeps_its_structure_and_stays_readable_whatever_comes_in():
    run = Run(Guard(policies.percentile(), detectors.default()))
    example = {path: np.shape(x) for path, x in _leaves(run.state)}
    for x in (NAN, 0.0, 1e-40, 1e30, INF, 3.4e38, 1e-30, 1.0):
        run.feed([x])
        assert {path: np.shape(leaf) for path, leaf in _leaves(run.state)} == example
        shot = run.snapshot()
        # NaN, which was first, is no norm to have quantiles of, and neither is zero
        assert all(math.isfinite(q) == (shot.max_norm > 0) for q in shot.quantiles.values())
        assert math.isfinite(shot.norm_sum)
        assert math.isfinite(shot.score)


def _leaves(tree, path=()):
    for name, x in tree.items():
        yield from _leaves(x, (*path, name)) if isinstance(x, dict) else [((*path, name), x)]


# -- finite numbers -----------------------------------------------------------------------------------------

HOSTILE = (NAN, INF, 0.0, 1e-45, 1e-40, 1e-30, 1.0, 1e15, 1e30, 1e36, 2e38, 3.4e38)
GUARDS = {
    "default": Guard(policies.percentile(), detectors.default()),
    "propagate": Guard(policies.observe(), detectors.default(), "propagate", "observe"),
    "skip": Guard(policies.zscore(), detectors.default(), "skip", "skip"),
    "per variable": Guard(policies.per_variable(), detectors.default(), "propagate"),
    "auto": Guard(policies.auto(), (detectors.spike(false_alarms_per_million=10), detectors.saturated())),
    "value": Guard(policies.value(0.5), ()),
}


def hostile_walks():
    rng = np.random.default_rng(8)
    calm = healthy(30)[:, None] * [0.5, 0.3, 0.8]
    for first in HOSTILE:
        yield np.concatenate([np.full((2, 3), first), calm[:6]])
        yield np.concatenate([calm[:3], np.full((3, 3), first), [[1.0, first, 1.0]], calm[:2]])
    yield np.concatenate([calm, rng.choice(HOSTILE, (60, 3))])


@pytest.mark.parametrize("name", GUARDS)
def test_no_number_of_the_state_is_ever_nan_or_inf(name):
    guard = GUARDS[name]
    layout = Layout(guard.init(3))
    assert np.all(np.isfinite(layout.pack(NUMPY, guard.init(3))))
    for walk in hostile_walks():
        run = Run(guard)
        for row in walk.astype(np.float32):
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                run.feed([row], applied=np.minimum(row, np.float32(0.1)))
            assert np.all(np.isfinite(layout.pack(NUMPY, run.state))), row
            finite = ("scale", "clip_norm", "threshold", "score", "verdict", "explosion", "finite")
            assert all(np.all(np.isfinite(getattr(run.last, field))) for field in finite)


def test_what_was_nan_or_inf_reads_as_it_was():
    run = Run(Guard(policies.observe(), detectors.default()))
    for x in (1.0, NAN, INF, 2e38):
        run.feed([[x, 1.0, 1.0]])
        shot = run.snapshot()
        for got in (shot.norm, shot.applied_norm, shot.layer_norms["dense/kernel"]):
            assert got == pytest.approx(x, nan_ok=True, rel=1e-6) or (x == 1.0 and got == pytest.approx(3**0.5))
        assert shot.clip_norm == INF
    history = decode.history(run.state)
    assert np.isnan(history["norm"][1])
    assert history["norm"][2] == INF
    assert history["norm"][3] == np.float32(2e38)
    assert np.all(history["clip_norm"] == INF)
    assert history["threshold"][0] == INF
    assert np.all(np.isfinite(history["threshold"][1:]))


@pytest.mark.parametrize(("row", "detail"), [
    ([NAN, 1.0, INF], "NaN"),
    ([INF, 1.0, 1.0], "Inf"),
    ([2e38, 1.0, 1.0], "overflow"),
    ([3.4e38, 3.4e38, 3.4e38], "overflow"),
    ([9e35, 9e35, 9e35], "overflow"),
])  # fmt: skip
def test_an_overflow_is_told_from_nan_and_from_inf(row, detail):
    run = Run(Guard(policies.fixed(1.0), detectors.default())).feed([1.0, row])
    event = run.snapshot().last_events["nonfinite"]
    assert event.detail == detail
    assert event.norm == pytest.approx({"NaN": NAN, "Inf": INF}.get(detail, event.norm), nan_ok=True)
    assert detail != "overflow" or 1e36 < event.norm < INF
    assert sum(event.shares.values()) == pytest.approx(1.0)


# -- one story ----------------------------------------------------------------------------------------------


def exploding_then(*later):
    return Run(Guard(policies.percentile(), detectors.default())).feed([*healthy(202), 1e3, 1e5, 1e8, *later])


def test_a_nan_that_follows_an_explosion_says_which_one():
    shot = exploding_then(NAN).snapshot()
    assert shot.last_explosion.step == 203
    assert shot.last_events["nonfinite"].step == 206
    assert shot.last_events["nonfinite"].follows == 203
    assert shot.last_explosion.follows is None


@pytest.mark.parametrize(("calm", "follows"), [(0, 203), (30, 203), (49, 203), (60, None)])
def test_a_nan_long_after_an_explosion_is_a_story_of_its_own(calm, follows):
    event = exploding_then(*healthy(calm, seed=1), NAN).snapshot().last_events["nonfinite"]
    assert event.follows == follows


def test_a_nan_without_an_explosion_follows_nothing():
    assert (
        Run(Guard(policies.fixed(1.0), detectors.default()))
        .feed([1.0, NAN])
        .snapshot()
        .last_events["nonfinite"]
        .follows
        is None
    )


def test_a_rate_that_kills_in_the_first_steps_is_one_story_too():
    # a two-layer transformer at rate 0.3
    run = Run(Guard(policies.percentile(), detectors.default()))
    shot = run.feed([4.0, 52.0, 3e3, 6e5, 1e7, 2e9, 1e11, 8e12, 1e13, NAN]).snapshot()
    assert shot.explosions == 1
    assert shot.last_explosion.step == 2
    assert shot.last_events["nonfinite"].follows == 2


def test_saturated_clipping_that_follows_an_explosion_says_so():
    shot = exploding_then(*[NAN] * 60).snapshot()
    assert shot.active["saturated"]
    assert shot.last_events["saturated"].follows == 203


@pytest.mark.parametrize(("row", "culprits"), [
    ([NAN, 1.0, 1.0], ["dense/kernel"]),
    ([NAN, 1.0, NAN], ["dense/kernel", "out/kernel"]),
    ([NAN, NAN, NAN], []),
])  # fmt: skip
def test_shares_that_say_nothing_name_nobody(row, culprits):
    event = Run(Guard(policies.fixed(1.0), detectors.default())).feed([1.0, row]).snapshot().last_events["nonfinite"]
    assert list(event.culprits) == culprits


def test_shares_of_four_percent_name_nobody():
    paths = [f"w{i}" for i in range(25)]
    guard = Guard(policies.fixed(1.0), detectors.default())
    state, _ = guard.step(NUMPY, guard.init(25), np.full(25, NAN, np.float32))
    event = decode.snapshot(guard, state, name="m", paths=paths).last_events["nonfinite"]
    assert event.shares["w0"] == pytest.approx(0.04)
    assert event.culprits == {}
    assert Event("explosion", 1, 1.0, 1.0, {"only": 1.0}).culprits == {"only": 1.0}


# -- loss scaling -------------------------------------------------------------------------------------------


def test_under_loss_scaling_the_default_becomes_patient_and_a_patience_that_was_given_stays():
    mine = detectors.nonfinite(patience=1), detectors.nonfinite(patience=2, cooldown_steps=50)
    assert Guard(policies.percentile(), mine).under_loss_scaling().detectors == mine
    [patient] = Guard(policies.percentile(), "nonfinite").under_loss_scaling().detectors
    assert patient == detectors.nonfinite(patience=10)
    [calm] = Guard(policies.percentile(), "nonfinite(cooldown_steps=50)").under_loss_scaling().detectors
    assert calm == detectors.nonfinite(patience=10, cooldown_steps=50)


def test_a_patience_of_1_is_the_default_elsewhere_and_another_value():
    assert detectors.nonfinite(patience=1) != detectors.nonfinite()
    assert repr(detectors.nonfinite(patience=1)) == "nonfinite(patience=1)"
    pair = detectors.nonfinite(), detectors.nonfinite(patience=1)
    first = [replay.detector(detector, [1.0, math.nan]).alarm for detector in pair]
    np.testing.assert_array_equal(*first)


def test_a_detector_of_ones_own_with_the_name_of_ours_is_left_alone():
    mine = Detector("nonfinite", detectors.nonfinite().name, lambda n: {}, lambda xp, s, n: (s, ~n.finite, {}))
    assert Guard(policies.percentile(), mine).under_loss_scaling().detectors == (mine,)


# -- one truth ----------------------------------------------------------------------------------------------


def test_kinds_are_ordered_by_severity_and_whatever_ranks_them_agrees():
    assert KINDS == ("nonfinite", "explosion", "saturated", "vanishing", "trend")
    assert set(FOLLOWERS) < set(KINDS)


def test_warmup_is_the_detectors_whatever_the_policy_does():
    warming = Run(Guard(policies.fixed(1.0), detectors.spike())).feed([1.0] * 25)
    assert warming.snapshot().warmup
    assert not warming.feed([1.0]).snapshot().warmup
    assert math.isfinite(warming.snapshot().explosion_threshold), "there is one from the second step on"
