from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index, Times
from tests.encodings.case import EncodingCase


class TestCosFormer(EncodingCase):
    name = "cosformer"
    length = 5031.0  # the farthest positions of the suite

    def make(self) -> Any:
        return rp.encodings.CosFormer(self.length)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        lag = k_pos[None].double() - q_pos[:, None]
        return q @ k.transpose(-1, -2) * torch.cos(math.pi / 2 * lag / self.length) / self.dim**0.5


def test_the_weight_is_the_cosine_of_the_lag() -> None:
    """Ones as features: the product of the doubled ones is dim cos(pi/2 lag/M), from 1 at lag 0 to 0 at lag M."""
    encoding = rp.encodings.CosFormer(12)
    ones = torch.ones(1, 1, 13, 4, dtype=torch.float64)
    at = Index.arange(13)
    q, k = encoding.encode_q(ones, at), encoding.encode_k(ones, at)
    assert q.shape[-1] == encoding.width_after(4) == 8
    weight = (q @ k.mT)[0, 0] / 4
    for i, j, want in [(0, 0, 1.0), (0, 12, 0.0), (12, 0, 0.0), (0, 4, math.cos(math.pi / 6)), (9, 3, 0.5**0.5)]:
        assert float(weight[i, j]) == pytest.approx(want, abs=1e-15)
    assert (weight >= -1e-15).all()


def test_positions_count_from_the_first_of_each_row() -> None:
    encoding = rp.encodings.CosFormer(8)
    x = torch.rand(2, 1, 5, 3, dtype=torch.float64)
    at = Index(torch.tensor([[7, 8, 9, 10, 11], [100, 101, 104, 105, 108]]))
    codes = encoding.make_codes(at, at)
    assert codes.origin.tolist() == [[7], [100]]
    got = encoding.encode_q(x, at, codes=codes) @ encoding.encode_k(x, at, codes=codes).mT
    lag = at.lag(at).double()
    torch.testing.assert_close(got, x @ x.mT * torch.cos(math.pi / 2 * lag / 8).unsqueeze(1), rtol=0, atol=1e-14)
    queries = Index(at.values[:, 3:])
    assert encoding.make_codes(queries, at).origin.tolist() == [[7], [100]]
    assert encoding.make_codes(Index.arange(0), Index.arange(3, 5)).origin.tolist() == [5]
    assert encoding.make_codes(Index.arange(0), Index.arange(0)) is None


def test_times_in_seconds() -> None:
    encoding = rp.encodings.CosFormer(2.5)
    at = Times(1.7e9 + torch.tensor([0.0, 0.25, 2.5], dtype=torch.float64))
    x = torch.ones(1, 1, 3, 1)
    codes = encoding.make_codes(at, at)
    got = (encoding.encode_q(x, at, codes=codes) @ encoding.encode_k(x, at, codes=codes).mT)[0, 0, 0]
    torch.testing.assert_close(got, torch.tensor([1.0, math.cos(math.pi / 20), 0.0]), rtol=0, atol=1e-6)


def test_beyond_the_length_is_refused() -> None:
    encoding = rp.encodings.CosFormer(16)
    q = torch.rand(1, 2, 18, 4)
    with pytest.raises(ValueError, match=r"16 tokens.*got 0\.\.17.*larger max_length"):
        rp.attention(q, q, q, encoding)
    with pytest.raises(ValueError, match="codes made for the whole"):
        encoding.encode_q(q[:, :, :4], Index.arange(4, 30))
    assert rp.attention(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], encoding).isfinite().all()


@pytest.mark.parametrize("wrong", [0, -3, math.inf, math.nan, True, "8"])
def test_bad_lengths(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_length"):
        rp.encodings.CosFormer(wrong)
