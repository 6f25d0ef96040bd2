"""What every kernel of linear attention receives: one prepared call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Bias, States
from relpos.kernels.linear.rows import Rows
from relpos.kernels.mask import Mask

ROWS = 2048  # made at a time: temporaries of the whole length would cost more in page faults than in arithmetic


class Sums(NamedTuple):
    """total (batch, heads, n_q, width), to be multiplied by exp(shift), which broadcasts against it."""

    total: Tensor
    shift: Tensor

    def but(self, rows: Tensor, other: Sums) -> Sums:
        """These, with the rows (batch, heads, n_q, 1) of another."""
        return Sums(*(torch.where(rows, theirs, mine) for mine, theirs in zip(self, other, strict=True)))

    def plus(self, other: Sums) -> Sums:
        shifts = [x.shift.masked_fill(x.total.detach()[..., -1:] == 0, -torch.inf) for x in (self, other)]
        top = torch.maximum(*shifts)  # a row that sees nothing here must not push the other's sum out of range
        top = top.masked_fill(top == -torch.inf, 0)
        mine, others = ((shift - top).exp() for shift in shifts)
        return Sums(self.total * mine + other.total * others, top)


@dataclass(frozen=True)
class LinearCall:
    """q (batch, heads, n_q, d) and k (batch, heads, n_k, d), which phi maps to features; values (batch, heads, n_k,
    width), zero where a key is hidden by padding. A kernel returns

        sum_j exp(bias_ij) phi(q_i).phi(k_j) values_j      (batch, heads, n_q, width)

    over the visible keys, as `Sums`. The last column of the values is 1: its sum is the denominator.

    bias     None where all weights are 1; states: what it prepared
    offset   place of the first query among the keys where both run in steps of one and the bias depends on that lag
             alone, else None: what allows the O(n) kernels
    """

    q: Tensor
    k: Tensor
    values: Tensor
    phi: Rows
    mask: Mask
    bias: Bias | None = None
    states: States = field(default_factory=dict)
    offset: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """batch, heads, n_q, n_k"""
        return *self.q.shape[:3], self.k.shape[2]

    @property
    def causal(self) -> bool:
        return self.mask.right is not None

    @property
    def ordered(self) -> bool:
        """True where visibility is a matter of the lag alone (padding is in the values)."""
        return self.mask.q_order is None and self.mask.q_segments is None and self.mask.right in (None, 0)

    def to(self, dtype: torch.dtype) -> LinearCall:
        """The same call, computed in another type."""
        states = {
            name: state._replace(tensor=state.tensor.to(dtype) if state.tensor.is_floating_point() else state.tensor)
            for name, state in self.states.items()
        }
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), values=self.values.to(dtype), states=states)

    def at_once(self) -> LinearCall:
        """The same call with the features of all rows made, where they are no wider than the values: quicker, and
        memory of the same order. Wider ones are made tile by tile, so that memory does not depend on their number.
        """
        if self.phi.module is None or 0 in self.shape:
            return self
        if self.phi(self.q[:1, :1, :1]).shape[-1] > self.values.shape[-1]:
            return self
        q, k = (torch.cat([self.phi(part) for part in torch.split(x, ROWS, 2)], 2) for x in (self.q, self.k))
        return replace(self, q=q, k=k, phi=Rows(None))
