"""What a ladder says of what it did."""

from __future__ import annotations

from gradwatch.recovery.signs import Trouble


def said(
    name: str,
    step: int,
    trouble: Trouble,
    *,
    back_to: int | None = None,
    scale: float | None = None,
    stops: bool = False,
    verdict: str = "",
) -> str:
    """One line about an answer.

    Args:
      name: of the monitor.
      step: now.
      trouble: what is answered.
      back_to: step of the snapshot, if it went back; 0 is before the first step.
      scale: of the learning rate, if it was lowered.
      stops: whether the run is ended.
      verdict: of the diagnosis, a sentence, "" where there is none.
    """
    done = []
    if back_to is not None:
        where = f"to the snapshot of step {back_to}" if back_to else "to before the first step"
        done.append(f"went back {where}: {step - back_to} steps are lost")
    if scale is not None:
        done.append(f"lowered the learning rate to {scale:.3g} times what it is set to")
    if stops:
        done.append("stops the training")
    sentences = [f"monitor {name!r}, step {step}: {trouble.text}, since step {trouble.step}.", verdict]
    if done:
        sentences.append(f"gradwatch {' and '.join(done)}.")
    return " ".join(filter(None, sentences))


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
