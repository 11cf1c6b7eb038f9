"""The ladder of a training at work: between two calls of its step it looks at the newest steps, and answers trouble.

It reads what the device wrote anyway, every `look_every` steps. On an accelerator it reads what was written at the
look before, which the device has long done, so no step waits for it. Everything is decided from numbers that are equal
on all replicas and workers, so that all of them do the same.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from gradwatch.errors import ConfigError, TrainingStopped
from gradwatch.reading.health import health
from gradwatch.reading.reader import reader
from gradwatch.recovery import endings, folder, words
from gradwatch.recovery.course import LONG_STEPS, LOWER, ROLLBACK, STOP, Answer, Course
from gradwatch.recovery.ledger import Ledger
from gradwatch.recovery.reasons import Reason, reason_of
from gradwatch.recovery.rungs import Ladder
from gradwatch.recovery.signs import Trouble
from gradwatch.tf import compat, devices, distribution, updates
from gradwatch.tf.returns import Returns
from gradwatch.tf.snapshots import Snapshots
from gradwatch.tf.thrown import thrown
from gradwatch.tf.training_state import TrainingState, variables_of
from gradwatch.tf.watched import Watched

logger: logging.Logger = logging.getLogger("gradwatch")

_MOST_WAITING = 50  # steps in which nothing stands out that one closer look reads together

_SEVEREST = ("nonfinite", "poisoned", "lost", "exploding", "saturated", "dropping", "held")


class Healer:
    """What `recover=` makes: the ladder of one training.

    Args:
      ladder: the rungs.

    Attributes:
      ledger: what was done.
      model: of `model.fit`; None elsewhere.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.ledger = Ledger()
        self.model: Any = None
        self._watched: list[Watched] = []
        self._course = Course(ladder)
        self._state = TrainingState(())
        self._snapshots: Snapshots | None = None
        self._returns: Returns | None = None
        self._met: set[tuple[int, int]] = set()
        self._known_steps: set[int] = set()
        self._run_id = ""
        self._optimizers: list[weakref.ref[Any]] = []
        self._lock = threading.RLock()
        self._under_way = 0
        self._calls = self._next_look = self._calls_at_look = 0
        self._unsure = (
            False  # a step without a finite gradient may have left a NaN where no gradient comes, or one was seen
        )
        self._share = math.inf  # of the rate that was too high, as it is on the device
        self._rate_was_held = False  # whether the newest lowering has touched the rate that is set
        self._told_of_rate = False
        self._begins = False  # the weights at the next call are the first of a training

    # -- who is watched -----------------------------------------------------------------------------------

    @property
    def lowers(self) -> bool:
        """Whether the learning rate may be lowered."""
        return self.ladder.lower is not None

    def follow(self, monitor: Any) -> None:
        """Act for this monitor too: a step with several optimizers goes back as a whole."""
        if all(one.monitor() is not monitor for one in self._watched):
            self._watched.append(Watched(monitor, self.ladder))
            self._state.engines.append(monitor._engine)
            monitor._engine.healer = self
        if self._snapshots is None and self.ladder.rollback is not None:
            self._run_id = monitor.run_id
            self._begin_anew()

    @property
    def leader(self) -> Any:
        """The first of the monitors."""
        return self._watched[0].monitor()

    def restart(self, model: Any = None) -> None:
        """Another training begins, with whatever weights there are at its first call.

        Args:
          model: of `model.fit`. Its train function may have been traced by an earlier fit, so that nothing will say
            again what gradients move.
        """
        with self._lock:
            self.model = model
            self._unsure = False
            if model is not None:
                self._met.clear()
                self._state = TrainingState(self._state.engines)
                self._state.add(model.trainable_variables, weights=True)
                for optimizer in self._alive_optimizers():
                    self._state.leave_out(compat.rate_variables(optimizer))
                self._state.add(v for one in (model, *self._alive_optimizers()) for v in variables_of(one))
            self._begin_anew()
            for one in self._watched:
                one.signs.forget()
            self._begins = True

    def _begin_anew(self) -> None:
        if self.ladder.rollback is not None:
            self._snapshots = Snapshots(self.ladder.rollback, self._state, self._run_id, self._objects)
            self._returns = Returns(self._snapshots, self._state)

    def reset(self) -> None:
        """As before the first step: nothing is known of any run."""
        with self._lock:
            self.ledger, self._course = Ledger(), Course(self.ladder)
            for one in self._watched:
                one.reset()
            self.restart()
            self._set_scale(0)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Around a call of the step, from the host."""
        if self._begins:
            self._begins = False
            self._begin(self._state.variables())
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def meet(self, optimizer: Any, variables: Sequence[Any] | None, *, loss_scaled: bool) -> None:
        """An update comes: learn which variables it moves, before it moves them. Called at each trace, or eager step.

        Raises:
          ConfigError: nobody calls from the host, so that nothing could ever be done.
        """
        if not self._under_way:
            raise ConfigError(
                "recover= acts between two calls of the watched step, and this step is called inside a tf.function, "
                "or its gradients come to monitor.clip alone. Put gradwatch.watch(recover=...) above the outermost "
                "function that trains, or use gradwatch.KerasCallback(recover=...) for model.fit"
            )
        key = (id(optimizer), id(variables[0]) if variables else 0)
        # an id may be used again
        if key in self._met and (optimizer is None or any(optimizer is one for one in self._alive_optimizers())):
            return
        if optimizer is not None:
            with tf.init_scope():  # the replicas' threads may meet there: not under the lock
                updates.build(optimizer, None if variables is None else list(variables))
        with self._lock:
            self._met.add(key)
            for one in self._watched:
                one.loss_scaled |= loss_scaled
            if optimizer is not None:
                if not any(optimizer is one for one in self._alive_optimizers()):
                    self._optimizers.append(weakref.ref(optimizer))
                self._state.leave_out(compat.rate_variables(optimizer))
            found = self._state.add(variables or (), weights=True)
            slots = [] if optimizer is None else updates.slots(optimizer)
            rung = self.ladder.rollback
            kept = [] if rung is None else variables_of(rung.named)
            model = [] if self.model is None else variables_of(self.model)
            found += self._state.add([*slots, *kept, *model])
            self._begin(found)

    def _objects(self) -> dict[str, Any]:
        """What a checkpoint holds, by the names that docs/recovery.md tells."""
        rung = self.ladder.rollback
        objects: dict[str, Any] = {} if rung is None else dict(rung.named)
        if self.model is not None:
            objects.setdefault("model", self.model)
        for optimizer in self._alive_optimizers():
            if not any(optimizer is one for one in objects.values()):
                objects["optimizer" if "optimizer" not in objects else f"optimizer_{len(objects)}"] = optimizer
        monitors = {m.name: m for one in self._watched if (m := one.monitor()) is not None}
        objects["gradwatch"] = next(iter(monitors.values())) if len(monitors) == 1 else monitors
        return objects

    def _alive_optimizers(self) -> list[Any]:
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def knows_step(self, step: Any) -> bool:
        """Whether this function was asked for its variables before."""
        known = id(step) in self._known_steps
        self._known_steps.add(id(step))
        return known

    def include(self, variables: Sequence[Any]) -> None:
        """These belong to the training as well; their values are those from before its first step."""
        with self._lock:
            self._begin(self._state.add(variables))

    def _begin(self, variables: list[tf.Variable]) -> None:
        if self._snapshots is not None and variables:
            self._snapshots.begin(variables)

    @functools.cached_property
    def _has_accelerator(self) -> bool:
        return devices.has_accelerator()

    # -- between two calls --------------------------------------------------------------------------------

    def after_call(self) -> None:
        """A call has ended: look, if it is time.

        Raises:
          TrainingStopped: the rung `stop` ends the training.
        """
        self._calls += 1
        if self._calls >= self._next_look:
            self.look()

    def look(self, *, now: bool = False) -> None:
        """Look at the newest steps, and answer trouble.

        Args:
          now: at the very newest ones, though the device may not be done with them.

        Raises:
          TrainingStopped: the rung `stop` ends the training.
        """
        with self._lock:
            self._next_look = self._calls + self.ladder.look_every  # also after one that failed
            try:
                steps = max(one.peek.fetch(now=now or not self._has_accelerator) for one in self._watched)
                calls = max(self._calls - self._calls_at_look, 1)
                self._calls_at_look = self._calls
                self._next_look = self._calls + max(1, self.ladder.look_every * calls // max(steps, calls))
                if steps and (now or not self._may_wait()):
                    self._read()
                    self._act()
            except TrainingStopped:
                raise
            except Exception:
                health.failed("recovery", "the ladder cannot look at the training", exc_info=True)

    def _may_wait(self) -> bool:
        """Whether nothing stands out and nothing is due: a closer look at these steps costs less with the next ones."""
        if self._unsure or self._share < math.inf or any(one.peek.waiting >= _MOST_WAITING for one in self._watched):
            return False
        step = max(one.signs.last_step + one.peek.waiting for one in self._watched)
        if self._snapshots is not None and self._snapshots.generations.wants(step):
            return False
        return all(one.peek.is_usual(one.signs.usual_end) for one in self._watched)

    def _read(self) -> None:
        for one, look in [(one, look) for one in self._watched if (look := one.peek.take()) is not None]:
            one.signs.on_trial = self._rate_was_held and self._course.is_on_trial(one.signs.last_step)
            one.take(look)
            self.ledger.skipped(look.dropped)
            self._unsure |= look.nonfinite

    def _act(self) -> None:
        if self.ledger.stopped is not None:
            return  # whoever goes on nevertheless is alone
        step = max(one.signs.last_step for one in self._watched)
        found = [(one, trouble) for one in self._watched if (trouble := self._trouble(one)) is not None]
        if found:
            self._answer(step, *min(found, key=lambda pair: _SEVEREST.index(pair[1].cause)))
        elif self._snapshots is not None:
            calm_steps = min(one.signs.calm_steps for one in self._watched)
            self._unsure |= not self._snapshots.look(step, calm_steps, self._facts())
        self._set_scale(step)

    def _trouble(self, one: Watched) -> Trouble | None:
        target = None if self._returns is None else self._returns.target
        one.thrown = thrown(one.signs, self._state, target, self._alive_optimizers(), one.rate)
        trouble = one.signs.trouble(loss_scaled=one.loss_scaled) or (one.thrown.trouble if one.thrown else None)
        if trouble is not None or not self._unsure or self._returns is None:
            return trouble
        streak = one.signs.steps_without_gradient
        self._unsure = streak > 0
        # while there is no finite gradient, bad data may put NaN into moving averages again and again
        broken = self._state.nonfinite(weights_alone=streak > 0)
        if not broken:
            return None
        text = f"{broken[0]} holds NaN or Inf" + (f", and {len(broken) - 1} more" if len(broken) > 1 else "")
        began = one.signs.last_step - max(streak, 1) + 1
        return Trouble("nonfinite" if streak else "poisoned", began, max(streak, 1), text, sudden=True)

    def _facts(self) -> dict[str, Any]:
        one = self._watched[0]
        return {"loss": one.loss, "norm": one.norm, **one.signs.facts()}

    # -- answers ------------------------------------------------------------------------------------------

    def _answer(self, step: int, one: Watched, trouble: Trouble) -> None:
        monitor = one.monitor()
        strategy = self._state.strategy
        alone = not distribution.has_several_workers(strategy)
        # each worker has its own record and its own batches: what is concluded from them may differ
        reason = reason_of(monitor) if alone and monitor is not None else Reason()
        answered_at = self._course.answered_at
        anew = one.rate.is_below_limit(trouble.step, answered_at, self._course.share(step))
        returns = self._returns
        hurt = trouble.cause != "nonfinite" or returns is None or returns.is_hurt()
        never_well = returns is not None and returns.at > 0 and (one.signs.never_finite or one.signs.never_well)
        if returns is not None and returns.is_unproven and never_well:
            answer: Answer | None = self._course.again(step, trouble)
        else:
            answer = self._course.answer(
                step,
                trouble,
                reason="damage" if one.thrown and one.thrown.damaged else reason.kind,
                update_ratio=one.largest_ratio,
                broken=never_well,
                hurt=hurt,
                anew=anew,
            )
        if answer is None:
            return
        if LOWER in answer.rungs:
            self._rate_was_held = False
            for other in self._watched:
                other.rate.blame(trouble.step, answered_at, anew=anew)
                other.signs.lowered()
        back_to = None
        if returns is not None and ROLLBACK in answer.rungs:
            rates = [v for optimizer in self._alive_optimizers() for v in compat.rate_variables(optimizer)]
            before = trouble.step if trouble.sudden and hurt and not never_well else None
            back_to = returns.go(older=answer.older, before=before, keep=rates)
        rungs = tuple(r for r in answer.rungs if r != ROLLBACK or back_to is not None)
        lost = 0 if returns is None or back_to is None else returns.lost(step, back_to, self.ledger.dropped)
        self._set_scale(step)
        if not rungs:
            return
        last_word = reason.likeliest or words.ADVICE.get(trouble.cause, "")
        text = words.said(
            one.name,
            step,
            trouble,
            back_to=None if back_to is None else back_to.step,
            lost_steps=lost,
            scale=answer.scale if LOWER in rungs else None,
            limit=one.rate.limit(self._share),
            stops=STOP in rungs,
            verdict=last_word if STOP in rungs else reason.verdict,
        )
        self.ledger.answered(rungs, step, trouble.cause, text, lost)
        if monitor is not None:
            monitor.note(text)
        logger.log(logging.ERROR if STOP in rungs else logging.WARNING, "%s", text)
        if back_to is not None:
            for other in self._watched:
                other.signs.forget(to_the_start=back_to.step == 0)
        if STOP in rungs:
            self._stop(step, text, reason.likeliest or f"{trouble.text}. {last_word}".strip())

    def _set_scale(self, step: int) -> None:
        share = self._course.share(step)
        self.ledger.rate_scale = scale = min(one.rate.scale(share) for one in self._watched)
        self._rate_was_held |= scale < 1.0
        if scale < 1.0 and not self._told_of_rate and step - self._course.answered_at >= LONG_STEPS:
            self._told_of_rate = True
            logger.warning("%s", words.still_lowered(self._watched[0].name, step, scale, self._course.answered_at))
        if share == self._share:
            return
        self._share = share
        for one in self._watched:
            if one.engine.lowering is not None:
                known = one.rate.reference is not None
                one.engine.lowering.assign(1.0 if known else min(share, 1.0), one.rate.limit(share))

    def _stop(self, step: int, text: str, verdict: str) -> None:
        stop = self.ladder.stop
        assert stop is not None
        error = TrainingStopped(text)
        error.verdict, error.step, error.exit_code = verdict, step, stop.exit_code
        if self._snapshots is not None and self._snapshots.directory is not None:
            try:
                self._snapshots.write(step, folder.LAST, self._facts())
            except Exception as failure:
                health.failed("recovery", f"the last state could not be written: {failure}", key=("last", text))
        for one in self._watched:
            monitor = one.monitor()
            if monitor is not None:
                monitor.flush_record()
        reader.poll_now()
        self.ledger.stopped = error
        endings.exit_with_its_code()
        raise error
