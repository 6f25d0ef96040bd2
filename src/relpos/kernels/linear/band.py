"""Sums with weights that are free near the diagonal and constant or geometric beyond: O(n), matrix products only.

A block of queries meets its near keys in one dense tile, which is the same for every block because the weights depend
on the lag alone; what lies beyond is one running sum of phi(k) v a side, decayed where the tail is geometric. Nothing
is ever subtracted, so a small true value does not drown in the rounding of large ones, and no future key enters a
causal sum at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relpos.encodings.diagonals import toeplitz
from relpos.kernels.call import once
from relpos.kernels.linear.rows import Rows

LEAST = 128  # queries in a block, at least


@dataclass(frozen=True)
class Band:
    """near (heads, 2 reach + 1), weight of each lag -reach..reach; rates (heads, 2) >= 0, by which the logarithm of the
    weight falls a token beyond, before and after the query; None: constant.
    """

    near: Tensor
    reach: int
    rates: Tensor | None

    def decay(self, side: int, steps: Tensor) -> Tensor:
        """(heads, steps): what is left of a weight after so many steps beyond the reach."""
        if self.rates is None:
            return self.near.new_ones(self.near.shape[0], len(steps))
        return torch.exp(-self.rates[:, side, None].double() * steps).to(self.near.dtype)

    def extended(self, extra: int) -> Tensor:
        """Weights of lags -(reach + extra)..reach + extra, under autograd."""
        steps = torch.arange(1, extra + 1, device=self.near.device)
        before = self.near[:, :1] * self.decay(0, steps.flip(0))
        return torch.cat([before, self.near, self.near[:, -1:] * self.decay(1, steps)], -1)


@dataclass(frozen=True)
class _Plan:
    """Where blocks of queries and segments of keys lie: block t reads a running sum, then segment t joins it."""

    n_q: int
    n_k: int
    offset: int
    reach: int
    block: int
    causal: bool
    cell: int
    phi: Rows
    arrive: tuple[Tensor, ...] | None  # (heads, block, 1): factor of each key of a segment when it joins a side's sum
    stay: tuple[Tensor, ...] | None  # (heads, 1, 1): factor of a sum while the queries move on by a block; None: 1

    @property
    def count(self) -> int:
        return -(-self.n_q // self.block)

    def queries(self, t: int) -> tuple[int, int]:
        return min(t * self.block, self.n_q), min((t + 1) * self.block, self.n_q)

    def window(self, t: int) -> tuple[int, int]:
        """Keys of the dense tile of block t, before they are cut at the ends of the sequence."""
        first = t * self.block + self.offset
        return first - self.reach, first + self.block + (0 if self.causal else self.reach)

    def steps(self, side: int) -> range:
        """Blocks in the order in which the sum of a side grows; the first ones may have keys only."""
        low, high = self.window(0)
        if side == 0:
            return range(low // -self.block if low > 0 else 0, self.count)  # from the first key on
        last = max(self.count - 1, (self.n_k - high) // self.block + 1)
        return range(last, -1, -1)

    def segment(self, side: int, t: int) -> tuple[int, int, int]:
        """Keys that join after block t: first and last within the sequence, and the first one's place."""
        low, high = self.window(t)
        start = low if side == 0 else high - self.block
        j0, j1 = (min(max(j, 0), self.n_k) for j in (start, start + self.block))
        return j0, j1, j0 - start


