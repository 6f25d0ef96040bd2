"""Mixing the tokens of a window with weights of their lag alone, each group of channels by its own weights.

    y[.., m, c] = sum_n c[g, lag(m, n)] x[.., n, c],    g = c mod groups

"dense" is the definition as matrix products: the (n, n) matrix of each group, which for a window of a few hundred cells
is small beside the channels. "axes" never makes it: one axis is transformed (a DFT written as a matrix product, since
a window is too short for an FFT to pay), and per frequency the other axis is a small Toeplitz matrix. That takes
4 (h + w) multiply-adds a token where dense takes h w, and memory linear in the cells. "split" is `toeplitz_matmul`, for
lines and narrow windows that are long: the matrix of 10,000 tokens would be 100 million numbers a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.diagonals import diagonal_sums, toeplitz
from relpos.kernels.call import Refusal, computing, exactly, once
from relpos.kernels.spectrum import Scratch
from relpos.kernels.toeplitz import toeplitz_matmul

METHODS = ("auto", "dense", "axes", "split")
LARGE = 12  # times as many cells as rows and columns from which "axes" is the quicker: 24 x 24
LONG = 1024  # cells from which no matrix of all pairs is made
FEW = 8  # groups that are multiplied one by one, straight into their places; more: one batched product and a copy
MATRICES = 2**18  # numbers in the matrices of some frequencies
COLUMNS = 2**21  # numbers of one transform at a time: what a cache holds
_scratch = Scratch()  # fresh buffers would cost a page fault every 4 KiB, which is more than the products


@lru_cache(maxsize=32)
@torch.inference_mode(False)
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
    if matrix.is_cuda:  # there additions by index come in any order, with other bits at every call
        return lag_sums_in_order(matrix, sides)
    spans = [2 * side - 1 for side in sides]
    total = matrix.new_zeros(len(matrix), math.prod(spans))
    return total.index_add_(1, _lags(sides, matrix.device), matrix.flatten(1)).view(-1, *spans)


def lag_sums_in_order(matrix: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The same along diagonals: more passes over the matrix, and none that adds by index."""
    if len(sides) == 1:
        return diagonal_sums(matrix)
    cells = matrix.view(-1, *sides, *sides).transpose(2, 3)
    return diagonal_sums(diagonal_sums(cells).permute(0, 3, 1, 2)).transpose(1, 2)


def mixed(
    generator: Tensor, x: Tensor, sides: tuple[int, ...], method: str = "auto", bias: Tensor | None = None
) -> Tensor:
    """y (.., n, channels) of x (.., n, channels), n the cells in row-major order, plus a bias (n,); in the dtype of x,
    sums in at least float32. The gradient is defined once; memory for it is that of x with "axes"."""
    chosen = pick(sides, method)
    dtype = computing(torch.promote_types(generator.dtype, x.dtype))
    with exactly(x):
        shift = None if bias is None else bias.to(dtype)
        if chosen == "split":
            return _split(generator.to(dtype), x.to(dtype), shift, sides).to(x.dtype)
        way = _Axes if chosen == "axes" else _Dense
        out: Tensor = way.apply(generator.to(dtype), x.to(dtype), shift, sides)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


def pick(sides: tuple[int, ...], method: str = "auto") -> str:
    """The method that serves a window: by its size for "auto". ValueError for one that is not known or cannot."""
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    if method == "axes" and len(sides) == 1:
        raise Refusal('method "axes" wants a window of two axes; "dense" and "split" take a line')
    if method != "auto":
        return method
    if len(sides) == 2 and math.prod(sides) >= LARGE * sum(sides):
        return "axes"
    return "split" if math.prod(sides) > LONG else "dense"


def _split(generator: Tensor, x: Tensor, bias: Tensor | None, sides: tuple[int, ...]) -> Tensor:
    grid = sides if len(sides) > 1 else None
    of_group = x.unflatten(-1, (-1, len(generator))).movedim(-1, -3)  # type: ignore[no-untyped-call]
    mixed = toeplitz_matmul(generator, of_group, grid=grid).movedim(-3, -1).flatten(-2)
    return mixed if bias is None else mixed + bias[:, None]


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
        g_weights = _products(g, rows, len(weights)) if ctx.needs_input_grad[0] else None
        g_x = _times(g, weights, None).mT if ctx.needs_input_grad[1] else None
        return g_weights, g_x, _token_sums(grad) if ctx.biased else None


