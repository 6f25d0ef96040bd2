from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.features import ELU1
from relpos.positions import Labels, Times
from tests.encodings.case import EncodingCase


def printed(q: Tensor, k: Tensor, f: Tensor, p_q: Tensor, p_k: Tensor) -> Tensor:
    """The expansion as printed, a pair and a position at a time; f (heads, pairs, axes), p (n, axes)."""
    out = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for t in range(f.shape[1]):
        q1, q2, k1, k2 = q[..., 2 * t], q[..., 2 * t + 1], k[..., 2 * t], k[..., 2 * t + 1]
        for i in range(q.shape[2]):
            for j in range(k.shape[2]):
                minus, plus = f[:, t] @ (p_q[i] - p_k[j]), f[:, t] @ (p_q[i] + p_k[j])
                a, b, c, d = q1[..., i], q2[..., i], k1[..., j], k2[..., j]
                out[..., i, j] += (a * c + b * d) * minus.cos() + (a * d - b * c) * minus.sin()
                out[..., i, j] += (a * c - b * d) * plus.sin() + (a * d + b * c) * plus.cos()
    return out


class TestRoPEPool(EncodingCase):
    name = "rope_pool"
    exact_shift = False  # not a relative encoding
    learned = False

    def make(self) -> Any:
        return rp.encodings.RoPEPool(self.heads, self.dim)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        f = 10000.0 ** (-torch.arange(0, self.dim, 2).double() / self.dim)
        f = f[None, :, None].expand(self.heads, -1, -1)
        return printed(q, k, f, q_pos[:, None].double(), k_pos[:, None].double()) / self.dim**0.5


def logits(encoding: Any, q: Tensor, k: Tensor, positions: Any) -> Tensor:
    return encoding.encode_q(q, positions) @ encoding.encode_k(k, positions).mT  # type: ignore[no-any-return]


def test_named_levels_and_learned_frequencies() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    f = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    encoding = rp.encodings.RoPEPool.from_reference({"f": f.numpy()}, ("chord", "section"))
    assert encoding.frequencies is not None and encoding.frequencies.requires_grad
    points = torch.randint(0, 9, (5, 2), generator=g)
    named = {"chord": Labels(points[:, 0]), "section": Labels(points[:, 1])}
    want = printed(q, k, f, points.double(), points.double())
    torch.testing.assert_close(logits(encoding, q, k, named), want, rtol=0, atol=1e-12)
    moved = {name: Labels(x.values + 3) for name, x in named.items()}
    assert (logits(encoding, q, k, moved) - want).abs().max() > 1e-2
    assert encoding.encode_q(q, named).shape[-1] == encoding.width_after(6) == 3


def test_unit_pairs_and_the_two_layouts() -> None:
    """2 cos(a + f p - pi/4) cos(b + f p' - pi/4) for pairs at angles a and b."""
    a, b = torch.rand(1, 1, 4, 1, dtype=torch.float64) * 6, torch.rand(1, 1, 4, 1, dtype=torch.float64) * 6
    q, k = torch.cat((a.cos(), a.sin()), -1), torch.cat((b.cos(), b.sin()), -1)
    at = Times(torch.tensor([0.0, 0.3, 1.7, 5.0]))
    shifted_q = (a[0, 0] + at.values[:, None] - torch.pi / 4).cos()
    shifted_k = (b[0, 0] + at.values[:, None] - torch.pi / 4).cos()
    for layout in ("interleaved", "half"):
        encoding = rp.encodings.RoPEPool(1, 2, "time", layout=layout)  # type: ignore[arg-type]
        torch.testing.assert_close(logits(encoding, q, k, at)[0, 0], 2 * shifted_q @ shifted_k.T)
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    half, inter = rp.encodings.RoPEPool(1, 6, layout="half"), rp.encodings.RoPEPool(1, 6)
    index = Labels(torch.arange(4))
    reordered = x.unflatten(-1, (2, 3)).mT.flatten(-2)
    torch.testing.assert_close(half.encode_q(x, index), inter.encode_q(reordered, index))


def test_linear_attention() -> None:
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 9, 6, generator=g, dtype=torch.float64) for _ in range(3))
    encoding = rp.encodings.RoPEPool(2, 6, "chord")
    named = {"chord": torch.randint(0, 5, (9,), generator=g)}
    phi = ELU1()
    at = {"chord": Labels(named["chord"])}
    weights = (phi(encoding.encode_q(q, at)) @ phi(encoding.encode_k(k, at)).mT).tril()
    got = rp.linear_attention(q, k, v, encoding, features=phi, q_pos=named, k_pos=named, causal=True)
    torch.testing.assert_close(got, weights / weights.sum(-1, keepdim=True) @ v, rtol=0, atol=1e-12)


def test_f_stripe_1() -> None:
    """One sine a channel, no phases: cosines of the difference, and relative where RoPEPool is not."""
    g = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 2, 5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    encoding = rp.encodings.FStrIPE(2, 6, "chord", 1, pooled=False, phases=False).double()
    assert not any(encoding.query_phases.flatten()) and not encoding.query_phases.requires_grad
    labels = torch.tensor([4, 0, 0, 7, 30])
    f = 2 * torch.pi * encoding.frequencies[..., 0, 0]  # (heads, dim)
    cosines = (f[..., None, None] * (labels[:, None] - labels)).cos()
    want = torch.einsum("bhid,bhjd,hdij->bhij", q, k, cosines)
    torch.testing.assert_close(logits(encoding, q, k, {"chord": Labels(labels)}), want, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    encoding = rp.encodings.RoPEPool(2, 6, ("chord", "section"))
    x = torch.zeros(1, 2, 4, 6)
    with pytest.raises(ValueError, match="named section"):
        encoding.encode_q(x, {"chord": Labels(torch.arange(4))})
    with pytest.raises(ValueError, match="width 6, got 8"):
        rp.encodings.RoPEPool(2, 6).encode_q(torch.zeros(1, 2, 4, 8), Labels(torch.arange(4)))
    for build in (
        lambda: rp.encodings.RoPEPool(2, 5),
        lambda: rp.encodings.RoPEPool(2, 6, base=0.5),
        lambda: rp.encodings.RoPEPool(2, 6, layout="pairs"),  # type: ignore[arg-type]
        lambda: rp.encodings.RoPEPool.from_reference({"f": torch.zeros(1, 2, 3, 4)}),
        lambda: rp.encodings.RoPEPool.from_reference({"f": torch.zeros(3, 2)}, "chord"),
    ):
        with pytest.raises(ValueError):
            build()