def banded(
    x_q: Tensor,
    x_k: Tensor,
    values: Tensor,
    band: Band,
    phi: Rows,
    offset: int,
    causal: bool,
    real: Tensor | None = None,
    tails: bool = True,
    cell: int = 0,
) -> tuple[Tensor, Tensor]:
    """sum_j c_{j - i - offset} phi(x_q_i).phi(x_k_j) values_j, (batch, heads, n_q, width), and the same without values,
    (batch, heads, n_q, 1).

    x_q (batch, heads, n_q, d), x_k (batch, heads, n_k, d), values (batch, heads, n_k, width); real (batch or 1, 1 or
    heads, n_k, 1) is 1, or 0 for a key that the second sum leaves out (the first: a row of zeros); None: all count.
    tails: False leaves out all lags beyond the reach; cell: side of the squares on the diagonal outside of which keys
    are left out, 0 for none.
    """
    reach = band.reach
    block = LEAST if cell else max(LEAST, -(-reach // 128) * 64)
    steps = torch.arange(block, device=x_q.device)
    generator = band.extended(block - 1) if tails else nn.functional.pad(band.near, (block - 1, block - 1))
    if causal:
        generator = generator.narrow(1, 0, 2 * block + reach - 1)  # lags up to block - 1
        generator = generator.masked_fill(torch.arange(generator.shape[1], device=x_q.device) > reach + block - 1, 0)
    tile = toeplitz(generator, block)  # (heads, block, window), lag = column - row - reach
    edges = band.near[:, :1] * band.decay(0, steps), band.near[:, -1:] * band.decay(1, block - 1 - steps)
    arrive = stay = None
    if band.rates is not None:
        full = torch.tensor([block], device=x_q.device)
        arrive = tuple(band.decay(side, d).detach()[..., None] for side, d in ((0, block - steps), (1, 1 + steps)))
        stay = tuple(band.decay(side, full).detach()[..., None] for side in (0, 1))
    plan = _Plan(x_q.shape[2], x_k.shape[2], offset, reach, block, causal, cell, phi, arrive, stay)
    tensors = (x_q, x_k, values, real, tile, *(edge[..., None] for edge in edges))
    above, below = _Banded.apply(plan, tails, *tensors, *phi.parameters)  # type: ignore[no-untyped-call]
    return above, below


@dataclass
class _Near:
    """The dense tile of one block: its queries, its keys, and the features and products that both passes need."""

    q: slice
    k: slice
    phi_q: Tensor
    phi_k: Tensor
    products: Tensor
    tile: Tensor


def _near(plan: _Plan, x_q: Tensor, x_k: Tensor, tile: Tensor) -> Iterator[_Near]:
    """All blocks in their order, also those without a key in their tile."""
    for t in range(plan.count):
        i0, i1 = plan.queries(t)
        low, high = plan.window(t)
        floor = i0 - i0 % plan.cell + plan.offset if plan.cell else 0
        j0, j1 = (min(max(j, floor, 0), plan.n_k) for j in (low, high))
        phi_q, phi_k = plan.phi(x_q[:, :, i0:i1]), plan.phi(x_k[:, :, j0:j1])
        part = tile[:, : i1 - i0, j0 - low : j1 - low] if j0 < j1 else tile[:, : i1 - i0, :0]
        yield _Near(slice(i0, i1), slice(j0, j1), phi_q, phi_k, phi_q @ phi_k.transpose(-1, -2), part)


def _arriving(plan: _Plan, side: int, t: int, x_k: Tensor) -> tuple[slice, Tensor] | None:
    """The keys of segment t, and their features as they join the sum of a side; None where there are none."""
    j0, j1, place = plan.segment(side, t)
    if j0 >= j1:
        return None
    features = plan.phi(x_k[:, :, j0:j1])
    if plan.arrive is not None:
        features = features * plan.arrive[side][:, place : place + j1 - j0]
    return slice(j0, j1), features


class _Running(NamedTuple):
    """sum of phi(k) values, (batch, heads, features, width), and of phi(k) alone, (batch, heads, features, 1)."""

    values: Tensor
    ones: Tensor

    def times(self, factor: Tensor | None) -> _Running:
        return self if factor is None else _Running(self.values * factor, self.ones * factor)

    def plus(self, other: _Running | None) -> _Running:
        return self if other is None else _Running(self.values + other.values, self.ones + other.ones)


def _sums(
    plan: _Plan, side: int, x_k: Tensor, values: Tensor, real: Tensor | None
) -> Iterator[tuple[slice, _Running | None]]:
    """The queries of each block with the running sums that they read, None where there is nothing yet."""
    running: _Running | None = None
    stay = None if plan.stay is None else plan.stay[side]
    for t in plan.steps(side):
        if 0 <= t < plan.count:
            yield slice(*plan.queries(t)), running
        if running is not None:
            running = running.times(stay)
        found = _arriving(plan, side, t, x_k)
        if found is not None:
            keys, features = found
            joined = features.transpose(-1, -2) @ values[:, :, keys]
            running = _Running(joined, _shown(features, real, keys).sum(-2).unsqueeze(-1)).plus(running)


def _shown(weights: Tensor, real: Tensor | None, keys: slice) -> Tensor:
    """Rows of keys without those that do not count."""
    return weights if real is None else weights * real[:, :, keys]


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, tails: bool, x_q: Tensor, x_k: Tensor, values: Tensor, real: Tensor | None, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        tile, edges = rest[0].contiguous(), rest[1:3]
        ctx.plan, ctx.sides = plan, ((0,) if plan.causal else (0, 1)) if tails else ()
        ctx.save_for_backward(x_q, x_k, values, real, tile, *edges)
        above, below = (values.new_empty((*x_q.shape[:3], width)) for width in (values.shape[-1], 1))

        def far(side: int, q: slice, phi_q: Tensor, running: _Running) -> tuple[Tensor, Tensor]:
            queries = phi_q * edges[side][:, : q.stop - q.start]
            return queries @ running.values, queries @ running.ones

        before = _sums(plan, 0, x_k, values, real) if ctx.sides else repeat((None, None))
        for near, (_, running) in zip(_near(plan, x_q, x_k, tile), before):
            weights = near.products.mul_(near.tile)
            sums = weights @ values[:, :, near.k]
            counts = _shown(weights.transpose(-1, -2), real, near.k).sum(-2).unsqueeze(-1)
            if running is not None:
                parts = far(0, near.q, near.phi_q, running)
                sums += parts[0]
                counts += parts[1]
            above[:, :, near.q], below[:, :, near.q] = sums, counts
        for rows, running in _sums(plan, 1, x_k, values, real) if 1 in ctx.sides else ():
            if running is not None:
                parts = far(1, rows, plan.phi(x_q[:, :, rows]), running)
                above[:, :, rows] += parts[0]
                below[:, :, rows] += parts[1]
        return above, below

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, grad_below: Tensor) -> tuple[Tensor | None, ...]:
        into = _Gradients(ctx.plan, *ctx.saved_tensors)
        into.near(grad, grad_below, ctx.needs_input_grad[6])
        for side in ctx.sides:
            into.reads(side, grad, grad_below)
            into.joins(side, grad, grad_below)
        return None, None, into.q, into.k, into.values, None, into.tile, *into.edges, *into.parameters


class _Gradients:
    """The backward pass: the same blocks, recomputed, and for the running sums the same walk from its end."""

    def __init__(
        self, plan: _Plan, x_q: Tensor, x_k: Tensor, values: Tensor, real: Tensor | None, tile: Tensor, *edges: Tensor
    ) -> None:
        self.plan, self.x_q, self.x_k, self.weights, self.factors = plan, x_q, x_k, tile, edges
        self.v, self.real = values, real
        self.q, self.tile = torch.empty_like(x_q), torch.zeros_like(tile)
        self.k, self.values = (torch.empty_like(x) for x in (x_k, values))
        self.written = 0  # keys so far whose gradients hold something
        self.edges = [torch.zeros_like(edge) for edge in edges]
        self.parameters = [torch.zeros_like(p) for p in plan.phi.parameters]

    def _through(self, x: Tensor, rows: slice, grad: Tensor) -> Tensor:
        """What the gradient of features is to their rows; those of phi's parameters are added up."""
        found, parameters = self.plan.phi.back(x[:, :, rows], grad)
        for total, part in zip(self.parameters, parameters):
            total += part
        return found

    def _meet(self, into: Tensor, keys: slice, found: Tensor) -> None:
        """Adds to what earlier tiles wrote for these keys, and writes what is new: windows move on with their block."""
        seen = min(max(self.written, keys.start), keys.stop)
        into[:, :, self.written : keys.start] = 0
        into[:, :, keys.start : seen] += found[:, :, : seen - keys.start]
        into[:, :, seen : keys.stop] = found[:, :, seen - keys.start :]

    def _count(self, row: Tensor, keys: slice) -> Tensor:
        """What each key that counts is given, from one row for all of them."""
        return row if self.real is None else row * self.real[:, :, keys]

    def near(self, grad: Tensor, grad_below: Tensor, to_tile: bool) -> None:
        for near in _near(self.plan, self.x_q, self.x_k, self.weights):
            g = grad[:, :, near.q]
            by_weight = g @ self.v[:, :, near.k].transpose(-1, -2)
            by_weight += self._count(grad_below[:, :, near.q].transpose(-1, -2), near.k).transpose(-1, -2)
            if to_tile:
                first = near.k.start - self.plan.window(near.q.start // self.plan.block)[0]
                rows, columns = near.products.shape[-2:]
                self.tile[:, :rows, first : first + columns] += (by_weight * near.products).sum(0)
            weights = near.products.mul_(near.tile)
            self._meet(self.values, near.k, weights.transpose(-1, -2) @ g)
            by_product = by_weight.mul_(near.tile)
            self.q[:, :, near.q] = self._through(self.x_q, near.q, by_product @ near.phi_k)
            self._meet(self.k, near.k, self._through(self.x_k, near.k, by_product.transpose(-1, -2) @ near.phi_q))
            self.written = max(self.written, near.k.stop)
        for into in (self.values, self.k):
            into[:, :, self.written :] = 0

    def reads(self, side: int, grad: Tensor, grad_below: Tensor) -> None:
        """To the queries and the edge factors, through what each block read."""
        for rows, running in _sums(self.plan, side, self.x_k, self.v, self.real):
            if running is None:
                continue
            count = rows.stop - rows.start
            found = grad[:, :, rows] @ running.values.transpose(-1, -2)
            found += grad_below[:, :, rows] * running.ones.transpose(-1, -2)
            through = self.plan.phi(self.x_q[:, :, rows]) * found
            self.edges[side][:, :count] += through.sum((0, -1))[..., None]
            found.mul_(self.factors[side][:, :count])
            self.q[:, :, rows] += self._through(self.x_q, rows, found)

    def joins(self, side: int, grad: Tensor, grad_below: Tensor) -> None:
        """To keys and values, through the sum that they joined."""
        plan = self.plan
        after: _Running | None = None  # gradient of the sums as they stand after segment t
        stay = None if plan.stay is None else plan.stay[side]
        for t in reversed(plan.steps(side)):
            found = None if after is None else _arriving(plan, side, t, self.x_k)
            if after is not None and found is not None:
                keys, features = found
                self.values[:, :, keys] += features @ after.values
                back = self.v[:, :, keys] @ after.values.transpose(-1, -2)
                back += self._count(after.ones.transpose(-1, -2), keys)
                if plan.arrive is not None:
                    place = plan.segment(side, t)[2]
                    back *= plan.arrive[side][:, place : place + back.shape[2]]
                self.k[:, :, keys] += self._through(self.x_k, keys, back)
            if after is not None:
                after = after.times(stay)
            if 0 <= t < plan.count:
                rows = slice(*plan.queries(t))
                queries = plan.phi(self.x_q[:, :, rows]) * self.factors[side][:, : rows.stop - rows.start]
                queries = queries.transpose(-1, -2)
                after = _Running(queries @ grad[:, :, rows], queries @ grad_below[:, :, rows]).plus(after)
