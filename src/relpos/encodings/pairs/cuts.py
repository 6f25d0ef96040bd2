"""The bucket of a number by comparing it with the number at which the next one begins, instead of by its formula.

Most formulas of a bucket (an inverse sine, a logarithm, a quotient) never fall as their argument rises. So they are
asked once, where each bucket begins; a pair then costs one comparison, with the bound that lies among the numbers of
the same sign, exponent and first digits: numbers >= 0 are in the order of their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite

import torch
from torch import Tensor

MOST = 4096  # bins, small enough to stay in the cache
_MANTISSA, _INFINITY = 52, 0x7FF << 52  # bits of float64, and those of infinity


def bounds_of(size: Callable[[Tensor], Tensor], reach: int) -> tuple[float, ...]:
    """The smallest number >= 0 whose `size` (integers, never falling) is 1, 2, .., reach or more; infinity where there
    is none. By bisection of all float64 numbers, so that comparing with them says what `size` says."""
    ranks = torch.arange(1, reach + 1, device="cpu")
    low, high = torch.zeros_like(ranks), torch.full_like(ranks, _INFINITY)
    while bool((low < high).any()):
        middle = low + (high - low) // 2
        past = size(middle.view(torch.float64).clone()) >= ranks
        low, high = torch.where(past, low, middle + 1), torch.where(past, middle, high)
    return tuple(high.view(torch.float64).tolist())


@dataclass(frozen=True)
class Cuts:
    """Bins of numbers by their first bits, each with at most one bound: of the numbers in bin b, those from at[b] on
    have the size below[b] + 1, the others below[b]. Bin 0 is that of the first bound and holds all smaller numbers."""

    shift: int
    first: int
    at: tuple[float, ...]
    below: tuple[int, ...]

    @staticmethod
    def of(bounds: tuple[float, ...]) -> Cuts | None:
        """None where that would take more than MOST bins, or where one number begins two buckets."""
        finite = [bound for bound in bounds if isfinite(bound)]
        bits = torch.tensor(finite, dtype=torch.float64, device="cpu").view(torch.int64).tolist()
        for shift in range(_MANTISSA, -1, -1):
            bins = [b >> shift for b in bits]
            if not bins or bins[-1] - bins[0] >= MOST:
                return None
            if len(set(bins)) == len(bins):
                held = dict(zip(bins, finite))
                at = tuple(held.get(b, inf) for b in range(bins[0], bins[-1] + 1))
                ends = accumulate(map(isfinite, at), initial=0)
                return Cuts(shift, bins[0], at, tuple(ends)[:-1])
        return None

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """at and below."""
        return torch.tensor(self.at, dtype=torch.float64, device=device), torch.tensor(self.below, device=device)

    def size(self, x: Tensor, at: Tensor, below: Tensor) -> Tensor:
        """int64, how many bounds lie at or below each finite x; what is below 0 counts as 0."""
        bins = (x.view(torch.int64) >> self.shift).sub_(self.first).clamp_(0, len(self.at) - 1).flatten()
        found = below.index_select(0, bins).view(x.shape)
        return found.add_(x >= at.index_select(0, bins).view(x.shape))
