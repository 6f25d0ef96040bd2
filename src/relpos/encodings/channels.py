"""Extra channels that carry a bias through a kernel which takes none, with a certificate of their error.

A bias of rank r, bias(j - i) = sum_p f_p(i) g_p(j), fits into r more channels of q and k. The convention:

    scale * (q_i . k_j + q'_i . k'_j) = scale * q_i . k_j + bias(j - i)        q' = f / scale,  k' = g

with the scale of the *original* head width; 1/sqrt(dim + r) is a different model.

| encoding       | method  | channels            | where it holds                                               |
|----------------|---------|---------------------|--------------------------------------------------------------|
| ALiBi (causal) | digits  | 1 to 6              | every dtype: exact for dyadic slopes                         |
| HyPE           | factors | 2                   | float32; shorter types while tau * eps stays below tolerance |
| Sandwich       | factors | dim (128)           | error about eps * dim / c_h                                  |
| any other bias | cosines | 1 + 2 * frequencies | where a short Fourier sum fits it to the tolerance           |

The certificate counts the fit, the rounding of q' and k' to the dtype, and the rounding of sums, taken in float32 (in
float64 for float64 channels) with the channels summed last, as they are appended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Bias, Encoding, Transform
from relpos.positions import Index, Positions

ALL_PAIRS = 1024  # up to here every pair is measured; beyond, blocks of rows and columns are bounded
BLOCK = 64  # at least
FREQUENCIES = (2, 4, 8, 16, 32)
FIT_LAGS = 4096  # lags that a fit looks at; all lags are measured
STRETCHES = (1.25, 2.0)  # period of a fit over the range of lags: short for what has died out, long for what has not
CUTS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels of positions 0..n-1, for one scale and dtype.

    q, k          (heads, n, r) in the dtype: scale * q[h, i] . k[h, j] = bias of lag j - i, up to a constant a row
                  where `row_constant` (softmax ignores it)
    error         nats: no logit is further than this from its true value (up to the row's constant), over all lags in
                  use: for causal ones the keys at or before the query
    stored, sums  its two parts: the numbers as stored, and the rounding of the sums
    exact         the factorisation itself is exact; False: fitted, and a snapshot of the parameters
    method        "digits", "factors" or "cosines"
    """

    q: Tensor
    k: Tensor
    error: float
    exact: bool
    method: str
    stored: float
    sums: float
    scale: float
    causal: bool
    row_constant: bool
    tolerance: float
    encoding: Bias = field(repr=False)

    @property
    def rank(self) -> int:
        return self.q.shape[-1]

    @property
    def n(self) -> int:
        return self.q.shape[-2]

    def at_scale(self, scale: float) -> Channels:
        """The same for another scale: powers of two only move the exponent, others round anew and are measured anew."""
        ratio = self.scale / scale
        if ratio == 1:
            return self
        return channels(
            self.encoding, self.n, self.q.dtype, self.tolerance, causal=self.causal, scale=scale, device=self.q.device
        )

    def append(
        self, q: Tensor, k: Tensor, scale: float | None = None, q_start: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """q (batch, heads, n_q, dim), k (batch, kv_heads, n_k, dim), with the channels after the last dimension.

        scale    the factor with which the kernel will be called, default 1/sqrt(dim); pass it on explicitly, since the
                 kernel's own default would take the new width
        q_start  position of the first query, default n_k - n_q; keys are 0..n_k-1
        """
        n_q, n_k = q.shape[-2], k.shape[-2]
        start = n_k - n_q if q_start is None else q_start
        if q.dtype != self.q.dtype or k.dtype != self.q.dtype:
            raise TypeError(
                f"the channels were certified for {self.q.dtype}, q and k are {q.dtype} and {k.dtype}; "
                "call relpos.channels with that dtype"
            )
        if start < 0 or max(start + n_q, n_k) > self.n:
            raise ValueError(
                f"the channels were certified for {self.n} positions; queries {start}..{start + n_q - 1} and keys "
                f"0..{n_k - 1} go beyond: build them with a larger n"
            )
        own = self.at_scale(q.shape[-1] ** -0.5 if scale is None else float(scale))
        return _joined(q, own.q[:, start : start + n_q]), _joined(k, own.k[:, :n_k])

    def as_transform(self) -> ChannelTransform:
        """As an encoding of its own: every fused kernel then serves this bias."""
        if any(p.requires_grad for p in self.encoding.parameters()):
            raise ValueError(
                f"{type(self.encoding).__name__} is being trained, and channels are a snapshot of it: train it as a "
                "bias, or call relpos.channels and append at every step; for inference freeze it, requires_grad_(False)"
            )
        return ChannelTransform(self)


class ChannelTransform(Transform):
    """A bias as extra channels of q and k; made by `relpos.channels(..).as_transform()`.

    Takes integer positions in 0..n-1, the range of its certificate; where the channels were built for causal use, so is
    this.
    """

    mixers = ("softmax",)  # type: ignore[assignment]  # a row's constant is no constant of a kernel
    learned = False
    extrapolates = False

    def __init__(self, certified: Channels) -> None:
        super().__init__()
        self.certified = certified
        self.heads = certified.encoding.heads
        self.reference = certified.encoding.reference  # type: ignore[misc]
        self.causal_only = certified.causal
        self._scaled: dict[float, Channels] = {}

    def score_scale(self, dim: int) -> float | None:
        return self.certified.encoding.score_scale(dim)

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return _joined(q, self._rows(self._at(q, scale).q, q_pos))

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return _joined(k, self._rows(self._at(k, scale).k, k_pos))

    def _at(self, x: Tensor, scale: float) -> Channels:
        if x.dtype != self.certified.q.dtype:
            raise TypeError(f"the channels were certified for {self.certified.q.dtype}, got {x.dtype}")
        if scale not in self._scaled:
            self._scaled[scale] = self.certified.at_scale(scale)
        return self._scaled[scale]

    def _rows(self, rows: Tensor, position: Positions) -> Tensor:
        self.check_positions(position)
        assert isinstance(position, Index)
        at, n = position.values, rows.shape[-2]
        if len(position) and (int(at.min()) < 0 or int(at.max()) >= n):
            raise ValueError(
                f"the channels were certified for positions 0..{n - 1}, got {int(at.min())}..{int(at.max())}; "
                "build them with a larger n"
            )
        picked = rows[:, at]
        return picked if at.dim() == 1 else picked.movedim(0, 1)


def _joined(x: Tensor, extra: Tensor) -> Tensor:
    """x (batch, heads, n, dim) with extra ([batch], heads, n, r) appended; shared key heads need agreeing channels."""
    extra = extra.unsqueeze(0) if extra.dim() == 3 else extra
    heads, own = extra.shape[1], x.shape[1]
    if own != heads:
        if own < 1 or heads % own:
            raise ValueError(f"{own} heads do not divide the {heads} heads of the encoding")
        grouped = extra.reshape(extra.shape[0], own, heads // own, *extra.shape[2:])
        extra = grouped[:, :, 0]
        if not torch.equal(grouped, extra.unsqueeze(2).expand_as(grouped)):
            raise ValueError(
                f"{own} key heads serve {heads} query heads whose key channels differ; expand the keys to "
                f"{heads} heads first, k.repeat_interleave({heads // own}, 1)"
            )
    return torch.cat([x, extra.to(x.device).expand(x.shape[0], -1, -1, -1)], -1)


class _Made(NamedTuple):
    """Channels in their dtype and a bound of what storing them does, before the rounding of sums."""

    q: Tensor
    k: Tensor
    error: float
    exact: bool
    method: str
    row_constant: bool = False


def channels(
    encoding: Encoding,
    n: int,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 0.05,
    *,
    causal: bool = True,
    scale: float = 1.0,
    device: torch.device | str | None = None,
) -> Channels:
    """The channels that carry `encoding` over positions 0..n-1, with their worst error in nats; see `Channels`.

    tolerance  largest error allowed, nats
    causal     True: only keys at or before the query count, and a constant a row may be left out
    scale      factor of the kernel; `Channels.append` and `as_transform` adapt it
    Up to n = 1024 the stored numbers are measured on all pairs; beyond, the fit is measured on all lags and the
    rounding bounded block by block. No n x n tensor is made for n > 1024. Gradients reach the parameters of an exact
    factorisation (HyPE); a fitted one is a snapshot.
    ValueError where the tolerance cannot be met or the dtype cannot hold the numbers, naming what to use instead.
    """
    _check(encoding, n, dtype, tolerance, causal, scale)
    assert isinstance(encoding, Bias)
    best: Channels | None = None
    for made in _candidates(encoding, n, dtype, causal, scale):
        finite = bool(torch.isfinite(made.q).all() and torch.isfinite(made.k).all())
        sums = _sums(made, scale) if finite else math.inf
        error = made.error + sums if finite else math.inf
        q, k = (x if device is None else x.to(device) for x in (made.q, made.k))
        found = Channels(
            q, k, error, made.exact, made.method, made.error, sums, float(scale),
            causal, made.row_constant, tolerance, encoding,
        )  # fmt: skip
        if error <= tolerance:
            return found
        best = found if best is None or error < best.error else best
    raise ValueError(_refusal(encoding, n, dtype, tolerance, best))


def _check(encoding: Encoding, n: int, dtype: torch.dtype, tolerance: float, causal: bool, scale: float) -> None:
    if not isinstance(encoding, Bias):
        raise TypeError(f"channels carry a Bias, a scalar a lag; {type(encoding).__name__} is not one: use it as it is")
    if Index not in encoding.takes:
        raise TypeError(f"channels run along integer positions, {type(encoding).__name__} does not take them")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is a number of positions, at least 1, got {n!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is float64, float32, bfloat16 or float16, got {dtype}")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance is a positive number of nats, got {tolerance!r}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale is a positive number, got {scale!r}")
    if encoding.causal_only and not causal:
        raise ValueError(f"{type(encoding).__name__} is defined for keys at or before the query only; use causal=True")


def _refusal(encoding: Bias, n: int, dtype: torch.dtype, tolerance: float, best: Channels | None) -> str:
    name, kind = type(encoding).__name__, str(dtype).removeprefix("torch.")
    if best is None or math.isinf(best.error):
        why = f"{kind} cannot hold the numbers that {name} needs over {n} positions"
    else:
        why = (
            f"{name} over {n} positions in {kind}: the best of the channels ({best.rank} by {best.method}) are off by "
            f"up to {best.error:.3g} nats, the tolerance is {tolerance:g}"
        )
    wider = ", float32 channels," if dtype.itemsize < 4 else ""
    return f'{why}; use kernel="tiled", which is exact in any dtype{wider} or a larger tolerance'


def _candidates(encoding: Bias, n: int, dtype: torch.dtype, causal: bool, scale: float) -> Iterator[_Made]:
    """From few channels to many."""
    exact = getattr(encoding, "exact_channels", None)
    for pieces in (1, 2, 3):
        stored = None if exact is None else exact(n, dtype, scale, causal, pieces)
        if stored is not None:
            yield _Made(stored.q, stored.k, stored.error, True, "digits", row_constant=True)
    if exact is not None and causal:
        return
    pair = encoding.factors(n)
    if pair is not None:
        yield _rounded(encoding, *pair, dtype, causal, scale, "factors")
        return
    with torch.no_grad():
        for count in FREQUENCIES:
            yield _fitted(encoding, n, dtype, causal, scale, count)
            if count >= n:  # already as many waves as lags
                return


def _rounded(
    encoding: Bias, f: Tensor, g: Tensor, dtype: torch.dtype, causal: bool, scale: float, method: str
) -> _Made:
    q, k = (f / scale).to(dtype), g.to(dtype)
    with torch.no_grad():
        error = _stored_error(encoding, f.detach(), g.detach(), q.double() * scale, k.double(), causal)
    return _Made(q, k, error, method == "factors", method, encoding.causal_only)


def _lags(encoding: Bias, n: int, causal: bool) -> Tensor:
    """The true bias (heads, n or 2n - 1) in float64, of lags 1-n..0 or 1-n..n-1."""
    device = next((t.device for t in (*encoding.parameters(), *encoding.buffers())), None)
    return encoding.at(torch.arange(1 - n, 1 if causal else n, device=device)).double()


def _stored_error(encoding: Bias, f: Tensor, g: Tensor, q: Tensor, k: Tensor, causal: bool) -> float:
    """Bound of |q_i . k_j - bias|; f, g are the numbers before rounding, q, k after, all float64.

    Where the factors may leave out a constant a row, so does the error.
    """
    n = f.shape[1]
    truth = _lags(encoding, n, causal)
    if n <= ALL_PAIRS:
        lag = torch.arange(n, device=truth.device) - torch.arange(n, device=truth.device)[:, None]
        wrong = q @ k.transpose(-1, -2) - truth[:, (lag + n - 1).clamp(max=truth.shape[-1] - 1)]
        return _spread(wrong, lag > 0 if causal else torch.zeros_like(lag, dtype=torch.bool), encoding.causal_only)
    everything = torch.zeros(n, dtype=torch.bool, device=truth.device)
    last = (f[:, -1:] @ g.transpose(-1, -2))[:, 0] - truth[:, :n]  # one row covers the lags 1-n..0
    formula = _spread(last, everything, encoding.causal_only)
    if not causal:  # and the first row the others
        first = (f[:, :1] @ g.transpose(-1, -2))[:, 0] - truth[:, n - 1 :]
        formula = max(formula, _spread(first, everything, encoding.causal_only))
    rows = _block_max((q - f).abs()) @ _block_max(k.abs()).transpose(-1, -2)
    columns = _block_max(f.abs()) @ _block_max((k - g).abs()).transpose(-1, -2)
    return formula + float(((rows + columns).tril() if causal else rows + columns).max())


def _spread(wrong: Tensor, hidden: Tensor, up_to_constant: bool) -> float:
    """Largest |wrong|, where asked for about the best constant a row."""
    if not up_to_constant:
        return float(wrong.abs().masked_fill(hidden, 0).max())
    high, low = wrong.masked_fill(hidden, -math.inf).amax(-1), wrong.masked_fill(hidden, math.inf).amin(-1)
    return float((high - low).max()) / 2


def _block_max(x: Tensor) -> Tensor:
    """(heads, n, r) to (heads, blocks, r), the largest of each block of positions; at most 1024 blocks."""
    block = max(BLOCK, math.ceil(x.shape[1] / 1024))
    short = -x.shape[1] % block
    padded = torch.nn.functional.pad(x, (0, 0, 0, short))
    return padded.reshape(len(x), -1, block, x.shape[-1]).amax(2)


def _sums(made: _Made, scale: float) -> float:
    """Bound of the rounding of r + 1 sums at the largest size that a partial sum of the channels can have."""
    unit = 2.0**-53 if made.q.dtype == torch.float64 else 2.0**-24
    with torch.no_grad():
        size = _block_max(made.q.double().abs()) @ _block_max(made.k.double().abs()).transpose(-1, -2)
        return (made.q.shape[-1] + 1) * unit * scale * float(size.max())


def _fitted(encoding: Bias, n: int, dtype: torch.dtype, causal: bool, scale: float, count: int) -> _Made:
    """bias(lag) ~ c_0 + sum_t a_t cos(w_t lag) + b_t sin(w_t lag): two channels a frequency, entries of size one in k.

    The period is longer than the range of lags, so the sum need not be periodic on it (a Fourier extension). Such sums
    fit well with huge coefficients that cancel; a dtype of unit roundoff u makes of them an error of about u times
    their sum. So small singular values are cut, at the level where the fit and that error together are smallest.
    """
    truth = _lags(encoding, n, causal)
    lag = torch.arange(1 - n, 1 - n + truth.shape[-1], dtype=torch.float64, device=truth.device)
    few = _sample(lag)
    aim = truth[:, (few + n - 1).long()].T
    weight = (1 + few.abs()).rsqrt()[:, None]  # near lags, where most biases bend, count more
    best, frequency, coefficients = math.inf, lag[:count], aim[:0]
    for stretch in STRETCHES:
        tried = 2 * math.pi / (stretch * len(lag)) * torch.arange(1, count + 1, device=truth.device).double()
        u, s, v = torch.linalg.svd(_waves(few, tried) * weight, full_matrices=False)
        for cut in CUTS:
            keep = s > cut * s[0]
            solved = v[keep].T @ (u.T @ (aim * weight))[keep].div(s[keep, None])
            wrong = (_waves(few, tried) @ solved - aim).abs().amax(0) + torch.finfo(dtype).eps * solved.abs().sum(0)
            if float(wrong.max()) < best:
                best, frequency, coefficients = float(wrong.max()), tried, solved
    f, g = _channels_of_waves(coefficients, torch.arange(n, device=truth.device).double()[:, None] * frequency)
    return _rounded(encoding, f, g, dtype, causal, scale, "cosines")


def _channels_of_waves(coefficients: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """f (heads, n, r) and g, the same for all heads, with f_i . g_j the sum at lag j - i; angle (n, frequencies)."""
    count = angle.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    c, a, b = (x.T.unsqueeze(1) for x in torch.split(coefficients, [1, count, count]))
    f = torch.cat([c.expand(-1, len(angle), -1), a * cos - b * sin, a * sin + b * cos], -1)
    g = torch.cat([torch.ones_like(cos[:, :1]), cos, sin], -1)
    return f, g.expand(len(f), -1, -1)


def _waves(lag: Tensor, frequency: Tensor) -> Tensor:
    """(lags, 1 + 2 frequencies): 1, the cosines, the sines."""
    angle = lag[:, None] * frequency
    return torch.cat([torch.ones_like(lag)[:, None], angle.cos(), angle.sin()], -1)


def _sample(lag: Tensor) -> Tensor:
    """All lags where they are few; else all near ones and evenly spread far ones."""
    if len(lag) <= FIT_LAGS:
        return lag
    near, far = lag[lag.abs() < FIT_LAGS // 4], lag[:: math.ceil(len(lag) / (FIT_LAGS // 2))]
    return torch.cat([near, far[far.abs() >= FIT_LAGS // 4]])