class _Dense(torch.autograd.Function):
    """`applied` with the `matrices` of a generator, which are made again in the backward pass where they are larger
    than what is kept of x."""

    @staticmethod
    def forward(ctx: Any, generator: Tensor, x: Tensor, bias: Tensor | None, sides: tuple[int, ...]) -> Tensor:
        rows = x.transpose(-1, -2).contiguous()
        weights = matrices(generator, sides)
        ctx.save_for_backward(generator, rows, weights if weights.numel() <= rows.numel() else None)
        ctx.sides, ctx.biased = sides, bias is not None
        return _times(rows, weights.mT, bias).mT

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        generator, rows, weights = ctx.saved_tensors
        g, g_c, g_x = grad.transpose(-1, -2).contiguous(), None, None
        if ctx.needs_input_grad[0]:
            g_c = lag_sums(_products(g, rows, len(generator)), ctx.sides)
        if ctx.needs_input_grad[1]:
            g_x = _times(g, matrices(generator, ctx.sides) if weights is None else weights, None).mT
        return g_c, g_x, _token_sums(grad) if ctx.biased else None, None


def _products(g: Tensor, rows: Tensor, groups: int) -> Tensor:
    """(groups, n_q, n_k): sums over the channels of each group of g (.., channels, n_q) times rows (.., channels,
    n_k)."""
    left, right = (t.view(-1, groups, t.shape[-1]).transpose(0, 1) for t in (g, rows))
    return left.mT @ right


def _token_sums(grad: Tensor) -> Tensor:
    return grad.sum((*range(grad.dim() - 2), -1))


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
@torch.inference_mode(False)
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


