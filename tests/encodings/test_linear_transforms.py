"""Transforms in kernelised attention, against the weights of their definitions, pair by pair in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Grid
from tests.encodings.test_fstripe import scores as sines
from tests.encodings.test_permuteformer import stepwise
from tests.encodings.test_rope import rotated_scores, rotation

HEADS, DIM, COUNT = 2, 4, 6
Weights = Callable[[Any, Any, Tensor, Tensor, float, Tensor, Tensor], tuple[Tensor, Tensor]]


def rope(encoding: Any, phi: Any, q: Tensor, k: Tensor, s: float, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """The numerator alone is turned."""
    q, k = phi(q * s**0.5), phi(k * s**0.5)
    half = encoding.dim // 2
    pairs = [(t, t + half) for t in range(half)]
    theta = [10000 ** (-t / half) for t in range(half)]
    turns = [[rotation(encoding.dim, pairs, [p * a for a in theta]) for p in pos.tolist()] for pos in (i, j)]
    return rotated_scores(q, k, *turns), q @ k.mT


def cosformer(encoding: Any, phi: Any, q: Tensor, k: Tensor, s: float, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    weight = phi(q * s**0.5) @ phi(k * s**0.5).mT * torch.cos(math.pi / 100 * (j[None] - i[:, None]).double())
    return weight, weight


def permute(encoding: Any, phi: Any, q: Tensor, k: Tensor, s: float, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    q, k = phi(q * s**0.5), phi(k * s**0.5)
    lag = (j[None] - i[:, None]).long()
    powers = stepwise(encoding, int(lag.abs().max()) + 1)
    weight = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for h in range(HEADS):
        ratio = 1 / (1 + math.exp(-2 - 3 * h / HEADS))
        for a in range(len(i)):
            for b in range(len(j)):
                step, power = int(lag[a, b]), powers[h, abs(int(lag[a, b]))]
                x, y = (q[:, h, a], k[:, h, b]) if step >= 0 else (k[:, h, b], q[:, h, a])
                weight[:, h, a, b] = (x * y[:, power]).sum(-1) * ratio ** abs(step)
    return weight, weight


def flt(encoding: Any, phi: Any, q: Tensor, k: Tensor, s: float, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    w, r = encoding.frequencies[:, 0].double() / encoding.unit, encoding.features
    waves = [
        torch.cat([f(2 * math.pi * pos[:, None].double() * w) for f in (torch.cos, torch.sin)], -1) for pos in (i, j)
    ]
    ratio = encoding.ratio().repeat(1, 2).unsqueeze(1)
    middle = (ratio.square().mean() + 1e-4) ** 0.25
    q = torch.cat([q, (waves[0] * ratio / middle / (r * s) ** 0.5).expand(len(q), -1, -1, -1)], -1)
    k = torch.cat([k, (waves[1] * middle / (r * s) ** 0.5).expand(len(k), HEADS, -1, -1)], -1)
    weight = phi(q * s**0.5) @ phi(k * s**0.5).mT
    return weight, weight


def fstripe(encoding: Any, phi: Any, q: Tensor, k: Tensor, s: float, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """The rows q' and k', held to the logits of the definition before any features."""
    rows = []
    for x, pos, phase in ((q, i, encoding.query_phases), (k, j, encoding.key_phases)):
        angle = torch.einsum("hdf,n->hndf", 2 * math.pi * encoding.frequencies[..., 0], pos.double()) + phase[:, None]
        terms = [x.unsqueeze(-1) * (encoding.gains[:, None] * f(angle)) for f in (torch.cos, torch.sin)]
        row = torch.cat(terms, -1) / encoding.features**0.5
        rows.append(row.sum(-2) if encoding.pooled else row.flatten(-2))
    points = [pos[:, None].double() for pos in (i, j)]
    torch.testing.assert_close(rows[0] @ rows[1].mT, sines(encoding, q, k, *points), rtol=0, atol=1e-12)
    weight = phi(rows[0] * s**0.5) @ phi(rows[1] * s**0.5).mT
    return weight, weight


def make(name: str, features: str) -> tuple[Any, Any, Weights]:
    """The encoding, the features that fit it, and its truth."""
    torch.manual_seed(5)
    before = {
        "flt": (lambda: rp.encodings.FLT(HEADS, features=3, unit=7.0, blobs=2), flt),
        "fstripe": (lambda: rp.encodings.FStrIPE(HEADS, DIM, features=3), fstripe),
        "fstripe-unpooled": (lambda: rp.encodings.FStrIPE(HEADS, DIM, features=2, pooled=False), fstripe),
    }
    if name in before:
        encoding = before[name][0]().double()
        phi = feature_map(features, encoding.width_after(DIM))
        with torch.no_grad():
            if name == "flt":
                encoding.weight *= 8
        return encoding, phi, before[name][1]
    phi = feature_map(features, DIM)
    after: dict[str, tuple[Any, Weights]] = {
        "rope": (lambda: rp.encodings.RoPE(phi.width), rope),
        "cosformer": (lambda: rp.encodings.CosFormer(50), cosformer),
        "permuteformer": (lambda: rp.encodings.PermuteFormer(HEADS, phi.width), permute),
    }
    return after[name][0]().double(), phi, after[name][1]


def feature_map(name: str, width: int) -> Any:
    if name == "prf":
        return rp.features.PRF(width, COUNT, normalize=True).double()
    if name == "performer":
        return rp.features.PRF(width, COUNT, normalize=False).double()
    return {"elu1": rp.features.ELU1, "relu": rp.features.ReLU}[name](width).double()


def inputs(n_q: int, n_k: int, batch: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(100 * n_q + n_k)
    return [torch.randn(batch, HEADS, n, DIM, generator=g, dtype=torch.float64) for n in (n_q, n_k, n_k)]


def expected(
    truth: Weights, encoding: Any, phi: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, temperature: float = 1.0
) -> Tensor:
    n_q, n_k = q.shape[2], k.shape[2]
    i, j = torch.arange(n_k - n_q, n_k), torch.arange(n_k)
    if phi.normalize:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    over, under = truth(encoding, phi, q, k, phi.scale(DIM) / temperature, i, j)
    seen = (j[None] <= i[:, None]) | (not causal)
    return (over * seen) @ v / (under * seen).sum(-1, keepdim=True)


NAMES = ["rope", "cosformer", "permuteformer", "flt", "fstripe", "fstripe-unpooled"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("features", ["prf", "performer", "elu1", "relu"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name: str, features: str, causal: bool) -> None:
    encoding, phi, truth = make(name, features)
    for n_q, n_k in ((1, 1), (7, 7), (3, 11), (31, 31)):
        q, k, v = inputs(n_q, n_k)
        got = rp.linear_attention(q, k, v, encoding, features=phi, causal=causal)
        want = expected(truth, encoding, phi, q, k, v, causal)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    got = rp.linear_attention(q, k, v, encoding, features=phi, causal=causal, temperature=0.5)
    want = expected(truth, encoding, phi, q, k, v, causal, 0.5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_the_definition(name: str) -> None:
    encoding, phi, truth = make(name, "prf")
    leaves = [x.requires_grad_() for x in inputs(9, 9)]
    every = [*leaves, *(p for p in encoding.parameters() if p.requires_grad)]
    found = []
    for out in (
        rp.linear_attention(*leaves, encoding, features=phi, causal=True),
        expected(truth, encoding, phi, *leaves, True),
    ):
        found.append(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), every))
    for got, want in zip(*found):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_moving_all_tokens_changes_nothing(name: str) -> None:
    """Before the features it is the kernel that they stand for of which this holds, and not the few drawn here."""
    encoding, phi, _ = make(name, "elu1")
    q, k, v = inputs(8, 8)
    near, far = (
        rp.linear_attention(q, k, v, encoding, features=phi, causal=True, q_pos=pos, k_pos=pos)
        for pos in (torch.arange(8), torch.arange(8) + 1000)
    )
    if encoding.side == "after":
        torch.testing.assert_close(far, near, rtol=0, atol=1e-9)
    else:
        assert (far - near).abs().max() > 1e-4


@pytest.mark.parametrize("grid", [False, True])
def test_flt_is_softmax_with_its_mask_in_the_mean(grid: bool) -> None:
    """Positive random features of the widened q and k: with many of them, the softmax of cos + f(lag)."""
    torch.manual_seed(0)
    encoding = rp.encodings.FLT(HEADS, features=3, axes=1 + grid, unit=4.0, blobs=2).double()
    with torch.no_grad():
        encoding.weight *= 4
    q, k, v = inputs(6, 6, 1)
    pos: Any = Grid.of(2, 3) if grid else torch.arange(6)
    phi = rp.features.PRF(encoding.width_after(DIM), 50_000, orthogonal=True).double()
    got = rp.linear_attention(q, k, v, encoding, features=phi, q_pos=pos, k_pos=pos)
    unit_q, unit_k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    lag = pos.lag(pos)[0] if grid else pos[None] - pos[:, None]
    want = (unit_q @ unit_k.mT + encoding.template(lag)).softmax(-1) @ v
    plain = (unit_q @ unit_k.mT).softmax(-1) @ v
    assert (got - want).abs().max() < 0.08 < 0.2 < (plain - want).abs().max()


def test_a_decay_of_a_hundred_thousand_tokens_is_finite() -> None:
    n = 100_000
    encoding = rp.encodings.PermuteFormer(1, 3, generator=torch.Generator().manual_seed(1)).float()
    q, k, v = (torch.randn(1, 1, n, 3, generator=torch.Generator().manual_seed(s)) for s in range(3))
    phi = rp.features.ReLU(3)
    out = rp.linear_attention(q, k, v, encoding, features=phi, causal=True)
    assert torch.isfinite(out).all()
    for i in (0, 700, 54_321, n - 1):
        near = torch.arange(max(0, i - 400), i + 1)  # farther keys weigh less than 1e-22
        powers = encoding.powers(near - i)[0]
        keys = phi(k[0, 0, near].double()).gather(-1, powers)
        weight = (keys @ phi(q[0, 0, i].double())) * torch.exp(encoding.rates[0].double() * (near - i))
        want = weight @ v[0, 0, near].double() / weight.sum()
        torch.testing.assert_close(out[0, 0, i].double(), want, rtol=0, atol=2e-5)
