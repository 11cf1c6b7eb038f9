"""Each peer rule does what its source says: an oracle each, and the official package where one can be installed."""

from __future__ import annotations

import math
import statistics
import sys
import types

import numpy as np
import peers
import pytest


def stream(seed=0, steps=400, variables=3, spikes=(60, 200, 201, 330)):
    """Norms of several variables with a drifting level and a few spikes, shape [steps, variables]."""
    rng = np.random.default_rng(seed)
    level = np.exp(np.cumsum(rng.normal(0, 0.02, steps)))[:, None]
    x = level * rng.lognormal(0, 0.3, (steps, variables)) * 0.3
    x[list(spikes)] *= 40
    return x


def totals(norms):
    return np.sqrt((norms**2).sum(1))


@pytest.mark.parametrize(("q", "window"), [(10, None), (90, 50), (100, None)])
def test_autoclip_is_numpys_percentile_of_the_norms_so_far(q, window):
    norms, rule = stream(), peers.AutoClip(q, window)
    x = totals(norms)
    for t in range(len(x)):
        verdict = rule.step(norms[t], 0.0)
        past = x[: t + 1] if window is None else x[max(0, t + 1 - window) : t + 1]
        clip_norm = np.percentile(past, q)
        assert verdict.clip_norm == pytest.approx(clip_norm, rel=1e-12)
        assert verdict.scale == pytest.approx(np.full(3, min(1, clip_norm / (x[t] + 1e-6))))


def test_autoclip_is_nan_from_its_first_nan_on_as_published():
    rule = peers.AutoClip(10)
    rule.step(np.array([1.0]), 0.0)
    assert math.isnan(rule.step(np.array([math.nan]), 0.0).scale[0])
    assert math.isnan(rule.step(np.array([1.0]), 0.0).scale[0])


def test_autoclip_with_a_window_recovers_when_the_nan_leaves_it():
    rule = peers.AutoClip(50, window=4)
    for x in (1.0, math.nan, 2.0, 3.0, 4.0):
        assert math.isnan(rule.step(np.array([x]), 0.0).clip_norm) == (x != 1.0)
    assert rule.step(np.array([5.0]), 0.0).clip_norm == np.percentile([2, 3, 4, 5], 50)


