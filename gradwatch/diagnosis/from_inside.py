"""Evidence of causes that lie in the weights and how they are moved: rate, warm-up, start, depth."""

from __future__ import annotations

import math

import numpy as np

from gradwatch.diagnosis import from_outside
from gradwatch.diagnosis.case import Case, above, both, number_text, steps_text
from gradwatch.diagnosis.signs import USUAL_SHARE, Signs

_OUTSIDE = (
    *(from_outside.nonfinite_input, from_outside.bad_batch, from_outside.corrupt_labels, from_outside.rate_jump),
    *(from_outside.odd_replica, from_outside.loss_operation, from_outside.half_precision_overflow),
    from_outside.loss_scale,
)

#: Times the usual norm, before the first NaN, that no healthy run makes.
_DECADES = 100.0

_ENOUGH = 20  # steps that say what the run did before it was harmed


def _not_from_outside(signs: Signs) -> float:
    """1 where nothing from outside explains the run, 0.1 where something does for certain."""
    found = [case.confidence for case in map(signs.ask, _OUTSIDE) if case is not None]
    return 1.0 - 0.9 * max(found, default=0.0)


def _ran_away(signs: Signs) -> Case | None:
    """The norm left its band by decades, and from then on every gradient was NaN or Inf: the weights were lost.

    So dies a run whose rate is at the edge of what the loss bears: its update ratio may be a usual one until the end.
    """
    if not len(signs.broken):
        return None
    first = int(signs.broken[0])
    if first < 5 or len(signs.broken) < max(3, 0.9 * (len(signs) - first)):
        return None
    norms = signs.run["norm"][max(0, first - 10) : first]
    usual = signs.median("norm", 0, max(first - 10, 5))
    if not (usual > 0 and norms.max() > _DECADES * usual):
        return None
    began = first - len(norms) + int(np.flatnonzero(norms > 10 * usual)[0])
    grew = f"The norm grew from {usual:.3g} to {norms.max():.3g} within {steps_text(first - began)}"
    since = f"from step {signs.number(began)} on; all gradients from step {signs.number(first)} on hold a NaN or Inf"
    said = [f"{grew} {since}."]
    rate, advice = signs.run["learning_rate"][began], ""
    if rate > 0:
        said.append(f"The learning rate was {number_text(float(rate))}.")
        less, now = number_text(float(rate) / 3), number_text(float(rate))
        advice = f"Lower the learning rate: try {less} instead of {now}. Or clip, as any policy but observe() does."
    return Case(0.85 * _not_from_outside(signs), tuple(said), signs.number(began), advice)


def learning_rate_too_high(signs: Signs) -> Case | None:
    found = [case for case in (_too_long_steps(signs), _ran_away(signs)) if case is not None]
    return max(found, key=lambda case: case.confidence, default=None)


