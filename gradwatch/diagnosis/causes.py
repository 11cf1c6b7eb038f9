"""The one table of causes: what each predicts for the numbers of a run, and what to do about it.

A further cause is a row here, an evidence function in `from_outside` or `from_inside`, and a fault in
`benchmarks/diagnosis.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gradwatch.diagnosis import from_inside, from_outside
from gradwatch.diagnosis.case import Case
from gradwatch.diagnosis.signs import Signs


class Row(NamedTuple):
    """A cause. `evidence` gives None where nothing speaks for it; `advice` is for a case without one of its own."""

    kind: str
    evidence: Callable[[Signs], Case | None]
    verdict: str
    advice: str


CAUSES = (
    Row(
        "unseen",
        from_inside.unseen,
        "The trouble began before the steps that are known.",
        "Watch the next run with a record, record='runs', which keeps every step.",
    ),
    Row(
        "nonfinite_input",
        from_outside.nonfinite_input,
        "A batch held a NaN or Inf.",
        "Look for NaN and Inf in that batch's source, and check each batch with tf.debugging.check_numerics.",
    ),
    Row(
        "bad_batch",
        from_outside.bad_batch,
        "A batch was out of scale.",
        "Look at the batch of that step: its input is not normalised like the others.",
    ),
    Row(
        "corrupt_labels",
        from_outside.corrupt_labels,
        "The labels of a batch do not fit its input.",
        "Look at the labels of that step's batch: shuffled, shifted or out of scale.",
    ),
    Row(
        "rate_jump",
        from_outside.rate_jump,
        "The learning rate jumped.",
        "Look at the learning rate schedule: let the rate rise over many steps, or go back to the rate before.",
    ),
    Row(
        "odd_replica",
        from_outside.odd_replica,
        "One replica is unlike the others.",
        "Look at that replica's share of the data and at its device.",
    ),
    Row(
        "loss_operation",
        from_outside.loss_operation,
        "An operation of the loss has no finite gradient.",
        "Look for a log, a square root or a division by zero in the loss: add a small number inside it; "
        "tf.debugging.enable_check_numerics() names the operation.",
    ),
    Row(
        "half_precision_overflow",
        from_outside.half_precision_overflow,
        "Numbers grew beyond half precision.",
        "Compute the layers with large numbers (softmax, losses, sums) in float32, or use bfloat16.",
    ),
    Row(
        "loss_scale",
        from_outside.loss_scale,
        "The loss scale does not settle.",
        "Let the loss scale grow more rarely (dynamic_growth_steps) or from a lower initial_scale, or use bfloat16.",
    ),
    Row(
        "bad_start",
        from_inside.bad_start,
        "The weights began out of scale.",
        "Initialise the layers with GlorotUniform or HeNormal, and check what was loaded into them.",
    ),
    Row(
        "exploding_recurrence",
        from_inside.exploding_recurrence,
        "The recurrence explodes.",
        "Initialise the recurrent kernel orthogonally, use gated units, or shorten the sequences.",
    ),
    Row(
        "embedding_rows",
        from_inside.embedding_rows,
        "Some rows of an embedding are unlike the others.",
        "Look at the ids of that step's batch (padding, one id many times) and at the norms of the embedding's rows.",
    ),
    Row(
        "vanishing",
        from_inside.vanishing,
        "Some layers get hardly any gradient.",
        "Look at these layers' activations (saturated, dead), normalise between layers, and initialise them anew.",
    ),
    Row(
        "dead_run",
        from_inside.dead_run,
        "Nothing moves.",
        "Raise the learning rate, and check that the loss depends on the weights.",
    ),
    Row(
        "warmup_too_short",
        from_inside.warmup_too_short,
        "The warm-up is too short.",
        "Let the learning rate rise over ten times as many steps.",
    ),
    Row(
        "learning_rate_too_high",
        from_inside.learning_rate_too_high,
        "The learning rate is too high.",
        "Lower the learning rate.",
    ),
)
HEALTHY = Row("healthy", from_inside.healthy, "The run is healthy.", "Nothing needs to be done.")

#: Every kind of cause.
KINDS = (*(row.kind for row in CAUSES), HEALTHY.kind)
