from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase


class TestSandwich(EncodingCase):
    name = "sandwich"

    def make(self) -> Any:
        return rp.encodings.Sandwich(self.heads, 10)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for h in range(self.heads):
            for i, a in enumerate(q_pos.tolist()):
                for j, b in enumerate(k_pos.tolist()):
                    total = sum(math.cos((a - b) / 10000 ** (2 * t / 10)) for t in range(5))
                    out[0, h, i, j] = total / (8 * (h + 1) / self.heads)
        return out


def test_it_is_the_product_of_sinusoids() -> None:
    """As defined: sinusoidal embeddings of width 128, their inner products, divided by 8h/heads."""
    n, heads = 64, 8
    angle = torch.arange(n).double()[:, None] / 10000 ** (torch.arange(64).double() * 2 / 128)
    embedding = torch.cat([angle.sin(), angle.cos()], -1)
    want = torch.stack([embedding @ embedding.T / h for h in range(1, 9)])  # 8h/heads = h
    pos = Index.arange(n)
    torch.testing.assert_close(rp.encodings.Sandwich(heads).bias(pos, pos), want, rtol=0, atol=1e-12)


def test_factors_are_exact_and_of_rank_dim() -> None:
    sandwich = rp.encodings.Sandwich(3, 16)
    f, g = sandwich.factors(50)
    assert f.shape == g.shape == (3, 50, 16)
    pos = Index.arange(50)
    torch.testing.assert_close(f @ g.mT, sandwich.bias(pos, pos), rtol=0, atol=1e-12)


def test_far_lags_keep_their_angle_in_a_cast_model() -> None:
    lag = torch.tensor([100_003, -100_003])
    want = rp.encodings.Sandwich(4).at(lag)
    for dtype in (torch.bfloat16, torch.float32):
        assert (rp.encodings.Sandwich(4).to(dtype).at(lag) - want).abs().max() < 0.02


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="dim is even"):
        rp.encodings.Sandwich(2, 7)
