"""Densities of gaps against golden arrays, and the laws that hold for every one of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from relpos.tasks.events import Sequences
from relpos.tasks.events.processes import Density, Gompertz, LogLogistic, LogNormalMixture, Renewal, Weibull, crps
from relpos.tasks.events.processes.residuals import crps_samples

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "ctes_densities.npz")
X = torch.from_numpy(GOLDEN["x"])


def mixture(**more: float) -> LogNormalMixture:
    """(5, 1): a batch axis for x."""
    return LogNormalMixture(*(torch.from_numpy(GOLDEN[k])[:, None] for k in ("loc", "log_scale", "log_weight")), **more)


@pytest.mark.parametrize(
    "name, of",
    [("logpdf", "log_prob"), ("logsurv", "log_survival"), ("logcdf", "log_cdf"), ("log_hazard", "log_hazard")],
)
def test_a_mixture_agrees_far_into_the_tails(name: str, of: str) -> None:
    np.testing.assert_allclose(getattr(mixture(), of)(X).numpy(), GOLDEN[f"lnm_{name}"], rtol=1e-10, atol=1e-12)


def test_a_standardised_mixture_and_its_moments() -> None:
    shift, scale = GOLDEN["shift_scale"]
    moved = mixture(shift=shift, scale=scale)
    np.testing.assert_allclose(moved.log_prob(X).numpy(), GOLDEN["lnm_logpdf_standardised"], rtol=1e-10)
    np.testing.assert_allclose(moved.log_survival(X).numpy(), GOLDEN["lnm_logsurv_standardised"], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(moved.mean()[:, 0].numpy(), GOLDEN["lnm_mean_standardised"], rtol=1e-10)
    np.testing.assert_allclose(mixture().mean()[:, 0].numpy(), GOLDEN["lnm_mean"], rtol=1e-10)
    np.testing.assert_allclose(mixture().variance()[:, 0].numpy(), GOLDEN["lnm_var"], rtol=1e-10)
    levels = mixture().quantile(torch.from_numpy(GOLDEN["quantile_levels"]))
    np.testing.assert_allclose(levels.numpy(), GOLDEN["lnm_quantiles"], rtol=1e-9)


def test_rmtpp_and_the_mass_that_it_lacks() -> None:
    head = Gompertz(*(torch.from_numpy(GOLDEN[k])[:, None] for k in ("rmtpp_a", "rmtpp_w")))
    x = torch.from_numpy(GOLDEN["rmtpp_dt"])
    np.testing.assert_allclose(head.log_prob(x).numpy(), GOLDEN["rmtpp_logf"], rtol=1e-10)
    np.testing.assert_allclose(head.log_survival(x).numpy(), GOLDEN["rmtpp_logS"], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(head.mass()[:, 0].numpy(), GOLDEN["rmtpp_mass"], rtol=1e-12)
    np.testing.assert_allclose(head.quantile(torch.from_numpy(GOLDEN["rmtpp_u"])).numpy(), GOLDEN["rmtpp_inverse"])
    np.testing.assert_allclose(head.mean()[:, 0].numpy(), GOLDEN["rmtpp_cond_mean"], rtol=1e-8)


def test_a_time_and_a_mark_jointly() -> None:
    time = mixture().log_prob(X[4])[:, 0].numpy()
    logits = torch.log_softmax(torch.from_numpy(GOLDEN["mark_logits"]), -1).numpy()
    np.testing.assert_allclose(time + logits[np.arange(5), GOLDEN["marks"]], GOLDEN["joint_logp_at_x1"], rtol=1e-12)


def test_the_likelihood_of_a_window_counts_its_two_ends() -> None:
    loc, scale = GOLDEN["renewal_mu_sigma"]
    process = Renewal(LogNormalMixture(loc, math.log(scale)))
    one = Sequences.of([GOLDEN["renewal_times"]], window=(0.0, float(GOLDEN["renewal_T"])))
    np.testing.assert_allclose(process.log_likelihood(one), GOLDEN["renewal_loglik_window"], rtol=1e-12)


FAMILIES = [
    *(mixture(), Weibull([-1.0, 0.3], [0.4, -0.5]), LogLogistic([-1.0, 0.3], [0.9, 0.7])),
    Gompertz([-1.0, 0.2, 1.5, 0.0], [-0.5, -1.2, 0.4, 0.0]),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.name)
def test_a_density_integrates_to_its_mass_and_hangs_together(family: Density) -> None:
    edges = torch.exp(torch.linspace(-70, 70, 1 << 15, dtype=torch.float64))
    shape = family.log_survival(X[:1]).shape[:-1] if isinstance(family, LogNormalMixture) else family.mass().shape
    x = edges if len(shape) and isinstance(family, LogNormalMixture) else edges[:, None]
    axis = -1 if isinstance(family, LogNormalMixture) else 0
    density = torch.exp(family.log_prob(x)) * x  # in log x
    total = torch.trapezoid(density, torch.log(edges), dim=axis)
    np.testing.assert_allclose(total.reshape(-1).numpy(), family.mass().reshape(-1).numpy(), atol=1e-6)
    levels = family.mass() * 0.37
    found = family.quantile(levels)
    np.testing.assert_allclose(torch.exp(family.log_cdf(found)).numpy(), levels.numpy(), rtol=1e-9)
    np.testing.assert_allclose(family.log_survival(torch.zeros(1, dtype=torch.float64)).numpy(), 0, atol=1e-12)


@pytest.mark.parametrize("x", [1e-12, 1e12])
def test_gradients_are_finite_at_the_far_ends(x: float) -> None:
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    head = LogNormalMixture(loc, torch.zeros(3, dtype=torch.float64))
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (head.log_prob(at) + head.log_survival(at) + head.log_hazard(at)).backward()
    assert torch.isfinite(loc.grad).all() and torch.isfinite(at.grad)
    assert head.log_prob(torch.zeros(1, dtype=torch.float64)).item() == -math.inf


def test_draws_follow_the_quantiles_and_say_when_nothing_comes() -> None:
    generator = torch.Generator().manual_seed(3)
    for family in (LogNormalMixture([0.0, 2.0], [-1.0, -0.5], [0.3, 0.0]), Weibull(0.5, -0.3), Gompertz(-1.0, -0.5)):
        drawn = family.sample(20_000, generator)
        assert len(torch.unique(drawn[torch.isfinite(drawn)])) == int(torch.isfinite(drawn).sum())
        for level in (0.1, 0.3, 0.5):
            assert abs(float((drawn <= family.quantile(level)).double().mean()) - level) < 0.015
    assert abs(float(torch.isinf(drawn).double().mean()) - (1 - float(GOLDEN["rmtpp_mass"][0]))) < 0.015


def test_the_score_of_a_forecast_is_that_of_the_closed_form_and_of_draws() -> None:
    x = np.array([0.0, 0.2, 1.0, 4.0])
    rate = 1.7
    expected = x + 1 / rate * (2 * np.exp(-rate * x) - 1.5)  # of an exponential
    np.testing.assert_allclose(crps(Weibull(-math.log(rate)), x).numpy(), expected, rtol=1e-7)
    heavy = LogNormalMixture(0.3, math.log(0.8))
    drawn = heavy.sample(200_000, torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(crps(heavy, x).numpy(), crps_samples(drawn[:, None], x), rtol=0.01)
    with pytest.raises(ValueError, match="no event at all"):
        crps(Gompertz(-1.0, -0.5), x)


def drawn(family: type[Density], count: int = 50) -> Density:
    """Of ``count`` drawn sets of parameters, (count, 1)."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    if family is LogNormalMixture:
        three = torch.randn(3, count, 1, 3, generator=generator, dtype=torch.float64)
        return LogNormalMixture(three[0], 0.5 * three[1], three[2], shift=0.7, scale=1.4)
    return family(a, b) if family is Gompertz else family(a, 0.4 * b)


