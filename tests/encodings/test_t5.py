from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rpe_t5.npz")


def bucket(lag: int, buckets: int, max_distance: int, causal: bool) -> int:
    """The published formula with Python's float64 logarithm."""
    side = buckets if causal else buckets // 2
    n = max(-lag, 0) if causal else abs(lag)
    half = side // 2
    if n >= half:
        n = min(half + int(math.log(n / half) / math.log(max_distance / half) * (side - half) + 1e-9), side - 1)
    return n + (side if not causal and lag > 0 else 0)


class TestT5(EncodingCase):
    name = "t5"

    def make(self) -> Any:
        return rp.encodings.T5Bias(self.heads, 8, 20)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        index = [[bucket(b - a, 8, 20, False) for b in k_pos.tolist()] for a in q_pos.tolist()]
        return encoding.table[torch.tensor(index)].movedim(-1, 0)[None]


class TestCausalT5(TestT5):
    causal = True

    def make(self) -> Any:
        return rp.encodings.T5Bias(self.heads, 7, 20, causal=True)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        index = [[bucket(b - a, 7, 20, True) for b in k_pos.tolist()] for a in q_pos.tolist()]
        return encoding.table[torch.tensor(index)].movedim(-1, 0)[None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (64, 128), (32, 256), (16, 64), (8, 20)])
def test_golden_buckets(buckets: int, max_distance: int, causal: bool) -> None:
    lags = torch.from_numpy(GOLDEN["lags"])
    want = torch.from_numpy(GOLDEN[f"bucket_nb{buckets}_md{max_distance}_{'causal' if causal else 'bi'}"])
    bias = rp.encodings.T5Bias(2, buckets, max_distance, causal)
    assert torch.equal(bias.buckets_of(lags), want.long())
    assert torch.equal(bias.buckets_of(lags.double()), want.long())


@pytest.mark.parametrize("kind", ["enc", "dec"])
def test_golden_bias(kind: str) -> None:
    bias = rp.encodings.T5Bias(4, causal=kind == "dec").double()
    bias.load_state_dict({"table": torch.from_numpy(GOLDEN[f"{kind}_table"])})
    cached = bias.bias(Index(torch.arange(3, 9)), Index(torch.arange(9)))
    np.testing.assert_allclose(cached[None].detach().numpy(), GOLDEN[f"{kind}_bias_q6_k9_past3"], atol=1e-12)
    every = bias.bias(Index(torch.arange(0, 200, 17)), Index(torch.arange(200)))
    np.testing.assert_allclose(every[None].detach().numpy(), GOLDEN[f"{kind}_bias_q200_k200"], atol=1e-12)


@pytest.mark.parametrize("kind", ["enc", "dec"])
def test_golden_attention_has_no_scale(kind: str) -> None:
    causal = kind == "dec"
    bias = rp.encodings.T5Bias(4, causal=causal).double()
    bias.load_state_dict({"table": torch.from_numpy(GOLDEN[f"{kind}_table"])})
    x = torch.from_numpy(GOLDEN[f"{kind}_x"])
    w = {name: torch.from_numpy(GOLDEN[f"{kind}_sd_{name}.weight"]) for name in "qkvo"}
    q, k, v = ((x @ w[name].T).unflatten(-1, (4, 8)).transpose(1, 2) for name in "qkv")
    for kernel in ("auto", "tiled"):
        out = rp.attention(q, k, v, bias, causal=causal, kernel=kernel).transpose(1, 2).flatten(2) @ w["o"].T
        np.testing.assert_allclose(out.detach().numpy(), GOLDEN[f"{kind}_y"], atol=1e-11)


def test_edges_of_the_buckets() -> None:
    bias = rp.encodings.T5Bias(1)
    lags = torch.tensor([-129, -128, -127, -65, -64, -63, -8, -1, 0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 10**9])
    assert bias.buckets_of(lags).tolist() == [15, 15, 15, 14, 14, 13, 8, 1, 0, 17, 23, 24, 29, 30, 30, 31, 31, 31, 31]
    causal = rp.encodings.T5Bias(1, causal=True)
    assert causal.buckets_of(torch.tensor([5, 0, -15, -16, -127, -128, -129, -(10**9)])).tolist() == [
        0, 0, 15, 16, 31, 31, 31, 31,
    ]  # fmt: skip


def test_real_lags_and_signed_zero() -> None:
    bias = rp.encodings.T5Bias(1)
    assert bias.buckets_of(torch.tensor([-0.0, 0.0, 0.9, -0.9, 1.5, -7.99, 8.0])).tolist() == [0, 0, 0, 0, 17, 7, 24]


def test_weight_lies_on_the_side_of_its_key() -> None:
    bias = rp.encodings.T5Bias(1)
    with torch.no_grad():
        bias.table.fill_(-30.0)
        bias.table[17] = 0.0  # one to the right of the query
    q = torch.zeros(1, 1, 6, 2)
    out = rp.attention(q, q, torch.eye(6).view(1, 1, 6, 6), bias)
    torch.testing.assert_close(out[0, 0, :5], torch.eye(6)[1:], rtol=0, atol=1e-10)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="buckets"):
        rp.encodings.T5Bias(2, 7)
    with pytest.raises(ValueError, match="max_distance=8 leaves no room"):
        rp.encodings.T5Bias(2, 32, 8)
    with pytest.raises(ValueError, match="heads"):
        rp.encodings.T5Bias(0)
    assert rp.encodings.T5Bias(4, model_dim=10_000).table.std() < 0.012
