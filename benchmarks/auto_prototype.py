"""A prototype of the policy `auto`: congestion control for gradients, within gradwatch's policy contract.

As TCP finds the capacity of a line without being told, the policy finds how large a step training bears. With
base_t the 10th percentile of the recent norms (on the sketch, judged by the steps before),

    clip_norm_t = gain_t * base_t.

- Slow start: gain begins at 0.02 and grows by 2 % a calm step, up to 1. The first gradients are the largest and the
  least meant, and what they leave in Adam's second moment stays for a thousand steps.
- An event is a norm above 8 base_t, or a NaN or Inf: the gain is halved and rests for 5 steps.
- After the first event the gain grows by 0.3 % a calm step only (congestion avoidance), up to `most`; from 0.8 of
  the gain at which the last event happened on, by `probe` only: what failed once is approached slowly, as in CUBIC.
- base_t rises by at most 0.1 % a step, so that an explosion does not raise its own limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradwatch.core import checks, sketch
from gradwatch.core.norms import Norms
from gradwatch.core.policies import Policy, State
from gradwatch.core.xp import Array, Namespace


def congestion(
    *,
    start: float = 0.02,
    most: float = 1.0,
    slow_start: float = 1.02,
    growth: float = 1.003,
    probe: float = 1.003,
    alarm: float = 8.0,
    backoff: float = 0.5,
    rest_steps: int = 5,
    base_quantile: float = 0.1,
    base_growth: float = 1.001,
    window: int = 1000,
) -> Policy:
    """Clip at a gain times the 10th percentile of the recent norms; the gain is found by congestion control.

    Args:
      start: gain of the first step, > 0.
      most: largest gain, >= start.
      slow_start: growth of the gain per calm step before the first event, >= 1.
      growth: the same after it, >= 1.
      probe: the same near and above the gain of the last event, >= 1.
      alarm: multiple of the base above which a norm is an event, > 1.
      backoff: factor of the gain at an event, in (0, 1).
      rest_steps: steps after an event without growth, >= 1.
      base_quantile: of the recent norms, in [0, 1].
      base_growth: largest growth of the base per step, > 1.
      window: steps remembered, >= 2.

    Raises:
      ConfigError: an argument is out of range.

    Sources: Jacobson 1988, "Congestion avoidance and control", SIGCOMM; Ha, Rhee, Xu 2008, "CUBIC", SIGOPS;
    the percentile is AutoClip's.
    """
    start = checks.number("start", start, above=0)
    most = checks.number("most", most, least=start)
    slow_start = checks.number("slow_start", slow_start, least=1)
    growth = checks.number("growth", growth, least=1)
    probe = checks.number("probe", probe, least=1)
    alarm = checks.number("alarm", alarm, above=1)
    backoff = checks.number("backoff", backoff, above=0, below=1)
    rest = checks.count("rest_steps", rest_steps)
    base_quantile = checks.number("base_quantile", base_quantile, least=0, most=1)
    base_growth = checks.number("base_growth", base_growth, above=1)
    window = checks.count("window", window, least=2)
    decay, rise, log_alarm = 1.0 - 1.0 / window, math.log(base_growth), math.log(alarm)
    log_start, log_most = math.log(start), math.log(most)

    def init(num_variables: int) -> State:
        zero = np.zeros((), np.float32)
        return {
            "sketch": sketch.init(),
            "log_base": zero,
            "log_gain": np.full((), log_start, np.float32),
            "log_ceiling": np.full((), 80.0, np.float32),
            "events": zero,
            "calm": np.full((), 1e6, np.float32),
            "seen": zero,
        }

    def update(xp: Namespace, state: State, norms: Norms) -> tuple[State, Array, Mapping[str, Array]]:
        log_base, log_gain, seen = state["log_base"], state["log_gain"], state["seen"]
        first = seen <= 0.0
        # the very first step has no past: it is clipped relative to itself
        now_base = xp.where(first, norms.log, log_base)
        clip_norm = xp.exp(now_base + log_gain)

        event = ~norms.finite | (norms.enters & (norms.log > now_base + log_alarm))
        calm = xp.where(event, 0.0, xp.minimum(state["calm"] + 1.0, 1e6))
        events = xp.minimum(state["events"] + xp.number(event), 1e6)
        near = log_gain >= state["log_ceiling"] + math.log(0.8)
        careful = xp.where(near, math.log(probe), math.log(growth))
        step = xp.where(events > 0.0, careful, math.log(slow_start))
        ceiling = xp.where(events > 0.0, log_most, min(0.0, log_most))
        grown = xp.minimum(log_gain + step, xp.maximum(ceiling, log_gain))
        moved = xp.where(event, log_gain + math.log(backoff), xp.where(calm > rest, grown, log_gain))

        entered = xp.minimum(norms.log, now_base + log_alarm)
        held = sketch.update(xp, state["sketch"], entered, norms.enters, decay)
        quantile = sketch.log_quantile(xp, held, base_quantile)
        base = xp.where(first, norms.log, xp.minimum(quantile, now_base + rise))
        new = {
            "sketch": held,
            "log_base": xp.where(norms.enters, base, log_base),
            "log_gain": xp.maximum(moved, log_start + math.log(1e-4)),
            # a burst is one event: the gain that it began with
            "log_ceiling": xp.where(event & (state["calm"] > rest), log_gain, state["log_ceiling"]),
            "events": events,
            "calm": calm,
            "seen": xp.minimum(seen + xp.where(norms.enters, 1.0, 0.0), 1e6),
        }
        return new, clip_norm, {"gain": xp.exp(log_gain)}

    return Policy(f"congestion(start={start:g}, most={most:g})", init, update)
