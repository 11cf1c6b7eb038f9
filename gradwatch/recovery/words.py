"""What a ladder says of what it did."""

from __future__ import annotations

import math

from gradwatch.recovery.signs import Trouble


def said(
    name: str,
    step: int,
    trouble: Trouble,
    *,
    back_to: int | None = None,
    lost_steps: int = 0,
    scale: float | None = None,
    limit: float | None = None,
    stops: bool = False,
    verdict: str = "",
) -> str:
    """One line about an answer.

    Args:
      name: of the monitor.
      step: now.
      trouble: what is answered.
      back_to: step of the snapshot, if it went back; 0 is before the first step.
      lost_steps: that were not lost before.
      scale: of the learning rate, if it was lowered.
      limit: the highest rate from now on, where it is known.
      stops: whether the run is ended.
      verdict: of the diagnosis, a sentence, "" where there is none.
    """
    done = []
    if back_to is not None:
        where = f"to the snapshot of step {back_to}" if back_to else "to before the first step"
        done.append(f"went back {where}: {lost_steps} steps are lost")
    if scale is not None:
        if limit is None or limit == math.inf:
            done.append(f"lowered the learning rate to {scale:.3g} times what it is set to")
        else:
            done.append(f"lowered the learning rate to at most {limit:.3g}, {scale:.3g} times what was too high")
    if stops:
        done.append("stops the training")
    sentences = [f"monitor {name!r}, step {step}: {trouble.text}, since step {trouble.step}.", verdict]
    if done:
        sentences.append(f"gradwatch {' and '.join(done)}.")
    return " ".join(filter(None, sentences))


def still_lowered(name: str, step: int, scale: float, answered_at: int) -> str:
    """One line about a rate that stays lowered though nothing is wrong any more."""
    return (
        f"monitor {name!r}, step {step}: the learning rate is still held at {scale:.3g} times what it is set to, "
        f"{step - answered_at} steps after the last trouble. A higher one led into trouble. Set it lower, "
        "and nothing is held any more, or start again without recovery.lower()."
    )


#: What to do about a run that was stopped, where the diagnosis has no better advice.
ADVICE = {
    "nonfinite": "Healthy weights give no finite gradient either: look for NaN in the input, and for a log, a square "
    "root or a division by zero in the loss.",
    "poisoned": "Variables that no gradient reaches, such as moving averages, became NaN again and again: look for "
    "NaN in the input.",
    "lost": "It came again after every return and at every lower rate: look at the loss, at the data of these steps "
    "and at the newest change of the model.",
    "saturated": "Lower the learning rate by hand, or look for a part of the loss that grows without bound.",
    "exploding": "Lower the learning rate by hand, or look for a part of the loss that grows without bound.",
}
