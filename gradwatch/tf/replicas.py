"""What the replicas of a strategy tell each other in a step: a few numbers, which travel with the sum of the gradients.

A sum over the replicas costs a meeting of them all, however little is summed. So the loss, what each was given and how
long its own gradient is are no sums of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from gradwatch.core.guard import BEYOND, TOLD
from gradwatch.core.xp import HUGE
from gradwatch.tf import distribution, fused, gradients, last_loss
from gradwatch.tf.gradients import Gradient

# what of a step's signals is told: each replica has its own
_LOSS, _INPUT = fused.LOSS, len(fused.NO_SIGNALS) - len(TOLD) + TOLD.index("input_rms")


def met(grads: Sequence[Gradient], signals: tf.Tensor, *, summed_already: bool) -> tuple[list[Gradient], tf.Tensor]:
    """(the gradients summed over the replicas, the signals as all of them have them).

    Args:
      grads: of this replica; of all of them where they are `summed_already`.
      signals: as `FusedGuard.step` takes them, with the loss and the sizes of input and target of this replica. In what
        is returned they are means, and the odd replica is known if the gradients are of this replica.
    """
    context = tf.distribute.get_replica_context()
    count, mine = context.num_replicas_in_sync, tf.unstack(signals)
    told = tf.concat([last_loss.part(mine[_LOSS]), tf.stack(mine[_INPUT : _INPUT + 2])], 0)
    if summed_already:
        whole, sums = list(grads), distribution.sum_of(told)
    else:
        own = gradients.length_of_sample(grads)
        own = tf.where(own <= HUGE, tf.maximum(own, 1e-30), BEYOND)
        place = tf.one_hot(context.replica_id_in_sync_group, count, dtype=tf.float32)
        whole, sums = distribution.summed(grads, tf.concat([told, place * own], 0))
        sums, lengths = tf.split(sums, [told.shape[0], count])
        mine[-2:] = _odd(lengths)
    losses, given = tf.split(sums, [last_loss.PARTS, 2])
    given = given / float(count)
    # a comparison with NaN is false
    mine[_INPUT : _INPUT + 2] = tf.unstack(tf.where(given <= HUGE, given, BEYOND))
    mine[_LOSS] = last_loss.of_sums(losses, count)
    return whole, tf.stack(mine)


def _odd(lengths: tf.Tensor) -> list[tf.Tensor]:
    """(ratio, replica): the replica whose own gradient is the least like the others', and how many times it is longer.

    ratio = n_r / exp(mean(log n_i, i != r)) for the r where |log ratio| is largest, the longer one of two.

    Args:
      lengths: of the replicas' own gradients, `BEYOND` for NaN and Inf; shape [replicas].
    """
    logs, count = tf.math.log(lengths), lengths.shape[0]
    apart = (count * logs - tf.reduce_sum(logs)) / (count - 1)
    # 1e-3: of two, which lie equally far apart, the longer one
    odd = tf.argmax(tf.abs(apart) + 1e-3 * tf.sign(apart))
    ratio = tf.where(lengths[odd] > HUGE, BEYOND, tf.exp(tf.minimum(apart[odd], 80.0)))
    return [ratio, tf.cast(odd, tf.float32)]
