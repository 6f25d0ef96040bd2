"""Mixing the tokens of a window with weights of their lag alone, each group of channels by its own weights.

    y[.., m, c] = sum_n c[g, lag(m, n)] x[.., n, c],    g = c mod groups

"dense" is the definition as matrix products: the (n, n) matrix of each group, which for a window of a few hundred cells
is small beside the channels. "axes" never makes it: one axis is transformed (a DFT written as a matrix product, since
a window is too short for an FFT to pay), and per frequency the other axis is a small Toeplitz matrix. That takes
8 w (h + w) / 2 multiply-adds a token where dense takes h w, and memory linear in the cells.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.diagonals import diagonal_sums, toeplitz
from relpos.kernels.call import Refusal, computing, exactly, once

METHODS = ("auto", "dense", "axes")
LARGE = 20  # the side of a square window from which "axes" is the quicker
FEW = 8  # groups that are multiplied one by one, straight into their places; more: one batched product and a copy
COLUMNS = 2**20  # numbers of one transform at a time: what a cache holds


@lru_cache(maxsize=32)
def _lags(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """(n n,): the place of each pair's lag in a generator that is laid flat, row = query."""
    cells = torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides)).view(-1, len(sides))
    place = torch.zeros(len(cells), len(cells), dtype=torch.int64, device=device)
    for axis, side in enumerate(sides):
        place = place * (2 * side - 1) + (cells[None, :, axis] - cells[:, None, axis] + side - 1)
    return place.flatten()


