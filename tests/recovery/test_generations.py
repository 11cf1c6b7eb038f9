"""When a snapshot is taken, when it counts as healthy, and to which one a run goes back."""

from __future__ import annotations

from gradwatch import recovery
from gradwatch.recovery.generations import Generation, Generations


def run(calm, *, every=50, calm_steps=25, look_every=10):
    """Looks every ten steps; `calm(step)` are the calm steps then. (generations, what was taken when)"""
    generations = Generations(recovery.rollback(every=every, calm_steps=calm_steps))
    generations.add(Generation(0, "start", healthy=True))
    taken = []
    for step in range(look_every, 500, look_every):
        generations.harm(step, calm(step))
        generations.ripe(step, calm(step))
        if generations.is_due(step, calm(step)):
            for old in generations.to_drop():
                generations.remove(old)
            generations.add(Generation(step, f"at {step}"))
            taken.append(step)
        assert len(generations.kept) <= 2
        assert sum(not g.healthy for g in generations.kept) <= 1
        assert generations.target() is not None, "there is always somewhere to go back to"
    return generations, taken


def test_a_calm_run_takes_one_every_n_steps_and_keeps_two():
    generations, taken = run(lambda step: step)
    assert taken == list(range(50, 500, 50))
    assert [g.step for g in generations.kept] == [400, 450]
    assert generations.target().step == 450
    assert generations.target(older=True).step == 400


def test_a_snapshot_is_healthy_only_after_the_run_stayed_calm():
    generations = Generations(recovery.rollback(every=50, calm_steps=25))
    generations.add(Generation(0, "start", healthy=True))
    generations.add(Generation(50, "young"))
    assert generations.ripe(70, 70) == []
    assert generations.target().step == 0
    assert [g.step for g in generations.ripe(80, 80)] == [50]
    assert generations.target().step == 50
    assert generations.target(older=True).step == 0


def test_a_snapshot_from_shortly_before_harm_never_counts_as_healthy():
    generations, taken = run(lambda step: step if step <= 410 else 0)
    assert 400 in taken
    assert [(g.step, g.healthy) for g in generations.kept] == [(350, True), (400, False)]
    assert generations.target().step == 350


def test_it_is_a_candidate_for_trouble_that_came_at_once_and_for_no_other():
    generations, _ = run(lambda step: step if step <= 410 else min(step - 412, 20))
    assert generations.kept[-1].harmed_at == 412
    assert generations.candidate(412).step == 400
    assert generations.candidate(400) is None, "it was taken when the trouble had begun"
    assert generations.candidate(450) is None, "something was wrong before this trouble"


def test_a_candidate_that_is_healthy_by_now_is_the_target():
    generations, _ = run(lambda step: step)
    assert generations.target().step == 450
    assert generations.candidate(500) is None


def test_what_was_harmed_makes_room_for_the_next():
    generations, taken = run(lambda step: step if step <= 410 else step - 412)
    assert taken[-1] == 450
    assert [(g.step, g.healthy, g.harmed_at) for g in generations.kept] == [(350, True, None), (450, True, None)]


def test_it_says_when_one_may_be_due_or_ripe():
    generations = Generations(recovery.rollback(every=50, calm_steps=25))
    generations.add(Generation(0, "start", healthy=True))
    assert [step for step in range(0, 100, 10) if generations.wants(step)] == [50, 60, 70, 80, 90]
    generations.add(Generation(50, "young"))
    assert [step for step in range(50, 120, 10) if generations.wants(step)] == [80, 90, 100, 110]
    generations.ripe(80, 80)
    assert [step for step in range(50, 120, 10) if generations.wants(step)] == [100, 110]


def test_none_is_taken_until_the_run_is_calm_again():
    _, taken = run(lambda step: step if step < 200 else max(0, step - 300))
    assert not [step for step in taken if 200 <= step < 325]
    assert next(step for step in taken if step >= 325) <= 340


def test_one_that_could_not_be_taken_is_tried_again_later():
    generations = Generations(recovery.rollback(every=50))
    generations.add(Generation(0, "start", healthy=True))
    assert generations.is_due(50, 50)
    generations.tried(50)
    assert not generations.is_due(60, 60)
    assert generations.is_due(100, 100)
