from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.transform.xpos import XPosCodes
from relpos.positions import Index
from tests.encodings.case import EncodingCase
from tests.encodings.test_rope import rotated_scores, rotation


class TestXPos(EncodingCase):
    name = "xpos"

    def make(self) -> Any:
        return rp.encodings.XPos(self.dim, scale_base=16.0)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        """Pair by pair: the rotated product of the two channels times zeta^((i - j)/16)."""
        pairs = [(2 * t, 2 * t + 1) for t in range(self.dim // 2)]
        score = torch.zeros(q.shape[0], q.shape[1], len(q_pos), len(k_pos), dtype=torch.float64)
        for t, (a, b) in enumerate(pairs):
            turns = [
                [rotation(2, [(0, 1)], [p * 10000.0 ** (-2 * t / self.dim)]) for p in pos.tolist()]
                for pos in (q_pos, k_pos)
            ]
            zeta = (2 * t / self.dim + 0.4) / 1.4
            lags = (q_pos[:, None] - k_pos[None]).double()
            score += rotated_scores(q[..., [a, b]], k[..., [a, b]], *turns) * zeta ** (lags / 16)
        return score / self.dim**0.5

    def test_positions_of_any_kind_agree(self) -> None:
        """As in the suite, without the gap of 5000 tokens, which is outside the range (its own test)."""
        encoding = self.build()
        q, k, v, content = self.inputs(7, 7)
        pos = torch.tensor([0, 1, 2, 5, 6, 9, 30])
        whole = self.run(encoding, q, k, v, content, q_pos=pos, k_pos=pos, kernel="dense")
        batched = self.run(encoding, q, k, v, content, q_pos=pos.expand(2, -1), k_pos=pos.expand(2, -1) + 0)
        torch.testing.assert_close(batched, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 7, 8, 31])
def test_released_convention(length: int) -> None:
    """Exponents count from -((length + 1) // 2) as the released code does, odd lengths included."""
    encoding = rp.encodings.XPos(16)
    x = torch.randn(2, length, 16, dtype=torch.float64)
    zeta = (torch.arange(0, 16, 2, dtype=torch.float64) / 16 + 0.4) / 1.4
    exponent = (torch.arange(length) + -(length) // 2).double() / 512
    plain = rp.encodings.RoPE(16, layout="interleaved").rotate(x)
    factor = (zeta ** exponent[:, None]).repeat_interleave(2, -1)
    torch.testing.assert_close(encoding.rotate(x), plain * factor, rtol=1e-12, atol=0)
    torch.testing.assert_close(encoding.rotate(x, downscale=True), plain / factor, rtol=1e-12, atol=0)


def test_last_query_of_a_cache_is_scaled_as_in_the_whole() -> None:
    encoding = rp.encodings.XPos(16)
    x = torch.randn(1, 1, 7, 16, dtype=torch.float64)
    codes = encoding.make_codes(Index.arange(1, 6), Index.arange(7))
    assert codes == XPosCodes(4.0)
    row = encoding.encode_q(x[:, :, 6:], Index.arange(1, 6), codes=codes)
    assert torch.equal(row[0, 0], encoding.rotate(x)[0, 0, 6:])


def test_centre_cancels_where_both_sides_have_it() -> None:
    """Cached keys with one fixed centre decode like the whole; a centre made anew at every step does not."""
    encoding = rp.encodings.XPos(8, scale_base=8.0)
    n = 12
    q, k, v = torch.randn(3, 1, 2, n, 8, dtype=torch.float64).unbind(0)
    whole = rp.attention(q, k, v, encoding, causal=True)
    for centre in (0.0, 3.0, 100.0):
        got = rp.attention(q, k, v, encoding, causal=True, codes=XPosCodes(centre))
        torch.testing.assert_close(got, whole, rtol=0, atol=1e-10)
    last = {}
    for fixed in (True, False):
        cache = torch.empty(1, 2, 0, 8, dtype=torch.float64)
        for i in range(n):
            here = Index.arange(1, i)
            codes = None if fixed else encoding.make_codes(here, Index.arange(i + 1))
            cache = torch.cat((cache, encoding.encode_k(k[:, :, i : i + 1], here, codes=codes)), 2)
            query = encoding.encode_q(q[:, :, i : i + 1], here, codes=codes)
        last[fixed] = ((query @ cache.mT / 8**0.5).softmax(-1) @ v - whole[:, :, -1:]).abs().max()
    assert last[True] < 1e-12 and last[False] > 1e-2


@pytest.mark.parametrize("length", [5001, 5002])
def test_half_precision_over_its_whole_range(length: int) -> None:
    """Scores of near lags stay right from the first token to the last, which are scaled by exp(-6) and exp(6)."""
    encoding = rp.encodings.XPos(8).half()
    ends = torch.cat((torch.arange(4), torch.arange(length - 4, length)))
    codes = encoding.make_codes(Index(ends), Index(ends))
    q, k = torch.randn(2, 1, 1, 8, 8).half().unbind(0)
    got, want = (
        encoding.encode_q(a, Index(ends), codes=codes).double()
        @ encoding.encode_k(b, Index(ends), codes=codes).double().mT
        for a, b in ((q, k), (q.double(), k.double()))
    )
    near = (ends[:, None] - ends[None]).abs() < 4
    assert ((got - want)[..., near]).abs().max() < 2e-2


@pytest.mark.parametrize(
    ("dtype", "fits", "overflows"),
    [
        (torch.float16, 5_600, 5_700),
        (torch.bfloat16, 34_000, 35_000),
        (torch.float32, 34_000, 35_000),
        (torch.float64, 280_000, 300_000),
    ],
)
def test_range_is_as_documented(dtype: torch.dtype, fits: int, overflows: int) -> None:
    encoding = rp.encodings.XPos(4)
    x = torch.ones(2, 4, dtype=dtype)
    assert torch.isfinite(encoding.rotate(x, torch.tensor([0, fits]))).all()
    with pytest.raises(ValueError, match="take a wider dtype"):
        encoding.rotate(x, torch.tensor([0, overflows]))


@pytest.mark.parametrize("options", [{"dim": 5}, {"dim": 4, "scale_base": 0}, {"dim": 4, "base": 0.5}])
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        rp.encodings.XPos(**options)
