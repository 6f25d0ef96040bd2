from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase


def stepwise(encoding: Any, count: int) -> Tensor:
    """P^0 .. P^(count-1) by composing one step after the other, (heads, count, dim)."""
    one = encoding.powers(torch.tensor(1))
    rows = [torch.arange(encoding.dim).expand(encoding.heads, -1)]
    for _ in range(count - 1):
        rows.append(one.gather(-1, rows[-1]))
    return torch.stack(rows, 1)


class TestPermuteFormer(EncodingCase):
    name = "permuteformer"

    def make(self) -> Any:
        return rp.encodings.PermuteFormer(self.heads, self.dim, generator=torch.Generator().manual_seed(3))

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        first = min(q_pos.min(), k_pos.min())  # queries may stand before the first key
        q_pos, k_pos = q_pos - first, k_pos - first
        powers = stepwise(encoding, int(max(q_pos.max(), k_pos.max())) + 1)
        matrix = torch.eye(self.dim, dtype=torch.float64)[powers]  # (heads, count, dim, dim), row c has a 1 at P^i(c)
        turned_q = torch.einsum("hicd,bhid->bhic", matrix[:, q_pos], q)
        turned_k = torch.einsum("hicd,bhid->bhic", matrix[:, k_pos], k)
        return turned_q @ turned_k.transpose(-1, -2) / self.dim**0.5


def test_powers_are_permutations_that_compose() -> None:
    encoding = rp.encodings.PermuteFormer(4, 31, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoding.powers(torch.arange(40)), stepwise(encoding, 40))
    for a, b in [(3, 5), (-7, 7), (10**6, -(10**6) + 1), (2**40, 17)]:
        first, second = (encoding.powers(torch.tensor(e)) for e in (a, b))
        assert torch.equal(second.gather(-1, first), encoding.powers(torch.tensor(a + b)))
        assert torch.equal(first.sort(-1).values, torch.arange(31).expand(4, -1))
    one = encoding.powers(torch.tensor(1))
    g = torch.Generator().manual_seed(0)
    assert torch.equal(one, torch.stack([torch.randperm(31, generator=g) for _ in range(4)]))  # P, not its inverse
    assert len({tuple(row.tolist()) for row in one}) == 4  # a permutation of its own in every head
    assert (one != torch.arange(31)).any(-1).all()


def test_products_follow_the_lag_to_the_bit() -> None:
    """Sums of the same products; integers, so that their order does not matter."""
    encoding = rp.encodings.PermuteFormer(2, 16)
    q, k = torch.randint(-4, 5, (2, 1, 2, 9, 16)).double().unbind(0)
    scores = []
    for start in (0, 123_456_789, -50):
        at = Index.arange(9, start)
        scores.append(encoding.encode_q(q, at) @ encoding.encode_k(k, at).mT)
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], q @ k.mT)


def test_decay_is_finite_at_any_length() -> None:
    """r^|lag| of 100,000 tokens in float32, where the two factors r^i and r^-i would have left the type."""
    encoding = rp.encodings.PermuteFormer(8, 16).float()
    rates = encoding.decay()
    assert rates is not None and rates.dtype == torch.float32 and not rates.requires_grad
    want = torch.sigmoid(2 + 3 * torch.arange(8, dtype=torch.float64) / 8)
    torch.testing.assert_close((-rates.double()).exp(), want, rtol=1e-7, atol=0)
    assert torch.isinf((1 / want.float()) ** 100_000).all()
    lag = torch.arange(100_000)
    factor = torch.exp(-rates[:, None] * lag)
    assert torch.isfinite(factor).all() and (factor[:, :10] > 0).all() and (factor.diff(dim=-1) <= 0).all()
    x = torch.rand(1, 8, 3, 16)
    far = encoding.encode_k(x, Index.arange(3, 99_997))
    assert torch.equal(far.sort(-1).values, x.sort(-1).values)
    assert encoding.bfloat16().decay().dtype == torch.float32  # rates of 0.0067 keep their digits
    assert rp.encodings.PermuteFormer(8, 16, decay=False).decay() is None


def test_state_carries_the_permutations() -> None:
    first, second = (rp.encodings.PermuteFormer(2, 24) for _ in range(2))
    one = torch.tensor(1)
    assert not torch.equal(first.powers(one), second.powers(one))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.powers(one), second.powers(one))
    again = [rp.encodings.PermuteFormer(2, 24, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(again[0].powers(one), again[1].powers(one))


def test_grouped_keys_and_wrong_widths() -> None:
    encoding = rp.encodings.PermuteFormer(4, 8)
    q, k = torch.rand(1, 4, 5, 8), torch.rand(1, 2, 5, 8)
    got = rp.attention(q, k, k, encoding)
    torch.testing.assert_close(got, rp.attention(q, *(k.repeat_interleave(2, 1),) * 2, encoding))
    with pytest.raises(ValueError, match=r"heads of width 8.*number of features"):
        encoding.encode_q(torch.rand(1, 4, 5, 6), Index.arange(5))
    with pytest.raises(ValueError, match="4 heads"):
        encoding.encode_k(torch.rand(1, 3, 5, 8), Index.arange(5))
    for heads, dim in [(0, 8), (2, 0), (2, 1.5)]:
        with pytest.raises(ValueError, match="positive integer"):
            rp.encodings.PermuteFormer(heads, dim)  # type: ignore[arg-type]
