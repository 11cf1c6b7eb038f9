"""The contract of policies and detectors, as checks that anybody can run on their own.

Each check is a function of one `Part` and raises AssertionError with a sentence that says what broke.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradwatch.core import detectors, policies
from gradwatch.core import norms as _norms
from gradwatch.core.detectors import Detector
from gradwatch.core.guard import Guard
from gradwatch.core.layout import Layout
from gradwatch.core.norms import Norms
from gradwatch.core.policies import Policy
from gradwatch.core.snapshot import KINDS
from gradwatch.core.values import Value
from gradwatch.core.xp import NUMPY, Namespace

#: Norms that a run can meet: not finite, zero, denormal, tiny, huge, float32's largest.
HOSTILE = (float("nan"), float("inf"), 0.0, 1e-40, 1e-30, 1.0, 1e15, 1e30, 3.4e38)

#: A reach, a loss and a norm of the weights that a run can meet; NaN is "not known", an Inf reach "does not apply".
HOSTILE_REACH = (float("nan"), float("inf"), 0.0, -1.0, 1e-30, 1.0, 1e30, 3.4e38)
HOSTILE_LOSS = (float("nan"), float("inf"), float("-inf"), 0.0, -1e30, 1.0, 1e30)
HOSTILE_WEIGHTS = (float("nan"), float("inf"), 0.0, 1e-30, 1.0)

VARIABLES = 3

Outputs = Mapping[str, Any]
State = Mapping[str, Any]


class Part(NamedTuple):
    """A policy or a detector, seen alike.

    Attributes:
      subject: the policy or detector itself.
      init: num_variables -> state.
      update: (xp, state, norms) -> (state, outputs); outputs are "clip_norm", or "alarm", "score", "threshold".
      bound: the output in units of a norm.
    """

    subject: Policy | Detector
    init: Callable[[int], State]
    update: Callable[[Namespace, State, Norms], tuple[State, Outputs]]
    bound: str

    @property
    def name(self) -> str:
        return self.subject.name


def check_policy(policy: Policy, *, absolute: bool = False, tensorflow: bool = True) -> None:
    """Raise AssertionError where a policy breaks the contract.

    Args:
      policy: as its factory made it, without `minimum` and `maximum`.
      absolute: its clip_norm is a constant, so it need not scale with the gradients.
      tensorflow: also compare numpy, tf.function and XLA (some seconds).
    """
    part = part_of(policy)
    for check in POLICY_CHECKS:
        if not (absolute and check is bounds_scale_with_the_gradients):
            check(part)
    if tensorflow:
        every_backend_decides_alike(part)


def check_detector(detector: Detector, *, tensorflow: bool = True) -> None:
    """Raise AssertionError where a detector breaks the contract; arguments as in `check_policy`."""
    part = part_of(detector)
    for check in DETECTOR_CHECKS:
        check(part)
    if tensorflow:
        every_backend_decides_alike(part)


def part_of(subject: Policy | Detector) -> Part:
    """A policy or detector as a `Part`."""
    if isinstance(subject, Policy):
        policy = subject

        def judge(xp: Namespace, state: State, norms: Norms) -> tuple[State, Outputs]:
            new, clip_norm, _ = policy.update(xp, state, norms)
            return new, {"clip_norm": clip_norm}

        return Part(policy, policy.init, judge, "clip_norm")
    detector = subject

    def detect(xp: Namespace, state: State, norms: Norms) -> tuple[State, Outputs]:
        new, alarm, info = detector.update(xp, state, norms)
        return new, {"alarm": alarm, "score": info["score"], "threshold": info["threshold"]}

    return Part(detector, detector.init, detect, "threshold")


# -- the checks ---------------------------------------------------------------------------------------------


def it_says_what_it_is(part: Part) -> None:
    """Name, scope and kind are what the guard and the reports expect."""
    subject = part.subject
    _require(isinstance(subject.name, str) and subject.name != "", "name must be a text that is not empty")
    if isinstance(subject, Policy):
        scopes = (policies.GLOBAL, policies.VARIABLE, policies.VALUE, policies.NONE)
        _require(subject.scope in scopes, f"scope must be one of {scopes}, got {subject.scope!r}")
        ratio = subject.expected_clip_ratio
        _require(ratio is None or 0 <= ratio <= 1, f"expected_clip_ratio must be None or in [0, 1], got {ratio}")
    else:
        _require(subject.kind in KINDS, f"kind must be one of {KINDS}, got {subject.kind!r}")
        _require(subject.cooldown_steps >= 1, f"cooldown_steps must be >= 1, got {subject.cooldown_steps}")


def it_is_a_value(part: Part) -> None:
    """A copy, a pickle and what its repr makes are equal to it. Asked of dataclasses, as ours are."""
    subject = part.subject
    if not (isinstance(subject, Value) and hasattr(subject, "__dataclass_fields__")):
        return
    again = eval(repr(subject), {**vars(policies), **vars(detectors), type(subject).__name__: type(subject)})
    try:
        pickled = pickle.loads(pickle.dumps(subject))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(
            f"{subject!r} cannot be pickled: {error}; define its class at the top of a module"
        ) from error
    ways = {"a deep copy": copy.deepcopy(subject), "a pickle": pickled, "its repr": again}
    for way, other in ways.items():
        _require(other == subject and hash(other) == hash(subject), f"{way} gives {other!r} instead of {subject!r}")
        _require(_equal(part.init(VARIABLES), other.init(VARIABLES)), f"{way} of {subject!r} starts otherwise")


def state_keeps_its_structure(part: Part) -> None:
    """The same names, shapes and float32, whatever comes in; init and update leave their arguments alone."""
    example = _leaves(part.init(VARIABLES))
    for path, x in example.items():
        _require(isinstance(x, np.ndarray) and x.dtype == np.float32, f"init: {path} must be a float32 array")
    for before, norms, after, _ in _hostile_walk(part):
        _require(list(_leaves(after)) == list(example), f"update changed the names {list(example)}")
        for path, x in _leaves(after).items():
            shape, dtype = np.shape(x), np.asarray(x).dtype
            _require(shape == example[path].shape, f"update changed the shape of {path} to {shape}")
            _require(dtype == np.float32, f"update changed the dtype of {path} to {dtype}")
        again, _ = _quietly(part, before, norms)
        _require(_equal(again, after), "the same state and norms gave another result: update must be pure")


def statistics_stay_finite(part: Part) -> None:
    """No norm, in whatever order, puts a NaN or Inf into the state."""
    for _, norms, after, _ in _hostile_walk(part):
        for path, x in _leaves(after).items():
            _require(bool(np.all(np.isfinite(x))), f"{path} is {x} after a norm of {norms.raw}")


def outputs_are_sound(part: Part) -> None:
    """clip_norm is >= 0 and of the shape its scope promises; score is finite, threshold >= 0, alarm a boolean."""
    scope = getattr(part.subject, "scope", policies.GLOBAL)
    shape = (VARIABLES,) if scope == policies.VARIABLE else ()
    for _, norms, _, out in _hostile_walk(part):
        bound = out[part.bound]
        _require(np.shape(bound) == shape, f"{part.bound} must have shape {shape}, got {np.shape(bound)}")
        _require(bool(np.all(np.asarray(bound) >= 0)), f"{part.bound} is {bound} after a norm of {norms.raw}")
        if "alarm" in out:
            _require(np.asarray(out["alarm"]).dtype == bool, f"alarm must be a boolean, got {out['alarm']!r}")
            _require(bool(np.isfinite(out["score"])), f"score is {out['score']} at a norm of {norms.raw}")


def scale_stays_in_0_1(part: Part) -> None:
    """Whatever the gradients, they are multiplied by something in [0, 1], and no norm grows."""
    assert isinstance(part.subject, Policy)
    guard = Guard(part.subject, ())
    state = guard.init(VARIABLES)
    for row in _hostile_stream(short=True):
        per_variable, (reach, loss, weights) = row[:VARIABLES], row[VARIABLES:]
        applied = np.minimum(per_variable, np.float32(part.subject.limit))
        state, decision = guard.step(NUMPY, state, per_variable, applied, reach=reach, loss=loss, weights=weights)
        scale = np.asarray(decision.scale)
        _require(bool(np.all((scale >= 0) & (scale <= 1))), f"scale is {scale} for norms and signals of {row}")
        grew = decision.applied_norm > decision.norm
        _require(not grew, f"applied norm {decision.applied_norm} exceeds the norm {decision.norm}")


def a_step_is_judged_by_the_steps_before(part: Part) -> None:
    """clip_norm or threshold depends on the state alone, so that a norm is no part of its own bound."""
    for before, norms, _, out in _walk(part, _ordinary_stream(60)):
        other = _norms.of(NUMPY, norms.per_variable * np.float32(100.0), norms.reach, norms.loss, norms.weights)
        _, changed = _quietly(part, before, other)
        same = np.array_equal(out[part.bound], changed[part.bound])
        _require(same, f"{part.bound} is {out[part.bound]} or {changed[part.bound]}, depending on this step's norm")


def nonfinite_steps_teach_nothing(part: Part) -> None:
    """After NaN or Inf the state is bit for bit what it was (who counts such steps is excepted)."""
    if getattr(part.subject, "kind", None) in ("nonfinite", "saturated"):
        return
    for _, _, after, _ in _walk(part, _ordinary_stream(60)):
        for bad in (float("nan"), float("inf")):
            row = np.array([1.0, bad, 2.0], np.float32)
            unchanged, _ = _quietly(part, after, _norms.of(NUMPY, row))
            _require(_equal(after, unchanged), f"a norm of {bad} changed the state")


def a_restored_state_has_the_same_future(part: Part) -> None:
    """Packed into one vector, saved and unpacked mid-stream, it decides bit for bit the same."""
    layout = Layout(part.init(VARIABLES))
    if not layout.fields:
        return
    stream = _ordinary_stream(120)
    straight: State = part.init(VARIABLES)
    for row in stream[:60]:
        straight, _ = _quietly(part, straight, _norms_of(NUMPY, row))
    saved = np.array(layout.pack(NUMPY, straight)).tobytes()
    restored: State = layout.unpack(NUMPY, np.frombuffer(saved, np.float32))
    for row in stream[60:]:
        norms = _norms_of(NUMPY, row)
        straight, expected = _quietly(part, straight, norms)
        restored, got = _quietly(part, restored, norms)
        _require(_equal(expected, got), f"after a restore it says {dict(got)} instead of {dict(expected)}")
    _require(_equal(straight, restored), "after a restore the state went another way")


def bounds_scale_with_the_gradients(part: Part) -> None:
    """All weights divided by a constant in the same net: clip_norm or threshold times it, within a bucket (2 %)."""
    stream = _ordinary_stream(150)
    plain = np.array([np.asarray(out[part.bound]) for *_, out in _walk(part, stream)])
    for constant in (1e-6, 1e6):
        scaled = np.array([np.asarray(out[part.bound]) for *_, out in _walk(part, _times(stream, constant))])
        held = np.isfinite(plain) & (plain > 0) & (plain < 1e30)  # Inf, 0 and HUGE mean that there is no bound
        ratio = scaled[held] / (plain[held] * constant)
        good = bool(np.all(np.abs(ratio - 1) < 0.021)) and np.array_equal(np.isfinite(plain), np.isfinite(scaled))
        _require(good, f"gradients times {constant:g} changed {part.bound} by other factors, {ratio} times that")


def every_backend_decides_alike(part: Part) -> None:
    """numpy, tf.function and XLA decide alike over a long stream; imports TensorFlow.

    A norm within rounding of a bucket's edge may fall on either side of it, so one step in a hundred may differ
    by a bucket (2 %); all others agree to 1e-4: of the bound, or of one deviation for scores below one.
    """
    import tensorflow as tf

    from gradwatch.tf.ops import TENSORFLOW, Fused

    stream = np.concatenate([_ordinary_stream(150), _hostile_stream(short=True)[:40], _ordinary_stream(90, seed=2)])
    layout = Layout({"state": part.init(VARIABLES), "clock": np.zeros((), np.float32)})
    keys = ("alarm", "score", "threshold") if part.bound == "threshold" else ("clip_norm",)

    def steps(xp: Namespace) -> Callable[[Any, Any], tuple[Any, Any]]:
        def step(vector: Any, row: Any) -> tuple[Any, Any]:
            tree = layout.unpack(xp, vector)
            new, out = part.update(xp, tree["state"], _norms_of(xp, row))
            answers = [xp.reshape(xp.number(out[key]), (-1,)) for key in keys]
            return layout.pack(xp, {"state": new, "clock": tree["clock"] + 1.0}), xp.concat(answers)

        return step

    runs = {
        "numpy": steps(NUMPY),
        "tf.function": tf.function(steps(TENSORFLOW), autograph=False),
        "XLA": tf.function(steps(Fused()), jit_compile=True, autograph=False),
    }
    results = {}
    for backend, step in runs.items():
        vector = layout.pack(NUMPY, {"state": part.init(VARIABLES), "clock": np.zeros((), np.float32)})
        if backend != "numpy":
            vector = tf.constant(vector)
        answers = []
        for row in stream:
            vector, answer = step(vector, row if backend == "numpy" else tf.constant(row))
            answers.append(np.asarray(answer))
        results[backend] = np.array(answers, np.float64)
    expected = results.pop("numpy")
    floor = [1e-30, 1.0, 1e-30] if part.bound == "threshold" else 1e-30
    for backend, got in results.items():
        with np.errstate(invalid="ignore"):
            unit = np.maximum(np.abs(expected), floor)
            off = np.where(got == expected, 0.0, np.abs(got - expected) / unit)
        away = np.flatnonzero((off > 1e-4).any(axis=1))
        good = bool(np.all(off < 0.021)) and len(away) <= len(stream) // 100
        _require(good, f"{backend} disagrees with numpy at steps {away[:5]}: {got[away[:5]]}, {expected[away[:5]]}")


POLICY_CHECKS = (
    it_says_what_it_is,
    it_is_a_value,
    state_keeps_its_structure,
    statistics_stay_finite,
    outputs_are_sound,
    scale_stays_in_0_1,
    a_step_is_judged_by_the_steps_before,
    nonfinite_steps_teach_nothing,
    a_restored_state_has_the_same_future,
    bounds_scale_with_the_gradients,
)
DETECTOR_CHECKS = tuple(check for check in POLICY_CHECKS if check is not scale_stays_in_0_1)


# -- their tools --------------------------------------------------------------------------------------------


def _require(condition: bool, sentence: str) -> None:
    # raised and not asserted: python -O drops assertions
    if not condition:
        raise AssertionError(sentence)


def _norms_of(xp: Namespace, row: Any) -> Norms:
    """A row of a stream: the norms of `VARIABLES` variables, then reach, loss and the norm of the weights."""
    return _norms.of(xp, row[:VARIABLES], row[VARIABLES], row[VARIABLES + 1], row[VARIABLES + 2])


def _times(stream: np.ndarray, constant: float) -> np.ndarray:
    """The stream of a run whose weights are divided by `constant`: gradients and reach times it, the loss stays."""
    return stream * np.array([constant] * (VARIABLES + 1) + [1.0, 1.0 / constant], np.float32)


def _ordinary_stream(steps: int, seed: int = 1) -> np.ndarray:
    """Norms of three variables of different size, their reach and a loss that falls, shape [steps, VARIABLES + 3].

    The reach goes through what a run has: not known, not applicable, far above the norms, near them. The last column is
    the norm of the weights.
    """
    rng = np.random.default_rng(seed)
    norms = np.exp(0.4 * rng.standard_normal((steps, VARIABLES))) * [0.1, 1.0, 3.0]
    t = np.arange(steps)
    reach = np.choose(t // 7 % 4, [math.nan, math.inf, 1000.0, 30.0])
    loss = np.where(t % 5 == 4, math.nan, 3.0 / np.sqrt(1.0 + t) + 0.1 * rng.standard_normal(steps))
    return np.column_stack([norms, reach, loss, 20.0 + 0.01 * t]).astype(np.float32)


def _hostile_stream(short: bool = False) -> np.ndarray:
    """Every hostile norm as the first one, after a calm phase, in one variable and in all, and all in a row.

    Reach, loss and weights are hostile all along, each combination of theirs in turn.
    """
    calm = _ordinary_stream(8 if short else 30)[:, :VARIABLES]
    rows = [calm]
    for x in HOSTILE:
        rows += [np.full((1, VARIABLES), x), np.array([[1.0, x, 1.0]])]
        rows += [] if short else [calm[:3]]
    rng = np.random.default_rng(3)
    rows += [rng.choice(HOSTILE, (20, VARIABLES))]
    return _with_hostile_signals(np.concatenate(rows))


def _with_hostile_signals(norms: np.ndarray) -> np.ndarray:
    """Rows of norms with a reach, a loss and weights each; the lengths of the cycles have no common divisor."""
    t = np.arange(len(norms))
    reach = np.array(HOSTILE_REACH)[t % len(HOSTILE_REACH)]
    loss = np.array(HOSTILE_LOSS)[t % len(HOSTILE_LOSS)]
    weights = np.array(HOSTILE_WEIGHTS)[t % len(HOSTILE_WEIGHTS)]
    return np.column_stack([norms, reach, loss, weights]).astype(np.float32)


def _walk(part: Part, stream: np.ndarray) -> Iterator[tuple[State, Norms, State, Outputs]]:
    """(state before, norms, state after, outputs) of each step."""
    state = part.init(VARIABLES)
    for row in stream:
        norms = _norms_of(NUMPY, row)
        new, out = _quietly(part, state, norms)
        yield state, norms, new, out
        state = new


def _hostile_walk(part: Part) -> Iterator[tuple[State, Norms, State, Outputs]]:
    """The hostile stream, then from the start again with each hostile norm as the very first."""
    yield from _walk(part, _hostile_stream())
    for x in HOSTILE:
        calm = _ordinary_stream(4)[:, :VARIABLES]
        yield from _walk(part, _with_hostile_signals(np.concatenate([np.full((1, VARIABLES), x), calm])))


def _quietly(part: Part, state: State, norms: Norms) -> tuple[State, Outputs]:
    """One update in numpy, where an overflow or an invalid operation is an error."""
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            return part.update(NUMPY, state, norms)
    except FloatingPointError as error:
        raise AssertionError(f"{part.name}: {error} at a norm of {norms.raw}; bound it before") from error


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(_leaves(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value})
    return found


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    x, y = _leaves(a), _leaves(b)
    return list(x) == list(y) and all(np.array_equal(x[path], y[path]) for path in x)
