"""Log-normals cut off at a bound: densities, draws and gradients, also where almost nothing is left below the bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.events.neural.truncated import TruncatedLogNormal, log_ndtri

numbers = st.floats(-12, 12)
parameters = st.lists(st.tuples(numbers, st.floats(-4, 4), st.floats(-5, 5)), min_size=1, max_size=3)


def made(values: list[tuple[float, float, float]], bound: float) -> TruncatedLogNormal:
    loc, log_scale, weight = torch.tensor(values, dtype=torch.float64).T
    return TruncatedLogNormal(loc, log_scale, weight, torch.tensor(bound, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(parameters, st.floats(1e-3, 1e3))
def test_the_density_has_all_its_mass_below_the_bound(values: list[tuple[float, float, float]], bound: float) -> None:
    own = made(values, bound)
    assert float(own.cdf(torch.tensor(bound, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-9)
    nodes = [np.zeros(1)]  # in log(x / bound), fine where each component is, and at the bound where it leans on it
    for loc, log_scale in zip(own.loc.numpy(), own.log_scale.numpy()):
        edge = -loc * np.exp(-log_scale)
        z = np.concatenate([np.linspace(-9, 9, 201), edge - np.linspace(0, 40, 201) / max(abs(edge), 1.0)])
        nodes.append(np.minimum(loc + np.exp(log_scale) * z, 0.0))
    grid = np.unique(np.concatenate(nodes))
    middles, halves = (grid[1:] + grid[:-1]) / 2, np.diff(grid) / 2
    x, w = np.polynomial.legendre.leggauss(5)
    at = torch.from_numpy(middles[:, None] + halves[:, None] * x)
    inside = at > -600  # exp underflows below
    logs = own.log_prob(torch.exp(at.clamp(min=-600)) * bound) + at.clamp(min=-600) + math.log(bound)
    total = float((torch.exp(logs) * inside * torch.from_numpy(halves[:, None] * w)).sum())
    lost = float(own.cdf(torch.exp(torch.tensor(-600.0, dtype=torch.float64)) * bound))
    assert total + lost == pytest.approx(1.0, abs=2e-6)


@settings(max_examples=50, deadline=None)
@given(parameters, st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_draws_lie_inside_and_gradients_are_finite(
    values: list[tuple[float, float, float]], bound: float, seed: int
) -> None:
    loc, log_scale, weight = (
        torch.tensor(values, dtype=torch.float64).expand(40, -1, -1).unbind(-1)
    )  # fmt: skip
    leaves = [each.clone().requires_grad_() for each in (loc, log_scale, weight)]
    whole = torch.full((40,), bound, dtype=torch.float64, requires_grad=True)
    own = TruncatedLogNormal(*leaves, whole)
    for log_share in (own.log_share(torch.Generator().manual_seed(seed)), own.middle()):
        x = torch.exp(log_share) * whole
        assert bool(((x > 0) & (x < bound)).all())
        value = own.log_prob(x)
        assert bool(torch.isfinite(value).all())
        for grad in torch.autograd.grad((value + x).sum(), [*leaves, whole], retain_graph=True):
            assert bool(torch.isfinite(grad).all())


def test_draws_follow_the_distribution() -> None:
    own = made([(-1.0, -0.5, 0.3), (0.5, 0.2, 0.0), (3.0, -1.0, -0.5)], 4.0)
    parts = (each.expand(20_000, *each.shape) for each in (own.loc, own.log_scale, own.log_weight, own.bound))
    many = TruncatedLogNormal(*parts)
    x = torch.exp(many.log_share(torch.Generator().manual_seed(1))) * 4.0
    from relpos.tasks.events.processes import ks_uniform

    assert ks_uniform(own.cdf(x).numpy()).p > 0.01
    again = torch.exp(many.log_share(torch.Generator().manual_seed(1))) * 4.0
    assert torch.equal(x, again)


def test_the_gradient_of_a_draw_is_that_of_its_quantile() -> None:
    """With one component a draw at a fixed level is a known function of the parameters."""
    leaves = [torch.tensor([[value]], dtype=torch.float64, requires_grad=True) for value in (0.4, -0.3, 0.0)]
    draw = TruncatedLogNormal(*leaves, torch.ones(1, dtype=torch.float64)).log_share(torch.Generator().manual_seed(0))
    level = TruncatedLogNormal(*leaves, torch.ones(1)).cdf(torch.exp(draw.detach())).item()

    def quantile(loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        edge = torch.special.log_ndtr(-loc * torch.exp(-log_scale))
        return loc + torch.exp(log_scale) * log_ndtri(math.log(level) + edge)

    wanted = torch.autograd.grad(quantile(*leaves[:2]).sum(), leaves[:2])
    for got, want in zip(torch.autograd.grad(draw.sum(), leaves[:2]), wanted):
        assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_means_over_draws_of_a_mixture_have_the_right_gradient() -> None:
    """By quadrature: the gradient of E[log(x / bound)] by the weight of one of two components."""
    values = [(-2.0, -0.5, 0.0), (0.3, 0.1, 0.0)]

    def mean(weight: torch.Tensor, draws: int = 0) -> torch.Tensor:
        loc, log_scale, _ = torch.tensor(values, dtype=torch.float64).T
        weights = torch.stack([weight, torch.zeros_like(weight)])
        if draws:
            many = (each.expand(draws, -1) for each in (loc, log_scale, weights))
            own = TruncatedLogNormal(*many, torch.ones(draws, dtype=torch.float64))
            return own.log_share(torch.Generator().manual_seed(0)).mean()
        own = TruncatedLogNormal(loc, log_scale, weights, torch.ones((), dtype=torch.float64))
        grid = torch.linspace(-30, -1e-9, 200_001, dtype=torch.float64)
        return torch.trapezoid(grid * torch.exp(own.log_prob(torch.exp(grid)) + grid), grid)

    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    exact = float(torch.autograd.grad(mean(weight), weight)[0])
    assert float(torch.autograd.grad(mean(weight, 40_000), weight)[0]) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("level", [-1e-12, -0.1, -1.0, -19.9, -20.1, -500.0, -1e6])
def test_the_inverse_of_the_log_cdf(level: float) -> None:
    leaf = torch.tensor(level, dtype=torch.float64, requires_grad=True)
    z = log_ndtri(leaf)
    assert float(torch.special.log_ndtr(z.detach())) == pytest.approx(level, rel=1e-9, abs=1e-15)
    slope = float(torch.autograd.grad(z, leaf)[0])
    if level < -1e-9:
        point = z.detach().requires_grad_()
        assert slope == pytest.approx(1 / float(torch.autograd.grad(torch.special.log_ndtr(point), point)[0]), rel=1e-6)
