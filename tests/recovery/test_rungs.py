"""What may be given as recover=, and what is refused with a reason."""

from __future__ import annotations

import copy
import pickle

import pytest

from gradwatch import recovery
from gradwatch.errors import ConfigError
from gradwatch.recovery.rungs import ladder_of


def test_a_ladder_has_all_four_rungs_unless_some_are_named():
    whole = recovery.ladder()
    assert (whole.skip, whole.lower) == (recovery.skip(), recovery.lower())
    assert (whole.rollback, whole.stop) == (recovery.rollback(), recovery.stop())
    part = recovery.ladder(recovery.stop(), recovery.lower(factor=0.5))
    assert part.lower.factor == 0.5
    assert part.skip is part.rollback is None


def test_recover_takes_a_ladder_a_rung_or_several():
    assert ladder_of(None) is None
    assert ladder_of(recovery.stop()) == ladder_of([recovery.stop()]) == recovery.ladder(recovery.stop())
    assert ladder_of(recovery.ladder()) == recovery.ladder()


def test_ladders_are_equal_copied_and_pickled_by_their_arguments():
    one = recovery.ladder(recovery.rollback(every=7, directory="x"), recovery.lower())
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert one != recovery.ladder(recovery.rollback(every=8, directory="x"), recovery.lower())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recovery.skip(0), "most must be >= 1"),
        (lambda: recovery.lower(1.0), "factor must be > 0 and < 1"),
        (lambda: recovery.lower(least=0.0), "least must be > 0 and < 1"),
        (lambda: recovery.lower(hold_steps=0.5), "hold_steps must be"),
        (lambda: recovery.rollback(every=0), "every must be >= 1"),
        (lambda: recovery.rollback(directory=""), "directory must be a folder"),
        (lambda: recovery.rollback(directory=3), "directory must be a folder"),
        (lambda: recovery.stop(exit_code=256), "exit_code must be"),
        (lambda: recovery.ladder("rollback"), "ladder takes rungs"),
        (lambda: recovery.ladder(recovery.stop(), recovery.stop()), "each rung once, got stop twice"),
        (lambda: recovery.ladder(patience=5), "patience must be >= 10"),
        (lambda: ladder_of(True), "recover must be a ladder"),
        (lambda: ladder_of([]), "recover must be a ladder"),
        (lambda: ladder_of("all"), "recover must be a ladder"),
    ],
)
def test_a_wrong_argument_says_what_was_wrong(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
