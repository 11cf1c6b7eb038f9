"""What an alert says: titles, who carried an anomaly, how it came, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradwatch.core.snapshot import VERDICTS, Event, culprits
from gradwatch.reading.text import short_names

TITLES = {
    "explosion": "gradient explosion",
    "trend": "gradient norm growing towards an explosion",
    "saturated": "most of the gradients clipped away or zeroed",
    "vanishing": "gradients vanishing",
    "nonfinite": "NaN or Inf in the gradients",
    "loss_nonfinite": "loss not finite",
    "loss_rising": "loss rising",
    "no_progress": "no progress",
    "recovery": "the training was set right",
}

_ADVICE = {
    "explosion": "Look at the batch of that step and at the learning rate.",
    "trend": "Lower the learning rate now, or look for a loss term that grows without bound.",
    "saturated": "Lower the learning rate: the run is kept alive by clipping and zeroing, and hardly learns.",
    "vanishing": "Look at these variables' activations (saturated, dead), at their initial values and at a learning "
    "rate schedule that has run out.",
    "nonfinite": "Look for a log, a square root or a division by zero in the loss, and for NaN in the input; "
    "tf.debugging.enable_check_numerics() names the operation (without jit_compile).",
    "loss_nonfinite": "Stop: the run does not learn. Go back to a checkpoint from before it began.",
    "loss_rising": "Look at what changed at that step: data, learning rate, a term of the loss.",
    "no_progress": "Stop, or change something: learning rate, data, model. This run does not get better by itself.",
}
_OVERFLOW = "Lower the learning rate: the numbers grew until float32 could not hold them."
_GRADUAL = "Lower the learning rate."
_SUDDEN = "Look at the batch of that step."
_LASTING = "Stop, go back to a checkpoint from before it began, and lower the learning rate."
_PROBING = "A loss scale that probes for its highest value does this; it matters only if it does not stop."

#: Of an explosion in a run that is too young for its budget of false alarms.
TOO_SHORT = (
    "The run is {:,} steps too short yet for its budget of false alarms, so this may be one of more than promised."
)

NEVER_KNOWN = (
    "Its budget of false alarms is so small that what the detector remembers never shows whether it is kept, so this "
    "may be one of more than promised."
)

#: Of harm under an optimizer that divides by a second moment, where nothing bounds its steps.
BEYOND_CLIPPING = (
    "Clipping hardly shortens the steps of an adaptive optimizer such as Adam: update_limit=0.05 does, and "
    "recover=gradwatch.recovery.ladder() goes back to a healthy state."
)

#: Finite gradients whose norm is said to be above it have overflowed: float32 cannot hold the sum of their squares.
_LARGEST = 1e36

_GRADUAL_STEPS = 3  # of growth before the step, for it to have come gradually
_NAMED = 3  # variables in a message
_LED_STEPS = 20  # about so many steps lead to an alarm of saturation
_WORDS = {"clip": "clipped", "zero": "zeroed", "skip": "skipped"}
_NAME_LIMIT = 48  # characters


def title(kind: str, norm: float) -> str:
    """A few words for an anomaly; of what is not finite, which of the two it is."""
    if kind == "nonfinite" and not math.isnan(norm):
        return "gradient overflow" if math.isfinite(norm) else "Inf in the gradients"
    return TITLES.get(kind, kind)


def comparison(kind: str, norm: float, threshold: float) -> str:
    """The norm, beside the threshold where that says something."""
    if kind == "nonfinite" and math.isfinite(norm) and norm >= _LARGEST:
        return f"norm {norm:.4g}, which overflows float32 when it is squared"
    if kind == "nonfinite" or not (math.isfinite(threshold) and threshold > 0):
        return f"norm {norm:.4g}"
    return f"norm {norm:.4g}, threshold {threshold:.4g}"


def carriers(shares: Mapping[str, float]) -> str:
    """Who carried it, as a sentence; "" if nobody stands out.

    The `Event.culprits` are named with their shares. Equal shares are a count.
    """
    ordered = sorted(((n, s) for n, s in shares.items() if s > 0), key=lambda item: -item[1])
    if not ordered:
        return ""
    short = short_names(list(shares), _NAME_LIMIT)
    equal = ordered[0][1] - ordered[-1][1] < 1e-6
    if equal and len(ordered) > 1:
        where = f"all {len(ordered)}" if len(ordered) == len(shares) else f"{len(ordered)} of {len(shares)}"
        rest = len(ordered) - _NAMED
        if rest > 0 and len(ordered) == len(shares):
            return f"In {where} variables."
        names = ", ".join(short[name] for name, _ in ordered[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
        return f"In {where} variables: {names}."
    large = list(culprits(shares).items())
    if not large:
        return (
            f"Spread over {len(ordered)} variables; the largest share is {ordered[0][1]:.0%} ({short[ordered[0][0]]})."
        )
    named = ", ".join(f"{short[name]} ({share:.0%})" for name, share in large[:_NAMED])
    rest = len(ordered) - min(len(large), _NAMED)
    return f"Carried by {named}{f' and {rest} more' if rest else ''}."


def headline(kind: str, norm: float, rows: Mapping[str, Any] | None, step: int) -> str:
    """The title, and of a run that is saturated, with what: a watch that only observes clips nothing away."""
    index = _index(rows, step)
    if kind != "saturated" or rows is None or index is None:
        return title(kind, norm)
    done = _done(rows, index)
    if not done["clip"]:
        return f"most of the gradients {'zeroed' if done['zero'] or done['skip'] else 'NaN or Inf'}"
    return title(kind, norm)


def action(rows: Mapping[str, Any] | None, step: int, kind: str = "") -> str:
    """What was done with the gradients of `step`, out of the history; "" if it is not there any more.

    Args:
      kind: of the anomaly; of "saturated", what was done in the steps that led to it.
    """
    index = _index(rows, step)
    if rows is None or index is None:
        return ""
    if kind == "saturated":
        done = _done(rows, index)
        parts = [f"{word} {done[verdict]}" for verdict, word in _WORDS.items() if done[verdict]]
        return f"{' and '.join(parts) or 'changed none'} of the last {sum(done.values())} gradients"
    verdict = VERDICTS[int(rows["verdict"][index])]
    if verdict == "clip":
        return f"clipped the norm to {float(rows['applied_norm'][index]):.4g}"
    return {
        "pass": "let the gradients through unchanged",
        "zero": "set the gradients of that step to zero",
        "skip": "skipped the update, so the weights are unchanged",
    }[verdict]


def way(kind: str, rows: Mapping[str, Any] | None, step: int) -> tuple[str, str]:
    """How an explosion came, out of the history: (a sentence, the advice that fits it); ("", "") if that is unknown."""
    index = _index(rows, step)
    if kind != "explosion" or rows is None or not index:
        return "", ""
    norms = [float(norm) for norm in rows["norm"][: index + 1]]
    if not all(math.isfinite(norm) and norm > 0 for norm in norms[-2:]):
        return "", ""
    steps = 0
    while steps < index and 0 < norms[-2 - steps] < norms[-1 - steps]:
        steps += 1
    growth = norms[-1] / norms[-1 - steps] if steps else 1.0
    if steps >= _GRADUAL_STEPS and norms[-1] / norms[-2] < growth / 2:
        return f"The norm grew {growth:.3g} times over {steps} steps.", _GRADUAL
    if steps:
        return f"The norm grew {norms[-1] / norms[-2]:.3g} times in one step.", _SUDDEN
    return "", ""


def advice(kind: str, norm: float, event: Event | None, *, probing: bool, lasting: bool, from_way: str) -> str:
    """What to do next.

    Args:
      probing: loss scaling looks for its highest value.
      lasting: the episode does not end.
      from_way: the advice of `way`.
    """
    if probing:
        return _PROBING
    cause = followed(event)
    if cause:
        return f"It follows the explosion at step {cause}: lower the learning rate."
    if lasting and kind in ("explosion", "saturated", "nonfinite"):
        return _LASTING
    if kind == "nonfinite" and math.isfinite(norm) and norm >= _LARGEST:
        return _OVERFLOW
    return from_way or _ADVICE.get(kind, "")


def followed(event: Event | None) -> int:
    """Step of the explosion that an event came out of; 0: none."""
    return int(getattr(event, "follows", 0) or 0)


def _done(rows: Mapping[str, Any], index: int) -> dict[str, int]:
    """Verdict -> how many of the steps up to this row had it."""
    given = [VERDICTS[int(v)] for v in rows["verdict"][max(index + 1 - _LED_STEPS, 0) : index + 1]]
    return {verdict: given.count(verdict) for verdict in VERDICTS}


def _index(rows: Mapping[str, Any] | None, step: int) -> int | None:
    steps: Sequence[Any] = () if rows is None else rows["step"]
    return next((i for i, s in enumerate(steps) if int(s) == step), None)
