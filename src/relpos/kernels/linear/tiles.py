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
from relpos.encodings.diagonals import antidiagonal_sums, hankel
from relpos.kernels.call import exactly, once
from relpos.kernels.linear.call import LinearCall, Sums
from relpos.kernels.linear.rows import Rows

QUERIES, KEYS = 128, 1024
SCORES = 2**19  # in one tile, over all batch rows and heads: what stays in the cache between its products
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
    return Sums.of(weights @ call.both, shift)


def tiled(call: LinearCall) -> Sums:
    """The same in tiles; the backward pass recomputes them."""
    tensors = [state.tensor for state in call.states.values()]
    inputs = (call.q, call.k, call.both, len(tensors), *tensors, *call.phi.parameters)
    return Sums.of(*_Tiled.apply(call, *inputs))  # type: ignore[no-untyped-call]


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
            lags = lags.to(torch.promote_types(lags.dtype, dtype))
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
        """The weights of a tile under the shared factor, the queries in reversed order: then they are a view."""
        assert self.shared is not None
        c = tile.slice(State(self.shared, "lag"))
        weights: Tensor = hankel(c, tile.t_q).unsqueeze(0)
        seen = self.seen(tile)
        return weights if seen is None else weights.masked_fill(~seen.flip(-2), 0)


def _rows(call: LinearCall) -> Iterator[list[Tile]]:
    batch, heads, n_q, n_k = call.shape
    t_k = min(KEYS, max(QUERIES, SCORES // (batch * heads * QUERIES)))
    for i0 in range(0, n_q, QUERIES):
        i1 = min(i0 + QUERIES, n_q)
        first, last = call.mask.keys(i0, i1)
        first = min(first, n_k - 1)
        last = max(last, first + 1)  # a block of queries that sees no key still has rows
        yield [Tile(i0, i1, j0, min(j0 + t_k, last), n_q, n_k) for j0 in range(first, last, t_k)]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: LinearCall, q: Tensor, k: Tensor, values: Tensor, count: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = _Weights(call, _states(call, tensors[:count]), q.dtype)
        phi = call.phi
        out = values.new_zeros(*q.shape[:3], values.shape[-1])
        shifts = []
        for row in _rows(call):
            into = out[:, :, row[0].i0 : row[0].i1]
            if weights.shared is None:
                shifts.append(_row(weights, phi, q, k, values, row, into))
            else:
                total = torch.zeros_like(into)
                for tile in row:
                    total += _products(phi, q, k, tile).mul_(weights.plain(tile)) @ _keys(values, tile)
                into.copy_(total.flip(-2))
        shift = torch.cat(shifts, 2) if shifts else weights.top.to(q.dtype).view(1, -1, 1, 1)
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
        into = _Gradients(call, _Weights(call, states, q.dtype), (q, k, values, shift), wanted)
        with exactly(grad):
            for tile in (tile for row in _rows(call) for tile in row):
                into.add(tile, grad)
        found = (into.states.get(n) for n in states)
        return None, into.q, into.k, into.values, None, *found, *into.parameters


class _Gradients:
    """The backward pass, tile by tile. Where the weights are a view, rows run backwards: see `_Weights.plain`."""

    def __init__(self, call: LinearCall, weights: _Weights, saved: tuple[Tensor, ...], wanted: set[str]) -> None:
        self.call, self.phi, self.weights, self.wanted = call, call.phi, weights, wanted
        self.x_q, self.x_k, self.v, self.shift = saved
        self.q, self.k, self.values = (torch.zeros_like(x) for x in saved[:3])
        self.states = {n: torch.zeros_like(weights.states[n].tensor) for n in wanted}
        self.parameters = [torch.zeros_like(p) for p in self.phi.parameters]

    def add(self, tile: Tile, grad: Tensor) -> None:
        rows, keys = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
        turned = self.weights.shared is not None
        g, x_q = (x[:, :, rows].flip(-2) if turned else x[:, :, rows] for x in (grad, self.x_q))
        x_k = self.x_k[:, :, keys]
        phi_q, phi_k = self.phi(x_q), self.phi(x_k)
        products = phi_q @ phi_k.transpose(-1, -2)
        weights = self.weights.plain(tile) if turned else (self.weights.bias(tile) - self.shift[:, :, rows]).exp_()
        by_weight = (g @ self.v[:, :, keys].transpose(-1, -2)).mul_(weights)  # gradient of the products
        if self.wanted:
            self._to_states(by_weight * products, tile, turned)
        self.values[:, :, keys] += products.mul_(weights).transpose(-1, -2) @ g
        to_q = self._through(x_q, by_weight @ phi_k)
        self.q[:, :, rows] += to_q.flip(-2) if turned else to_q
        self.k[:, :, keys] += self._through(x_k, by_weight.transpose(-1, -2) @ phi_q)

    def _through(self, x: Tensor, grad: Tensor) -> Tensor:
        found, parameters = self.phi.back(x, grad)
        for total, part in zip(self.parameters, parameters):
            total += part
        return found

    def _to_states(self, grad: Tensor, tile: Tile, turned: bool) -> None:
        """Adds one tile's share to the gradients of what the bias prepared."""
        if turned:
            self._sum("lags", antidiagonal_sums(grad.sum(0)), tile)
            return
        call, slices = self.call, self.weights.slices(tile)
        assert call.bias is not None
        found = call.bias.tile_backward(grad, call.q, call.k, slices, tile)
        if found is None:
            leaves = {name: slices[name].detach().requires_grad_() for name in slices if name in self.wanted}
            with torch.enable_grad():
                bias = call.bias.tile(call.q, call.k, slices | leaves, tile)
            parts = torch.autograd.grad(bias, list(leaves.values()), grad.sum_to_size(bias.shape), allow_unused=True)
            found = {name: part for name, part in zip(leaves, parts, strict=True) if part is not None}
        for name in self.wanted & found.keys():
            self._sum(name, found[name], tile)

    def _sum(self, name: str, part: Tensor, tile: Tile) -> None:
        state = self.weights.states[name]
        target = tile.slice(State(self.states[name], state.along, state.axis))
        target += part.sum_to_size(target.shape) if part.shape != target.shape else part


def _keys(values: Tensor, tile: Tile) -> Tensor:
    return values[:, :, tile.j0 : tile.j1]


def _states(call: LinearCall, tensors: tuple[Tensor, ...]) -> dict[str, State]:
    return {n: State(t, s.along, s.axis) for (n, s), t in zip(call.states.items(), tensors, strict=True)}


def _products(phi: Rows, x_q: Tensor, x_k: Tensor, tile: Tile, turned: bool = True) -> Tensor:
    rows = x_q[:, :, tile.i0 : tile.i1]
    return phi(rows.flip(-2) if turned else rows) @ phi(_keys(x_k, tile)).transpose(-1, -2)


def _row(
    weights: _Weights, phi: Rows, x_q: Tensor, x_k: Tensor, values: Tensor, row: list[Tile], into: Tensor
) -> Tensor:
    """Sums of one block of queries, kept in range by the largest bias met so far; returns that of each row."""
    top: Tensor | None = None
    for tile in row:
        bias = weights.bias(tile)
        higher = bias.amax(-1, keepdim=True)
        higher = higher if top is None else torch.maximum(top, higher)
        shift = _finite(higher)
        if top is not None:
            into *= (top - shift).exp()
        into += _products(phi, x_q, x_k, tile, turned=False).mul_((bias - shift).exp_()) @ _keys(values, tile)
        top = higher
    assert top is not None
    return _finite(top).expand(*into.shape[:3], 1)