def _spectra(generator: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(groups, 2, w, 2 h - 1): real and imaginary part of each frequency of the columns, by the lag of the rows."""
    lags, _, _ = _fourier(sides[1], generator.dtype, generator.device)
    return (generator.unsqueeze(1) @ lags.mT).mT


def _spectra_back(grad: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The transpose of `_spectra`."""
    lags, _, _ = _fourier(sides[1], grad.dtype, grad.device)
    return (grad.mT @ lags).sum(1)


def _slices(sides: tuple[int, ...]) -> list[slice]:
    """Frequencies whose matrices are there at a time: of all of them they would take more than the cells do."""
    height, width = sides
    step = max(1, MATRICES // (4 * height * height))
    return [slice(first, min(first + step, width)) for first in range(0, width, step)]


def _matrix(spectrum: Tensor) -> Tensor:
    """(2, f, 2 h - 1) to (f, 2 h, 2 h): the complex Toeplitz matrix of the rows for each frequency, in real numbers. A
    lag is key - query, so the spectrum of the weights is met conjugated."""
    _, count, lags = spectrum.shape
    height = (lags + 1) // 2
    real, imaginary = toeplitz(spectrum, height)
    out = _like(spectrum, "matrix", count, 2 * height, 2 * height)
    out[:, :height, :height], out[:, height:, height:] = real, real
    out[:, :height, height:] = imaginary
    torch.neg(imaginary, out=out[:, height:, :height])
    return out


def _matrix_sums(grad: Tensor) -> Tensor:
    """The transpose of `_matrix`."""
    (a, b), (c, d) = (half.chunk(2, -1) for half in grad.chunk(2, -2))
    return diagonal_sums(torch.stack([a + d, b - c]))


class _Axes(torch.autograd.Function):
    """Some windows at a time, all groups of them: x as (w, h, groups, columns), so that the axis that is transformed
    comes first and what belongs to a group is a matrix as it lies there."""

    @staticmethod
    def forward(ctx: Any, generator: Tensor, x: Tensor, bias: Tensor | None, sides: tuple[int, ...]) -> Tensor:
        ctx.sides, ctx.biased = sides, bias is not None
        ctx.save_for_backward(generator, x)
        spectra, (_, into, back) = _spectra(generator, sides), _fourier(sides[1], x.dtype, x.device)
        out, cells = _cells(x.new_empty(x.shape), sides), _cells(x, sides)
        for windows in _some(cells, sides):
            columns = _columns(cells[windows], len(generator))
            came = _transformed(into, columns, "came")
            for group, spectrum in enumerate(spectra):
                columns[:, :, group] = _returned(back, spectrum, came[:, :, group])
            _put(columns, out[windows])
        mixed = out.view(x.shape)
        return mixed if bias is None else mixed.add_(bias[:, None])

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        generator, x = ctx.saved_tensors
        sides, (_, into, back) = ctx.sides, _fourier(ctx.sides[1], x.dtype, x.device)
        spectra = _spectra(generator, sides)
        g_spectra = torch.zeros_like(spectra) if ctx.needs_input_grad[0] else None
        g_x = _cells(x.new_empty(x.shape), sides) if ctx.needs_input_grad[1] else None
        cells, grads = _cells(x, sides), _cells(grad, sides)
        for windows in _some(cells, sides):
            columns = _columns(grads[windows], len(generator))
            left = _transformed(back.T, columns, "left")
            if g_spectra is not None:
                came = _transformed(into, _columns(cells[windows], len(generator)), "came")
                for group, total in enumerate(g_spectra):
                    for f in _slices(sides):
                        into_matrix = _like(left, "matrix", f.stop - f.start, *[2 * sides[0]] * 2)
                        torch.bmm(left[f, :, group], came[f, :, group].mT, out=into_matrix)
                        total[:, f] += _matrix_sums(into_matrix)
            if g_x is not None:
                for group, spectrum in enumerate(spectra):
                    columns[:, :, group] = _returned(into.T, spectrum, left[:, :, group], True)
                _put(columns, g_x[windows])
        g_c = None if g_spectra is None else _spectra_back(g_spectra, sides)
        return g_c, None if g_x is None else g_x.view(x.shape), _token_sums(grad) if ctx.biased else None, None


def _cells(x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(.., n, channels) as (windows, h, w, channels)."""
    return x.reshape(-1, *sides, x.shape[-1])


def _some(cells: Tensor, sides: tuple[int, ...]) -> Iterator[slice]:
    """Windows that are taken at a time."""
    step = max(1, COLUMNS // max(1, 2 * sides[0] * sides[1] * cells.shape[-1]))
    return (slice(first, first + step) for first in range(0, len(cells), step))


def _columns(cells: Tensor, groups: int) -> Tensor:
    """A copy (w, h, groups, windows * channels / groups)."""
    _, height, width, channels = cells.shape
    parts = cells.reshape(*cells.shape[:3], channels // groups, groups)
    parts = parts.permute(2, 1, 4, 0, 3)
    return _like(cells, "columns", *parts.shape).copy_(parts).view(width, height, groups, -1)


def _put(columns: Tensor, cells: Tensor) -> None:
    """The way back: what `_columns` made of these cells, written into them."""
    groups = columns.shape[2]
    parts = cells.view(*cells.shape[:3], -1, groups)
    parts.copy_(columns.view(*columns.shape[:3], len(cells), -1).permute(3, 1, 0, 4, 2))


def _transformed(matrix: Tensor, columns: Tensor, name: str) -> Tensor:
    """(w, h, groups, k) to (w frequencies, 2 h, groups, k), by a matrix (2 w, w)."""
    width, height, groups, k = columns.shape
    out = _like(columns, name, 2 * width, height * groups * k)
    return torch.mm(matrix, columns.view(width, -1), out=out).view(width, 2 * height, groups, k)


def _returned(matrix: Tensor, spectrum: Tensor, came: Tensor, transposed: bool = False) -> Tensor:
    """One group (w frequencies, 2 h, k) times the matrices of its spectrum, and back to (w, h, k) by a matrix
    (w, 2 w)."""
    width, twice, k = came.shape
    product = _like(came, "product", width, twice, k)
    for f in _slices((twice // 2, width)):
        square = _matrix(spectrum[:, f])
        torch.bmm(square.mT if transposed else square, came[f], out=product[f])
    out = _like(came, "returned", width, twice // 2 * k)
    return torch.mm(matrix, product.view(2 * width, -1), out=out).view(width, twice // 2, k)


def _like(x: Tensor, name: str, *shape: int) -> Tensor:
    return _scratch.take(name, shape, x.dtype, x.device)
