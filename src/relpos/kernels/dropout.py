"""Attention dropout from a counter: the same seed drops the same weights in every kernel and every tiling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """One finalising round of a 32-bit integer hash, in int64 so that nothing overflows into the sign."""
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK
    return x ^ (x >> 16)


@dataclass(frozen=True)
class Dropout:
    """Each weight is zeroed with probability `rate`, decided by a hash of (seed, batch, head, query, key)."""

    rate: float
    seed: int | Tensor  # a tensor of one number where a tracer follows

    def keep(
        self,
        b0: int,
        b1: int,
        heads: int,
        i0: int,
        i1: int,
        j0: int,
        j1: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Factors 0 or 1 / (1 - rate), (b1 - b0, heads, i1 - i0, j1 - j0)."""
        seed = torch.as_tensor(self.seed & _MASK, device=device)  # mixed first: seed + 1 is not one head further
        rows = torch.arange(b0 * heads, b1 * heads, device=device).view(b1 - b0, heads, 1, 1)
        queries = torch.arange(i0, i1, device=device).view(-1, 1)
        keys = torch.arange(j0, j1, device=device)
        row = _mix(_mix(_mix(rows + _mix(seed)) + queries) ^ 0x9E3779B9)
        bits = _mix(row ^ _mix(keys + 0x7F4A7C15))
        return (bits >= int(self.rate * 2**32)).to(dtype) / (1.0 - self.rate)
