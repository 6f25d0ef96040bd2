"""Attention written a second time, in loops, float64 and without the library: what every kernel is held against.

The encodings here are plain too: a learned table (Bias), a table that changes with the query's own position (RowBias),
relative keys and values (ContentBias) and a rotation of pairs (Transform). They are registered by the tests that need
names, as a user's own would be.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, ContentBias, RowBias, Slices, State, States, Tile, Transform
from relpos.positions import Index, Positions, Times


class ToyBias(Bias):
    """Adds slope * |lag| + a learned number for each of the lags -3..3 (asymmetric, so that a wrong sign shows)."""

    takes = (Index, Times)
    extrapolates = True
    reference = "@misc{toy, title={A toy}}"

    def __init__(self, heads: int, reach: int = 3) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.table = nn.Parameter(torch.randn(heads, 2 * reach + 1))
        self.slope = nn.Parameter(-0.1 * torch.rand(heads))

    def at(self, lag: Tensor) -> Tensor:
        index = lag.clamp(-self.reach, self.reach).to(torch.int64) + self.reach
        shape = (self.heads, *[1] * lag.dim())
        return self.table[:, index] + self.slope.view(shape) * lag.abs().to(self.slope.dtype)

    def naive(self, q: Tensor, k: Tensor, q_pos: float, k_pos: float) -> Tensor:
        lag = k_pos - q_pos
        near = int(min(max(lag, -self.reach), self.reach))
        return self.table[:, near + self.reach] + self.slope * abs(lag)


class ToyRow(RowBias):
    """Adds weight * tanh(lag / (1 + |query position|)): depends on where the query stands."""

    takes = (Index,)
    reference = "@misc{toy, title={A toy}}"

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(heads))

    def pairs(self, q_values: Tensor, k_values: Tensor) -> Tensor:
        lag = Index.between(q_values, k_values).to(self.weight.dtype)
        share = torch.tanh(lag / (1 + q_values.abs().unsqueeze(-1)))
        return share.unsqueeze(-3) * self.weight.view(-1, 1, 1)

    def naive(self, q: Tensor, k: Tensor, q_pos: float, k_pos: float) -> Tensor:
        return self.weight * math.tanh((k_pos - q_pos) / (1 + abs(q_pos)))


class ToyContent(ContentBias):
    """Adds q . keys[lag] to the score and values[lag] to the value, lags clipped at `reach`."""

    has_values = True
    reference = "@misc{toy, title={A toy}}"

    def __init__(self, heads: int, dim: int, reach: int = 2) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.keys = nn.Parameter(torch.randn(heads, 2 * reach + 1, dim))
        self.added = nn.Parameter(torch.randn(heads, 2 * reach + 1, dim))

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
        return {
            "q_pos": State(q_pos.values, "query"),
            "k_pos": State(k_pos.values, "key"),
            "keys": State(self.keys, "whole"),
            "added": State(self.added, "whole"),
        }

    def _onehot(self, states: Slices, dtype: torch.dtype) -> Tensor:
        lag = Index.between(states["q_pos"], states["k_pos"]).clamp(-self.reach, self.reach) + self.reach
        hot = nn.functional.one_hot(lag, 2 * self.reach + 1).to(dtype)  # ([batch], t_q, t_k, lags)
        return hot.unsqueeze(0) if hot.dim() == 3 else hot

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        products = q @ states["keys"].to(q.dtype).transpose(-1, -2)
        return torch.einsum("bhil,bijl->bhij", products, self._onehot(states, q.dtype).expand(q.shape[0], -1, -1, -1))

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor:
        hot = self._onehot(states, p.dtype).expand(p.shape[0], -1, -1, -1)
        return torch.einsum("bhij,bijl->bhil", p, hot) @ states["added"].to(p.dtype)

    def _near(self, q_pos: float, k_pos: float) -> int:
        return int(min(max(k_pos - q_pos, -self.reach), self.reach)) + self.reach

    def naive(self, q: Tensor, k: Tensor, q_pos: float, k_pos: float) -> Tensor:
        return (q * self.keys[:, self._near(q_pos, k_pos)]).sum(-1)

    def naive_value(self, q_pos: float, k_pos: float) -> Tensor:
        return self.added[:, self._near(q_pos, k_pos)]


class ToyTurn(Transform):
    """Turns the first two columns of q and k by position * frequency."""

    takes = (Index, Times)
    learned = True
    reference = "@misc{toy, title={A toy}}"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(0.3))

    def _turn(self, x: Tensor, pos: Positions) -> Tensor:
        assert isinstance(pos, Index | Times)
        angle = (pos.values.double() * self.frequency.double()).to(x.dtype)
        angle = angle if angle.dim() == 1 else angle.unsqueeze(1)
        a, b, rest = x[..., 0], x[..., 1], x[..., 2:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([torch.stack([a * cos - b * sin, a * sin + b * cos], -1), rest], -1)

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._turn(q, q_pos)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._turn(k, k_pos)

    def naive_logit(self, q: Tensor, k: Tensor, q_pos: float, k_pos: float) -> Tensor:
        """q . k after the turn: only the difference of the angles counts."""
        angle = self.frequency * (k_pos - q_pos)
        cos, sin = angle.cos(), angle.sin()
        turned = torch.stack([k[..., 0] * cos - k[..., 1] * sin, k[..., 0] * sin + k[..., 1] * cos], -1)
        return (q * torch.cat([turned, k[..., 2:]], -1)).sum(-1)


def naive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Any = None,
    *,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """One query, one key at a time. keep: factors of the weights after the softmax (dropout)."""
    batch, heads, n_q, dim = q.shape
    n_k = k.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scale = dim**-0.5 if scale is None else scale
    q_at = torch.arange(n_k - n_q, n_k) if q_pos is None else q_pos
    k_at = torch.arange(n_k) if k_pos is None else k_pos
    seen = visible(batch, n_q, n_k, q_at, k_at, causal, key_mask, segments, window, q_order, k_order)
    q_rows, k_rows = q_at.expand(batch, n_q).tolist(), k_at.expand(batch, n_k).tolist()
    rows = []
    for b in range(batch):
        for i in range(n_q):
            keys = [j for j in range(n_k) if seen[b][i][j]]
            if not keys:
                rows.append(q.new_zeros(heads, v.shape[-1]))
                continue
            scores, values = [], []
            for j in keys:
                at = (q_rows[b][i], k_rows[b][j])
                pair = (q[b, :, i], k[b, :, j])
                turned = hasattr(encoding, "naive_logit")
                score = (encoding.naive_logit(*pair, *at) if turned else (pair[0] * pair[1]).sum(-1)) * scale
                scores.append(score + encoding.naive(*pair, *at) if hasattr(encoding, "naive") else score)
                extra = encoding.naive_value(*at) if hasattr(encoding, "naive_value") else 0
                values.append(v[b, :, j] + extra)
            p = torch.stack(scores, -1).softmax(-1)
            p = p if keep is None else p * keep[b, :, i, keys]
            rows.append(torch.einsum("hj,hjd->hd", p, torch.stack(values, 1)))
    if not rows:
        return q.new_zeros(batch, heads, n_q, v.shape[-1])
    return torch.stack(rows).view(batch, n_q, heads, -1).transpose(1, 2)


def visible(
    batch: int,
    n_q: int,
    n_k: int,
    q_at: Tensor,
    k_at: Tensor,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
) -> list[list[list[bool]]]:
    """seen[b][i][j], pair by pair, from the words of the documentation."""
    left, right = window if isinstance(window, tuple) else (window, window)
    by_position = not q_at.is_floating_point()
    if q_order is None:
        q_order = q_at if by_position else torch.arange(n_k - n_q, n_k)
        k_order = k_at if by_position else torch.arange(n_k)
    assert k_order is not None
    q_rank, k_rank = q_order.expand(batch, n_q).tolist(), k_order.expand(batch, n_k).tolist()
    if isinstance(segments, Tensor):
        segments = (segments[..., n_k - n_q :], segments)
    seen = [[[True] * n_k for _ in range(n_q)] for _ in range(batch)]
    for b in range(batch):
        for i in range(n_q):
            for j in range(n_k):
                step = k_rank[b][j] - q_rank[b][i]
                ok = not (causal and step > 0)
                ok &= right is None or step <= right
                ok &= left is None or step >= -left
                ok &= key_mask is None or bool(key_mask[b, j])
                if segments is not None:
                    ok &= bool(segments[0].expand(batch, -1)[b, i] == segments[1].expand(batch, -1)[b, j])
                seen[b][i][j] = bool(ok)
    return seen


def inputs(
    batch: int = 2,
    heads: int = 2,
    n_q: int = 5,
    n_k: int | None = None,
    dim: int = 4,
    dim_v: int | None = None,
    kv_heads: int | None = None,
    dtype: torch.dtype = torch.float64,
    grad: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the given sizes; leaves where grad."""
    g = torch.Generator().manual_seed(seed)
    n_k, dim_v, kv_heads = n_q if n_k is None else n_k, dim_v or dim, kv_heads or heads
    shapes = [(batch, heads, n_q, dim), (batch, kv_heads, n_k, dim), (batch, kv_heads, n_k, dim_v)]
    q, k, v = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes)
    return q, k, v


def gradients(out: Tensor, leaves: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a fixed random sum of the output; zeros where a leaf is not reached."""
    if not out.requires_grad:  # no query saw any key
        return [torch.zeros_like(x) for x in leaves]
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if f is None else f for f, x in zip(found, leaves, strict=True)]


def agree(got: Tensor, want: Tensor, leaves: list[Tensor], tolerance: float = 1e-11) -> None:
    """Values and gradients are the same."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    for a, b in zip(gradients(got, leaves), gradients(want, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * tolerance)
