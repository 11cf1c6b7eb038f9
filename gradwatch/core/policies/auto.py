"""`auto`: the gain is found as TCP finds the capacity of a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gradwatch.core import checks, sketch
from gradwatch.core.norms import Norms
from gradwatch.core.policies.base import Policy, State, Update, bounds, clamp, learned, one_more
from gradwatch.core.xp import Namespace

_REST, _TOGETHER, _SETTLED, _OFFSET = 5.0, 20.0, 20.0, 10.0


@dataclass(frozen=True, repr=False)
class auto(Policy):
    """Clip the global norm at a gain times a base; the gain is found as TCP finds the capacity of a line.

    clip_norm_t = gain_t * base_t; in the first step, before any norm, it is 0 or `minimum`.

    - base_t is P_50(norms before t), the recent median. From step 20 on it rises by the factor e^rise a step at most,
      so that an explosion cannot carry it along; it falls freely. When norms have stood out for more than `window`
      steps, never 20 apart, that is the new normal: it is P_50 again until they no longer do.
    - A norm stands out when it exceeds L * base_t, and two that stand out within 20 steps are an alarm: one alone is
      a bad batch more often than a step too long. The first slow_start_steps / 5 steps raise none: the weights hardly
      move then, and what scatters is the data. L begins at `alarm`; from step 11 to the end of those it is at least
      twice each norm / base, 25 at most. Then it grows by 15 % with each burst of alarms and shrinks by e^-rise a calm
      step, down to `alarm`: alarms that come whatever the gain is say nothing about it.
    - Slow start, until the first alarm: gain = most * ((n + 10) / (slow_start_steps + 10))^3, n the steps so far that
      raised none, so that the first gradients, the largest and the least meant, move little and leave little in
      Adam's second moment.
    - At an alarm the gain is multiplied by `backoff`; a burst of alarms (five steps apart or less) takes it to a tenth
      at most. Five steps after the last alarm it grows by 5 % a step to `backoff` times what it was before the burst,
      or was about to return to. From there on, with n the steps since the last alarm, it grows by the factor
      1 + probe / (n + 10) + rise a step, about as n^probe, up to `most`: a gain that failed once is left slowly.

    With the gain at `most` it clips only what stands out of the recent norms. It was designed on four small tasks and
    does not always find a gain that training bears: docs/policies.md says where it failed.

    Args:
      most: largest gain, in multiples of the median, > 0.
      slow_start_steps: steps until the gain is at `most`, if nothing happens, >= 1.
      window: steps remembered, >= 2, as in `percentile`.
      alarm: multiple of the base from which on a norm stands out, > 1; norms enter winsorised at L times the base.
      backoff: factor of the gain at an alarm, in (0, 1).
      probe: exponent of the growth after an alarm, > 0.
      rise: growth of the base a step at most, in natural logarithms, and least of the gain after an alarm, > 0;
        0.0001 doubles in 7,000 steps.
      minimum, maximum: as in `percentile`.

    Raises:
      ConfigError: an argument is out of range.

    Sources: slow start and multiplicative decrease are Jacobson's (1988, "Congestion avoidance and control",
    SIGCOMM); the slow growth above what failed is in the spirit of CUBIC (Ha, Rhee, Xu 2008). The rule is ours.
    """

    most: float = 2.0
    slow_start_steps: int = field(default=600, kw_only=True)
    window: int = field(default=300, kw_only=True)
    alarm: float = field(default=3.0, kw_only=True)
    backoff: float = field(default=0.7, kw_only=True)
    probe: float = field(default=0.12, kw_only=True)
    rise: float = field(default=0.0001, kw_only=True)
    minimum: float | None = field(default=None, kw_only=True)
    maximum: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        minimum, maximum = bounds(self.minimum, self.maximum)
        self._store(
            most=checks.number("most", self.most, above=0),
            slow_start_steps=checks.count("slow_start_steps", self.slow_start_steps),
            window=checks.window("window", self.window),
            alarm=checks.number("alarm", self.alarm, above=1),
            backoff=checks.number("backoff", self.backoff, above=0, below=1),
            probe=checks.number("probe", self.probe, above=0),
            rise=checks.number("rise", self.rise, above=0),
            minimum=minimum,
            maximum=maximum,
        )

    @property
    def _log_start(self) -> float:
        return math.log(self.most) + 3.0 * math.log(_OFFSET / (self.slow_start_steps + _OFFSET))

    def init(self, num_variables: int) -> State:
        zero = np.zeros((), np.float32)
        return {
            "sketch": sketch.init(),
            "log_base": zero,
            "log_level": np.full((), math.log(self.alarm), np.float32),
            "log_gain": np.full((), self._log_start, np.float32),
            "log_known": zero,  # the gain to which it may return at once
            "climbed": zero,  # steps of the slow start
            "calm": zero,  # steps since the last alarm
            "alone": np.full((), _TOGETHER, np.float32),  # steps since a norm stood out
            "storm": zero,  # steps in which norms stood out again and again
            "alarmed": zero,
            "seen": zero,
        }

    def update(self, xp: Namespace, state: State, norms: Norms) -> Update:
        log_most, log_backoff, log_alarm = math.log(self.most), math.log(self.backoff), math.log(self.alarm)
        log_deaf, listened = max(log_alarm, math.log(25.0)), self.slow_start_steps / 5
        log_gain, log_known, seen = state["log_gain"], state["log_known"], state["seen"]
        started, alarmed = seen > 0.0, state["alarmed"] > 0.0
        log_median = sketch.log_quantile(xp, state["sketch"], 0.5)
        risen = xp.minimum(log_median, state["log_base"] + self.rise)
        log_base = xp.where((seen >= _SETTLED) & (state["storm"] <= self.window), risen, log_median)
        clip_norm = xp.where(started, xp.exp(log_base + log_gain), 0.0)

        log_level = state["log_level"]
        stands_out = started & (norms.log > log_base + log_level)
        over = stands_out & (state["alone"] < _TOGETHER) & (seen >= listened)
        alone = xp.where(stands_out, 0.0, one_more(xp, state["alone"]))
        resting = alarmed & (state["calm"] < _REST)
        highest = xp.where(alarmed, xp.maximum(log_gain, log_known), log_gain)
        log_known = xp.where(over & ~resting, highest + log_backoff, log_known)
        calm = xp.where(over, 0.0, one_more(xp, state["calm"]))
        climbed = xp.where(over, state["climbed"], one_more(xp, state["climbed"]))
        rate = xp.where(log_gain < log_known, 0.05, self.probe / (calm + _OFFSET) + self.rise)
        cube = self._log_start + 3.0 * xp.log((climbed + _OFFSET) / _OFFSET)
        grown = xp.minimum(xp.where(alarmed, log_gain + xp.log(1.0 + rate), cube), log_most)
        fallen = xp.maximum(log_gain + log_backoff, log_known - math.log(10.0 * self.backoff))
        moved = xp.where(over, fallen, xp.where(resting, log_gain, grown))
        heard = xp.where((seen >= _OFFSET) & (seen < listened), norms.log - log_base + math.log(2.0), log_alarm)
        raised = xp.where(over & ~resting, log_level + 0.15, xp.where(over, log_level, log_level - self.rise))
        level = xp.where(seen < listened, xp.maximum(log_level, heard), xp.maximum(raised, log_alarm))
        ceiling = xp.where(started, log_base + log_level, norms.log)
        new = {
            "log_base": log_base,
            "log_level": xp.minimum(level, log_deaf),
            "log_gain": moved,
            "log_known": log_known,
            "climbed": climbed,
            "calm": calm,
            "alone": alone,
            "storm": xp.where(alone < _TOGETHER, one_more(xp, state["storm"]), 0.0),
            "alarmed": xp.where(over, 1.0, state["alarmed"]),
            "seen": one_more(xp, seen),
        }
        entered = sketch.update(
            xp, state["sketch"], xp.minimum(norms.log, ceiling), norms.enters, 1.0 - 1.0 / self.window
        )
        old = {name: state[name] for name in new}
        after = {"sketch": entered, **learned(xp, norms.enters, new, old)}
        return after, clamp(xp, clip_norm, self.minimum, self.maximum), {"gain": xp.exp(log_gain)}
