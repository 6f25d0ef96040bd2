"""Sums with weights that are free at every lag: a dense band near the diagonal, FFT rectangles for all that is far.

One FFT over everything has errors in proportion to the largest weight, wherever it stands, and in a causal sum it lets
the future leak into the past. Here lags near zero, where sharp biases live, are summed directly; causal sums are cut
into rectangles that hold past keys and later queries only (relaxed multiplication), so the future never enters.

The features are taken in groups: what is stored is a few rows of the sequence a thread, whatever their number, where
the literal algorithm (Luo et al. 2021, Algorithm 1) keeps n x features x dim_v numbers three times.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relpos.kernels.call import once
from relpos.kernels.linear.band import Band, banded
from relpos.kernels.linear.rows import Rows
from relpos.kernels.spectrum import ELEMENTS, Scratch, fast_length, generator_of, spectrum, spread

GROUP = 12  # features whose rows are kept at a time
MADE = 2**16  # features made at a time, over all batch rows and heads
GRAIN = 512  # rows that share one estimate of the FFT's rounding
NEAR = 64  # lags on either side that a two-sided sum takes directly
CELL = 1024  # side of the diagonal squares that a causal sum takes directly
TOGETHER = 8  # rows in one transform of the forward pass at least: each is planned anew, which costs as much as some
# rows; the backward pass has more buffers, and keeps them in the cache
_scratch = Scratch()


class Rectangle(NamedTuple):
    """Queries i0..i1-1 against keys j0..j1-1, all of them."""

    i0: int
    i1: int
    j0: int
    j1: int

    def lags(self, n_q: int) -> slice:
        """Their part of a generator whose index is j - i + n_q - 1."""
        return slice(self.j0 - self.i1 + n_q, self.j1 - self.i0 - 1 + n_q)


def rectangles(n_q: int, n_k: int, offset: int) -> Iterator[Rectangle]:
    """A causal sum less its diagonal squares of side CELL: queries against keys that lie before their square."""
    if offset > 0:
        yield Rectangle(0, n_q, 0, min(offset, n_k))
    yield from _dyadic(offset, offset + (1 << max(0, n_q - 1).bit_length()), n_q, n_k, offset)


def _dyadic(low: int, high: int, n_q: int, n_k: int, offset: int) -> Iterator[Rectangle]:
    if high - low <= CELL or low >= offset + n_q:
        return
    middle = (low + high) // 2
    found = Rectangle(middle - offset, min(high - offset, n_q), max(low, 0), min(middle, n_k))
    if found.i0 < found.i1 and found.j0 < found.j1:
        yield found
    yield from _dyadic(low, middle, n_q, n_k, offset)
    yield from _dyadic(middle, high, n_q, n_k, offset)


def split(
    x_q: Tensor, x_k: Tensor, values: Tensor, c: Tensor, phi: Rows, offset: int, causal: bool, near: int | None = None
) -> Tensor:
    """sum_j c_{j-i} phi(x_q_i).phi(x_k_j) values_j, (batch, heads, n_q, width); c (heads, n_q + n_k - 1).

    c's index is j - i + n_q - 1; offset, the place of the first query among the keys, says what lag 0 is. near: lags on
    either side that a two-sided sum takes directly, NEAR if not given.
    """
    n_q, n_k = x_q.shape[2], x_k.shape[2]
    reach = CELL - 1 if causal else _reach(near)
    band = Band(_around(c, offset, n_q, reach), reach, None)
    cell = CELL if causal else 0
    direct, _ = banded(x_q, x_k, values, band, phi, offset, causal, tails=False, cell=cell)
    jobs, beyond = _far_part(c, n_q, n_k, offset, causal, near)
    return direct.add_(transformed(x_q, x_k, values, beyond, phi, jobs)) if jobs else direct


def _reach(near: int | None) -> int:
    return NEAR if near is None else near


def transformed(x_q: Tensor, x_k: Tensor, values: Tensor, c: Tensor, phi: Rows, jobs: list[Rectangle]) -> Tensor:
    """The same sums over the pairs of some rectangles alone, one FFT each."""
    out: Tensor = _Far.apply(jobs, phi, x_q, x_k, values, c, *phi.parameters)  # type: ignore[no-untyped-call]
    return out


def _far_part(
    c: Tensor, n_q: int, n_k: int, offset: int, causal: bool, near: int | None
) -> tuple[list[Rectangle], Tensor]:
    """The rectangles that are left to the FFT, and the generator without the lags that are not."""
    if causal:
        return list(rectangles(n_q, n_k, offset)), c
    lag = torch.arange(1 - n_q, n_k, device=c.device) - offset
    return [Rectangle(0, n_q, 0, n_k)], c.masked_fill(lag.abs() <= _reach(near), 0)


@torch.no_grad()
def noise(x_q: Tensor, x_k: Tensor, c: Tensor, phi: Rows, offset: int, causal: bool, near: int | None = None) -> Tensor:
    """What the FFT may add to the sum of weights of each row, (batch, heads, n_q): the rounding of a rectangle is in
    proportion to the 2-norms of its weights and of its keys' features, wherever in it they are.
    """
    n_q, n_k = x_q.shape[2], x_k.shape[2]
    jobs, beyond = _far_part(c, n_q, n_k, offset, causal, near)
    # Groups of keys begin where causal rectangles may end, so that no row's estimate reads a key of its future.
    first = offset % GRAIN
    groups = (x_k[:, :, :first], *torch.split(x_k[:, :, first:], GRAIN, 2))
    squares = torch.stack([phi(x).square().sum(2) for x in groups], 2)  # the first one may be empty
    found = x_q.new_zeros(*x_q.shape[:2], -(-n_q // GRAIN), squares.shape[-1])
    for job in jobs:
        size = beyond[:, job.lags(n_q)].norm(dim=-1)[:, None]
        j0, j1 = (job.j0 - first) // GRAIN + 1, -((first - job.j1) // GRAIN) + 1
        keys = squares[:, :, max(j0, 0) : j1].sum(2).sqrt()
        found[:, :, job.i0 // GRAIN : -(-job.i1 // GRAIN)] += (size * keys).unsqueeze(2)
    rows = [phi(x).abs() @ found[:, :, i, :, None] for i, x in enumerate(torch.split(x_q, GRAIN, 2))]
    return 2 * torch.finfo(x_q.dtype).eps * torch.cat(rows, 2).squeeze(-1)


def _around(c: Tensor, offset: int, n_q: int, reach: int) -> Tensor:
    """c at lags -reach..reach of the order, 0 where no pair has that lag."""
    zero = offset + n_q - 1  # index of lag 0
    low, high = zero - reach, zero + reach + 1
    inner = c[:, min(max(low, 0), c.shape[1]) : min(max(high, 0), c.shape[1])]
    before = min(max(-low, 0), high - low)
    return nn.functional.pad(inner, (before, high - low - before - inner.shape[1]))


class _Far(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, jobs: list[Rectangle], phi: Rows, x_q: Tensor, x_k: Tensor, values: Tensor, c: Tensor, *_: Tensor
    ) -> Tensor:
        ctx.jobs, ctx.phi = jobs, phi
        ctx.save_for_backward(x_q, x_k, values, c)
        shared = _Shared(jobs, values, c, x_q.shape[2])
        out = values.new_zeros(*x_q.shape[:2], values.shape[-1], x_q.shape[2])  # by column, as the FFT wants it
        for features in shared.groups(phi, x_q):
            phi_q, phi_k = (features_of(phi, x, features) for x in (x_q, x_k))
            spread(partial(_sum, shared, phi_q, phi_k, out), shared.parts())
        return out.transpose(-1, -2)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_q, x_k, values, c = ctx.saved_tensors
        phi: Rows = ctx.phi
        shared = _Shared(ctx.jobs, values, c, x_q.shape[2])
        by_column = grad.transpose(-1, -2).contiguous()
        g_v = torch.zeros_like(shared.v)
        g_c = [torch.zeros_like(s).expand(values.shape[0], *s.shape).contiguous() for s in shared.spectra]
        g_x = [torch.zeros_like(x_q), torch.zeros_like(x_k)]
        g_p = [torch.zeros_like(p) for p in phi.parameters]
        for features in shared.groups(phi, x_q):
            phi_q, phi_k = (features_of(phi, x, features) for x in (x_q, x_k))
            g_q, g_k = torch.zeros_like(phi_q), torch.zeros_like(phi_k)
            found = g_q, g_k, g_v, g_c
            spread(partial(_sum_back, shared, phi_q, phi_k, by_column, found), shared.parts(whole=True))
            for x, came, into in ((x_q, g_q, g_x[0]), (x_k, g_k, g_x[1])):
                for total, more in zip(g_p, back_of(phi, x, came, features, into)):
                    total += more
        g_c_whole = shared.generator(g_c, c)
        return (None, None, *g_x, g_v.transpose(-1, -2), g_c_whole, *g_p)


def _slices(phi: Rows, x: Tensor) -> Iterator[slice]:
    """Rows whose features are made at a time: fewer where they are many, so that memory does not depend on it."""
    step = max(64, MADE // (x.shape[0] * x.shape[1] * phi(x[:1, :1, :1]).shape[-1]))
    return (slice(first, first + step) for first in range(0, x.shape[2], step))


def features_of(phi: Rows, x: Tensor, features: slice) -> Tensor:
    """Some features of all rows, (batch, heads, features, n), contiguous by feature."""
    found = x.new_empty(*x.shape[:2], features.stop - features.start, x.shape[2])
    for rows in _slices(phi, x):
        found[..., rows] = phi(x[:, :, rows])[..., features].transpose(-1, -2)
    return found


def back_of(phi: Rows, x: Tensor, grad: Tensor, features: slice, into: Tensor) -> list[Tensor]:
    """Adds to the gradient of x what that of `features_of` gives; returns the gradients of phi's parameters."""
    totals = [torch.zeros_like(p) for p in phi.parameters]
    width = phi(x[:1, :1, :1]).shape[-1]
    for rows in _slices(phi, x):
        whole = nn.functional.pad(grad[..., rows].transpose(-1, -2), (features.start, width - features.stop))
        found, parameters = phi.back(x[:, :, rows], whole)
        into[:, :, rows] += found
        for total, part in zip(totals, parameters):
            total += part
    return totals


