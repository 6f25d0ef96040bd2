"""The direct sums: the O(n^2) formula, in one piece as the oracle, and in tiles of O(n) memory for any bias and mask.

Weights are kept below 1 by the largest bias that each row has met so far, so no bias overflows, and a row whose near
keys are all hidden still weighs the far ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import State, Tile
from relpos.encodings.diagonals import toeplitz
from relpos.kernels.call import exactly, once
from relpos.kernels.linear.call import LinearCall, Sums

QUERIES, KEYS = 256, 1024
SAFE = {torch.float32: 60.0, torch.float64: 600.0}  # range of a bias whose exponentials can share one factor


def dense(call: LinearCall) -> Sums:
    """The definition, with an n_q x n_k matrix a head."""
    _, _, n_q, n_k = call.shape
    weights = call.phi(call.q) @ call.phi(call.k).transpose(-1, -2)
    shift = call.q.new_zeros(1, 1, 1, 1)
    seen = call.mask.block(0, n_q, 0, n_k, call.q.device)
    if call.bias is not None:
        everything = Tile(0, n_q, 0, n_k, n_q, n_k)
        states = {name: everything.slice(state) for name, state in call.states.items()}
        bias = call.bias.tile(call.q, call.k, states, everything).to(weights.dtype)
        bias = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
        shift = _finite(bias.detach().amax(-1, keepdim=True))
        weights = weights * (bias - shift).exp()
    elif seen is not None:
        weights = weights.masked_fill(~seen, 0)
    return Sums(weights @ call.values, shift)


def tiled(call: LinearCall) -> Sums:
    """The same in tiles; the backward pass recomputes them."""
    tensors = [state.tensor for state in call.states.values()]
    inputs = (call.q, call.k, call.values, len(tensors), *tensors, *call.phi.parameters)
    return Sums(*_Tiled.apply(call, *inputs))  # type: ignore[no-untyped-call]


def _finite(highest: Tensor) -> Tensor:
    """The largest bias of a row, 0 where it sees nothing."""
    return highest.masked_fill(highest == -torch.inf, 0)


def spread_of(lags: Tensor) -> float:
    """Largest minus smallest finite value of a generator over all heads, the largest difference within one head."""
    lags = lags.detach()
    finite = torch.isfinite(lags)
    high = lags.masked_fill(~finite, -torch.inf).amax(-1)
    low = lags.masked_fill(~finite, torch.inf).amin(-1)
    spread = float((high - low).amax()) if lags.numel() else 0.0
    return max(spread, 0.0)


class _Weights:
    """exp(bias) of a tile, with the factor of each row that keeps it in range."""

    def __init__(self, call: LinearCall, states: dict[str, State], dtype: torch.dtype) -> None:
        self.call, self.states, self.dtype = call, states, dtype
        self.shared: Tensor | None = None  # exp of the whole generator, where one factor serves all rows
        if set(states) == {"lags"} and spread_of(states["lags"].tensor) <= SAFE[dtype]:
            lags = states["lags"].tensor.detach()
            self.top = _finite(lags.amax(-1, keepdim=True))
            self.shared = (lags - self.top).exp().to(dtype)

    def slices(self, tile: Tile) -> dict[str, Tensor]:
        return {name: tile.slice(state) for name, state in self.states.items()}

    def seen(self, tile: Tile) -> Tensor | None:
        return self.call.mask.block(tile.i0, tile.i1, tile.j0, tile.j1, self.call.q.device)

    def bias(self, tile: Tile) -> Tensor:
        """(batch or 1, heads or 1, t_q, t_k), minus infinity where nothing is to be seen."""
        call = self.call
        if call.bias is None:
            bias = torch.zeros(1, 1, tile.t_q, tile.t_k, dtype=self.dtype, device=call.q.device)
        else:
            bias = call.bias.tile(call.q, call.k, self.slices(tile), tile).to(self.dtype)
        seen = self.seen(tile)
        return bias if seen is None else bias.masked_fill(~seen, -torch.inf)

    def plain(self, tile: Tile) -> Tensor:
        """The weights of a tile under the shared factor."""
        assert self.shared is not None
        c = tile.slice(State(self.shared, "lag"))
        weights = toeplitz(c, tile.t_q).unsqueeze(0)
        seen = self.seen(tile)
        return weights if seen is None else weights.masked_fill(~seen, 0)


def _rows(call: LinearCall) -> Iterator[list[Tile]]:
    _, _, n_q, n_k = call.shape
    for i0 in range(0, n_q, QUERIES):
        i1 = min(i0 + QUERIES, n_q)
        first, last = call.mask.keys(i0, i1)
        first = min(first, n_k - 1)
        last = max(last, first + 1)  # a block of queries that sees no key still has rows
        yield [Tile(i0, i1, j0, min(j0 + KEYS, last), n_q, n_k) for j0 in range(first, last, KEYS)]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: LinearCall, q: Tensor, k: Tensor, values: Tensor, count: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = _Weights(call, _states(call, tensors[:count]), q.dtype)
        out = values.new_zeros(*q.shape[:3], values.shape[-1])
        if weights.shared is None:
            shift = torch.cat([_row(call, weights, q, k, values, row, out) for row in _rows(call)], 2)
        else:
            shift = weights.top.to(q.dtype).view(1, -1, 1, 1)
            for tile in (tile for row in _rows(call) for tile in row):
                products = _products(call, q, k, tile).mul_(weights.plain(tile))
                out[:, :, tile.i0 : tile.i1] += products @ values[:, :, tile.j0 : tile.j1]
        ctx.save_for_backward(q, k, values, shift, *tensors)
        ctx.call, ctx.count = call, count
        ctx.mark_non_differentiable(shift)
        return out, shift

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, values, shift, *tensors = ctx.saved_tensors
        call: LinearCall = ctx.call
        states = _states(call, tuple(tensors[: ctx.count]))
        wanted = {n for n, need in zip(states, ctx.needs_input_grad[5:], strict=False) if need}
        total = [torch.zeros_like(x) for x in (q, k, values)]
        g_states = {n: torch.zeros_like(states[n].tensor) for n in wanted}
        g_phi = [torch.zeros_like(p) for p in call.phi.parameters]
        weights = _Weights(call, states, q.dtype)
        with exactly(grad):
            for tile in (tile for row in _rows(call) for tile in row):
                rows, keys = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
                g = grad[:, :, rows]
                phi_q, phi_k = call.phi(q[:, :, rows]), call.phi(k[:, :, keys])
                products = phi_q @ phi_k.transpose(-1, -2)
                if weights.shared is not None:
                    w = weights.plain(tile)
                else:
                    w = (weights.bias(tile) - shift[:, :, rows]).exp_()
                by_weight = (g @ values[:, :, keys].transpose(-1, -2)).mul_(w)
                total[2][:, :, keys] += (products * w).transpose(-1, -2) @ g
                for x, into, part in (
                    (q[:, :, rows], total[0][:, :, rows], by_weight @ phi_k),
                    (k[:, :, keys], total[1][:, :, keys], by_weight.transpose(-1, -2) @ phi_q),
                ):
                    found, parameters = call.phi.back(x, part)
                    into += found
                    for sum_, more in zip(g_phi, parameters):
                        sum_ += more
                if wanted:
                    _to_states(call, by_weight.mul_(products), weights.slices(tile), tile, states, wanted, g_states)
        return None, *total, None, *(g_states.get(n) for n in states), *g_phi


def _states(call: LinearCall, tensors: tuple[Tensor, ...]) -> dict[str, State]:
    return {n: State(t, s.along, s.axis) for (n, s), t in zip(call.states.items(), tensors, strict=True)}


def _products(call: LinearCall, q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    return call.phi(q[:, :, tile.i0 : tile.i1]) @ call.phi(k[:, :, tile.j0 : tile.j1]).transpose(-1, -2)


def _row(
    call: LinearCall, weights: _Weights, q: Tensor, k: Tensor, values: Tensor, row: list[Tile], out: Tensor
) -> Tensor:
    """Sums of one block of queries, kept in range by the largest bias met so far; returns that of each row."""
    top: Tensor | None = None
    for tile in row:
        rows = out[:, :, tile.i0 : tile.i1]
        bias = weights.bias(tile)
        higher = bias.amax(-1, keepdim=True)
        higher = higher if top is None else torch.maximum(top, higher)
        shift = _finite(higher)
        if top is not None:
            rows *= (top - shift).exp()
        rows += _products(call, q, k, tile).mul_((bias - shift).exp_()) @ values[:, :, tile.j0 : tile.j1]
        top = higher
    assert top is not None
    return _finite(top.to(q.dtype)).expand(*q.shape[:2], row[0].t_q, 1)


def _to_states(
    call: LinearCall,
    grad: Tensor,
    slices: dict[str, Tensor],
    tile: Tile,
    states: dict[str, State],
    wanted: set[str],
    into: dict[str, Tensor],
) -> None:
    """Adds one tile's share to the gradients of what the bias prepared."""
    assert call.bias is not None
    found = call.bias.tile_backward(grad, call.q, call.k, slices, tile)
    if found is None:
        leaves = {name: slices[name].detach().requires_grad_() for name in slices if name in wanted}
        with torch.enable_grad():
            bias = call.bias.tile(call.q, call.k, slices | leaves, tile)
        parts = torch.autograd.grad(bias, list(leaves.values()), grad.sum_to_size(bias.shape), allow_unused=True)
        found = {name: part for name, part in zip(leaves, parts, strict=True) if part is not None}
    for name, part in found.items():
        if name in wanted:
            target = tile.slice(State(into[name], states[name].along, states[name].axis))
            target += part.sum_to_size(target.shape) if part.shape != target.shape else part
