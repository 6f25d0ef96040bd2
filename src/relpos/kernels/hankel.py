"""Exact attention with any Toeplitz bias, at nearly the cost of no bias, in O(n) memory.

With the order of the queries reversed, the Toeplitz matrix b[j - i] becomes a Hankel matrix b[j + r]: a view with both
strides 1 of the one-dimensional generator, which a fused kernel reads as its additive mask without any copy. Causality
and windows are minus infinity in the generator. The backward pass recomputes the weights tile by tile from the
log-sum-exp (five products a tile); the gradient of the bias is the sum along anti-diagonals, which a buffer with one
more column a row turns into column sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from relpos.kernels import aten
from relpos.kernels.call import Call, Refusal, computing, exactly, once
from relpos.kernels.fused import one_width
from relpos.kernels.mask import Mask, Rectangle

LOG2E = math.log2(math.e)
QUERIES, KEYS = 512, 1024  # a tile of the backward pass: 2 MiB of float32, larger ones fall out of the cache
PAD = 16  # a row stride that is a power of two costs the transposed product a third: its columns share cache sets
BLOCK = 256  # queries that share one key prefix where the order hides keys


def refusal(call: Call) -> str | None:
    """Why this kernel cannot serve the call, None where it can."""
    if call.term is not None and not call.toeplitz:
        return f"{type(call.term).__name__} is not a bias of consecutive integer lags in this call"
    if call.dropout is not None:
        return "dropout needs the weights one by one"
    if call.mask.rectangles(call.q.shape[0]) is None:
        return "positions, padding or documents are scattered, so that more than the lag decides who sees whom"
    return None


def hankel(call: Call) -> Tensor:
    """softmax(scale q k^T + b[j - i]) v."""
    why = refusal(call)
    if why is not None:
        raise Refusal(f'kernel "hankel" cannot serve this call: {why}; use kernel="tiled"')
    dtype = computing(call.q.dtype)
    q, k, v, width = one_width(call.q.to(dtype), call.k.to(dtype), call.v.to(dtype))
    heads, lags = call.q.shape[1], call.mask.n_q + call.mask.n_k - 1
    generator = call.states["lags"].tensor.to(dtype) if call.term is not None else q.new_zeros(heads, lags)
    out: Tensor = _Hankel.apply(q, k, v, generator, call.mask, call.scale)  # type: ignore[no-untyped-call]
    return out[..., :width].to(call.q.dtype)


def _visible(generator: Tensor, mask: Mask) -> Tensor:
    """The generator with minus infinity at the lags that the order hides; contiguous."""
    lag = torch.arange(1 - mask.n_q, mask.n_k, device=generator.device) - mask.offset
    hidden = torch.zeros_like(lag, dtype=torch.bool)
    if mask.right is not None:
        hidden |= lag > mask.right
    if mask.left is not None:
        hidden |= lag < -mask.left
    return generator.detach().masked_fill(hidden, -torch.inf).contiguous()


def _view(generator: Tensor, mask: Mask, i1: int, rows: int, j0: int, keys: int) -> Tensor:
    """(heads, rows, keys) whose entry (r, c) is the bias of query i1 - 1 - r and key j0 + c. No copy."""
    start = j0 - (i1 - 1) + mask.n_q - 1
    return generator.as_strided(
        (generator.shape[0], rows, keys), (generator.stride(0), 1, 1), generator.storage_offset() + start
    )


def _blocks(mask: Mask, r: Rectangle, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Queries i0..i1-1 with the keys j0..j1-1 that any of them sees, covering the rectangle from its end."""
    for i1 in range(r.i1, r.i0, -size):
        i0 = max(r.i0, i1 - size)
        j0, j1 = mask.keys(i0, i1)
        yield i0, i1, max(j0, r.j0), min(j1, r.j1)


def _prefixes(mask: Mask, r: Rectangle) -> Iterator[tuple[int, int, int, int]]:
    """Blocks for the fused kernel: the whole rectangle where the order hides nothing."""
    everything = mask.left is None and mask.right is None
    return _blocks(mask, r, r.i1 - r.i0 if everything else BLOCK)


class _Hankel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, generator: Tensor, mask: Mask, scale: float) -> Tensor:
        rectangles = mask.rectangles(q.shape[0])
        assert rectangles is not None
        visible = _visible(generator, mask)
        out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:-1])
        for r in rectangles:
            for i0, i1, j0, j1 in _prefixes(mask, r):
                batch, rows = slice(r.b0, r.b1), slice(i0, i1)
                bias = _view(visible, mask, i1, i1 - i0, j0, j1 - j0).unsqueeze(0)
                parts = (q[batch, :, rows].flip(2), k[batch, :, j0:j1], v[batch, :, j0:j1])
                block, block_lse = aten.flash(*parts, bias, scale)
                out[batch, :, rows], lse[batch, :, rows] = block.flip(2), block_lse.flip(2)
        ctx.save_for_backward(q, k, v, visible, out, lse)
        ctx.mask, ctx.scale, ctx.rectangles = mask, scale, rectangles
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, visible, _, _ = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dgen = torch.zeros_like(visible) if ctx.needs_input_grad[3] else None
        with exactly(grad):
            for r in ctx.rectangles:
                if dgen is None:
                    _frozen_backward(ctx, r, grad, dq, dk, dv)
                else:
                    _learned_backward(ctx, r, grad, dq, dk, dv, dgen)
        return dq, dk, dv, dgen, None, None


