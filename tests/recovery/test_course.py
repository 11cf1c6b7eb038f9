"""Which rung answers which trouble: a table of streams and answers, without TensorFlow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwatch import policies, recovery
from gradwatch.core.snapshot import RUNGS
from gradwatch.recovery import course
from gradwatch.recovery.course import ANSWERS, REASONS, Course, Rate
from gradwatch.recovery.set_rate import SetRate
from gradwatch.recovery.signs import Rows, Signs, Trouble


def trouble(cause="lost", step=100, lasted=50):
    return Trouble(cause, step, lasted, f"{cause} for {lasted} steps")


def answers(ladder, cause, times, *, every=60, **known):
    """The rungs that answer the same trouble, `every` steps apart."""
    one = Course(ladder)
    found = [one.answer(1000 + i * every, trouble(cause), **known) for i in range(times)]
    return [None if a is None else a.rungs for a in found]


BACK, LOWER, BOTH, STOP = ("rollback",), ("lower",), ("rollback", "lower"), ("stop",)


@pytest.mark.parametrize(
    ("cause", "reason", "expected"),
    [
        ("dropping", None, [LOWER, None, None]),
        ("held", None, [LOWER, None, None]),
        ("saturated", None, [LOWER, LOWER, BOTH, BOTH, STOP]),
        ("exploding", None, [LOWER, BOTH, BOTH, STOP]),
        ("lost", None, [BOTH] * 6 + [STOP, STOP]),
        ("lost", "rate", [BOTH] * 6 + [STOP]),
        ("lost", "data", [BACK, *[BOTH] * 4, STOP]),
        ("lost", "damage", [BACK, *[BOTH] * 5, STOP]),
        ("nonfinite", None, [BACK, BOTH, BOTH, BOTH, STOP]),
        ("nonfinite", "data", [BACK, BOTH, STOP]),
        ("nonfinite", "rate", [BOTH] * 4 + [STOP]),
        ("poisoned", None, [BACK, BACK, STOP]),
    ],
)
def test_each_trouble_is_answered_by_the_table_and_in_the_end_by_the_stop(cause, reason, expected):
    assert answers(recovery.ladder(), cause, len(expected), reason=reason) == expected


@pytest.mark.parametrize(
    ("rungs", "cause", "expected"),
    [
        ((recovery.lower(),), "lost", [LOWER, LOWER]),
        ((recovery.lower(),), "saturated", [LOWER, LOWER]),
        ((recovery.lower(),), "poisoned", [None, None]),
        ((recovery.rollback(),), "lost", [BACK, BACK]),
        ((recovery.rollback(),), "saturated", [BACK, BACK, None]),
        ((recovery.stop(),), "lost", [STOP]),
        ((recovery.stop(),), "nonfinite", [STOP]),
        ((recovery.stop(),), "dropping", [None]),
        ((recovery.skip(),), "lost", [None]),
        ((recovery.rollback(), recovery.stop()), "exploding", [BACK, BACK, STOP]),
    ],
)
def test_each_rung_can_be_used_alone(rungs, cause, expected):
    assert answers(recovery.ladder(*rungs), cause, len(expected)) == expected


def test_every_answer_is_made_of_rungs_and_every_reason_belongs_to_a_cause():
    for row in (*ANSWERS.values(), *REASONS.values()):
        assert {rung for answer in row for rung in answer} <= set(RUNGS)
    assert {cause for cause, _ in REASONS} <= set(ANSWERS)


def test_trouble_after_a_long_calm_is_a_new_one():
    one = Course(recovery.ladder())
    assert one.answer(1000, trouble("saturated")).rungs == LOWER
    assert one.answer(1000 + course.SAME_STEPS + 1, trouble("saturated")).rungs == LOWER
    assert one.answer(1000 + course.SAME_STEPS + 61, trouble("saturated")).rungs == LOWER
    assert one.answer(1000 + course.SAME_STEPS + 121, trouble("saturated")).rungs == BOTH


def test_a_lowered_rate_gets_time_to_show():
    one = Course(recovery.ladder())
    assert one.answer(1000, trouble("saturated")).rungs == LOWER
    assert one.answer(1010, trouble("saturated")) is None
    assert one.answer(1049, trouble("saturated")) is None
    assert one.answer(1050, trouble("saturated")).rungs == LOWER


def test_more_rollbacks_than_the_bound_are_answered_by_the_stop():
    ladder = recovery.ladder(recovery.rollback(most=2, window=1000), recovery.lower(), recovery.stop())
    assert answers(ladder, "lost", 3) == [BOTH, BOTH, STOP]
    # an old rollback no longer counts
    assert answers(ladder, "lost", 3, every=600) == [BOTH, BOTH, BOTH]


def test_a_second_explosion_right_after_the_rollback_goes_back_further():
    one = Course(recovery.ladder())
    assert not one.answer(1000, trouble()).older
    assert one.answer(1060, trouble()).older
    assert not one.answer(1400, trouble()).older


def test_broken_data_is_waited_for_and_then_stopped_and_never_answered_by_going_back():
    one = Course(recovery.ladder())
    for lasted in range(10, 100, 10):
        assert one.answer(1000 + lasted, trouble("nonfinite", lasted=lasted), broken=True) is None
    assert one.answer(1100, trouble("nonfinite", lasted=100), broken=True).rungs == STOP
    endless = Course(recovery.ladder(recovery.rollback(), recovery.lower()))
    assert endless.answer(9000, trouble("nonfinite", lasted=5000), broken=True) is None


def test_data_that_hurt_healthy_weights_at_once_are_taken_back_at_each_look_and_lower_no_rate():
    one = Course(recovery.ladder())
    assert one.answer(1010, trouble(lasted=10), reason="data").rungs == BACK
    found = [one.answer(step, trouble(step=step - 9, lasted=10), broken=True) for step in range(1020, 1110, 10)]
    assert {a.rungs for a in found} == {BACK}, "nine more, though six are allowed: they are one"
    assert not any(a.older for a in found), "the newer snapshot is not to blame"
    assert one.scale(1110) == 1.0
    assert one.answer(1110, trouble(step=1101, lasted=10), broken=True).rungs == STOP
    # the data are well again for a while: another stretch is another one
    other = Course(recovery.ladder())
    other.answer(1020, trouble(lasted=10), broken=True)
    other.answer(1100, trouble("saturated"))
    assert other.answer(1130, trouble(lasted=10), broken=True).rungs == BACK
    assert Course(recovery.ladder(recovery.lower())).answer(1020, trouble(lasted=10), broken=True) is None


# -- the rate ---------------------------------------------------------------------------------------------


def test_the_rate_is_held_and_comes_back_geometrically():
    rate = Rate(recovery.lower(factor=0.1, hold_steps=100, return_steps=400))
    assert rate.at(50) == 1.0
    assert rate.lower(1000, None) == pytest.approx(0.1)
    assert rate.at(1000) == rate.at(1100) == pytest.approx(0.1)
    for t in (0.25, 0.5, 0.75):
        assert rate.at(1100 + int(400 * t)) == pytest.approx(0.1 ** (1 - t))
    assert rate.at(1500) == rate.at(10**6) == 1.0


def test_a_rate_at_which_it_came_again_is_not_reached_again():
    rate = Rate(recovery.lower(factor=0.1, hold_steps=100, return_steps=400))
    rate.lower(1000, None)
    came = rate.at(1400)  # 10^-0.25
    assert rate.lower(1400, None) == pytest.approx(came * 0.1)
    assert rate.at(10**6) == pytest.approx(came * 0.1)
    # soon after the way back was over, too
    other = Rate(recovery.lower())
    other.lower(1000, None)
    assert other.at(2000) == 1.0
    other.lower(2000, None)
    assert other.at(10**6) == pytest.approx(0.1)
    # long after it, no longer
    third = Rate(recovery.lower())
    third.lower(1000, None)
    third.lower(1000 + course.REMEMBERED_STEPS, None)
    assert third.at(10**6) == 1.0


def test_a_rate_that_is_far_down_takes_as_long_for_each_factor():
    rate = Rate(recovery.lower(factor=0.1, hold_steps=100, return_steps=400))
    rate.lower(1000, 10.0)  # an update that moves ten times the weights' norm: to a hundredth of their norm
    assert rate.at(1100) == pytest.approx(1e-3)
    assert rate.at(1500) == pytest.approx(1e-2)
    assert rate.at(2300) == rate.at(10**9) == 1.0


@pytest.mark.parametrize(
    ("ratio", "expected"), [(None, 0.1), (0.05, 0.1), (0.2, 0.05), (100.0, 1e-4), (1e9, 1e-6), (math.inf, 0.1)]
)
def test_an_update_that_moves_the_weights_too_far_says_how_much_to_lower(ratio, expected):
    assert Rate(recovery.lower()).lower(1000, ratio) == pytest.approx(expected)


def test_a_rate_at_its_least_is_not_lowered_further_and_the_next_rung_answers():
    ladder = recovery.ladder(recovery.lower(least=0.05), recovery.stop())
    assert answers(ladder, "saturated", 3) == [LOWER, LOWER, STOP]


# -- whole streams ----------------------------------------------------------------------------------------


def rows(first, losses, norms=1.0, threshold=10.0, verdict=0, kept=1.0):
    count = len(losses)
    return Rows(
        np.arange(first, first + count),
        np.broadcast_to(np.asarray(norms, float), (count,)),
        np.full(count, threshold),
        np.broadcast_to(np.asarray(verdict), (count,)),
        np.asarray(losses, float),
        np.broadcast_to(np.asarray(kept, float), (count,)),
    )


def healthy(signs, steps, *, seed=0, loss=1.0):
    rng = np.random.default_rng(seed)
    for i in range(0, steps, 10):
        signs.read(rows(signs.last_step + 1, loss + 0.1 * rng.standard_normal(10)), {})
        assert signs.trouble() is None, i
    return signs


def test_a_noisy_run_whose_loss_falls_by_decades_is_never_in_trouble():
    rng = np.random.default_rng(1)
    signs = Signs(50)
    for i in range(0, 5000, 10):
        level = 3.0 * math.exp(-i / 800) + 0.01
        # one explosion in fifty, which the policy clips
        norms = np.where(rng.random(10) < 0.02, 50.0, 1.0)
        signs.read(rows(i + 1, level * np.exp(0.3 * rng.standard_normal(10)), norms), {"explosion": False})
        assert signs.trouble() is None
    assert signs.calm_steps > 100


def test_a_loss_that_does_not_come_back_after_an_explosion_is_lost_after_the_patience():
    signs = healthy(Signs(50), 300)
    for i in range(10):
        signs.read(rows(301 + 10 * i, [2.5] * 10, [50.0] + [1.0] * 9 if i == 0 else 1.0), {})
        found = signs.trouble()
        if found is not None:
            break
    assert found.cause == "lost"
    # the median of seven follows by four steps
    assert 50 <= 10 * (i + 1) <= 60
    assert 301 <= found.step <= 305
    assert signs.calm_steps == 0


def test_a_loss_that_comes_back_within_the_patience_is_no_trouble():
    signs = healthy(Signs(50), 300)
    signs.read(rows(301, [2.5] * 40, [50.0] + [1.0] * 39), {})
    signs.read(rows(341, [1.0] * 40), {})
    assert signs.trouble() is None
    # and 34 calm steps later, the median of seven being four late
    assert signs.calm_steps >= 34


def test_a_loss_that_moves_without_an_anomaly_is_other_data_and_becomes_the_new_normal():
    signs = healthy(Signs(50), 300)
    for _ in range(30):
        signs.read(rows(signs.last_step + 1, [2.0] * 10), {})
        assert signs.trouble() is None
    assert signs.calm_steps >= 50
    assert signs.usual_loss == pytest.approx(2.0)


def test_other_data_whose_first_gradient_explodes_become_the_new_normal_too():
    signs = healthy(Signs(50), 800)
    rng = np.random.default_rng(2)
    # within the wide band but for a few steps
    signs.read(rows(801, [3.0, 2.5, 2.0, 1.8, 1.7, *[1.5] * 5], [12.0] + [1.0] * 9), {})
    for _ in range(30):
        signs.read(rows(signs.last_step + 1, 1.45 + 0.1 * rng.standard_normal(10)), {})
        assert signs.trouble() is None
    assert signs.usual_loss == pytest.approx(1.45, abs=0.05)


def test_while_the_rate_is_on_trial_a_loss_that_creeps_away_is_lost_without_an_anomaly():
    signs = healthy(Signs(50), 300, loss=0.5)
    signs.on_trial = True
    for i in range(100):
        loss = 0.5 * 1.005 ** (10 * i)
        signs.read(rows(signs.last_step + 1, loss + 0.02 * np.random.default_rng(i).standard_normal(10)), {})
        if signs.trouble() is not None:
            break
    assert signs.trouble().cause == "lost"
    assert loss < 2.0
    # a level that follows the drift sees nothing of it
    follows = healthy(Signs(50), 300, loss=0.5)
    for i in range(100):
        loss = 0.5 * 1.001 ** (10 * i)
        follows.read(rows(follows.last_step + 1, loss + 0.02 * np.random.default_rng(i).standard_normal(10)), {})
        assert follows.trouble() is None


def test_while_the_rate_is_on_trial_a_rise_within_the_noise_is_lost_if_it_lasts():
    signs = healthy(Signs(50), 300)
    signs.on_trial = True
    healthy(signs, 400, seed=1)
    rng = np.random.default_rng(2)
    while signs.last_step < 900:
        # by 1.2 deviations of a single loss: 12 %
        signs.read(rows(signs.last_step + 1, 1.12 + 0.1 * rng.standard_normal(10)), {})
        if signs.trouble() is not None:
            break
    assert signs.trouble().cause == "lost"
    assert 710 < signs.last_step <= 800
    assert signs.calm_steps < 10


def test_a_noisy_loss_at_a_rate_on_trial_that_falls_is_in_no_trouble():
    rng = np.random.default_rng(3)
    signs = healthy(Signs(50), 300)
    signs.on_trial = True
    for i in range(0, 3000, 10):
        signs.read(rows(signs.last_step + 1, 0.5 + 0.5 * math.exp(-i / 1000) + 0.1 * rng.standard_normal(10)), {})
        assert signs.trouble() is None, i


def test_a_loss_far_above_the_first_one_is_lost_after_ten_steps_if_the_gradients_exploded():
    for norm in (50.0, 1.0):
        signs = Signs(50)
        signs.read(rows(1, [2.3] + [1e5] * 9, [1.0] + [norm] * 9), {})
        assert signs.trouble() is None
        signs.read(rows(11, [1e5] * 2), {})
        # a loss that begins near zero may well be a hundred times as large at the next step
        assert (signs.trouble() is not None) == (norm == 50.0)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_ten_steps_without_a_finite_gradient_are_no_bad_batch(norm):
    signs = healthy(Signs(50), 300)
    signs.read(rows(301, [math.nan] * 9, norm, verdict=2), {"nonfinite": True})
    assert signs.trouble() is None
    signs.read(rows(310, [math.nan], norm, verdict=2), {"nonfinite": True})
    assert signs.trouble() == Trouble("nonfinite", 301, 10, "10 steps without a finite gradient", sudden=True)


def test_a_loss_scale_that_looks_for_its_value_is_no_trouble():
    signs = Signs(50)
    signs.read(rows(1, [2.3] * 30, math.inf, verdict=3), {"nonfinite": True})
    assert signs.trouble(loss_scaled=True) is None
    assert signs.trouble(loss_scaled=False).cause == "nonfinite"


def test_more_dropped_updates_than_the_bound_are_no_bad_batches():
    signs = healthy(Signs(50, 3, 50), 300)
    for i in range(4):
        assert signs.trouble() is None
        signs.read(rows(301 + 10 * i, [1.0] * 10, [math.nan] + [1.0] * 9, verdict=[2] + [0] * 9), {})
    assert signs.trouble().cause == "dropping"
    assert signs.trouble(loss_scaled=True) is None, "a loss scale that looks for its value"
    signs.read(rows(341, [1.0] * 50), {})
    assert signs.trouble() is None


def saturated(*, loss, norm=50.0, steps=70, **row):
    """A run that exploded at once and lives on its brakes since."""
    signs = Signs(50)
    signs.read(rows(1, [2.3] * 10), {})
    for i in range(steps // 10):
        signs.read(rows(11 + 10 * i, [loss] * 10, norm if i == 0 else row.get("later", 1.0)), {"saturated": True})
    return signs.trouble()


def test_a_saturated_run_that_learns_nothing_after_an_explosion_is_in_trouble():
    assert saturated(loss=2.3).cause == "saturated"
    assert saturated(loss=2.3, steps=40) is None, "not at once"


def test_a_run_that_is_clipped_hard_on_purpose_is_left_alone():
    assert saturated(loss=2.3, norm=1.0) is None, "it never exploded"
    assert saturated(loss=1.9) is None, "it learns"


def held(kept, *, holds_rate=True, steps=400, falls=0.0, loss=2.0):
    """A run in which clipping leaves so much of each norm; its loss has a deviation of 0.1 and falls so much a step."""
    signs, rng = Signs(50, holds_rate=holds_rate), np.random.default_rng(0)
    for i in range(0, steps, 10):
        shares = np.minimum(kept * np.exp(0.5 * rng.standard_normal(10)), 1.0)
        losses = loss - falls * (i + np.arange(10)) + 0.1 * rng.standard_normal(10)
        signs.read(rows(i + 1, losses, kept=shares), {})
    return signs


def test_a_rate_at_which_a_run_lives_by_clipping_alone_is_told_with_the_share_that_is_left():
    trouble = held(0.04).trouble()
    assert (trouble.cause, trouble.step, trouble.lasted) == ("held", 301, 100)
    assert trouble.kept == pytest.approx(0.04, rel=0.2)


def test_clipping_that_leaves_more_or_was_asked_for_or_has_just_begun_holds_nothing():
    assert held(0.3).trouble() is None
    assert held(0.04, holds_rate=False).trouble() is None, "the person set that bound"
    assert held(0.04, falls=0.0003).trouble() is None, "it learns"
    assert held(0.04, steps=390).trouble() is None, "it may be learning"
    assert held(0.04, loss=math.nan).trouble() is None, "nobody knows"
    signs = held(1.0)
    for i in range(400, 460, 10):
        signs.read(rows(i + 1, [2.0] * 10, kept=0.01), {})
        assert signs.trouble() is None, "a jump of sixty steps may end by itself"
    signs = held(0.04)
    signs.lowered()
    assert signs.trouble() is None, "the rate is another one now"


def test_only_a_policy_that_finds_the_rate_by_itself_holds_it():
    assert policies.auto().holds_rate
    assert policies.bounded(policies.auto(), maximum=5.0).holds_rate
    assert policies.after(10, policies.auto()).holds_rate
    assert policies.smallest(policies.auto(), policies.fixed(1.0)).holds_rate
    assert not policies.fixed(1.0).holds_rate
    assert not policies.smallest(policies.percentile(90), policies.fixed(1.0)).holds_rate


def test_a_held_rate_is_lowered_for_good_to_half_of_what_the_clipping_left_of_it():
    rate = Rate(recovery.lower())
    assert rate.lower_to_what_was_kept(100, 0.04) == pytest.approx(0.02)
    assert rate.at(100) == rate.at(200) == rate.at(100_000) == pytest.approx(0.02)
    assert not rate.is_on_trial(200), "it is known how much too high it was"
    # held once more, at the rate as it is now
    assert rate.lower_to_what_was_kept(900, 0.05) == pytest.approx(0.02 * 0.025)
    # what is worse is answered as ever, and does not come back further than this
    assert rate.lower(1000, None) == pytest.approx(0.02 * 0.025 * 0.1)
    assert rate.at(100_000) == pytest.approx(0.02 * 0.025)


def test_an_answer_to_a_held_rate_uses_what_was_left():
    one = Course(recovery.ladder())
    answer = one.answer(100, trouble("held", lasted=100)._replace(kept=0.04))
    assert (answer.rungs, answer.scale) == (LOWER, pytest.approx(0.02))
    assert one.share(5000) == pytest.approx(0.02)


def test_without_a_loss_a_lasting_explosion_is_what_tells():
    signs = Signs(50)
    for i in range(0, 300, 10):
        signs.read(rows(i + 1, [math.nan] * 10), {"explosion": False})
        assert signs.trouble() is None
    assert signs.calm_steps >= 290
    for i in range(300, 360, 10):
        signs.read(rows(i + 1, [math.nan] * 10, 50.0), {"explosion": True})
    assert signs.trouble().cause == "exploding"
    assert signs.calm_steps == 0


def test_one_loss_for_a_call_of_many_steps_is_the_loss_of_each():
    signs = Signs(50)
    for _ in range(20):
        signs.read(rows(signs.last_step + 1, [math.nan] * 29 + [1.0]), {})
        assert signs.trouble() is None
    assert signs.usual_loss == 1.0
    assert signs.calm_steps == 600
    signs.read(rows(601, [math.nan] * 29 + [1e4], [50.0] + [1.0] * 29), {})
    assert signs.trouble().cause == "lost"


def test_what_the_steps_said_before_the_weights_were_set_back_is_forgotten_and_the_usual_loss_is_not():
    signs = healthy(Signs(50), 300)
    signs.read(rows(301, [math.nan] * 20, math.nan, verdict=2), {"nonfinite": True})
    assert signs.trouble() is not None
    assert not signs.never_finite
    signs.forget()
    assert signs.trouble() is None
    assert signs.usual_loss == pytest.approx(1.0, abs=0.05)
    signs.read(rows(321, [math.nan] * 5, math.nan, verdict=2), {})
    assert signs.never_finite
    signs.read(rows(326, [1.0] * 5), {})
    assert not signs.never_finite


def test_losses_that_are_wild_from_the_first_one_on_are_none_that_the_weights_led_to():
    signs = healthy(Signs(50), 300)
    assert not signs.never_well
    signs.read(rows(301, [1e5] * 20, 50.0), {})
    signs.forget()
    assert not signs.never_well, "nothing was seen yet"
    signs.read(rows(321, [1e5] * 10, 50.0), {})
    assert signs.never_well
    signs.forget()
    # the loss of the healthy weights is well, then the rate throws them away
    signs.read(rows(331, [1.0] + [1e5] * 9, [1.0] + [50.0] * 9), {})
    assert signs.trouble() is None
    assert not signs.never_well


def test_a_limit_goes_on_rising_beyond_the_rate_that_was_too_high():
    rate = Rate(recovery.lower(factor=0.1, hold_steps=100, return_steps=400))
    assert rate.unbounded(50) == math.inf, "nothing was too high yet"
    rate.lower(1000, None)
    assert rate.unbounded(1100) == pytest.approx(0.1)
    assert rate.unbounded(1900) == pytest.approx(10.0)
    assert rate.at(1900) == 1.0
    assert rate.unbounded(10**7) == math.inf


def test_trouble_at_a_rate_that_no_limit_touched_starts_anew():
    rate = Rate(recovery.lower())
    rate.lower(1000, None)
    assert rate.lower(1100, None, anew=True) == pytest.approx(0.1), "not a hundredth"
    assert rate.at(10**6) == 1.0, "and no ceiling of another rate"


# -- the rate that is set ---------------------------------------------------------------------------------


def add(rate, step, *set_in_each):
    """The rates of the steps that end with this one."""
    steps = np.arange(step - len(set_in_each) + 1, step + 1)
    rate.add(steps, np.array(set_in_each, np.float32))


def test_what_is_limited_is_the_rate_that_was_too_high_and_not_a_share_of_any_rate():
    rate = SetRate(patience=50)
    for step in range(10, 500, 10):
        add(rate, step, 1e-3)
    for step in range(500, 540, 10):
        add(rate, step, 3.0)
    assert rate.limit(0.1) == math.inf
    assert rate.scale(math.inf) == 1.0
    assert rate.is_below_limit(505, 0, math.inf)
    rate.blame(505, 0, anew=True)
    assert rate.limit(0.1) == pytest.approx(0.3)
    assert rate.scale(0.1) == pytest.approx(0.1), "3.0 is still set"
    add(rate, 540, 1e-3)
    assert rate.scale(0.1) == 1.0, "1e-3 is below the limit"
    # the same rate again, and then trouble at another one that the limit does not touch
    add(rate, 600, 3.0)
    assert not rate.is_below_limit(595, 540, 0.1)
    add(rate, 700, 1e-3)
    assert rate.is_below_limit(695, 600, 0.1)
    rate.blame(695, 600, anew=True)
    assert rate.limit(0.1) == pytest.approx(1e-4)


def test_a_rate_that_is_not_known_is_lowered_by_a_share():
    rate = SetRate(patience=50)
    add(rate, 10, math.nan)
    assert not rate.is_below_limit(5, 0, 0.1)
    rate.blame(5, 0, anew=False)
    assert rate.limit(0.1) == math.inf
    assert rate.scale(0.1) == 0.1
    assert rate.scale(math.inf) == 1.0


def test_of_many_steps_in_one_look_each_ten_have_a_highest_rate_of_their_own():
    rate = SetRate(patience=10)
    add(rate, 100, *[3.0] * 60, *[1e-3] * 40)
    rate.blame(95, 0, anew=True)
    assert rate.limit(1.0) == pytest.approx(1e-3), "3.0 was set until step 60"
    assert rate.newest == pytest.approx(1e-3)
    assert rate.highest == pytest.approx(1e-3)