def matrices(generator: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(groups, n, n), row = query: the weights of every pair of cells, from those of every lag (groups, 2 side - 1, ..)
    with index lag + side - 1 an axis."""
    n = math.prod(sides)
    return generator.flatten(1).index_select(1, _lags(sides, generator.device)).view(-1, n, n)


def lag_sums(matrix: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The transpose of `matrices`: (groups, n, n) to (groups, 2 side - 1, ..), the sums over pairs of one lag."""
    spans = [2 * side - 1 for side in sides]
    if matrix.is_cuda:  # additions in any order would give other bits at every call
        if len(sides) == 1:
            return diagonal_sums(matrix)
        cells = matrix.view(-1, *sides, *sides).transpose(2, 3)
        return diagonal_sums(diagonal_sums(cells).permute(0, 3, 1, 2)).transpose(1, 2)
    total = matrix.new_zeros(len(matrix), math.prod(spans))
    return total.index_add_(1, _lags(sides, matrix.device), matrix.flatten(1)).view(-1, *spans)


def mixed(
    generator: Tensor, x: Tensor, sides: tuple[int, ...], method: str = "auto", bias: Tensor | None = None
) -> Tensor:
    """y (.., n, channels) of x (.., n, channels), n the cells in row-major order, plus a bias (n,); in the dtype of x,
    sums in at least float32. The gradient is defined once; memory for it is that of x with "axes"."""
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    if method == "axes" and len(sides) == 1:
        raise Refusal('method "axes" wants a window of two axes; "dense" takes a line')
    dtype = computing(torch.promote_types(generator.dtype, x.dtype))
    with exactly(x):
        if by_axes(sides, method):
            out: Tensor = _Axes.apply(generator.to(dtype), x.to(dtype), sides)  # type: ignore[no-untyped-call]
            out = out if bias is None else out + bias.to(dtype)[:, None]
            return out.to(x.dtype)
        weights = Matrices.apply(generator.to(dtype), sides)  # type: ignore[no-untyped-call]
        return applied(weights, x.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def by_axes(sides: tuple[int, ...], method: str) -> bool:
    """Whether a window is mixed axis by axis."""
    return method == "axes" or (method == "auto" and len(sides) == 2 and min(sides) >= LARGE)


class Matrices(torch.autograd.Function):
    """`matrices`, whose gradient is `lag_sums`."""

    @staticmethod
    def forward(ctx: Any, generator: Tensor, sides: tuple[int, ...]) -> Tensor:
        ctx.sides = sides
        return matrices(generator, sides)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return lag_sums(grad, ctx.sides), None


def applied(weights: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The matrix of each group times its channels c = g, g + groups, ..: weights (groups, n_q, n_k) and x (.., n_k,
    channels), or (windows, groups, n_q, n_k) and (.., windows, n_k, channels); bias (n_q,) is added. Returns (.., n_q,
    channels).

    The tokens are brought to the last axis once, for all groups: what belongs to a group is then a matrix with longer
    strides, which a matrix product reads and writes as it is.
    """
    if weights.dim() == 3:
        out: Tensor = _Applied.apply(weights, x, bias)  # type: ignore[no-untyped-call]
        return out
    windows, groups, n_q, n_k = weights.shape
    lead, channels = x.shape[:-2], x.shape[-1]
    of_group = x.transpose(-1, -2).reshape(-1, windows, channels // groups, groups, n_k).transpose(2, 3)
    found = (of_group @ weights.mT).permute(0, 1, 4, 3, 2)
    found = found if bias is None else found + bias[:, None, None]
    return found.reshape(*lead, n_q, channels)


class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.transpose(-1, -2).contiguous()
        ctx.save_for_backward(weights, rows)
        ctx.biased = bias is not None
        return _times(rows, weights.mT, bias).mT

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows = ctx.saved_tensors
        g = grad.transpose(-1, -2).contiguous()
        g_x = _times(g, weights, None).mT if ctx.needs_input_grad[1] else None
        g_bias = grad.sum((*range(grad.dim() - 2), -1)) if ctx.biased else None
        if not ctx.needs_input_grad[0]:
            return None, g_x, g_bias
        left, right = (t.view(-1, len(weights), t.shape[-1]).transpose(0, 1) for t in (g, rows))
        return left.mT @ right, g_x, g_bias


def _times(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """rows (.., channels, n_k) by the matrix (groups, n_k, n) of each channel's group, plus bias (n,): (.., channels,
    n)."""
    groups, n_k, n = matrix.shape
    of_group = rows.view(-1, groups, n_k)
    if groups > FEW:
        batch = of_group.transpose(0, 1)
        found = batch @ matrix if bias is None else torch.baddbmm(bias, batch, matrix)
        return found.transpose(0, 1).reshape(*rows.shape[:-1], n)
    out = rows.new_empty(of_group.shape[0], groups, n)
    for g in range(groups):
        if bias is None:
            torch.mm(of_group[:, g], matrix[g], out=out[:, g])
        else:
            torch.addmm(bias, of_group[:, g], matrix[g], out=out[:, g])
    return out.view(*rows.shape[:-1], n)


@lru_cache(maxsize=32)
def _fourier(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Real matrices of the DFT of length 2 side - 1 (odd, so that side frequencies say all): lags (2, side, 2 side - 1)
    with lag 0 in the middle, in (2 side, side), and back out (side, 2 side), for positions 0..side - 1. Of each
    frequency the real part comes first, then the imaginary one."""
    length = 2 * side - 1
    f = torch.arange(side, dtype=torch.float64)[:, None]
    turn = 2 * math.pi / length

    def parts(places: Tensor) -> Tensor:
        angle = turn * torch.remainder(f * places, length)
        return torch.stack([angle.cos(), -angle.sin()])  # (2, side, places)

    places = torch.arange(side, dtype=torch.float64)
    into = parts(places).transpose(0, 1).flatten(0, 1)
    twice = torch.full((side,), 2.0, dtype=torch.float64)
    twice[0] = 1
    back = (parts(places) * twice[:, None] / length).transpose(0, 1).flatten(0, 1).T.contiguous()
    lags = parts(torch.arange(1 - side, side, dtype=torch.float64))
    return lags.to(device, dtype), into.to(device, dtype), back.to(device, dtype)


def _spectral(generator: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(groups, w, 2 h, 2 h): per group and frequency of the columns, the complex Toeplitz matrix of the rows, written
    with real numbers. A lag is key - query, so the spectrum of the weights is met conjugated."""
    height, width = sides
    lags, _, _ = _fourier(width, generator.dtype, generator.device)
    real, imaginary = (toeplitz((generator @ part.T).transpose(1, 2), height) for part in lags)
    return torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)


def _spectral_back(grad: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The transpose of `_spectral`."""
    lags, _, _ = _fourier(sides[1], grad.dtype, grad.device)
    (a, b), (c, d) = (half.chunk(2, -1) for half in grad.chunk(2, -2))
    found = [diagonal_sums(part).transpose(1, 2) for part in (a + d, b - c)]  # (groups, 2 h - 1, w)
    return found[0] @ lags[0] + found[1] @ lags[1]


class _Axes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, generator: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
        ctx.sides = sides
        ctx.save_for_backward(generator, x)
        return _through(_spectral(generator, sides), x, sides)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        generator, x = ctx.saved_tensors
        spectral = _spectral(generator, ctx.sides)
        g_x = _through(spectral.mT, grad, ctx.sides) if ctx.needs_input_grad[1] else None
        g_c = _spectral_back(_correlated(grad, x, spectral, ctx.sides), ctx.sides) if ctx.needs_input_grad[0] else None
        return g_c, g_x, None


def _chunks(x: Tensor, groups: int, sides: tuple[int, ...]) -> tuple[Tensor, int]:
    """x (windows, n, channels) seen as (windows, h, w, channels / groups, groups), and windows taken at a time."""
    height, width = sides
    cells = x.reshape(-1, height, width, x.shape[-1] // groups, groups)
    a_window = 2 * width * height * cells.shape[3]
    return cells, max(1, COLUMNS // max(a_window, 1))


def _columns(cells: Tensor, windows: slice, group: int) -> Tensor:
    """(w, h * columns) of some windows: the axis that is transformed comes first."""
    part = cells[windows, ..., group].permute(2, 1, 0, 3)
    return part.reshape(part.shape[0], -1)


def _through(spectral: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    height, width = sides
    groups = spectral.shape[0]
    _, into, back = _fourier(width, x.dtype, x.device)
    cells, step = _chunks(x, groups, sides)
    out = torch.empty(cells.shape, dtype=x.dtype, device=x.device)
    for group in range(groups):
        for first in range(0, len(cells), step):
            windows = slice(first, first + step)
            frequencies = (into @ _columns(cells, windows, group)).view(width, 2 * height, -1)
            found = back @ (spectral[group] @ frequencies).view(2 * width, -1)
            out[windows, ..., group] = found.view(width, height, -1, cells.shape[3]).permute(2, 1, 0, 3)
    return out.view(x.shape)


def _correlated(grad: Tensor, x: Tensor, spectral: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The gradient of `spectral`."""
    groups = spectral.shape[0]
    _, into, back = _fourier(sides[1], x.dtype, x.device)
    total, shape = torch.zeros_like(spectral), (sides[1], 2 * sides[0], -1)
    (cells, step), (grads, _) = _chunks(x, groups, sides), _chunks(grad, groups, sides)
    for group in range(groups):
        for first in range(0, len(cells), step):
            windows = slice(first, first + step)
            came = (into @ _columns(cells, windows, group)).view(*shape)
            left = (back.T @ _columns(grads, windows, group)).view(*shape)
            total[group] += left @ came.mT
    return total
