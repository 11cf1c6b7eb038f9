"""Each rule on tensors does what its source says: a numpy loop over single units, weights and steps each."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytestmark = pytest.mark.tf

tf = pytest.importorskip("tensorflow")
import tensor_peers  # noqa: E402

SHAPES = [(3, 4), (4,), (2, 2, 3, 5), (5,), (4, 2), (2,)]


def tensors(seed, scale=1.0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def step(weights, gradients, *, second=None, rate=0.1, momentum=0.9, linear=True):
    constants = [None if x is None else [tf.constant(a) for a in x] for x in (weights, gradients, second)]
    return tensor_peers.Step(*constants, tf.constant(rate), momentum, linear)


def arrays(found):
    return [np.asarray(x) for x in found]


def test_agc_clips_each_unit_at_a_share_of_its_weights_and_leaves_the_last_layer():
    weights, gradients = tensors(0, 0.5), tensors(1, 0.004)
    weights[1][:] = 0  # a bias that starts at zero counts as 1e-3
    gradients[0][:, 2] *= 30
    gradients[2][..., 4] *= 30
    found = arrays(tensor_peers.AGC().gradients(step(weights, gradients), [])[0])
    acted = 0
    for i, (w, g) in enumerate(zip(weights[:4], gradients[:4])):
        units = [(slice(None),)] if w.ndim == 1 else [(..., u) for u in range(w.shape[-1])]
        for unit in units:
            size = math.sqrt(float((w[unit] ** 2).sum()))
            length = math.sqrt(float((g[unit] ** 2).sum()))
            factor = min(1.0, 0.01 * max(size, 1e-3) / length)
            assert found[i][unit] == pytest.approx(factor * g[unit], rel=1e-5)
            acted += factor < 1
    assert 4 <= acted < 11  # some of the units and not all
    assert np.array_equal(found[4], gradients[4])
    assert np.array_equal(found[5], gradients[5])


def test_agc_clips_the_only_layer_of_a_model_of_one_layer():
    weights, gradients = tensors(0, shapes=[(3, 1), (1,)]), tensors(1, 100.0, shapes=[(3, 1), (1,)])
    found = arrays(tensor_peers.AGC().gradients(step(weights, gradients), [])[0])
    assert np.linalg.norm(found[0]) == pytest.approx(0.01 * np.linalg.norm(weights[0]), rel=1e-5)


def test_clippy_is_the_largest_factor_that_keeps_every_weight_within_its_limit():
    weights, update = tensors(2, 0.3), tensors(3, 0.02)
    update[0][1, 2] = 5.0
    update[3][:] = 0  # no update needs no factor
    weights[5][0], update[5][0] = 0.0, 0.5  # a weight of zero may move by the constant
    found = arrays(tensor_peers.Clippy().update([tf.constant(u) for u in update], step(weights, update), []))
    for w, u, got in zip(weights, update, found):
        factor = 1.0
        for weight, change in zip(w.ravel(), u.ravel()):
            if change:
                factor = min(factor, (0.5 * abs(float(weight)) + 0.01) / abs(float(change)))
        assert got == pytest.approx(factor * u, rel=1e-5)
        # the largest: one weight stands at its limit, or nothing was done
        assert factor == 1.0 or np.isclose(np.abs(got) / (0.5 * np.abs(w) + 0.01), 1.0, rtol=1e-4).any()
    assert np.abs(found[5][0]) == pytest.approx(0.01, rel=1e-5)


def test_stable_adamw_divides_by_the_rms_of_gradient_over_second_moment():
    gradients, update = tensors(4, 0.2), tensors(5, 0.01)
    second = [np.square(x) for x in tensors(6, 0.2)]
    second[1][:] = 0  # held at epsilon^2
    second[0][:] = 4.0  # gradients far below what is expected: nothing is enlarged
    now = step(tensors(7), gradients, second=second, momentum=0.0, linear=False)
    found = arrays(tensor_peers.StableAdamW().update([tf.constant(u) for u in update], now, []))
    for g, v, u, got in zip(gradients, second, update, found):
        terms = [float(a) ** 2 / max(float(b), 1e-12) for a, b in zip(g.ravel(), v.ravel())]
        assert got == pytest.approx(u / max(1.0, math.sqrt(sum(terms) / len(terms))), rel=1e-4)
    assert np.array_equal(found[0], update[0])


def test_stable_adamw_says_that_it_is_not_for_sgd():
    with pytest.raises(ValueError, match="Adam alone"):
        tensor_peers.StableAdamW().update(tensors(0), step(tensors(0), tensors(1)), [])


@pytest.mark.parametrize("linear", [True, False], ids=["sgd", "adam"])
def test_dog_holds_the_step_below_the_farthest_distance_over_the_root_of_the_squared_norms(linear):
    rule, rate, momentum = tensor_peers.DoG(), 0.02, 0.9 if linear else 0.0
    start = tensors(8, 0.3)
    state, weights = rule.init([tf.constant(w) for w in start]), [w.copy() for w in start]
    norm = lambda xs: math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in xs))  # noqa: E731
    farthest, squares, factors = 1e-6 * (1 + norm(start)), 0.0, []
    for t in range(60):
        gradients, update = tensors(100 + t % 7, 1.0), tensors(200 + t % 7, 0.1)
        now = step(weights, gradients, rate=rate, momentum=momentum, linear=linear)
        kept, state = rule.gradients(now, state)
        changed = rule.update([tf.constant(u) for u in update], now, state)
        farthest = max(farthest, norm([w - w0 for w, w0 in zip(weights, start)]))
        squares += norm(gradients) ** 2
        eta = farthest / math.sqrt(squares + 1e-8)
        expected = min(1.0, 0.1 * eta / rate) if linear else min(1.0, eta * norm(gradients) / norm(update))
        for g, k, u, c in zip(gradients, arrays(kept), update, arrays(changed)):
            assert k == pytest.approx(g * (expected if linear else 1.0), rel=2e-4)
            assert c == pytest.approx(u * (1.0 if linear else expected), rel=2e-4)
        factors.append(expected)
        # walk away fast: the bound opens
        weights = [w - 0.5 * (1 + t) * g for w, g in zip(weights, gradients)]
    assert factors[0] < 1e-3
    assert factors[-1] == 1.0


@pytest.mark.parametrize("name", tensor_peers.TENSOR_PEERS)
def test_a_rule_on_tensors_keeps_shapes_signs_and_enlarges_nothing(name):
    rule = tensor_peers.TENSOR_PEERS[name]()
    weights, gradients, update = tensors(9), tensors(10, 50.0), tensors(11, 5.0)
    second = [np.square(g) / 100 for g in gradients]
    now = step(weights, gradients, second=second, momentum=0.0, linear="sgd" in rule.optimizers)
    state = rule.init([tf.constant(w) for w in weights])
    kept, after = rule.gradients(now, state)
    changed = rule.update([tf.constant(u) for u in update], now, after)
    assert [x.shape for x in after] == [x.shape for x in state]
    shrunk = False
    for before, now_ in (*zip(gradients, arrays(kept)), *zip(update, arrays(changed))):
        assert now_.shape == before.shape
        assert np.all(now_ * before >= 0)
        assert np.all(np.abs(now_) <= np.abs(before) * (1 + 1e-6))
        shrunk |= bool(np.any(np.abs(now_) < 0.999 * np.abs(before)))
    assert shrunk


@pytest.mark.parametrize("jit", [False, True], ids=["function", "xla"])
@pytest.mark.parametrize("linear", [True, False], ids=["sgd", "adam"])
def test_a_rule_in_a_set_acts_on_its_own_run_as_it_does_alone(linear, jit):
    names = [n for n, make in tensor_peers.TENSOR_PEERS.items() if ("sgd" if linear else "adam") in make().optimizers]
    runs, momentum = len(names) + 2, 0.9 if linear else 0.0
    # the runs without a rule stand at both ends
    params = [tf.Variable(np.stack(x)) for x in zip(*[tensors(run) for run in range(runs)])]
    rules = {run: tensor_peers.TENSOR_PEERS[name]() for run, name in enumerate(names, 1)}
    together = tensor_peers.RuleSet(rules, params, momentum, linear)

    @tf.function(autograph=False, jit_compile=jit)
    def step_of_all(grads, update, second):
        kept = together.gradients(params, grads, 0.1)
        return kept, together.update(update, params, grads, None if linear else second, 0.1)

    state = {run: rule.init([tf.identity(p[run]) for p in params]) for run, rule in rules.items()}
    for t in range(3):
        grads = [np.stack(x) for x in zip(*[tensors(50 + run + 10 * t, 5.0) for run in range(runs)])]
        update = [np.stack(x) for x in zip(*[tensors(90 + run + 10 * t, 0.5) for run in range(runs)])]
        second = [np.square(g) / 9 for g in grads]
        kept, changed = step_of_all(*[[tf.constant(a) for a in x] for x in (grads, update, second)])
        for run in range(runs):
            own, own_update = [g[run] for g in grads], [u[run] for u in update]
            if run in rules:
                moments = None if linear else [v[run] for v in second]
                now = step([p[run] for p in params], own, second=moments, momentum=momentum, linear=linear)
                own, state[run] = rules[run].gradients(now, state[run])
                own_update = rules[run].update([tf.constant(u) for u in own_update], now, state[run])
            for expected, got in (*zip(own, kept), *zip(own_update, changed)):
                np.testing.assert_allclose(got[run], expected, rtol=1e-5, atol=1e-7)
        for p, c in zip(params, changed):
            p.assign_sub(c)
