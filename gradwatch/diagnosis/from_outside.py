"""Evidence of causes that reach a run from outside its weights: batches, rates, replicas, precision."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from gradwatch.diagnosis.case import Case, above, both, others_text, steps_text
from gradwatch.diagnosis.signs import Signs

_NEAR = 20  # steps in which a cause shows
_SOON = 200  # steps within which a rate that is too high does harm


def nonfinite_input(signs: Signs) -> Case | None:
    odd = np.flatnonzero(np.isinf(signs.run["input_rms"]) | np.isinf(signs.run["target_rms"]))
    if len(odd):
        first = int(odd[0])
        which = "input" if np.isinf(signs.run["input_rms"][first]) else "target"
        hit = np.isin(odd, signs.broken)
        step = signs.number(first)
        said = [f"The {which} of step {step} holds a NaN or Inf{others_text(len(odd))}."]
        if hit.any():
            said.append(f"The gradient is NaN or Inf in {steps_text(int(hit.sum()))} of that kind.")
        earlier = len(signs.broken) and signs.broken[0] < first
        return Case(0.45 if earlier else 0.97 if hit.any() else 0.3, tuple(said), step)
    if len(signs.broken) and not np.isfinite(signs.run["input_rms"]).any() and not _half(signs):
        first = int(signs.broken[0])
        if signs.finite_loss[first] or signs.moved_before(first):
            return None
        unknown = (
            f"Loss and gradient of step {signs.number(first)} are NaN or Inf at once; of the input nothing is known."
        )
        return Case(0.45, (unknown,), signs.number(first))
    return None


def bad_batch(signs: Signs) -> Case | None:
    if signs.layers.ids:
        return None
    rise = signs.input
    odd = signs.odd_inputs[np.isfinite(signs.run["input_rms"][signs.odd_inputs])]
    if len(odd):
        first = int(odd[0])
        step, times = signs.number(first), float(np.nanmax(rise.times[odd]))
        said = [f"The input of step {step} is {rise.times[first]:.3g} times as large as those before it."]
        reacts = any(signs.restless[i : i + 2].any() or signs.norm.far[i] > 3.0 for i in odd.tolist())
        if reacts and math.isfinite(signs.norm.times[first]):
            said.append(f"The norm was {signs.norm.times[first]:.3g} times the usual one.")
        elif not reacts:
            said.append("Norm and loss stayed as they were.")
        return Case(0.95 if reacts else 0.8 * above(times, 10.0), tuple(said), step)
    if np.isfinite(signs.run["input_rms"]).any():
        return None
    return _spike(signs)


def _spike(signs: Signs) -> Case | None:
    """A norm that stands out alone, of an input of which nothing is known."""
    onset = signs.onset
    if onset is None or onset in signs.broken or signs.moved_before(onset):
        return None
    after = signs.norm.far[onset + 3 : onset + _NEAR]
    calm = float(np.mean(after < 3.0)) if len(after) else 0.0
    confidence = both(above(signs.norm.times[onset], 4.0), 0.8 * calm + 0.01)
    step = signs.number(onset)
    said = f"The norm of step {step} was {signs.norm.times[onset]:.3g} times the usual one, and calm again soon after."
    return Case(min(confidence, 0.7), (said, "Of the batch nothing is known."), step)


def corrupt_labels(signs: Signs) -> Case | None:
    rise = signs.target
    odd = signs.odd_targets[np.isfinite(signs.run["target_rms"][signs.odd_targets])]
    for first in odd.tolist():
        if (signs.restless[first : first + 2].any() or signs.loss.far[first] > 3.0) and first not in signs.odd_inputs:
            step = signs.number(first)
            larger = (
                f"The targets of step {step} are {rise.times[first]:.3g} times as large as before, the input is not."
            )
            return Case(0.95, (larger,), step)
    first = signs.sudden_loss
    if first is None and signs.stuck > 0.9 and signs.onset is None and 0.1 < signs.haste < 4.0 and len(signs) >= 50:
        flat = (
            "The loss does not fall although the steps are of a usual length: the labels may not belong to the input."
        )
        return Case(0.4, (flat,), signs.number(0))
    if first is None or (signs.jump is not None and signs.jump <= first):
        return None
    if len(signs.odd_inputs) and not signs.layers.ids and signs.odd_inputs[0] <= first:
        return None
    step = signs.number(first)
    before, now = signs.loss.usual[first], signs.run["loss"][first]
    told = [f"The loss rose from {before:.3g} to {now:.3g} at step {step}, and the steps before it were as usual."]
    if np.isfinite(signs.run["input_rms"]).any():
        told.append("The input is as large as before.")
    known = 1.0 if np.isfinite(signs.run["input_rms"]).any() else 0.7
    # it had learned before, at a usual pace
    sound = min(signs.fell(0, first), 1.0 - above(signs.haste, 8.0), 1.0 - above(signs.layers.odd_growth, 10.0, 3.0))
    return Case(known * both(above(signs.loss.far[first], 5.0, 3.0), sound), tuple(told), step)


def rate_jump(signs: Signs) -> Case | None:
    at = signs.jump
    if at is None:
        return None
    rate = signs.run["learning_rate"]
    before, step = float(np.nanmax(rate[:at])), signs.number(at)
    said = [f"The learning rate rose from {before:.3g} to {rate[at]:.3g} at step {step} in one step."]
    onset = signs.onset
    after = np.flatnonzero(signs.restless[at : at + _SOON])
    effect = 0.95 if len(after) else 0.0
    if not effect:
        effect = max(_rose(signs.run[name], at) for name in ("norm", "loss"))
        effect = 0.9 if effect > 0.999 else 0.3
    else:
        said.append(f"Norm and loss stand out from step {signs.number(at + int(after[0]))} on.")
    if onset is not None and onset < at - 1 and signs.fell(0, at) < 0.5:
        effect *= 0.6
    if signs.healed_since(at):
        effect = min(effect, 0.3)
    return Case(
        effect, tuple(said), step, f"Go back to a learning rate of {before:.3g}, or let it rise over many steps."
    )


def _rose(column: np.ndarray, at: int) -> float:
    before, after = column[max(0, at - _NEAR) : at], column[at + 1 : at + 1 + _NEAR]
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if min(len(before), len(after)) < 5:
        return 0.0
    return 1.0 - float(stats.mannwhitneyu(after, before, alternative="greater").pvalue)


def odd_replica(signs: Signs) -> Case | None:
    ratio, replica = signs.run["replica_ratio"], signs.run["replica"]
    known = np.flatnonzero(~np.isnan(ratio))
    if not len(known):
        return None
    with np.errstate(divide="ignore"):
        apart = np.abs(np.log(np.maximum(ratio, 1e-30)))
    # it is the same replica nearly always, not this one and then that one
    for first in np.flatnonzero(apart > math.log(2.5)).tolist():
        rest = np.arange(first, min(first + _NEAR, len(signs)))
        usual = float(np.median(apart[rest]))
        same = float(np.mean(replica[rest] == replica[first]))
        lasting = len(rest) >= 5 and same > 0.85 and usual > math.log(2.0) and apart[first] > usual / 2
        if lasting or (np.isinf(ratio[first]) and first in signs.broken):
            step, middle = signs.number(first), float(np.exp(np.median(apart[rest])))
            which = f"replica {int(replica[first])}"
            said = f"From step {step} on the gradients of {which} and of the others differ by a factor of {middle:.3g}."
            if np.isinf(ratio[first]):
                said = f"At step {step} the gradient of {which} alone is NaN or Inf."
            return Case(0.95, (said,), step)
    return None


def loss_operation(signs: Signs) -> Case | None:
    if not len(signs.broken) or _half(signs):
        return None
    first = int(signs.broken[0])
    step, loss = signs.number(first), signs.run["loss"][first]
    said = [f"The gradient of step {step} holds a NaN or Inf{others_text(len(signs.broken))}."]
    known = not np.isnan(signs.run["input_rms"][first])
    if known:
        said.append("Input and target are finite.")
    if first in signs.odd_inputs or first in signs.odd_targets:
        return Case(0.2, tuple(said), step)
    confidence = 0.9 if known or signs.finite_loss[first] else 0.55
    if signs.finite_loss[first]:
        said.append(f"The loss of that step is finite ({loss:.3g}), so its gradient alone broke.")
    if signs.moved_before(first) or signs.blown_up(first):
        confidence *= 0.35  # the weights were on their way out
    elif not signs.finite_loss[first] and len(signs) - first >= _NEAR and len(signs.broken) == len(signs) - first:
        said = [f"Loss and gradient of step {step} are NaN or Inf, and so are those of all steps since.", *said[1:]]
        verdict = "A NaN came into the weights, or an operation of the loss makes one in each step."
        return Case(min(confidence, 0.6), tuple(said), step, verdict=verdict)
    return Case(confidence, tuple(said), step)


def half_precision_overflow(signs: Signs) -> Case | None:
    if not _half(signs) or not len(signs.broken):
        return None
    of_loss = [i for i in signs.broken.tolist() if not signs.finite_loss[i] and i < len(signs) - 1]
    if not _scaled(signs):
        first = int(signs.broken[0])
    elif of_loss:
        first = of_loss[0]
    else:
        return Case(0.2, ("The loss is finite in every step whose gradient is not.",), None)
    if first in signs.odd_inputs:
        return None
    step = signs.number(first)
    said = [f"The gradient of step {step} is NaN or Inf, in half precision, whose numbers end at 65,504."]
    if of_loss:
        said.append("The loss of such a step is not finite either: the numbers overflow on their way forward.")
    else:
        said.append("No loss scale is used.")
    confidence = 0.93
    if signs.moved_before(first) or signs.blown_up(first) or signs.layers.begins_large > 4.0:
        confidence *= 0.5
    return Case(confidence, tuple(said), step)


def loss_scale(signs: Signs) -> Case | None:
    if not _scaled(signs) or not len(signs.broken):
        return None
    scale = signs.run["loss_scale"][np.isfinite(signs.run["loss_scale"])]
    finite = [i for i in signs.broken.tolist() if signs.finite_loss[i] and i not in signs.odd_inputs]
    # a scaler that begins too high halves it step by step, and is done
    settled = 0
    while settled < len(finite) and finite[settled] == settled:
        settled += 1
    later = finite[settled:]
    if not later:
        return None
    # Keras lets the scale grow after 2,000 finite steps, so that one of 2,000 may overflow
    p = float(stats.binom.sf(len(later) - 1, max(len(signs) - settled, 1), 1.0 / 500))
    step = signs.number(later[0])
    said = [
        f"The scaled gradient overflowed in {steps_text(len(later))} from step {step} on, while the loss was finite."
    ]
    if len(scale):
        said.append(f"The loss scale is now {scale[-1]:.3g}.")
    confidence = 0.92 if p < 1e-3 else 0.3
    if len(finite) < len(signs.broken) / 2:
        confidence *= 0.5
    return Case(confidence, tuple(said), step)


def _half(signs: Signs) -> bool:
    """Whether numbers of half precision are about: by the policy, or because the loss is scaled."""
    precision = str(signs.run.facts.get("precision", ""))
    half = "float16" in precision and "bfloat16" not in precision
    return half or _scaled(signs)


def _scaled(signs: Signs) -> bool:
    """Whether the loss is scaled, so that some steps overflow on purpose."""
    known = bool(np.isfinite(signs.run["loss_scale"]).any())
    return known or signs.run.facts.get("optimizer") == "LossScaleOptimizer"
