"""y_i = sum_j c[j - i + n_q - 1] x_j in Triton: a tile of the Toeplitz matrix is read from its generator when it is
needed, chunk by chunk of the keys, and multiplied; the matrix is nowhere.

The gradient of x is the same product with the generator reversed. That of the generator is a sum along the diagonals of
grad x^T: a program walks along one diagonal of blocks and adds up whole tiles in registers, then sums along diagonals
once (see attention.py). Each number is written by one program: two runs agree bit by bit.

O(n_q n_k) operations, float32 without TF32; memory beyond inputs and outputs 4 n floats a matrix for the gradient of c.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from relpos.kernels.call import once
from relpos.kernels.triton.blocks import FAR, by_lag, cached, padded, product, span, store_diagonals

ROWS, KEYS, COLUMNS = 64, 32, 64  # of a tile of y; its keys; its columns
SIDE = 32  # of the square tiles that walk along a diagonal


@triton.jit
def _tile(base, rows, columns, n, width):
    """Rows and columns of an (n, width) matrix, zeros beyond its edges; many columns may pass what 32 bits count."""
    inside = (rows < n)[:, None] & (columns < width)[None, :]
    return tl.load(base + rows[:, None].to(tl.int64) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _matmul(
    c, x, y, n_q, n_k, lags, width, offset, left, right,
    PAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    block, part, head = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    c += head * lags + PAD + n_q - 1
    x += head * n_k * width
    low, _, _, high = span(block * ROWS, ROWS, n_k, offset, left, right, KEYS, ORDERED)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j0 in range(low, high, KEYS):
        j = j0 + tl.arange(0, KEYS)
        weight = cached(c + (j[None, :] - i[:, None]))
        acc = product(weight, _tile(x, j, column, n_k, width), acc)
    inside = (i < n_q)[:, None] & (column < width)[None, :]
    tl.store(y + head * n_q * width + i[:, None].to(tl.int64) * width + column[None, :], acc, mask=inside)


@triton.jit
def _diagonals(
    x, grad, partial, n_q, n_k, width, offset, left, right,
    SIDE: tl.constexpr, COLUMNS: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """partial (heads, 2 N, 2 SIDE), N blocks on the longer side: sums along the block diagonal of lag D at D + N."""
    turn, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    turns = tl.num_programs(0)
    place = tl.arange(0, SIDE)
    x += head * n_k * width
    grad += head * n_q * width
    for half in tl.static_range(2):
        lag = turn - half * turns  # in blocks
        first = tl.maximum(0, -lag)
        last = tl.minimum(tl.cdiv(n_q, SIDE), tl.cdiv(n_k, SIDE) - lag)
        if ORDERED:
            reached = (lag * SIDE - SIDE < right + offset) & (lag * SIDE + SIDE > offset - left)
            last = tl.where(reached, last, first)
        total = tl.zeros((SIDE, SIDE), tl.float32)
        for block in range(first, last):
            i = block * SIDE + place
            j = (block + lag) * SIDE + place
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                above = _tile(grad, i, column, n_q, width)
                total = product(above, tl.trans(_tile(x, j, column, n_k, width)), total)
        store_diagonals(partial + (head * 2 * turns + lag + turns) * 2 * SIDE, total, SIDE)


class _Toeplitz(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, x: Tensor, n_q: int, offset: int, causal: bool) -> Tensor:
        ctx.save_for_backward(c, x)
        ctx.offset, ctx.causal = offset, causal
        return _multiplied(c, x, n_q, offset, FAR, 0 if causal else FAR, causal)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        c, x = ctx.saved_tensors
        grad = grad.contiguous()
        dc = dx = None
        if ctx.needs_input_grad[1]:
            dx = _multiplied(c.flip(-1), grad, x.shape[1], -ctx.offset, 0 if ctx.causal else FAR, FAR, ctx.causal)
        if ctx.needs_input_grad[0]:
            dc = _summed(x, grad, ctx.offset, ctx.causal)
        return dc, dx, None, None, None


def multiply(c: Tensor, x: Tensor, n_q: int, offset: int, causal: bool) -> Tensor:
    """c (heads, n_q + n_k - 1), x (heads, n_k, columns), float32: (heads, n_q, columns). causal: lags above offset,
    counted from query 0 and key 0, have no influence."""
    y: Tensor = _Toeplitz.apply(c, x.contiguous(), n_q, offset, causal)
    return y


def _multiplied(c: Tensor, x: Tensor, n_q: int, offset: int, left: int, right: int, ordered: bool) -> Tensor:
    heads, n_k, width = x.shape
    if ordered:  # tiles on the border hold both sides of it
        lag = torch.arange(1 - n_q, n_k, device=c.device) - offset
        c = c.masked_fill((lag > right) | (lag < -left), 0)
    pad = max(ROWS, KEYS)
    c = padded(c, pad)
    y = x.new_empty(heads, n_q, width)
    _matmul[(triton.cdiv(n_q, ROWS), triton.cdiv(width, COLUMNS), heads)](
        c, x, y, n_q, n_k, c.shape[1], width, offset, left, right,
        PAD=pad, ROWS=ROWS, KEYS=KEYS, COLUMNS=COLUMNS, ORDERED=ordered, num_warps=8, num_stages=2,
    )  # fmt: skip
    return y


def _summed(x: Tensor, grad: Tensor, offset: int, causal: bool) -> Tensor:
    (heads, n_k, width), n_q = x.shape, grad.shape[1]
    turns = -(-max(n_q, n_k) // SIDE)
    partial = x.new_empty(heads, 2 * turns, 2 * SIDE)
    _diagonals[(turns, heads)](
        x, grad, partial, n_q, n_k, width, offset, FAR, 0 if causal else FAR,
        SIDE=SIDE, COLUMNS=COLUMNS, ORDERED=causal, num_warps=4, num_stages=2,
    )  # fmt: skip
    found = by_lag(partial, n_q, n_k)
    if causal:  # a block diagonal on the border holds both sides of it
        lag = torch.arange(1 - n_q, n_k, device=x.device) - offset
        found = found.masked_fill(lag > 0, 0)
    return found