@pytest.fixture
def official_zclip(monkeypatch):
    """The ZClip package, with just so much of torch that it can be imported; the norm is handed to it."""
    torch = types.ModuleType("torch")
    torch.distributed = types.ModuleType("torch.distributed")
    fsdp = types.ModuleType("torch.distributed.fsdp")
    fsdp.FullyShardedDataParallel = type("FullyShardedDataParallel", (), {})
    torch.distributed.fsdp = fsdp

    def clip_grad_norm_(parameters, max_norm):
        (p,) = parameters
        p.factor = min(1.0, max_norm / (p.norm + 1e-6))

    torch.nn = types.SimpleNamespace(utils=types.SimpleNamespace(clip_grad_norm_=clip_grad_norm_))
    for name, module in {
        "torch": torch,
        "torch.distributed": torch.distributed,
        "torch.distributed.fsdp": fsdp,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    zclip = pytest.importorskip("zclip.zclip")

    class Parameter:
        """One parameter whose gradient is just its norm."""

        def __init__(self, norm):
            self.norm, self.factor = norm, 1.0
            self.grad = types.SimpleNamespace(data=types.SimpleNamespace(mul_=self.multiply))

        def multiply(self, factor):
            self.factor = factor

    class Model:
        def __init__(self, norm):
            self.parameter = Parameter(norm)

        def parameters(self):
            return [self.parameter]

        def modules(self):
            return []

    class Official(zclip.ZClip):
        def _compute_grad_norm(self, model):
            return model.parameter.norm

        def factor(self, norm):
            model = Model(norm)
            self.step(model)
            return model.parameter.factor

    yield Official
    for name in [name for name in sys.modules if name.split(".")[0] == "zclip"]:
        del sys.modules[name]


@pytest.mark.parametrize("constant", [1.0, None])
def test_zclip_is_the_official_package(official_zclip, constant):
    theirs, ours = official_zclip(max_grad_norm=constant), peers.ZClip(constant_clip=constant)
    clipped = 0
    for norms in stream(seed=3, steps=600):
        total = float(np.sqrt((norms**2).sum()))
        expected = theirs.factor(total)
        assert ours.step(norms, 0.0).scale == pytest.approx(np.full(3, expected), rel=1e-9)
        clipped += expected < 1
    assert clipped > 5


@pytest.mark.parametrize("constant", [1.0, None])
def test_zclip_stops_clipping_after_one_nan_like_the_official_package(official_zclip, constant):
    theirs, ours = official_zclip(max_grad_norm=constant), peers.ZClip(constant_clip=constant)
    x = np.r_[np.random.default_rng(0).lognormal(0, 0.1, 50), math.nan, np.full(20, 500.0)]
    for t, total in enumerate(x):
        expected, found = theirs.factor(total), ours.step(np.array([total]), 0.0).scale[0]
        assert found == pytest.approx(expected, nan_ok=True), t
        if t > 50:
            # only the constant is left: without it a norm of 500 goes through whole
            assert found == pytest.approx(1 / 500 if constant else 1.0)


def test_zclip_is_the_formula_of_the_paper():
    rule = peers.ZClip(constant_clip=None)
    x = list(np.random.default_rng(1).lognormal(0, 0.2, 25))
    for value in x:
        assert rule.step(np.array([value]), 0.0).scale[0] == 1
    mean, var = statistics.fmean(x), statistics.pvariance(x)
    z = (10.0 - mean) / math.sqrt(var)
    clipped = mean + 2.5 * math.sqrt(var) / (z / 2.5)
    assert rule.step(np.array([10.0]), 0.0).scale[0] == pytest.approx(clipped / 10.0, rel=1e-5)
    new_mean = 0.97 * mean + 0.03 * clipped
    assert rule.mean == pytest.approx(new_mean, rel=1e-5)
    assert rule.var == pytest.approx(0.97 * var + 0.03 * (clipped - new_mean) ** 2, rel=1e-4)


def test_adagc_is_algorithm_1_of_the_paper():
    """Oracle: the algorithm written out for one variable at a time."""
    norms, rule = stream(seed=2), peers.AdaGC()
    gamma = [math.inf] * 3
    for t, row in enumerate(norms):
        found = rule.step(row, 0.0).scale
        for i, x in enumerate(row):
            if t < 100:
                h = min(1.0 / math.sqrt(sum(v * v for v in row)), 1.0)
                gamma[i] = min(gamma[i], h * x)
            else:
                h = min(1.05 * gamma[i] / x, 1.0)
                gamma[i] = 0.98 * gamma[i] + 0.02 * h * x
            assert found[i] == pytest.approx(h, rel=1e-9)


def test_adagc_as_a_whole_is_adagc_on_the_global_norm():
    norms = stream(seed=4)
    whole, one = peers.AdaGC(whole=True), peers.AdaGC()
    for row in norms:
        expected = one.step(np.array([math.sqrt((row**2).sum())]), 0.0).scale[0]
        assert whole.step(row, 0.0).scale == pytest.approx(np.full(3, expected))


def test_the_gradient_stabilizer_gives_each_variable_the_mean_over_the_root_mean_square_of_its_norms():
    """Oracle: the averages written as weighted sums over all norms so far; a zero and a NaN are no norms."""
    norms, rule = stream(seed=9, steps=120, spikes=(60, 100)), peers.GradientStabilizer()
    norms[30, 1], norms[50, 0] = 0.0, math.nan
    for t, row in enumerate(norms):
        found = rule.step(row, 0.0).scale
        for i, x in enumerate(row):
            if not x > 0:
                assert found[i] == 1.0
                continue
            past = np.array([y for y in norms[: t + 1, i] if y > 0])
            mean = np.average(past, weights=0.6 ** np.arange(len(past))[::-1])
            square = np.average(past**2, weights=0.999 ** np.arange(len(past))[::-1])
            assert found[i] * x == pytest.approx(mean / math.sqrt(square), rel=1e-9)
    # a spike is no longer than what its share in the mean allows, whatever its size
    bound = (1 - 0.6) / math.sqrt((1 - 0.999) / (1 - 0.999**121))
    assert rule.step(np.full(3, 1e30), 0.0).scale * 1e30 == pytest.approx(np.full(3, bound), rel=0.01)


def test_icefalls_median_is_taken_once_a_period_and_kept_for_the_next():
    norms, rule = stream(seed=5, steps=350), peers.MedianOfPeriod()
    x = totals(norms)
    thresholds = {}
    for t in range(350):
        verdict = rule.step(norms[t], 0.0)
        if t < 100:
            assert np.all(verdict.scale == 1)
            continue
        # steps 1..100, 101..200, ... : at step 100 k the buffer holds the last hundred, step 100 k included
        newest = t // 100 * 100
        period = x[newest - 99 : newest + 1]
        thresholds[newest] = 2 * np.sort(period)[50]
        assert verdict.scale == pytest.approx(np.full(3, min(1, thresholds[newest] / x[t])))
    assert sorted(thresholds) == [100, 200, 300]


def test_skip_step_skips_six_sigma_of_the_last_128_by_loss_or_norm():
    rng = np.random.default_rng(6)
    x, losses = rng.lognormal(0, 0.2, 400), rng.normal(2, 0.1, 400)
    x[300], losses[350], x[30], x[380] = 50.0, 9.0, 50.0, math.nan
    rule = peers.SkipStep()
    skipped = []
    for t in range(400):
        past_x, past_loss = x[max(0, t - 128) : t], losses[max(0, t - 128) : t]
        past_x = past_x[np.isfinite(past_x)]
        expected = False
        if t + 1 >= 64:
            far = x[t] - statistics.fmean(past_x) > 6 * statistics.stdev(past_x)
            lost = losses[t] - statistics.fmean(past_loss) > 6 * statistics.stdev(past_loss)
            expected = bool(far or lost or not math.isfinite(x[t]))
        assert rule.step(np.array([x[t]]), losses[t]).skip == expected, t
        skipped += [t] * expected
    assert skipped == [300, 350, 380]


# the stabilizer sets lengths, it does not bound them
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "GradientStabilizer"])
def test_a_peer_never_enlarges_a_finite_gradient(name):
    rule = peers.PEERS[name]()
    for row in stream(seed=7):
        scale = rule.step(row, 2.0).scale
        assert scale.shape == (3,)
        assert np.all((scale >= 0) & (scale <= 1))
