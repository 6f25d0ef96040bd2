from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.bias.alibi import alibi_slopes
from relpos.positions import Index
from tests.encodings.case import EncodingCase


class TestHyPE(EncodingCase):
    name = "hype"
    causal = True

    def make(self) -> Any:
        return rp.encodings.HyPE(self.heads, slope=0.1, amplitude=torch.tensor([1.0, 2.0, 0.5]))

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        tau = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
        return -tau * torch.sinh(0.1 * (q_pos[:, None] - k_pos[None]).double())

    def test_generator_equals_pointwise(self) -> None:
        """To the last place but one: torch's sinh of a whole vector and of its odd elements round differently."""
        encoding = self.build()
        for n_q, n_k, offset in [(1, 1, 0), (4, 6, 2), (6, 4, -2), (5, 5, 0), (1, 9, 8)]:
            lags = encoding.lags(n_q, n_k, offset)
            bias = encoding.bias(Index.arange(n_q, offset), Index.arange(n_k))
            index = torch.arange(n_k)[None] - torch.arange(n_q)[:, None] + n_q - 1
            torch.testing.assert_close(lags[:, index], bias, rtol=4e-16, atol=0)


class TestLearnedHyPE(TestHyPE):
    def make(self) -> Any:
        return rp.encodings.HyPE(self.heads, slope=0.1, amplitude=torch.tensor([1.0, 2.0, 0.5]), learned=True)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        mu, m = encoding.log_slope.exp().view(1, 3, 1, 1), encoding.log_decay.exp().view(1, 3, 1, 1)
        assert (mu - 0.1).abs().max() < 1e-7 and (m.flatten() - torch.tensor([0.1, 0.2, 0.05])).abs().max() < 1e-7
        return -m / mu * torch.sinh(mu * (q_pos[:, None] - k_pos[None]).double())

    def test_registered(self) -> None:
        assert rp.encodings.HyPE(2, learned=True).learned
        assert not rp.encodings.HyPE(2).learned


def test_sign_and_zero() -> None:
    hype = rp.encodings.HyPE(4)
    bias = hype.at(-torch.arange(200))
    assert not bias[:, 0].any()
    assert (bias.diff(dim=-1) < 0).all()
    q = torch.zeros(1, 4, 9, 2)
    p = rp.attention(q, q, torch.eye(9).expand(1, 4, 9, 9), hype, causal=True)
    assert torch.equal(p.argmax(-1), torch.arange(9).expand(1, 4, 9))


def test_two_sided_attention_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="causal=True"):
        rp.attention(q, q, q, rp.encodings.HyPE(2))


@pytest.mark.parametrize("mu", [0.245 / 200, 0.05 / 200, 1 / 200])
def test_gentle_slopes_are_alibi_to_the_stated_bound(mu: float) -> None:
    hype = rp.encodings.HyPE(8, slope=mu)
    d = torch.arange(1, 201, dtype=torch.float64)
    alibi = -alibi_slopes(8)[:, None] * d
    x = mu * d
    relative = (hype.at(-d) - alibi) / alibi
    assert (relative >= -1e-12).all()
    assert (relative <= x.square() / 6 * x.cosh() + 1e-12).all()
    if mu == 0.245 / 200:
        assert 0.009 < relative.max() < 0.0101


def test_default_is_alibi_like_over_the_training_length() -> None:
    hype = rp.encodings.HyPE(8, train_length=1024)
    torch.testing.assert_close(hype.slope * hype.amplitude, alibi_slopes(8), rtol=1e-12, atol=0)
    assert (hype.slope == 0.25 / 1024).all()


def test_extreme_lags_stay_finite_and_close_attention() -> None:
    hype = rp.encodings.HyPE(2, slope=0.5, amplitude=1e6).float()
    lag = -torch.tensor([0, 10**3, 10**6, 2**40])
    bias = hype.at(lag)
    assert torch.isfinite(bias).all() and torch.isfinite(bias - bias[:, -1:]).all()
    q = torch.randn(1, 2, 3, 4)
    pos = torch.tensor([0, 5000, 9_000_000])
    for kernel in ("dense", "tiled"):
        out = rp.attention(
            q, q, torch.eye(3).expand(1, 2, 3, 3), hype, causal=True, q_pos=pos, k_pos=pos, kernel=kernel
        )
        torch.testing.assert_close(out, torch.eye(3).expand(1, 2, 3, 3))


def test_no_cancellation_near_the_query() -> None:
    hype = rp.encodings.HyPE(8, train_length=32768)
    lag = -torch.arange(64)
    want = -hype.amplitude[:, None] * torch.sinh(hype.slope[:, None] * -lag)
    got = hype.float().at(lag)
    assert ((got - want).abs() <= 1e-6 * want.abs()).all()


@pytest.mark.parametrize("mu_n", [0.3, 1.9, 2.1, 8.0])
def test_factors_up_to_a_constant_a_row(mu_n: float) -> None:
    n = 60
    hype = rp.encodings.HyPE(2, slope=mu_n / n, amplitude=3.0)
    f, g = hype.factors(n)
    pos = Index.arange(n)
    wrong = f @ g.mT - hype.bias(pos, pos)
    wrong = wrong - wrong[:, :, :1]
    assert wrong.abs().max() < 1e-12 * 3 * math.cosh(mu_n)


def test_the_centre_cancels() -> None:
    for mu in (0.01, 0.5):
        hype = rp.encodings.HyPE(2, slope=mu, amplitude=3.0)
        products = []
        for n in (31, 47):  # centres 15 and 23
            f, g = (x[:, :31] for x in hype.factors(n))
            product = f @ g.mT
            products.append(product - product[:, :, :1])
        assert ((products[0] - products[1]).abs() <= 1e-9 * (1 + products[0].abs())).all()


def test_learning_the_slope_moves_it() -> None:
    """The gradient equals a finite difference, and a step along it changes mu and the bias."""
    hype = rp.encodings.HyPE(1, slope=0.05, amplitude=4.0, learned=True).double()
    lag = -torch.arange(40)
    hype.at(lag).square().sum().backward()
    before, gradient = hype.at(lag).detach(), hype.log_slope.grad.clone()
    sums = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            hype.log_slope += step
            sums.append(hype.at(lag).square().sum())
    torch.testing.assert_close(gradient[0], (sums[0] - sums[1]) / 2e-6, rtol=1e-6, atol=0)
    with torch.no_grad():
        hype.log_slope -= 0.1 * gradient.sign() - 1e-6
    assert (hype.slope - 0.05).abs() > 1e-3 and (hype.at(lag) - before).abs().max() > 1e-3


def test_wrong_options() -> None:
    for bad in (0.0, -1.0, float("nan"), torch.ones(3)):
        with pytest.raises(ValueError, match="positive number"):
            rp.encodings.HyPE(2, slope=bad)
    with pytest.raises(ValueError, match="train_length"):
        rp.encodings.HyPE(2, train_length=0)
