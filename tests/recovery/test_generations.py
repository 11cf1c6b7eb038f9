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
        for lost in generations.harmed(step, calm(step)):
            generations.remove(lost)
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
    assert all(g.healthy and g.step <= 350 for g in generations.kept)


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
