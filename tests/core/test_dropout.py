"""Dropout of weights: the same in every kernel and tiling, of the right rate and scale, with the right gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels import tiles
from relpos.kernels.call import Refusal
from relpos.kernels.dropout import Dropout
from tests.core.naive import ToyBias, ToyContent, agree, inputs, naive_attention

CPU = torch.device("cpu")


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_result_in_every_kernel_and_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(2, 2, 21, 33, grad=True)
    for encoding in (ToyBias(2).double(), ToyContent(2, 4).double()):
        leaves = [q, k, v, *encoding.parameters()]
        run: Any = lambda kernel, e=encoding: rp.attention(  # noqa: E731
            q, k, v, e, dropout=0.4, generator=seeded(), kernel=kernel
        )
        want = run("dense")
        for kernel in ("tiled", "generic", "auto"):
            agree(run(kernel), want, leaves)
        for rows, columns in ((1, 1), (4, 7), (21, 32)):
            monkeypatch.setattr(tiles, "QUERIES", rows)
            monkeypatch.setattr(tiles, "KEYS", columns)
            agree(run("generic"), want, leaves)
        other = rp.attention(q, k, v, encoding, dropout=0.4, generator=seeded(4))
        assert (other - want).abs().max() > 1e-3


def test_equals_the_naive_definition() -> None:
    q, k, v = inputs(2, 3, 7, 9, grad=True)
    encoding = ToyBias(3).double()
    seed = int(torch.randint(2**31 - 1, (), generator=seeded()))
    keep = Dropout(0.3, seed).keep(0, 2, 3, 0, 7, 0, 9, CPU, torch.float64)
    want = naive_attention(q, k, v, encoding, keep=keep, causal=True)
    for kernel in ("dense", "generic"):
        got = rp.attention(q, k, v, encoding, causal=True, dropout=0.3, generator=seeded(), kernel=kernel)
        agree(got, want, [q, k, v, *encoding.parameters()])


def keep(rate: float, seed: int, n: int = 64) -> Tensor:
    return Dropout(rate, seed).keep(0, 2, 4, 0, n, 0, n, CPU)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_rate_scale_and_independence(rate: float) -> None:
    """Within five standard errors: the share dropped, along every axis, and the correlation of neighbours."""
    factors = keep(rate, 7)
    assert factors.unique().tolist() == [0.0, pytest.approx(1 / (1 - rate))]
    kept = (factors > 0).double()
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / kept.numel()) ** 0.5
    for axis in range(4):
        others = [a for a in range(4) if a != axis]
        share, count = kept.mean(others), kept.numel() // kept.shape[axis]
        assert (share - (1 - rate)).abs().max() < 5 * (rate * (1 - rate) / count) ** 0.5
        a, b = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        correlation = ((a - a.mean()) * (b - b.mean())).mean() / (rate * (1 - rate))
        assert abs(correlation) < 5 / a.numel() ** 0.5


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    """Not even shifted by a head: seed + 1 must not be the same pattern one row further."""
    a, b = keep(0.5, 7) > 0, keep(0.5, 8) > 0
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)
    for x, y in ((flat_a, flat_b), (flat_a[1:], flat_b[:-1]), (flat_a[:-1], flat_b[1:])):
        assert abs((x == y).double().mean() - 0.5) < 5 * 0.5 / x.numel() ** 0.5


def test_expectation_is_the_undropped_output() -> None:
    q, k, v = inputs(1, 2, 6)
    want = rp.attention(q, k, v)
    runs = [rp.attention(q, k, v, dropout=0.5, generator=seeded(i)) for i in range(600)]
    mean, error = torch.stack(runs).mean(0), torch.stack(runs).std(0) / 600**0.5
    assert ((mean - want).abs() < 6 * error).all()


def test_float64_is_scaled_in_float64() -> None:
    """1 / 0.7 rounded to float32 would leave an error of 1e-8 in a float64 result."""
    q, k, v = inputs(1, 1, 5)
    v = torch.ones_like(v)
    for kernel in ("dense", "generic"):
        out = rp.attention(q * 0, k, v, dropout=0.3, generator=seeded(), kernel=kernel)
        counts = out * 5 * 0.7
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-12)


def test_no_rate_is_no_dropout_and_draws_nothing() -> None:
    q, k, v = inputs()
    generator = seeded()
    before = generator.get_state()
    out = rp.attention(q, k, v, dropout=0.0, generator=generator)
    assert torch.equal(out, rp.attention(q, k, v)) and torch.equal(generator.get_state(), before)


def test_without_a_generator_the_global_seed_counts() -> None:
    q, k, v = inputs()
    runs = []
    for _ in range(2):
        torch.manual_seed(11)
        runs.append([rp.attention(q, k, v, dropout=0.5) for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), "0.1", None])
def test_invalid_rates(rate: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="dropout"):
        rp.attention(*inputs(), dropout=rate)


@pytest.mark.parametrize("kernel", ["fused", "hankel"])
def test_kernels_without_dropout_refuse(kernel: str) -> None:
    with pytest.raises(Refusal, match="dropout"):
        rp.attention(*inputs(), dropout=0.5, kernel=kernel)


def test_explaining_draws_nothing() -> None:
    generator, before = seeded(), seeded().get_state()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    rp.explain(*inputs(), dropout=0.5, generator=generator)
    rp.explain(*inputs(), dropout=0.5)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), state)