def _frozen_backward(ctx: Any, r: Rectangle, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    q, k, v, visible, out, lse = ctx.saved_tensors
    for i0, i1, j0, j1 in _prefixes(ctx.mask, r):
        batch, rows = slice(r.b0, r.b1), slice(i0, i1)
        bias = _view(visible, ctx.mask, i1, i1 - i0, j0, j1 - j0).unsqueeze(0)
        gq, gk, gv = aten.flash_backward(
            grad[batch, :, rows].flip(2), q[batch, :, rows].flip(2), k[batch, :, j0:j1], v[batch, :, j0:j1],
            out[batch, :, rows].flip(2), lse[batch, :, rows].flip(2), bias, ctx.scale,
        )  # fmt: skip
        dq[batch, :, rows] = gq.flip(2)
        dk[batch, :, j0:j1] += gk
        dv[batch, :, j0:j1] += gv


def _learned_backward(ctx: Any, r: Rectangle, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, dgen: Tensor) -> None:
    """All tiles of one rectangle, one batch row after the other, a group of heads at a time.

    Everything in the exponent is in base 2 here: exp2 runs several times as fast as exp on the CPU.
    """
    q, k, v, visible, out, lse = ctx.saved_tensors
    heads = q.shape[1]
    rows = slice(r.i0, r.i1)
    queries = min(QUERIES if ctx.mask.left is None and ctx.mask.right is None else BLOCK, r.i1 - r.i0)
    group = max(1, min(heads, (QUERIES * KEYS) // (queries * min(KEYS, r.j1 - r.j0))))
    visible = visible * LOG2E
    workspace = _Workspace(visible)
    for b in range(r.b0, r.b1):
        # reversed once: row 0 is query i1 - 1
        qr, gr = q[b, :, rows].flip(1) * (ctx.scale * LOG2E), grad[b, :, rows].flip(1)
        delta = (gr * out[b, :, rows].flip(1)).sum(-1, keepdim=True)
        lr = lse[b, :, rows].flip(1).unsqueeze(-1) * LOG2E
        dqr, dkr = torch.zeros_like(qr), torch.zeros_like(dk[b])
        for h in range(0, heads, group):
            hs = slice(h, min(h + group, heads))
            side = (k[b, hs], v[b, hs], dkr[hs], dv[b, hs], visible[hs], dgen[hs])
            for i0, i1, j0, j1 in _blocks(ctx.mask, r, queries):
                at = slice(r.i1 - i1, r.i1 - i0)
                row = (qr[hs, at], gr[hs, at], delta[hs, at], lr[hs, at], dqr[hs, at])
                for start in range(j0, j1, KEYS):
                    workspace.tile(row, side, ctx.mask, i1, start, min(start + KEYS, j1))
        dq[b, :, rows] = dqr.flip(1).mul_(ctx.scale)
        dk[b] += dkr.mul_(1 / LOG2E)  # its q carried the factor of the base


class _Workspace:
    """Buffers for one tile, kept from tile to tile: fresh ones of some MiB each time would cost more than exp2."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.shape: tuple[int, ...] = ()

    def _shaped(self, g: int, t: int, u: int) -> None:
        if self.shape != (g, t, u):
            self.shape = (g, t, u)
            width = t + u + PAD
            self.weight = self.like.new_empty(g, t, u + PAD)[..., :u]
            self.skewed = self.like.new_zeros(g, t, width)  # entry (r, c) of the tile at column r + c; zeros elsewhere
            self.dscore = self.skewed.as_strided((g, t, u), (t * width, width + 1, 1))
            self.ones = self.like.new_ones(g, 1, t)

    def tile(
        self, row: tuple[Tensor, ...], side: tuple[Tensor, ...], mask: Mask, i1_of_row: int, j0: int, j1: int
    ) -> None:
        """Adds one tile's share to the gradients. Shapes: rows (g, t, dim), keys (g, u, dim)."""
        q, grad, delta, lse, dq = row
        k, v, dk, dv, visible, dgen = side
        g, t, u = q.shape[0], q.shape[1], j1 - j0
        self._shaped(g, t, u)
        weight, dscore = self.weight, self.dscore
        k, v = k[:, j0:j1], v[:, j0:j1]
        torch.sub(_view(visible, mask, i1_of_row, t, j0, u), lse, out=weight)
        _add_product(weight, q, k.transpose(1, 2))
        weight.exp2_()
        _add_product(dv[:, j0:j1], weight.transpose(1, 2), grad)
        dscore.copy_(delta.expand_as(dscore))
        _add_product(dscore, grad, v.transpose(1, 2), beta=-1)
        dscore.mul_(weight)
        _add_product(dq, dscore, k)
        _add_product(dk[:, j0:j1], dscore.transpose(1, 2), q)
        start = j0 - (i1_of_row - 1) + mask.n_q - 1
        dgen[:, start : start + t + u - 1].add_(torch.bmm(self.ones, self.skewed)[:, 0, : t + u - 1])


def _add_product(out: Tensor, a: Tensor, b: Tensor, beta: float = 1) -> None:
    """out = beta out + a b, in place, for matrices with a leading group; a group of one goes without batching."""
    if out.shape[0] == 1:
        out[0].addmm_(a[0], b[0], beta=beta)
    else:
        out.baddbmm_(a, b, beta=beta)
