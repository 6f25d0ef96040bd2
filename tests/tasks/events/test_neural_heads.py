"""Heads of point processes: densities, compensators and draws of each, against quadrature and exact laws."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from relpos.tasks.events.neural import RMTPP, Head, IntensityHead, MixtureHead, Scales, next_event
from relpos.tasks.events.processes import ks_uniform

SCALES = Scales(2.0, -0.5, 1.3)
DIM, MARKS = 6, 3
KINDS = {
    "mixture": lambda: MixtureHead(DIM, MARKS, 4, SCALES),
    "rmtpp": lambda: RMTPP(DIM, MARKS, SCALES),
    "intensity": lambda: IntensityHead(DIM, MARKS, periods=(7.0, 19.0), nodes=64, scales=SCALES),
}


def head(kind: str, seed: int = 0, wild: float = 8.0) -> Head:
    """Untrained, with weights so large that states matter."""
    torch.manual_seed(seed)
    found = KINDS[kind]()
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if name.startswith("time") and weight.dim() == 2:
                weight.mul_(wild)
    return found


def states(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def panels(rates: object, edges: list[float], nodes: int = 200) -> Tensor:
    """Integral over x between the edges of a function of x (nodes, 1)."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    total = None
    for low, high in pairwise(edges):
        at = torch.from_numpy(low + (high - low) * (x + 1) / 2)[:, None]
        part = (torch.from_numpy(w)[:, None] * rates(at)).sum(0) * (high - low) / 2  # type: ignore[operator]
        total = part if total is None else total + part
    assert total is not None
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_gap_and_mark_integrates_to_the_mass(kind: str) -> None:
    some, mine = states(50), head(kind)
    reach = mine.density(some).mass()

    def density(at: Tensor) -> Tensor:
        x = torch.exp(at)  # over the logarithm of the gap, where tails are short
        gaps = x.expand(len(at), 50)
        return sum(
            mine.log_prob(some.expand(len(at), 50, DIM), gaps, torch.full_like(gaps, mark, dtype=torch.int64)).exp() * x
            for mark in range(MARKS)
        )

    with torch.no_grad():
        total = panels(density, list(np.linspace(-24, 24, 33)), 16)
    # an intensity's survival is itself a quadrature
    torch.testing.assert_close(total, reach, atol=1e-3 if kind == "intensity" else 1e-6, rtol=0)
    if kind == "rmtpp":
        falling = mine.density(some).w < 0
        assert bool(falling.any()) and bool((~falling).any())
        short = 1 - torch.exp(-mine.density(some).a.exp() / mine.density(some).w.abs())
        torch.testing.assert_close(reach[falling], short[falling])
        assert bool((reach[~falling] == 1).all()) and float(reach.detach().min()) < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_survival_falls_by_the_sum_of_the_rates_of_all_marks(kind: str) -> None:
    some, mine = states(), head(kind)
    assert float(mine.log_survival(some, torch.zeros(5, dtype=torch.float64)).detach().abs().max()) < 1e-12
    gaps = torch.tensor([0.02, 0.5, 2.0, 5.0, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mine.log_survival(some, gaps).sum(), gaps)
    rates = mine.log_rates(some, gaps).exp()
    torch.testing.assert_close(-slope, rates.sum(-1), rtol=2e-4, atol=1e-6)
    chosen = torch.stack([mine.log_prob(some, gaps, torch.full((5,), mark)) for mark in range(MARKS)], -1)
    torch.testing.assert_close(chosen, mine.log_rates(some, gaps) + mine.log_survival(some, gaps)[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_tails_are_finite_with_finite_gradients(kind: str) -> None:
    mine = head(kind)
    for gap in (1e-12, 1e-3, 50.0, 1e12):
        some = states().requires_grad_()
        gaps = torch.full((5,), gap, dtype=torch.float64)
        value = mine.log_prob(some, gaps, torch.zeros(5, dtype=torch.int64)) + mine.log_survival(some, gaps)
        assert bool(torch.isfinite(value).all()), gap
        value.sum().backward()
        parameters = [each.grad for each in mine.parameters() if each.grad is not None]
        assert all(bool(torch.isfinite(each).all()) for each in [some.grad, *parameters])


def test_more_nodes_change_nothing_and_all_marks_count() -> None:
    some, mine = states(200), head("intensity")
    assert isinstance(mine, IntensityHead)
    gaps = torch.from_numpy(np.random.default_rng(0).exponential(8.0, 200))
    coarse = mine.log_survival(some, gaps)
    mine.nodes = 128
    fine = mine.log_survival(some, gaps)
    assert abs(float((coarse - fine).detach().mean())) < 1e-4
    # by midpoints of a fine grid, mark by mark
    density = mine.density(some[:3])
    grid = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    each = density.log_intensities(grid[:, None] * gaps[:3]).exp().mean(0) * gaps[:3, None]
    torch.testing.assert_close(-fine[:3], each.sum(-1), rtol=1e-5, atol=0)
    assert bool((each > 0).all())


def test_a_bound_holds_and_is_not_idle() -> None:
    some, mine = states(40), head("intensity")
    density = mine.density(some)
    for low, high in ((0.0, 0.5), (0.0, 40.0), (3.0, 4.0)):
        ends = [torch.full((40,), each, dtype=torch.float64) for each in (low, high)]
        grid = torch.linspace(low, high, 400, dtype=torch.float64)[:, None]
        reached = density.log_hazard(grid).exp().amax(0)
        bound = density.bound(*ends)  # type: ignore[attr-defined]
        assert bool((bound >= reached * (1 - 1e-12)).all())
        assert float((bound / reached).detach().median()) < 3


@pytest.mark.parametrize("kind, method", [(k, "inversion") for k in KINDS] + [("intensity", "thinning")])
def test_draws_follow_the_density_and_are_independent(kind: str, method: str) -> None:
    mine, one = head(kind), states(1)
    generator = torch.Generator().manual_seed(7)
    before = torch.get_rng_state()
    gaps, marks = next_event(mine, one.expand(2500, DIM), generator, method=method)
    assert torch.equal(torch.get_rng_state(), before), "draws take their own generator"
    again = next_event(mine, one.expand(2500, DIM), torch.Generator().manual_seed(7), method=method)
    assert torch.equal(gaps, again[0]) and torch.equal(marks, again[1])
    finite = torch.isfinite(gaps)
    assert bool(((marks >= 0) == finite).all())
    density = mine.density(one)
    mass = float(density.mass())
    assert abs(float(finite.double().mean()) - mass) < 4 * math.sqrt(max(mass * (1 - mass), 1e-9) / 2500)
    came = gaps[finite]
    assert len(torch.unique(came)) == len(came), "draws share nothing"
    levels = -torch.expm1(density.log_survival(came)) / mass
    assert ks_uniform(levels.detach().clamp(0, 1).numpy()).p > 0.01
    # chunks have means as independent draws have
    chunks = levels[: len(levels) // 40 * 40].view(40, -1)
    assert 0.5 < float(chunks.mean(1).var() * chunks.shape[1] * 12) < 1.7
    expected = mine.log_marks(one.expand(len(came), DIM), came).exp().mean(0)
    shares = torch.bincount(marks[finite], minlength=MARKS) / len(came)
    assert float((shares - expected).abs().max()) < 4 * math.sqrt(0.25 / len(came))


@pytest.mark.parametrize("kind", KINDS)
def test_a_horizon_and_known_silence(kind: str) -> None:
    mine, one = head(kind), states(1)
    density = mine.density(one)
    floor = float(density.quantile(float(density.mass()) * 0.5))
    horizon = float(density.quantile(float(density.mass()) * 0.8))
    silent = torch.full((3000,), floor, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    gaps, marks = next_event(mine, one.expand(3000, DIM), generator, floor=silent, horizon=horizon)
    none = torch.isinf(gaps)
    assert bool((marks[none] == -1).all()) and bool((marks[~none] >= 0).all())
    assert bool((gaps[~none] >= floor).all()) and bool((gaps[~none] <= horizon).all())
    survived = float((density.log_survival(torch.tensor(horizon)) - density.log_survival(torch.tensor(floor))).exp())
    assert abs(float(none.double().mean()) - survived) < 4 * math.sqrt(survived * (1 - survived) / 3000)


def test_an_intensity_that_rises_after_a_short_gap_is_thinned_right() -> None:
    """What bounds the intensity is ahead of now, not behind: a rate of almost nothing at first, then of 2 a unit."""
    mine = IntensityHead(1, 1, decays=2, scales=Scales(1.0))
    with torch.no_grad():
        mine.time.weight.zero_()
        mine.time.bias.copy_(torch.tensor([math.log(math.expm1(2.0)), 0.0, -12.0]))
    one = torch.zeros(3000, 1)
    gaps, _ = next_event(mine, one, torch.Generator().manual_seed(0))
    levels = -torch.expm1(mine.log_survival(one, gaps)).detach()
    assert ks_uniform(levels.numpy()).p > 0.01
    assert float(gaps.median()) > 5


def test_predictions_are_given_that_an_event_comes() -> None:
    """Check of Gompertz with a = -1, w = -0.5: mass 0.521, conditional mean 1.650."""
    mine = RMTPP(1, 1)
    with torch.no_grad():
        for each in mine.parameters():
            each.zero_()
        mine.time.bias.copy_(torch.tensor([-1.0, 1 - math.log(math.expm1(1.5))]))
    density = mine.density(torch.zeros(1, 1))
    assert float(density.w) == pytest.approx(-0.5, abs=1e-6)
    assert float(density.mass()) == pytest.approx(0.5209, abs=1e-4)
    assert float(density.mean()) == pytest.approx(1.650, abs=1e-3)
    median, _ = mine.forecast(torch.zeros(1, 1))
    survival = float(density.log_survival(median).exp())
    assert 1 - survival == pytest.approx(0.5 * float(density.mass()), abs=1e-6)


def test_methods_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="thinning for an intensity; got 'thinning' for MixtureHead"):
        next_event(head("mixture"), states(), method="thinning")
    with pytest.raises(ValueError, match="decays >= 1"):
        IntensityHead(4, 2, decays=0)
