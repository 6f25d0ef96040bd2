"""What the Triton kernels share: tiles of rows, who sees whom, and sums along the diagonals of a tile.

Imports Triton: to be imported inside functions only, where `call.missing` found nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relpos.kernels.triton.call import interpreted

FAR = 2**29  # stands for "no bound": beyond every lag, and far enough from the end of int32 to be added to one


INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def product(a, b, more=None):
    """a b, plus more, in float32; without TF32. The interpreter takes the bits of bfloat16 for integers, so there it is
    widened first, which changes no product."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, more, input_precision="ieee")


@triton.jit
def cached(pointers):
    """float32 numbers through the read-only cache. `tl.load` in a loop would be turned into copies to shared memory,
    made ahead: a tile of the bias takes as much of it as four tiles of keys, and comes from few cache lines anyway."""
    if INTERPRETED:
        return tl.load(pointers)
    else:
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [pointers.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def load_rows(base, rows, n, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a contiguous (n, WIDTH) matrix, zeros beyond its edges: (rows, PADDED)."""
    column = tl.arange(0, PADDED)
    inside = (rows < n)[:, None] & (column < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(base, rows, n, tile, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The converse of `load_rows`, in the type of what it is stored to."""
    column = tl.arange(0, PADDED)
    inside = (rows < n)[:, None] & (column < WIDTH)[None, :]
    tl.store(base + rows[:, None] * WIDTH + column[None, :], tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def hidden_as(tile, i, j, q_id, k_id, n_k, offset, left, right, ORDERED: tl.constexpr, MARKED: tl.constexpr):
    """The scores, minus infinity for pairs that do not see each other; i and j shaped to broadcast with them."""
    seen = j < n_k
    if ORDERED:
        lag = j - i - offset
        seen = seen & (lag <= right) & (lag >= -left)
    if MARKED:
        seen = seen & (q_id == k_id)
    return tl.where(seen, tile, float("-inf"))


@triton.jit
def span(a0, ROWS: tl.constexpr, n, offset, before, after, STEP: tl.constexpr, ORDERED: tl.constexpr):
    """Of the other side, whose lag from place a + offset is -before..after: from where to where rows a0..a0+ROWS-1
    may see, and between them the part in which every pair of a tile of STEP is visible. All but the end are multiples
    of STEP."""
    low = 0
    high = n
    full_low = 0
    full_high = n // STEP * STEP
    if ORDERED:
        low = tl.maximum(a0 + offset - before, 0) // STEP * STEP
        high = tl.minimum(tl.maximum(a0 + ROWS + offset + after, 0), n)
        full_low = (tl.maximum(a0 + ROWS - 1 + offset - before, 0) + STEP - 1) // STEP * STEP
        full_high = tl.minimum(tl.maximum(a0 + offset + after + 1, 0), n) // STEP * STEP
        full_low = tl.minimum(tl.maximum(full_low, low), high)
        full_high = tl.maximum(full_high, full_low)
    return low, full_low, full_high, high


@triton.jit
def diagonal_sums(tile, SIDE: tl.constexpr):
    """Sums of a square tile over equal column - row: of the lags -SIDE..-1 (the first is 0), and of 0..SIDE-1.

    Each row is turned to the left by its own number, so that a diagonal is a column.
    """
    row = tl.arange(0, SIDE)[:, None]
    lag = tl.arange(0, SIDE)[None, :]
    turned = tl.gather(tile, (row + lag) % SIDE, 1)
    within = row + lag < SIDE
    return tl.sum(tl.where(within, 0.0, turned), 0), tl.sum(tl.where(within, turned, 0.0), 0)


@triton.jit
def store_diagonals(partial, tile, SIDE: tl.constexpr):
    """The 2 SIDE sums of a tile, lag -SIDE first."""
    below, above = diagonal_sums(tile, SIDE)
    lag = tl.arange(0, SIDE)
    tl.store(partial + lag, below)
    tl.store(partial + SIDE + lag, above)


def by_lag(partial: Tensor, n_q: int, n_k: int) -> Tensor:
    """Sums along block diagonals, (heads, 2 N, 2 side), that of block lag D at D + N, to one a lag: (heads, lags).

    Every lag lies on two neighbouring block diagonals: their sums are added in one order, always the same.
    """
    heads, diagonals, width = partial.shape
    side = width // 2
    flat = torch.nn.functional.pad(partial[..., :side].reshape(heads, -1), (0, side))
    flat = flat + torch.nn.functional.pad(partial[..., side:].reshape(heads, -1), (side, 0))
    zero = (diagonals // 2 + 1) * side  # where lag 0 lies
    return flat[:, zero - (n_q - 1) : zero + n_k]


def padded(generator: Tensor, side: int) -> Tensor:
    """Zeros on both sides, so that a tile that juts out over the edge reads its own memory."""
    return torch.nn.functional.pad(generator, (side, side)).contiguous()


def power(width: int) -> int:
    """The width of a tile that holds `width` columns: a power of two, 16 at least for the tensor cores."""
    return max(16, 1 << (width - 1).bit_length())
