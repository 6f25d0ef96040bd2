"""Every scaling against its formula, one frequency at a time in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index

L0 = "original_max_position_embeddings"
BASE, DIM = 10000.0, 64
YARN = {"rope_type": "yarn", "factor": 4.0, L0: 4096}
LONG = {
    "rope_type": "longrope",
    "factor": 32.0,
    L0: 4096,
    "short_factor": [1 + 0.01 * t for t in range(32)],
    "long_factor": [1 + 0.5 * t for t in range(32)],
}


def theta(t: int, base: float = BASE, dim: int = DIM) -> float:
    return float(base ** (-2 * t / dim))


def yarn(t: int, factor: float = 4.0, fast: float = 32, slow: float = 1, base: float = BASE, cut: bool = True) -> float:
    def pair(r: float) -> float:
        return DIM * math.log(4096 / (2 * math.pi * r)) / (2 * math.log(base))

    lo, hi = pair(fast), pair(slow)
    lo, hi = (math.floor(lo), math.ceil(hi)) if cut else (lo, hi)
    ramp = min(max((t - max(lo, 0)) / (min(hi, DIM - 1) - max(lo, 0)), 0), 1)
    return theta(t, base) / factor * ramp + theta(t, base) * (1 - ramp)


def llama3(t: int) -> float:
    wave = 2 * math.pi / theta(t, 500000.0)
    if wave > 8192 / 1:
        return theta(t, 500000.0) / 8
    if wave < 8192 / 4:
        return theta(t, 500000.0)
    s = (8192 / wave - 1) / (4 - 1)
    return theta(t, 500000.0) / 8 * (1 - s) + theta(t, 500000.0) * s


def dynamic(length: int) -> Callable[[int], float]:
    return lambda t: theta(t, BASE * (2 * max(length, 4096) / 4096 - 1) ** (64 / 62))


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, L0: 4096}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, L0: 8192}
# name: options, length, formula, factor
CASES: dict[str, tuple[dict[str, Any], int, Callable[[int], float], float]] = {
    "default": ({}, 0, theta, 1.0),
    "theta 500k": ({"base": 500000.0}, 0, lambda t: theta(t, 500000.0), 1.0),
    "linear": ({"scaling": {"rope_type": "linear", "factor": 4.0}}, 0, lambda t: theta(t) / 4, 1.0),
    "linear, partial": (
        {"scaling": {"type": "linear", "factor": 2.0}, "partial": 0.5}, 0, lambda t: theta(t, dim=32) / 2, 1.0,
    ),
    "ntk": ({"scaling": {"rope_type": "ntk", "factor": 4.0}}, 0, lambda t: theta(t, BASE * 4 ** (64 / 62)), 1.0),
    **{f"dynamic {n}": ({"scaling": DYNAMIC}, n, dynamic(n), 1.0) for n in (3000, 4096, 4097, 8192, 20000)},
    "yarn": ({"scaling": YARN}, 0, yarn, 0.1 * math.log(4) + 1),
    "yarn 16": ({"scaling": {**YARN, "factor": 16.0}}, 0, lambda t: yarn(t, 16.0), 0.1 * math.log(16) + 1),
    "yarn, betas": (
        {"scaling": {**YARN, "beta_fast": 64, "beta_slow": 2}}, 0, lambda t: yarn(t, 4.0, 64, 2), 0.1 * math.log(4) + 1,
    ),
    "yarn, mscale": (
        {"scaling": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707}}, 0, lambda t: yarn(t, 40.0),
        (0.1 * math.log(40) + 1) / (0.0707 * math.log(40) + 1),
    ),
    "yarn, no rounding": (
        {"scaling": {**YARN, "truncate": False}, "base": 150000.0}, 0,
        lambda t: yarn(t, base=150000.0, cut=False), 0.1 * math.log(4) + 1,
    ),
    "yarn, own factor": ({"scaling": {**YARN, "attention_factor": 1.5}}, 0, yarn, 1.5),
    "longrope short": ({"scaling": LONG}, 4096, lambda t: theta(t) / (1 + 0.01 * t), math.sqrt(1 + 5 / 12)),
    "longrope long": ({"scaling": LONG}, 4097, lambda t: theta(t) / (1 + 0.5 * t), math.sqrt(1 + 5 / 12)),
    "llama3": ({"scaling": LLAMA3, "base": 500000.0}, 0, llama3, 1.0),
    "proportional": (
        {"scaling": {"rope_type": "proportional"}, "partial": 0.75}, 0, lambda t: theta(t) if t < 24 else 0.0, 1.0,
    ),
    "proportional, pasted": (
        {"scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 2.0, "rope_theta": 1e6}}, 0,
        lambda t: theta(t, 1e6) / 2 if t < 9 else 0.0, 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_frequencies(name: str) -> None:
    options, length, formula, factor = CASES[name]
    got, attention_factor = rp.encodings.RoPE(DIM, **options).frequencies(length)
    want = torch.tensor([formula(t) for t in range(len(got))], dtype=torch.float64)
    assert len(got) == (16 if name == "linear, partial" else 32) and got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert attention_factor == pytest.approx(factor, rel=1e-10)


def test_proportional_and_partial_differ() -> None:
    """Partial shrinks the exponent's width and leaves channels out; proportional stops the slowest pairs."""
    x = torch.randn(5, 8, dtype=torch.float64)
    partial = rp.encodings.RoPE(8, partial=0.5)
    proportional = rp.encodings.RoPE(8, partial=0.5, scaling={"rope_type": "proportional"})
    assert torch.equal(partial.rotate(x)[:, 4:], x[:, 4:])
    unmoved = [0, 1, 4, 5]  # half layout over all 8 channels: pairs (2, 6) and (3, 7) stand still
    assert torch.equal(proportional.rotate(x)[:, [2, 3, 6, 7]], x[:, [2, 3, 6, 7]])
    assert (proportional.rotate(x)[1:, unmoved] != x[1:, unmoved]).all()
    assert partial.inv_freq.tolist() == pytest.approx([1.0, 0.01])
    assert proportional.inv_freq.tolist() == pytest.approx([1.0, 0.1, 0.0, 0.0])


