from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Grid, Index, Times
from tests.encodings.case import EncodingCase


@torch.no_grad()
def mask(encoding: Any, lag: list[float]) -> list[float]:
    """f of one lag, head by head, term by term in Python's own numbers."""
    out = []
    for h in range(encoding.heads):
        total = 0.0
        for w in encoding.frequencies.double().tolist():
            density = math.exp(-sum(a * a for a in w) / 2) / (2 * math.pi) ** (len(w) / 2)
            spectrum = sum(
                float(encoding.weight[h, b])
                * math.exp(-sum((a - m) ** 2 for a, m in zip(w, mean)) / (2 * math.exp(2 * encoding.log_width[h, b])))
                for b, mean in enumerate(encoding.mean[h].tolist())
            )
            angle = sum(a * x for a, x in zip(w, lag)) / encoding.unit
            total += spectrum / density * math.cos(2 * math.pi * angle)
        out.append(total / encoding.features)
    return out


class TestFLT(EncodingCase):
    name = "flt"

    def make(self) -> Any:
        return rp.encodings.FLT(self.heads, features=5, unit=9.0, blobs=3)

    def build(self) -> Any:
        encoding = super().build()
        with torch.no_grad():  # of both signs, and large enough to matter
            encoding.weight.copy_(torch.linspace(-1.5, 2, encoding.weight.numel()).view_as(encoding.weight))
            encoding.log_width += torch.linspace(-0.3, 0.3, encoding.log_width.numel()).view_as(encoding.log_width)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        term = torch.tensor([[mask(encoding, [float(j - i)]) for j in k_pos] for i in q_pos], dtype=torch.float64)
        return q @ k.transpose(-1, -2) / self.dim**0.5 + term.movedim(-1, 0)


def trained(**options: Any) -> Any:
    encoding = rp.encodings.FLT(2, generator=torch.Generator().manual_seed(4), **options).double()
    with torch.no_grad():
        encoding.weight *= 10
    return encoding


@pytest.mark.parametrize("scale", [1.0, 0.125, 3.0])
def test_the_mask_is_added_to_the_logit_whatever_the_scale(scale: float) -> None:
    encoding = trained(features=7)
    q, k = torch.randn(2, 1, 2, 6, 4, dtype=torch.float64).unbind(0)
    at = Index.arange(6)
    wide_q, wide_k = encoding.encode_q(q, at, scale), encoding.encode_k(k, at, scale)
    assert wide_q.shape[-1] == encoding.width_after(4) == 18 and torch.equal(wide_q[..., :4], q)
    got = wide_q @ wide_k.mT * scale - q @ k.mT * scale
    lag = at.lag(at)
    torch.testing.assert_close(got[0], encoding.template(lag).double(), rtol=0, atol=1e-13)
    want = [mask(encoding, [float(x)]) for x in range(-5, 6)]
    torch.testing.assert_close(encoding.template(torch.arange(-5, 6)).T.tolist(), want, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="positive"):
        encoding.encode_q(q, at, 0.0)


def test_both_sides_carry_alike_and_nothing_where_there_is_no_spectrum() -> None:
    """Random features pay for long rows: channels of length 1 would cost even where f = 0."""
    encoding = trained(features=50)
    x, at = torch.zeros(1, 2, 4, 4, dtype=torch.float64), Index.arange(4)
    q, k = (f(x, at).square().sum(-1).mean() for f in (encoding.encode_q, encoding.encode_k))
    torch.testing.assert_close(q, k, rtol=1e-3, atol=0)  # but for the floor
    with torch.no_grad():
        encoding.weight.zero_()
    assert (encoding.encode_k(x, at).square().sum(-1) < 0.0101).all()
    assert not encoding.encode_q(x, at).any()
    products = encoding.encode_q(x, at) @ encoding.encode_k(x, at).mT
    for f in (products[0, :, 0, 2].sum(), encoding.template(torch.tensor([2])).sum()):
        assert (torch.autograd.grad(f, encoding.weight)[0] != 0).all()


def test_masks_may_be_negative() -> None:
    """A negative blob pulls lag 0 down; with the ratio on both sides it could not."""
    for released in (False, True):
        encoding = trained(features=40, as_released=released)
        with torch.no_grad():
            encoding.weight.copy_(-encoding.weight.abs())
        assert bool((encoding.template(torch.zeros(1)) < -0.1).all()) is not released