@pytest.mark.parametrize("family", [LogNormalMixture, Weibull, LogLogistic, Gompertz])
def test_any_parameters_integrate_to_the_mass_and_survive_by_the_hazard(family: type[Density]) -> None:
    density = drawn(family)
    edges = torch.linspace(-60, 60, 1 << 14, dtype=torch.float64)
    found = torch.trapezoid(torch.exp(density.log_prob(edges.exp())) * edges.exp(), edges)
    np.testing.assert_allclose(found.numpy(), density.mass().expand(50, 1)[:, 0].numpy(), atol=1e-6)
    assert family is not Gompertz or density.mass().min() < 0.9  # some may never come
    x = torch.logspace(-4, 1, 40, dtype=torch.float64).expand(50, 40).clone().requires_grad_()
    survival = density.log_survival(x)
    (slope,) = torch.autograd.grad(survival.sum(), x)
    alive = (survival > -200) & (survival < -1e-9)
    np.testing.assert_allclose(-slope[alive], torch.exp(density.log_hazard(x))[alive].detach(), rtol=1e-6)


@pytest.mark.parametrize("family", [LogNormalMixture, Weibull, LogLogistic, Gompertz])
def test_draws_of_one_call_are_independent(family: type[Density]) -> None:
    """The variance of the mean of a call is that of one draw over their number; levels are uniform."""
    density = drawn(family, 1)
    calls = density.sample(400 * 25, torch.Generator().manual_seed(0)).reshape(400, 25)
    levels = torch.where(torch.isinf(calls), density.mass(), torch.exp(density.log_cdf(calls)))
    assert levels.mean(1).var().item() == pytest.approx(levels.var().item() / 25, rel=0.25)
    assert len(torch.unique(calls[torch.isfinite(calls)])) == int(torch.isfinite(calls).sum())