def test_yarn_factor_acts_once_on_each_side() -> None:
    plain, scaled = (rp.encodings.RoPE(8, scaling={**YARN, "attention_factor": f}) for f in (1.0, 1.25))
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64).unbind(0)
    pos = Index.arange(6)
    assert torch.allclose(scaled.encode_q(q, pos), 1.25 * plain.encode_q(q, pos), rtol=1e-14)
    assert torch.allclose(scaled.encode_k(k, pos), 1.25 * plain.encode_k(k, pos), rtol=1e-14)
    got, base = (e.encode_q(q, pos) @ e.encode_k(k, pos).mT for e in (scaled, plain))
    torch.testing.assert_close(got, 1.25**2 * base, rtol=1e-13, atol=0)
    half = rp.encodings.RoPE(8, partial=0.5, scaling={**YARN, "attention_factor": 1.25})
    assert torch.equal(half.rotate(q)[..., 4:], q[..., 4:])  # channels that do not turn are not scaled


SHORT_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, L0: 8}


def _whole(encoding: Any, q: Tensor, k: Tensor, v: Tensor, codes: Any) -> Tensor:
    return rp.attention(q, k, v, encoding, causal=True, codes=codes)


def test_dynamic_with_a_cache() -> None:
    """Keys rotated one by one under a stream's codes decode like the whole; codes made anew each step do not."""
    encoding = rp.encodings.RoPE(8, scaling=SHORT_DYNAMIC)
    n = 20
    q, k, v = torch.randn(3, 1, 2, n, 8, dtype=torch.float64).unbind(0)
    codes = encoding.make_codes(Index.arange(n), Index.arange(n))
    whole = _whole(encoding, q, k, v, codes)
    torch.testing.assert_close(_whole(encoding, q, k, v, None), whole, rtol=0, atol=1e-13)
    stale = []
    for fixed in (True, False):
        cache = torch.empty(1, 2, 0, 8, dtype=torch.float64)
        for i in range(n):
            here = Index.arange(1, i)
            used = codes if fixed else encoding.make_codes(here, here)
            cache = torch.cat((cache, encoding.encode_k(k[:, :, i : i + 1], here, codes=used)), 2)
            row = encoding.encode_q(q[:, :, i : i + 1], here, codes=used) @ cache.mT / 8**0.5
            out = row.softmax(-1) @ v[:, :, : i + 1]
            if fixed:
                torch.testing.assert_close(out, whole[:, :, i : i + 1], rtol=0, atol=1e-12)
        stale.append((out - whole[:, :, -1:]).abs().max())
    assert stale[1] > 1e-3