@pytest.mark.parametrize("axes", [2, 3])
def test_cells_of_a_grid(axes: int) -> None:
    encoding = trained(features=6, axes=axes, unit=3.0)
    at = Grid.of(*(3, 2, 2)[:axes])
    n = len(at)
    q, k = torch.randn(2, 2, 2, n, 4, dtype=torch.float64).unbind(0)
    got = (encoding.encode_q(q, at) @ encoding.encode_k(k, at).mT - q @ k.mT)[1]
    lag = at.lag(at)[0]
    torch.testing.assert_close(got, encoding.template(lag), rtol=0, atol=1e-13)
    i, j = 1, n - 2
    assert got[:, i, j].tolist() == pytest.approx(mask(encoding, lag[i, j].tolist()), abs=1e-12)
    out = rp.attention(q, k, q, encoding, q_pos=at, k_pos=at)
    want = (q @ k.mT / 2 + encoding.template(lag)).softmax(-1) @ q
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_times_keep_their_digits_since_1970() -> None:
    encoding = trained(features=6, unit=60.0)
    seconds = torch.tensor([0.0, 0.5, 7.0, 90.0], dtype=torch.float64)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    near, far = (
        encoding.encode_q(x, at) @ encoding.encode_k(x, at).mT for at in (Times(seconds), Times(seconds + 1.7e9))
    )
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_the_mean_over_draws_is_the_transform_of_the_spectrum() -> None:
    """sum_b weight (2 pi)^(axes/2) width^axes exp(-2 pi^2 width^2 |x|^2) cos(2 pi mean . x), to 5 standard errors."""
    for axes in (1, 2):
        encoding = trained(features=200_000, axes=axes, unit=1.0, blobs=2)
        lags = torch.tensor([[0.0, 0.0], [0.2, 0.1], [-0.3, 0.4]])[:, :axes].double()
        got = encoding.template(lags if axes > 1 else lags[:, 0])
        width = encoding.log_width.exp()[..., None]
        turn = torch.einsum("hba,xa->hbx", encoding.mean, lags) * 2 * math.pi
        fall = torch.exp(-2 * math.pi**2 * width.square() * lags.square().sum(-1))
        size = encoding.weight[..., None] * (2 * math.pi) ** (axes / 2) * width**axes
        want = (size * fall * turn.cos()).sum(1)
        error = encoding.ratio().std(-1, keepdim=True) / 200_000**0.5
        assert ((got - want).abs() < 5 * error).all() and (error < 0.02).all()


def test_as_released() -> None:
    """The square of g/p, with p as of one axis whatever the axes."""
    ours, theirs = (trained(features=4, axes=2, as_released=released) for released in (False, True))
    torch.testing.assert_close(theirs.ratio(), ours.ratio() / (2 * math.pi) ** 0.5, rtol=1e-12, atol=0)
    at = Grid.of(2, 3)
    x = torch.zeros(1, 2, 6, 4, dtype=torch.float64)
    lag = at.lag(at)[0].double()
    waves = (2 * math.pi / theirs.unit * lag @ theirs.frequencies.double().T).cos()
    want = torch.einsum("hr,ijr->hij", theirs.ratio().square(), waves) / 4
    got = theirs.encode_q(x, at, 0.5) @ theirs.encode_k(x, at, 0.5).mT * 0.5
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-13)


def test_grouped_keys_stay_grouped() -> None:
    encoding = rp.encodings.FLT(4, features=3)
    k = torch.randn(1, 2, 5, 8)
    assert encoding.encode_k(k, Index.arange(5)).shape == (1, 2, 5, 14)
    q = torch.randn(1, 4, 5, 8)
    expanded = k.repeat_interleave(2, 1)
    torch.testing.assert_close(rp.attention(q, k, k, encoding), rp.attention(q, expanded, expanded, encoding))
    released = rp.encodings.FLT(4, features=3, as_released=True)
    assert released.encode_k(k, Index.arange(5)).shape == (1, 4, 5, 14)


def test_bad_arguments() -> None:
    for options in ({"features": 0}, {"axes": 4}, {"unit": 0}, {"unit": math.inf}, {"blobs": 0}):
        with pytest.raises(ValueError, match="got"):
            rp.encodings.FLT(2, **options)
    with pytest.raises(ValueError, match="axes=1, the Grid positions have 2"):
        rp.encodings.FLT(2).encode_q(torch.randn(1, 2, 4, 8), Grid.of(2, 2))
    with pytest.raises(ValueError, match="2 axes"):
        rp.encodings.FLT(2, axes=2).template(torch.arange(3))
