"""Binary codes of vectors, learned: bits that are balanced, far from undecided, and not copies of each other.

Losses of h = tanh(net(v)), (count, bits); the code is sign(h), a bit is 1 where h > 0:

    imbalance      mean over sequences of |sum over bits of h|
    fence          mean over sequences of the sum over bits of | |h| - 1 |: bits that sit on the fence
    correlation    mean over pairs of different bits (a, b) of |sum over sequences of h_a h_b|
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.base import Progress


def imbalance(h: Tensor) -> Tensor:
    return h.sum(1).abs().mean()


def fence(h: Tensor) -> Tensor:
    return (h.abs() - 1).abs().sum(1).mean()


def correlation(h: Tensor) -> Tensor:
    """Grows with the number of sequences; over it, it is a mean correlation. 0 for a single bit."""
    bits = h.shape[1]
    if bits < 2:
        return h.new_zeros(())
    products = (h.T @ h).abs()
    return (products.sum() - products.diagonal().sum()) / (bits * (bits - 1))


class Codes(nn.Module):
    """Vectors (count, width) to codes of ``bits``, a multiple of 8, as bytes (count, bits / 8): the first bit is the
    highest of the first byte. Before `fit` the bits are signs of random projections, which is plain hashing."""

    def __init__(self, width: int, bits: int = 64, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or bits < 8 or bits % 8:
            raise ValueError(f"width is above 0 and bits a multiple of 8, got {width} and {bits}")
        self.width, self.bits = width, bits
        self.net = nn.Linear(width, bits)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            # rows at right angles, a basis after the other: less alike than independent draws
            bases = [
                torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(-(-bits // width))
            ]
            self.net.weight.copy_(torch.cat(bases)[:bits])
            self.net.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        """h, (count, bits) in (-1, 1)."""
        return torch.tanh(self.net(vectors))

    def codes(self, vectors: Tensor | np.ndarray) -> np.ndarray:
        """(count, bits / 8) uint8."""
        given = torch.as_tensor(np.asarray(vectors) if not isinstance(vectors, Tensor) else vectors)
        if given.dim() != 2 or given.shape[1] != self.width:
            raise ValueError(f"vectors are (count, {self.width}), got {tuple(given.shape)}")
        with torch.no_grad():
            return np.packbits((self.net(given.to(self.net.weight)) > 0).cpu().numpy(), axis=1)

    def fit(
        self,
        vectors: Tensor | np.ndarray,
        steps: int = 800,
        batch: int = 256,
        rate: float = 1e-2,
        weights: tuple[float, float, float] = (0.1, 0.02, 0.3),
        keep: float = 30.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Codes:
        """Learns from the vectors of a corpus; returns itself.

        weights: of imbalance and fence, both over the number of bits, and of correlation, over the number of sequences.
        keep: weight of a fourth loss, which the method has not: the mean square of h.h' / bits - cos(v, v') over pairs,
        without which nothing ties a code to its vector but where the training began.
        """
        x = torch.as_tensor(np.asarray(vectors) if not isinstance(vectors, Tensor) else vectors).detach()
        x = x.to(self.net.weight)
        if x.dim() != 2 or x.shape[1] != self.width or not len(x):
            raise ValueError(f"vectors are (count above 0, {self.width}), got {tuple(x.shape)}")
        unit = nn.functional.normalize(x, dim=-1)
        with torch.no_grad():
            self.net.bias.copy_(-self.net.weight @ x.mean(0))  # signs of a cone would otherwise all agree
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=rate)
        for step in range(steps):
            rows = torch.from_numpy(rng.integers(len(x), size=min(batch, len(x))))
            h = self(x[rows])
            loss = self._loss(h, weights)
            if keep:
                loss = loss + keep * (h @ h.T / self.bits - _centred(unit, rows)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None and step % 20 == 0:
                progress(step, steps, "learning codes")
        return self

    def _loss(self, h: Tensor, weights: tuple[float, float, float]) -> Tensor:
        balance, undecided, copies = weights
        return balance * imbalance(h) / self.bits + undecided * fence(h) / self.bits + copies * correlation(h) / len(h)


def _centred(unit: Tensor, rows: Tensor) -> Tensor:
    """Cosines around the mean of all vectors: half the bits should tell two halves of the corpus apart."""
    away = nn.functional.normalize(unit[rows] - unit.mean(0), dim=-1)
    return away @ away.T


def buckets(h: Any, bits: Any) -> np.ndarray:
    """(count,) the number that some bits of each code spell, the first of them the highest: a table of the corpus."""
    chosen = np.asarray(h)[:, np.asarray(bits)] > 0
    return chosen @ (1 << np.arange(chosen.shape[1])[::-1])