def test_dynamic_is_plain_up_to_its_length_and_refuses_to_guess() -> None:
    encoding, plain = rp.encodings.RoPE(8, scaling=SHORT_DYNAMIC), rp.encodings.RoPE(8)
    x = torch.randn(1, 1, 9, 8)
    assert torch.equal(encoding.rotate(x[:, :, :8]), plain.rotate(x[:, :, :8]))
    assert not torch.equal(encoding.rotate(x), plain.rotate(x))
    with pytest.raises(ValueError, match="make codes once"):
        encoding.encode_k(x, Index.arange(9))
    assert plain.make_codes(Index.arange(9), Index.arange(9)) is None
    assert encoding.make_codes(Index.arange(1, 40), Index.arange(12)).length == 41


def test_longrope_switches_in_attention() -> None:
    scaling = {**LONG, L0: 8, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "attention_factor": 1.0}
    encoding = rp.encodings.RoPE(8, scaling=scaling)
    q, k, v = torch.randn(3, 1, 1, 12, 8, dtype=torch.float64).unbind(0)
    linear = rp.encodings.RoPE(8, scaling={"rope_type": "linear", "factor": 3.0})
    torch.testing.assert_close(rp.attention(q, k, v, encoding), rp.attention(q, k, v, linear), rtol=0, atol=1e-12)
    q, k, v = (x[:, :, :8] for x in (q, k, v))
    plain = rp.encodings.RoPE(8)
    torch.testing.assert_close(rp.attention(q, k, v, encoding), rp.attention(q, k, v, plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "match"),
    [
        ({"rope_type": "yarm", "factor": 2.0}, "did you mean 'yarn'"),
        ({**YARN, "beta_fst": 3}, "did you mean 'beta_fast'"),
        ({"rope_type": "linear"}, "also needs factor"),
        ({"rope_type": "linear", "factor": 0.25}, r"did you mean 4\?"),
        ({"rope_type": "linear", "factor": "2"}, "positive finite numbers"),
        ({"rope_type": "linear", "factor": float("nan")}, "positive finite numbers"),
        ({"factor": 2.0}, "no rope_type"),
        ({"rope_type": "linear", "type": "ntk", "factor": 2.0}, "two types"),
        ({**LONG, "long_factor": [1.0]}, "one number a rotated pair, 32, got 1"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "low_freq_factor < high_freq_factor"),
        ({**YARN, "truncate": 1}, "truncate"),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, None),
        ({**DYNAMIC, "max_position_embeddings": 2048}, "max_position_embeddings differ"),
    ],
)
def test_bad_scalings(scaling: dict[str, Any], match: str | None) -> None:
    if match is None:  # a pasted base counts, unless the argument says another
        assert rp.encodings.RoPE(DIM, scaling=scaling).base == 5e5
        match = "give one of them"
    with pytest.raises(ValueError, match=match):
        rp.encodings.RoPE(DIM, base=3e4 if "rope_theta" in scaling else 10000.0, scaling=scaling)


def test_scaling_is_a_dictionary() -> None:
    with pytest.raises(TypeError, match="dictionary"):
        rp.encodings.RoPE(DIM, scaling="yarn")
