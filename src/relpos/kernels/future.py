"""What complete tokens owe to rows that are still to come: the FFT part of `online.FreeSums`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOGETHER = 2**20  # numbers transformed at once: what a cache holds
DENSE = 64  # rows up to which a staircase is one matrix product


def prepare(target: Tensor, fk: Tensor, x: Tensor, c: Tensor, t: int, size: int, chunks: int, cut: bool) -> int:
    """Adds to target[.., r] the sum over tokens j in t - chunks * size .. t - 1 of c_{t+r-j} fk_j x_j^T; r < size.

    target (batch, heads, m, w, size), fk (batch, kv_heads, n, m), x (batch, kv_heads, n, w), c (heads or 1, known),
    lags that c does not hold count for nothing. Returns the multiply-adds: memory O(size * w) beside the target.

    cut  no row is computed beside a weight whose lag is longer than the row: where the first token is among the
         sources, lags up to t (which all rows have) go through the FFT and longer ones through `staircase`.
    """
    batch, kv_heads, _, m = fk.shape
    heads, w = target.shape[1], x.shape[-1]
    c = c.expand(heads, -1) if c.shape[0] == 1 else c
    last = max(c.shape[-1], t + size)
    c = torch.nn.functional.pad(c, (0, last - c.shape[-1])).view(kv_heads, -1, 1, 1, last)
    together = max(1, TOGETHER // (2 * size * w * batch * heads))
    work = 0
    for r in range(0, m, together):
        features = fk[..., r : r + together].transpose(-1, -2).unsqueeze(-2)
        columns = batch * features.shape[2] * w
        total: Tensor | float = 0.0
        late: Tensor | None = None
        for g in range(chunks):
            first = t - (g + 1) * size
            z = features[..., first : first + size] * x[:, :, first : first + size].transpose(-1, -2).unsqueeze(2)
            z = z.unsqueeze(2)
            lags = c[..., g * size : (g + 2) * size]
            if cut and first == 0:
                lags = torch.cat([lags[..., : size + 1], torch.zeros_like(lags[..., size + 1 :])], -1)
                late, spent = staircase(z, c[..., t : t + size])
                work += spent
            total = total + torch.fft.rfft(z, 2 * size) * torch.fft.rfft(lags)
            work += transform(2 * size) * columns * kv_heads + 4 * size * columns * heads
        owed = torch.fft.irfft(total, 2 * size)[..., size:]
        work += transform(2 * size) * columns * heads
        owed = owed if late is None else owed + late
        target[:, :, r : r + together] += owed.flatten(1, 2)
    return work


def transform(n: int) -> int:
    """Multiply-adds of a real FFT of length n."""
    return int(2.5 * n * math.log2(n))


def staircase(z: Tensor, c: Tensor) -> tuple[Tensor, int]:
    """y_r = sum_{1 <= k <= r} c_k z_{r-k}, no row r meeting a c_k with k > r even in rounding; and its multiply-adds.

    z (.., n), c broadcastable to it, n a power of two. Halved: rows of the second half have all lags up to n / 2, one
    FFT; what remains in both halves is a staircase of half the size. O(n log^2 n) a column.
    """
    n = z.shape[-1]
    rows = math.prod(max(a, b) for a, b in zip(z.shape[-6:-1], (1, *c.shape[:-1])))
    if n <= DENSE:
        k = torch.arange(n, device=c.device)
        lag = k - k.unsqueeze(-1)
        matrix = c[..., lag.clamp(min=0)].masked_fill(lag < 1, 0)
        return z @ matrix.squeeze(-3), rows * n * n  # one matrix for all columns of a head
    half = n // 2
    upper, first = staircase(z[..., :half], c[..., :half])
    lower, second = staircase(z[..., :half], c[..., half:])
    shared = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1 : half + 1]], -1)
    both = torch.fft.irfft(torch.fft.rfft(z, n) * torch.fft.rfft(shared, n), n)[..., half:]
    return torch.cat([upper, lower + both], -1), first + second + 3 * transform(n) * rows
