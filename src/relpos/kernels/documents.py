"""Packed documents and padding as one number a token, and which block can see which: what kernels of blocks need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relpos.kernels.mask import Mask


@dataclass(frozen=True)
class Documents:
    """Which keys a query may see besides those that the order hides: equal numbers; -1 is padding."""

    q: Tensor  # (batch, n_q) int32
    k: Tensor  # (batch, n_k) int32

    @classmethod
    def of(cls, mask: Mask, batch: int, device: torch.device) -> Documents | None:
        """None where neither documents nor padding are given."""
        if mask.key_mask is None and mask.q_segments is None:
            return None
        if mask.q_segments is None or mask.k_segments is None:
            q, k = (torch.zeros(batch, n, dtype=torch.int32, device=device) for n in (mask.n_q, mask.n_k))
        else:
            named = torch.unique(torch.cat([mask.q_segments, mask.k_segments], 1), return_inverse=True)[1].int()
            q, k = named.split([mask.n_q, mask.n_k], 1)
        if mask.key_mask is not None:
            k = k.masked_fill(~mask.key_mask, -1)
        return cls(q.contiguous(), k.contiguous())

    def spans(self, of_queries: bool, size: int) -> Tensor:
        """For each block of `size` queries (or keys) the first key (query) that one of them may see, and the end of
        those: (batch, blocks, 2) int32."""
        own, other = (self.q, self.k) if of_queries else (self.k, self.q)
        batch, n = other.shape
        names = int(max(own.max(), other.max())) + 2  # the last one, for padding, is nobody's
        place = torch.arange(n, dtype=torch.int32, device=own.device).expand(batch, n)
        index = torch.where(other < 0, names - 1, other).long()
        first = torch.full((batch, names), n, dtype=torch.int32, device=own.device)
        last = torch.zeros_like(first)
        first.scatter_reduce_(1, index, place, "amin")
        last.scatter_reduce_(1, index, place + 1, "amax")
        first[:, -1], last[:, -1] = n, 0
        at = torch.where(own < 0, names - 1, own).long()
        edge = -own.shape[1] % size
        pad = torch.nn.functional.pad
        lowest = pad(first.gather(1, at), (0, edge), value=n).view(batch, -1, size).amin(-1)
        highest = pad(last.gather(1, at), (0, edge), value=0).view(batch, -1, size).amax(-1)
        return torch.stack([lowest, highest], -1).contiguous()
