"""What a saved state is of: it restores into the same policy and kinds of detectors over the same variables."""

from __future__ import annotations

import json

from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Guard
from gradwatch.errors import LayoutError
from gradwatch.tf.variables import VariableSet, first_difference


def of(guard: Guard, layout: str, variables: VariableSet) -> str:
    """The fingerprint of a state.

    A policy counts with its arguments. Of a detector only the kind does: its thresholds are settings, and what it has
    learned of the norms stays true under others.

    Args:
      layout: of the state, as a short text.
    """
    kinds = ", ".join(d.name if type(d) is Detector else type(d).__name__ for d in guard.detectors)
    return json.dumps([guard.policy.name, kinds, layout, variables.fingerprint()])


def check(name: str, saved: str, ours: str) -> None:
    """LayoutError where a state was not written by the same policy and detectors over the same variables."""
    cure = "restore with the same model, policy and detectors, or leave the monitor out of the checkpoint"
    if not saved.startswith("["):
        raise LayoutError(f"the state of monitor {name!r} was written by an older gradwatch; {cure}")
    policy, kinds, layout, variables = json.loads(saved)
    our_policy, our_kinds, our_layout, our_variables = json.loads(ours)
    difference = first_difference(variables, our_variables)
    if difference:
        raise LayoutError(f"the state of monitor {name!r} is of other variables: {difference}; {cure}")
    if policy != our_policy:
        raise LayoutError(
            f"the state of monitor {name!r} was written with {policy}, and this monitor runs {our_policy}; {cure}"
        )
    if (kinds, layout) != (our_kinds, our_layout):
        raise LayoutError(
            f"the state of monitor {name!r} was written with the detectors {kinds or 'none'} (layout {layout}), and "
            f"this monitor has {our_kinds or 'none'} (layout {our_layout}); their thresholds may differ, their kinds "
            f"and what they remember must be the same; {cure}"
        )