class _Part(NamedTuple):
    """What one thread takes: a batch row, a head, and columns of the values."""

    b: int
    h: int
    columns: slice


class _Shared:
    """The rectangles with their spectra, and the values by column (batch, heads, width, n_k)."""

    def __init__(self, jobs: list[Rectangle], values: Tensor, c: Tensor, n_q: int) -> None:
        self.jobs, self.n_q, self.v = jobs, n_q, values.transpose(-1, -2).contiguous()
        self.lengths = [fast_length(job.i1 - job.i0 + job.j1 - job.j0 - 1) for job in jobs]
        self.spectra = [
            spectrum(c[:, job.lags(n_q)], job.i1 - job.i0, length)
            for job, length in zip(jobs, self.lengths, strict=True)
        ]

    def groups(self, phi: Rows, x: Tensor) -> Iterator[slice]:
        width = phi(x[:1, :1, :1]).shape[-1]
        for first in range(0, width, GROUP):
            yield slice(first, min(first + GROUP, width))

    def parts(self, whole: bool = False) -> list[_Part]:
        batch, heads, width, _ = self.v.shape
        count = 1 if whole else -(-width // max(TOGETHER, ELEMENTS // max(self.lengths)))
        step = -(-width // count)
        columns = [slice(e, min(e + step, width)) for e in range(0, width, step)]
        return [_Part(b, h, part) for b in range(batch) for h in range(heads) for part in columns]

    def chunks(self, part: _Part, length: int, features: int, least: int = 1) -> Iterator[tuple[slice, slice]]:
        """Features and columns that are transformed at once, at least so many rows: a buffer stays in the cache."""
        columns = part.columns.stop - part.columns.start
        together = max(least, ELEMENTS // length)
        wide = min(columns, together)
        wide = -(-columns // -(-columns // wide))
        deep = max(1, together // wide)
        for r in range(0, features, deep):
            for e in range(part.columns.start, part.columns.stop, wide):
                yield slice(r, min(r + deep, features)), slice(e, min(e + wide, part.columns.stop))

    def generator(self, spectra: list[Tensor], c: Tensor) -> Tensor:
        """The gradient of the generator, from that of every rectangle's spectrum (as irfft of a correlation)."""
        total = torch.zeros_like(c)
        for job, length, found in zip(self.jobs, self.lengths, spectra, strict=True):
            kernel = torch.fft.irfft(found.sum(0), length)
            total[:, job.lags(self.n_q)] += generator_of(kernel, job.i1 - job.i0, job.j1 - job.j0)
        return total


def _transformed(name: str, rows: Tensor, columns: Tensor, length: int) -> Tensor:
    """Spectra of rows[r] * columns[e], (features, columns, length // 2 + 1), in a buffer of this thread."""
    count, n = rows.shape
    shape = (count, columns.shape[0], length)
    padded = _scratch.take("padded", shape, columns.dtype, columns.device)
    torch.mul(rows[:, None], columns, out=padded[..., :n])
    padded[..., n:].zero_()
    complex_ = torch.complex64 if columns.dtype == torch.float32 else torch.complex128
    out = _scratch.take(name, (*shape[:2], length // 2 + 1), complex_, columns.device)
    torch.fft.rfft(padded, out=out)
    return out


def _back(spectra: Tensor, length: int, n: int) -> Tensor:
    """The first n entries of the inverse transform, a view of a buffer of this thread."""
    shape = (*spectra.shape[:-1], length)
    real = torch.float32 if spectra.dtype == torch.complex64 else torch.float64
    out = _scratch.take("padded", shape, real, spectra.device)
    torch.fft.irfft(spectra, length, out=out)
    return out[..., :n]


def _sum(shared: _Shared, phi_q: Tensor, phi_k: Tensor, out: Tensor, part: _Part) -> None:
    q, k, v, o = (x[part.b, part.h] for x in (phi_q, phi_k, shared.v, out))
    for job, length, factor in zip(shared.jobs, shared.lengths, shared.spectra, strict=True):
        for r, e in shared.chunks(part, length, len(q), TOGETHER):
            spectra = _transformed("spectra", k[r, job.j0 : job.j1], v[e, job.j0 : job.j1], length)
            y = _back(spectra.mul_(factor[part.h]), length, job.i1 - job.i0)
            rows = q[r, job.i0 : job.i1]
            if len(rows) == 1:
                o[e, job.i0 : job.i1].addcmul_(y[0], rows)
            else:
                o[e, job.i0 : job.i1] += y.mul_(rows[:, None]).sum(0)


def _sum_back(
    shared: _Shared,
    phi_q: Tensor,
    phi_k: Tensor,
    grad: Tensor,
    into: tuple[Tensor, Tensor, Tensor, list[Tensor]],
    part: _Part,
) -> None:
    q, k, v, g, g_q, g_k, g_v = (x[part.b, part.h] for x in (phi_q, phi_k, shared.v, grad, *into[:3]))
    for index, (job, length, factor) in enumerate(zip(shared.jobs, shared.lengths, shared.spectra, strict=True)):
        queries, keys = slice(job.i0, job.i1), slice(job.j0, job.j1)
        g_spectrum = into[3][index][part.b, part.h]
        for r, e in shared.chunks(part, length, len(q)):
            came = _transformed("came", k[r, keys], v[e, keys], length)
            left = _transformed("left", q[r, queries], g[e, queries], length)
            product = torch.mul(came.conj(), left, out=_like("product", came))
            g_spectrum += product.sum((0, 1))
            y = _back(came.mul_(factor[part.h]), length, job.i1 - job.i0)
            g_q[r, queries] += y.mul_(g[e, queries]).sum(1)
            x = _back(left.mul_(factor[part.h].conj()), length, job.j1 - job.j0)
            g_v[e, keys] += (x * k[r, None, keys]).sum(0)
            g_k[r, keys] += x.mul_(v[e, keys]).sum(1)


def _like(name: str, x: Tensor) -> Tensor:
    return _scratch.take(name, tuple(x.shape), x.dtype, x.device)
