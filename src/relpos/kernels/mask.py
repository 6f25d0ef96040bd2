"""Which key a query may see: causal order, windows, padding and packed documents, without an n x n tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MARKED = 2**22  # pairs at a time in `seeing`


@dataclass(frozen=True)
class Rectangle:
    """Batch rows b0..b1-1, queries i0..i1-1 against keys j0..j1-1: inside it only causality and window remain."""

    b0: int
    b1: int
    i0: int
    i1: int
    j0: int
    j1: int


@dataclass(frozen=True)
class Mask:
    """The visible pairs of one attention call.

    Order: query i stands at offset + i and key j at j, unless q_order and k_order, (n,) or (batch, n), say otherwise.
    left, right: visible lags of the order are -left..right (None: no bound); causal is right = 0.
    """

    n_q: int
    n_k: int
    offset: int
    left: int | None = None
    right: int | None = None
    q_order: Tensor | None = None
    k_order: Tensor | None = None
    key_mask: Tensor | None = None  # (batch, n_k), True = real
    q_segments: Tensor | None = None  # (batch, n_q)
    k_segments: Tensor | None = None  # (batch, n_k)

    @property
    def plain(self) -> bool:
        """True where visibility depends on the consecutive lag alone."""
        return self.q_order is None and self.key_mask is None and self.q_segments is None

    @property
    def full(self) -> bool:
        return self.plain and self.left is None and self.right is None

    @property
    def is_causal(self) -> bool:
        """True for exactly what fused kernels call is_causal: square, from the first token, no window."""
        return self.plain and self.right == 0 and self.left is None and self.offset == 0 and self.n_q == self.n_k

    def of(self, b0: int, b1: int) -> Mask:
        """The mask of sequences b0..b1-1."""
        own = {
            name: x[b0:b1]
            for name in ("q_order", "k_order", "key_mask", "q_segments", "k_segments")
            if (x := getattr(self, name)) is not None and x.dim() == 2 and len(x) > 1
        }
        return replace(self, **own) if own else self

    def keys(self, i0: int, i1: int) -> tuple[int, int]:
        """Smallest range j0, j1 of keys that queries i0..i1-1 may see, by order alone."""
        if self.q_order is not None or i1 <= i0:
            return 0, self.n_k
        j0 = 0 if self.left is None else max(0, self.offset + i0 - self.left)
        j1 = self.n_k if self.right is None else min(self.n_k, self.offset + i1 - 1 + self.right + 1)
        return min(j0, self.n_k), max(min(j0, self.n_k), j1)

    def block(self, i0: int, i1: int, j0: int, j1: int, device: torch.device) -> Tensor | None:
        """Visible pairs of a tile, bool (batch or 1, 1, t_q, t_k); None where all are."""
        seen: Tensor | None = None
        if self.left is not None or self.right is not None:
            seen = self._ordered(i0, i1, j0, j1, device)
        if self.key_mask is not None:
            real = self.key_mask[:, None, None, j0:j1]
            seen = real if seen is None else seen & real
        if self.q_segments is not None and self.k_segments is not None:
            same = self.q_segments[:, None, i0:i1, None] == self.k_segments[:, None, None, j0:j1]
            seen = same if seen is None else seen & same
        return seen

    def against(self, j0: int, j1: int) -> Mask:
        """The same queries against keys j0..j1-1 alone, which are then counted from 0."""
        k_order, key_mask, k_segments = (
            None if x is None else x[..., j0:j1] for x in (self.k_order, self.key_mask, self.k_segments)
        )
        return replace(
            self, n_k=j1 - j0, offset=self.offset - j0, k_order=k_order, key_mask=key_mask, k_segments=k_segments
        )

    def free(self, i0: int, i1: int, j0: int, j1: int) -> int:
        """How many of the first keys of a tile all its queries see, as far as the order alone tells."""
        if not self.plain or self.left is not None:
            return 0
        return j1 - j0 if self.right is None else min(max(self.offset + i0 + self.right + 1 - j0, 0), j1 - j0)

    @torch.no_grad()
    def seeing(self, keys: Tensor) -> Tensor:
        """Which queries see a key of those marked in keys, bool (batch, heads, n_k): (batch, heads, n_q)."""
        batch, heads, n_k = keys.shape
        rows = max(1, MARKED // max(1, batch * n_k))
        found = []
        for i0 in range(0, self.n_q, rows):
            i1 = min(i0 + rows, self.n_q)
            j0, j1 = self.keys(i0, i1)
            marked = keys[..., j0:j1]
            seen = self.block(i0, i1, j0, j1, keys.device)
            if seen is None:
                found.append(marked.any(-1, keepdim=True).expand(batch, heads, i1 - i0))
            else:  # as a product: the pairs of all heads at once would be as many as the scores
                found.append((seen.squeeze(1).float() @ marked.mT.float()).mT > 0)
        return torch.cat(found, -1) if found else keys[..., :0]

    def _ordered(self, i0: int, i1: int, j0: int, j1: int, device: torch.device) -> Tensor | None:
        if self.q_order is None or self.k_order is None:
            lowest, highest = j0 - (self.offset + i1 - 1), j1 - 1 - (self.offset + i0)
            if (self.left is None or lowest >= -self.left) and (self.right is None or highest <= self.right):
                return None
            q_order = torch.arange(self.offset + i0, self.offset + i1, device=device)
            k_order = torch.arange(j0, j1, device=device)
        else:
            q_order, k_order = self.q_order[..., i0:i1], self.k_order[..., j0:j1]
        lag = k_order[..., None, :] - q_order[..., :, None]
        seen = torch.ones_like(lag, dtype=torch.bool)
        if self.right is not None:
            seen &= lag <= self.right
        if self.left is not None:
            seen &= lag >= -self.left
        return seen[None, None] if seen.dim() == 2 else seen[:, None]

    def rectangles(self, batch: int) -> list[Rectangle] | None:
        """The call as rectangles in which only the lag decides, or None where padding or documents are scattered.

        Padding at the ends and documents packed one after another give one rectangle a row and document.
        """
        if self.q_order is not None:
            return None
        if self.plain:
            return list(self._within(Rectangle(0, batch, 0, self.n_q, 0, self.n_k)))
        found: list[Rectangle] = []
        for b in range(batch):
            runs = self._runs(b)
            if runs is None:
                return None
            for i0, i1, j0, j1 in runs:
                found.extend(self._within(Rectangle(b, b + 1, i0, i1, j0, j1)))
        return found

    def _within(self, r: Rectangle) -> Iterator[Rectangle]:
        """Cuts off the queries of a rectangle that see none of its keys."""
        i0, i1 = r.i0, r.i1
        if self.right is not None:  # the last visible key, offset + i + right, must reach j0
            i0 = max(i0, r.j0 - self.right - self.offset)
        if self.left is not None:  # the first visible key, offset + i - left, must not pass j1 - 1
            i1 = min(i1, r.j1 - 1 + self.left - self.offset + 1)
        if i0 < i1 and r.j0 < r.j1:
            yield Rectangle(r.b0, r.b1, i0, i1, r.j0, r.j1)

    def _runs(self, b: int) -> list[tuple[int, int, int, int]] | None:
        real = None if self.key_mask is None else self.key_mask[b]
        j0, j1 = 0, self.n_k
        if real is not None:
            where = real.nonzero().flatten()
            if len(where) == 0:
                return []
            j0, j1 = int(where[0]), int(where[-1]) + 1
            if j1 - j0 != len(where):
                return None
        if self.q_segments is None or self.k_segments is None:
            return [(0, self.n_q, j0, j1)]
        q_runs, k_runs = _runs_of(self.q_segments[b]), _runs_of(self.k_segments[b])
        if q_runs is None or k_runs is None:
            return None
        pairs = []
        for name, (i0, i1) in q_runs.items():
            if name in k_runs:
                s0, s1 = max(k_runs[name][0], j0), min(k_runs[name][1], j1)
                if s0 < s1:
                    pairs.append((i0, i1, s0, s1))
        return pairs


def _runs_of(segments: Tensor) -> dict[int, tuple[int, int]] | None:
    """Start and stop of each document, None where one is in more than one piece."""
    if len(segments) == 0:
        return {}
    names, lengths = torch.unique_consecutive(segments, return_counts=True)
    if len(torch.unique(names)) != len(names):
        return None
    stops = lengths.cumsum(0)
    return {
        int(name): (int(stop - length), int(stop)) for name, length, stop in zip(names, lengths, stops, strict=True)
    }
