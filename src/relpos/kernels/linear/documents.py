"""Documents packed one after another, taken one by one: a mask over all of them would make every kernel quadratic.

Documents of equal length become rows of one batch. Tokens are gathered once and put back once, so that the backward
pass is linear in their number too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relpos.encodings.base import State, Tile
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.kernels.mask import Mask, Rectangle


@dataclass(frozen=True)
class Documents:
    """The calls that a packed call falls into, and the tokens of each.

    rows  for every query of every call, in their order, its index in (batch * n_q)
    """

    whole: LinearCall
    calls: list[LinearCall]
    rows: Tensor

    @classmethod
    def of(cls, call: LinearCall) -> Documents | None:
        """None where there are no documents, or where one of them lies in more than one piece."""
        if call.mask.q_segments is None:
            return None
        found = call.mask.rectangles(call.shape[0])
        if found is None:
            return None
        groups = list(_alike(call, found).values())
        _, _, n_q, n_k = call.shape
        rows = _tokens([(r.b0, r.i0, r.i1) for group in groups for r in group], n_q, call.q.device)
        keys = _tokens([(r.b0, r.j0, r.j1) for group in groups for r in group], n_k, call.q.device)
        queries = _gathered(call.q, rows, [sum(r.i1 - r.i0 for r in group) for group in groups])
        sizes = [sum(r.j1 - r.j0 for r in group) for group in groups]
        all_ones = call.ones.expand(call.shape[0], -1, -1, -1)
        k, values, ones = (_gathered(x, keys, sizes) for x in (call.k, call.values, all_ones))
        calls = [
            _call(call, group[0], *(_folded(x[g], len(group)) for x in (queries, k, values, ones)))
            for g, group in enumerate(groups)
        ]
        return cls(call, calls, rows)

    def joined(self, sums: Sequence[Sums]) -> Sums:
        """The sums of the whole call from those of its documents; 0 for a query that sees no key."""
        batch, _, n_q, _ = self.whole.shape
        place = torch.full((batch * n_q,), len(self.rows), device=self.rows.device)
        place[self.rows] = torch.arange(len(self.rows), device=self.rows.device)
        whole = (self.whole.q, self.whole.k, self.whole.values)
        nothing = whole[2].new_zeros(1, *whole[2].shape[1::2]) + sum(x[..., :0].sum() for x in whole)
        column = nothing.new_zeros(1, self.whole.shape[1], 1) + sum(x[..., :0].sum() for x in whole)

        def back(parts: list[Tensor], last: Tensor) -> Tensor:
            tokens = torch.cat([*(x.transpose(1, 2).flatten(0, 1).to(last.dtype) for x in parts), last])
            return tokens.index_select(0, place).view(batch, n_q, *last.shape[1:]).transpose(1, 2)

        shifts = [one.shift.expand_as(one.below) for one in sums]
        above, below = back([one.above for one in sums], nothing), back([one.below for one in sums], column)
        return Sums(above, below, back(shifts, column.detach()))


def _alike(call: LinearCall, found: list[Rectangle]) -> dict[tuple[int, ...], list[Rectangle]]:
    """Rectangles that may share one call: of one shape, and seen alike by a bias that depends on the lag alone."""
    lagged = all(state.along in ("lag", "whole") for state in call.states.values())
    groups: dict[tuple[int, ...], list[Rectangle]] = {}
    for number, r in enumerate(found):
        name = (r.i1 - r.i0, r.j1 - r.j0, r.i0 - r.j0, 0 if lagged else number)
        groups.setdefault(name, []).append(r)
    return groups


def _tokens(spans: list[tuple[int, int, int]], n: int, device: torch.device) -> Tensor:
    """Indices in (batch * n) of the tokens start..stop-1 of some batch rows."""
    parts = [torch.arange(b * n + start, b * n + stop, device=device) for b, start, stop in spans]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)


def _gathered(x: Tensor, rows: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """(batch, heads, n, width) to one (tokens, heads, width) a group."""
    return torch.split(x.transpose(1, 2).flatten(0, 1).index_select(0, rows), sizes)


def _folded(x: Tensor, count: int) -> Tensor:
    return x.view(count, len(x) // count, *x.shape[1:]).transpose(1, 2)


def _call(call: LinearCall, r: Rectangle, q: Tensor, k: Tensor, values: Tensor, ones: Tensor) -> LinearCall:
    """The call of one rectangle, or of several like it whose queries, keys and values are these."""
    batch, _, n_q, n_k = call.shape
    tile = Tile(r.i0, r.i1, r.j0, r.j1, n_q, n_k)
    states = {}
    for name, state in call.states.items():
        part = tile.slice(state)
        own = state.along in ("query", "key") and part.dim() + state.axis > 0 and part.shape[0] == batch > 1
        states[name] = State(part[r.b0 : r.b1] if own else part, state.along, state.axis)
    moved = r.i0 - r.j0
    mask = Mask(tile.t_q, tile.t_k, call.mask.offset + moved, call.mask.left, call.mask.right)
    offset = None if call.offset is None else call.offset + moved
    return replace(call, q=q, k=k, values=values, ones=ones, states=states, mask=mask, offset=offset)
