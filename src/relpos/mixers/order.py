"""Whether the positions of a stream's tokens go on in steps of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relpos.positions import Index, Positions

UNSEEN = torch.iinfo(torch.int64).min // 2


@dataclass(frozen=True, eq=False)
class Order:
    """What the tokens so far say of it; padding tokens say nothing.

    consecutive  every real token stands as many positions behind its predecessor as it came later, row by row
    base         (batch,) position of the stream's first token, UNSEEN for a row of padding; None: 0 for all
    last         (batch,) largest position so far
    """

    consecutive: bool = True
    base: Tensor | None = None
    last: Tensor | None = None

    @property
    def given(self) -> bool:
        """Whether any step brought positions of its own."""
        return self.base is not None or not self.consecutive

    def then(self, positions: Positions, length: int, real: Tensor | None, batch: int) -> Order:
        """With t more tokens behind `length`. ValueError where integers do not rise: order is arrival in a stream."""
        index = positions.get("index") if isinstance(positions, Mapping) else positions
        if not isinstance(index, Index):
            return replace(self, consecutive=False)
        at = index.values.expand(batch, -1)
        t = at.shape[1]
        hidden = torch.zeros_like(at, dtype=torch.bool) if real is None else ~real
        last = at.new_full((batch,), length - 1 if length else UNSEEN) if self.last is None else self.last
        running = torch.cat([last.unsqueeze(1), at.masked_fill(hidden, UNSEEN)], 1).cummax(1).values
        if bool(((at <= running[:, :-1]) & ~hidden).any()):
            raise ValueError(
                "a stream of kernelized attention sums tokens as they come: integer positions rise from token to token "
                "(but for those that key_mask hides)"
            )
        back = (at - torch.arange(length, length + t, device=at.device)).masked_fill(hidden, UNSEEN)
        base = at.new_full((batch,), 0 if length else UNSEEN) if self.base is None else self.base
        base = torch.where(base == UNSEEN, back.amax(1), base)
        same = bool(((back == base.unsqueeze(1)) | hidden).all())
        return Order(self.consecutive and same and not isinstance(positions, Mapping), base, running[:, -1])

    def places(self, length: int, device: torch.device) -> Index:
        """The positions of the `length` tokens so far, where they are consecutive."""
        slots = torch.arange(length, device=device)
        return Index(slots if self.base is None else self.base.masked_fill(self.base == UNSEEN, 0).unsqueeze(1) + slots)

    def select(self, rows: Tensor) -> Order:
        base, last = (None if x is None else x.index_select(0, rows) for x in (self.base, self.last))
        return replace(self, base=base, last=last)