def _too_long_steps(signs: Signs) -> Case | None:
    share = signs.early_share
    if math.isnan(share):
        return None
    usual = USUAL_SHARE[signs.linear]
    step = signs.number(signs.lost or 0)
    confidence = both(above(signs.haste, 4.0), signs.harm) * _not_from_outside(signs)
    said = [f"A step moves the weights by {share:.2g} of their norm, where about {usual:g} is usual."]
    if signs.harm > 0.5 and signs.finite_loss.any():
        begin, end = signs.run["loss"][0], signs.median("loss", len(signs) - len(signs) // 4, len(signs))
        said.append(f"The loss went from {begin:.3g} to {end:.3g}.")
    rate = signs.median("learning_rate", 0, len(signs))
    advice = ""
    if rate > 0 and share > 0:
        times = share / usual
        said[0] = said[0][:-1] + f": the learning rate is about {number_text(times)} times too high."
        advice = f"Lower the learning rate: try {number_text(rate / times)} instead of {number_text(rate)}."
    return Case(0.97 * confidence, tuple(said), step, advice)


def warmup_too_short(signs: Signs) -> Case | None:
    high = signs.ask(learning_rate_too_high)
    if high is None:
        return None
    ramp, onset = signs.ramp, signs.lost
    early = onset is None or onset <= max(20 * ramp, 20)
    if ramp and early and ramp <= max(len(signs) / 10, 3):
        rate = float(np.nanmax(signs.run["learning_rate"]))
        said = f"The learning rate rises to {number_text(rate)} within {steps_text(ramp)}."
        advice = f"Let the learning rate rise over {10 * ramp} steps instead of {ramp}, or lower it."
        return Case(min(1.0, high.confidence * 1.03), (said, *high.sentences), high.step, advice)
    if signs.linear or ramp:
        return None
    recovers = signs.fell((onset or 0) + 20, len(signs)) if onset is not None and onset < 20 else 0.0
    return Case(0.8 * high.confidence * recovers, high.sentences, high.step)


def bad_start(signs: Signs) -> Case | None:
    start = signs.layers.start
    if not start or signs.run.step[0] > 1:
        return None
    path = max(start, key=lambda p: start[p])
    middle = float(np.median(list(start.values())))
    out, wild = signs.wild_start
    began = f"The weights of {path} began with {start[path]:.3g} times the norm of a usual new layer"
    said = [f"{began} (median of {len(start)} layers: {middle:.2g})."]
    if wild:
        said.append(wild)
    weights = max(above(middle, 3.0, 4.0), 0.9 * above(start[path], 6.0, 4.0))
    if middle < 0.3:  # too small: the signal dies on its way
        weights, out = above(1.0 / max(middle, 1e-9), 8.0, 4.0), signs.harm
        said = [f"The weights began with {middle:.2g} times the norm of usual new layers (median of {len(start)})."]
    return Case(0.97 * both(weights, weights, out), tuple(said), signs.number(0))


def exploding_recurrence(signs: Signs) -> Case | None:
    path, gain = signs.layers.recurrence
    if not path:
        return None
    others = [x for p, x in signs.layers.start.items() if p not in signs.layers.recurrent]
    rest = float(np.median(others)) if others else 1.0
    out, wild = signs.wild_start
    said = [f"At the start {path} makes a state about {gain:.2g} times as large in each step of a sequence."]
    if wild:
        said.append(wild)
    # where every layer began too large, it is the start
    alone = above(gain / max(rest, 0.3), 1.5, 6.0)
    return Case(0.98 * both(above(gain, 1.4, 8.0), alone, max(out, signs.harm)), tuple(said), signs.number(0))


def embedding_rows(signs: Signs) -> Case | None:
    best: Case | None = None
    for path in signs.layers.embeddings:
        for event in signs.run.events:
            if event.kind not in ("explosion", "trend"):
                continue
            share = event.shares.get(path, 0.0)
            total = math.sqrt(sum(x * x for x in signs.run.usual.values()))
            usual = (signs.layers.norm(path) / total) ** 2 if total > 0 else math.nan
            odds = (share / max(1 - share, 1e-6)) / (usual / max(1 - usual, 1e-6)) if usual > 0 else math.nan
            confidence = both(above(share, 0.4, 3.0), above(odds, 3.0, 2.0))
            said = f"{path} carries {share:.0%} of the norm at step {event.step}, {usual:.0%} in usual steps."
            if best is None or confidence > best.confidence:
                best = Case(0.95 * confidence, (said,), event.step)
        case = _odd_rows(signs, path)
        if case is not None and (best is None or case.confidence > best.confidence):
            best = case
    return best


def _odd_rows(signs: Signs, path: str) -> Case | None:
    """A table that began, or became, far larger than one whose rows are all alike."""
    shape = signs.layers.shapes[path]
    began = signs.layers.weight_norm(path, first=True)
    each = began / math.sqrt(shape[0] * shape[1])
    if not math.isfinite(each):
        return None
    grown = signs.layers.grown_more(path)
    at_start = both(above(each, 1.5, 4.0), max(signs.wild_start[0], 0.75 * above(each, 3.0, 4.0)))
    # a new table is small, so that steps that are too long make it grow more than others
    slow = 1.0 - above(signs.haste, 4.0)
    later = 0.98 * both(slow, above(grown, 10.0, 3.0), max(signs.harm, 1.0 if signs.onset is not None else 0.0))
    if later > at_start:
        said = (
            f"The norm of {path} grew {signs.layers.grown(path):.3g} times, {grown:.3g} times as much as other layers."
        )
        first = signs.sudden_loss if signs.sudden_loss is not None else signs.onset
        return Case(later, (said,), signs.number(first or 0))
    said = f"The numbers of {path} were about {each:.2g} at the start: some rows are far larger than the others."
    return Case(0.97 * at_start, (said,), signs.number(0))


def vanishing(signs: Signs) -> Case | None:
    path, ratio = signs.layers.starved
    event = signs.has_event("vanishing")
    if not path and not event:
        return None
    stuck = signs.stuck
    starved = 1.0 - above(ratio, 1e-3, 1.5) if ratio > 0 else 1.0 if path else 0.0
    hardly_any = 1.0 - above(ratio, 1e-5, 1.5) if ratio > 0 else starved
    alarm = (0.3 if signs.learned < 0.99 else 0.1) * event  # a run that has learned and converged has small gradients
    confidence = both(max(starved, 0.6 * event), max(stuck, 0.6 * hardly_any, alarm, 0.05))
    part = f"{ratio:.1g} of the" if ratio > 1e-20 else "nothing of the"
    said = [f"For its size, {path} gets {part} gradient of the layer that gets most."] if path else []
    if stuck > 0.05:
        said.append("The loss does not fall.")
    # steps that are far too long may have killed them
    confidence *= (1.0 - 0.7 * above(signs.haste, 4.0)) * _not_from_outside(signs)
    return Case(0.96 * confidence, tuple(said), signs.number(0))


def _still_calm(signs: Signs) -> int:
    """How many of the first steps came before anything stood out, and before the rate jumped."""
    return min(i for i in (signs.onset, signs.jump, len(signs)) if i is not None)


def dead_run(signs: Signs) -> Case | None:
    share = signs.share[np.isfinite(signs.share)]
    at = _still_calm(signs)
    still = not (signs.run["norm"] > 0).any() and len(signs) > 5 and not len(signs.broken)
    if (len(share) < 1 and not still) or signs.nothing_left:
        return None
    usual = USUAL_SHARE[signs.linear]
    moved = 0.0 if still else float(np.median(share))
    if at >= _ENOUGH and np.isfinite(early := signs.share[:at]).any():
        # weights that were blown up stand still: what the run did before it was harmed counts too
        moved = max(moved, float(np.nanmedian(early)))
    said = [f"A step moves the weights by {moved:.2g} of their norm, where about {usual:g} is usual."]
    stuck = max(signs.stuck, 0.02)
    rate, advice = signs.median("learning_rate", 0, len(signs)), ""
    if rate > 0 and moved > 0:
        advice = f"Raise the learning rate: try {number_text(rate * usual / moved)} instead of {number_text(rate)}."
    slow = 1.0 if moved == 0 else 1.0 - above(moved, usual / 200, 2.0)
    if stuck > 0.05:
        said.append(f"The loss stays at {signs.median('loss', 0, len(signs)):.3g}.")
    quiet = 0.2 if len(signs.broken) or signs.has_event("explosion", "nonfinite") else 1.0
    confidence = both(slow, max(stuck, 0.6 if slow > 0.97 else 0.0), quiet)
    jumped = signs.ask(from_outside.rate_jump)
    if jumped is not None:  # to raise the rate once more would be the worst advice
        confidence *= 1.0 - 0.9 * jumped.confidence
    return Case(0.97 * confidence, tuple(said), signs.number(0), advice)


def unseen(signs: Signs) -> Case | None:
    """The first step that is known was already in trouble; what it looks like now need not be what made it."""
    began = signs.run.began
    if began is None:
        return None
    first, last = signs.number(0), signs.number(len(signs) - 1)
    said = f"It began at step {began}, and only steps {first} to {last} are known."
    return Case(0.6, (said,), began)


def healthy(signs: Signs) -> Case | None:
    if not len(signs):
        return Case(1.0, ("No step has been made yet.",))
    said = [f"Nothing points to a fault in {steps_text(len(signs))}."]
    if signs.nothing_left:
        said.append(f"The loss is {signs.median('loss', 0, len(signs)):.2g}: hardly anything is left to learn.")
    elif signs.learned > 0.95:
        quarter = len(signs) // 4
        first, last = signs.median("loss", 0, quarter), signs.median("loss", len(signs) - quarter, len(signs))
        said.append(f"The loss fell from {first:.3g} to {last:.3g}.")
    elif signs.stuck > 0.8 and signs.finite_loss.any():
        said.append(f"But the loss does not fall: it is {signs.median('loss', 0, len(signs)):.3g} throughout.")
    return Case(1.0, tuple(said))
