"""Cached rows of kernelised attention and the sums that read them directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Rows:
    """Features and values of past tokens, contiguous along the tokens; buffers of `room` rows, doubled when full.

    In gradient mode they are fresh copies instead, because the graphs of earlier steps may hold the old ones.
    """

    def __init__(self, room: int = 64) -> None:
        self.room = room
        self.buffers: list[Tensor] = []
        self.first = self.last = 0

    def __len__(self) -> int:
        return self.last - self.first

    def append(self, *new: Tensor) -> None:
        t = new[0].shape[2]
        if torch.is_grad_enabled():
            self.buffers = (
                [torch.cat([old, x], 2) for old, x in zip(self.view(), new)]
                if self.buffers
                else [x.clone() for x in new]
            )
            self.first, self.last = 0, len(self) + t
            return
        if not self.buffers or self.last + t > self.buffers[0].shape[2]:
            self._grow(new, t)
        for buffer, x in zip(self.buffers, new):
            buffer.narrow(2, self.last, t).copy_(x)
        self.last += t

    def _grow(self, new: Sequence[Tensor], t: int) -> None:
        held = self.view() if self.buffers else [x[:, :, :0] for x in new]
        kept = len(self)
        if kept + t > self.room:
            self.room = 2 * (kept + t)
        self.buffers = [x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in new]
        for buffer, x in zip(self.buffers, held):
            buffer.narrow(2, 0, kept).copy_(x.detach())
        self.first, self.last = 0, kept

    def view(self) -> list[Tensor]:
        return [buffer.narrow(2, self.first, len(self)) for buffer in self.buffers]

    def drop(self, count: int) -> None:
        self.first += count

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self.buffers = [change(buffer) for buffer in self.buffers]


def weighted(fq: Tensor, fk: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights[.., i, j] (fq_i . fk_j) x_j, (batch, heads, t, w), for weights (.., heads or 1, t, n)."""
    batch, heads, t, m = fq.shape
    kv_heads, n = fk.shape[1:3]
    grouped = fq.reshape(batch, kv_heads, heads // kv_heads * t, m)
    scores = (grouped @ fk.transpose(-1, -2)).view(batch, heads, t, n) * weights
    return (scores.view(batch, kv_heads, heads // kv_heads * t, n) @ x).view(batch, heads, t, x.shape[-1])


def peak_of(logs: Tensor) -> Tensor:
    """The largest entry a head, (heads,), without gradient; 0 where there is none above minus infinity."""
    peak = logs.detach().amax(-1)
    return peak.masked_fill(peak == -math.inf, 0)


class PairSums:
    """Sums for a bias of pairs, which every step brings along; reads every cached row."""

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows = Rows() if rows is None else rows

    def step(self, fq: Tensor, fk: Tensor, x: Tensor, logs: Tensor) -> Tensor:
        """logs (batch or 1, heads, t, n): minus infinity where a key does not count."""
        fq, fk, x = (z.to(logs.dtype) for z in (fq, fk, x))
        self.rows.apply(lambda held: held.to(logs.dtype))
        self.rows.append(fk, x)
        fk, x = self.rows.view()
        weights = (logs - peak_of(logs).unsqueeze(-1)).exp()
        return weighted(fq, fk, x, weights)

    def reorder(self, rows: Tensor) -> None:
        self.rows.apply(lambda held: held.index_select(0, rows))
