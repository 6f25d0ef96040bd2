"""What every kernel of linear attention receives: one prepared call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relpos.encodings.base import Bias, States, Tail
from relpos.kernels.call import once
from relpos.kernels.linear.rows import Rows
from relpos.kernels.mask import Mask

ROWS = 2048  # made at a time: temporaries of the whole length would cost more in page faults than in arithmetic


class Sums(NamedTuple):
    """above (batch, heads, n_q, width) and below (batch, heads, n_q, 1), both to be multiplied by exp(shift), which
    broadcasts against them; their ratio is the output."""

    above: Tensor
    below: Tensor
    shift: Tensor

    @classmethod
    def of(cls, total: Tensor, shift: Tensor) -> Sums:
        """From sums of `LinearCall.both`, whose last column is below."""
        return cls(total[..., :-1], total[..., -1:], shift)

    def but(self, rows: Tensor, other: Sums) -> Sums:
        """These, with the rows (batch, heads, n_q, 1) of another."""
        return Sums(*(torch.where(rows, theirs, mine) for mine, theirs in zip(self, other, strict=True)))

    def rows(self, index: Tensor) -> Sums:
        """Those of some queries, where all share one shift."""
        return Sums(self.above[:, :, index], self.below[:, :, index], self.shift)

    def plus(self, other: Sums) -> Sums:
        shifts = [x.shift.masked_fill(x.below.detach() == 0, -torch.inf) for x in (self, other)]
        top = torch.maximum(*shifts)  # a row that sees nothing here must not push the other's sum out of range
        top = top.masked_fill(top == -torch.inf, 0)
        mine, others = ((shift - top).exp() for shift in shifts)
        return Sums(self.above * mine + other.above * others, self.below * mine + other.below * others, top)


@dataclass(frozen=True)
class LinearCall:
    """q (batch, heads, n_q, d) and k (batch, heads, n_k, d), which phi maps to features; values (batch, heads, n_k,
    width) and ones (batch or 1, 1, n_k, 1), zero where a key is hidden by padding. A kernel returns

        above_i = sum_j exp(bias_ij) phi(q_i).phi(k_j) values_j      (batch, heads, n_q, width)
        below_i = sum_j exp(bias_ij) phi(q_i).phi(k_j) ones_j        (batch, heads, n_q, 1)

    over the visible keys, as `Sums`: numerator and denominator.

    bias     None where all weights are 1; states: what it prepared
    tail     how the bias ends, None where it does not or where it is not asked; near (heads, 2 reach + 1): the bias of
             the lags within that reach
    offset   place of the first query among the keys where both run in steps of one and the bias depends on that lag
             alone, else None: what allows the O(n) kernels
    """

    q: Tensor
    k: Tensor
    values: Tensor
    ones: Tensor
    phi: Rows
    mask: Mask
    bias: Bias | None = None
    states: States = field(default_factory=dict)
    offset: int | None = None
    tail: Tail | None = None
    near: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """batch, heads, n_q, n_k"""
        return *self.q.shape[:3], self.k.shape[2]

    @property
    def lags_near(self) -> Tensor:
        """The bias of the lags within reach, (heads or 1, 2 reach + 1)."""
        return self.q.new_zeros(self.shape[1], 1) if self.near is None else self.near

    @property
    def both(self) -> Tensor:
        """The values with the ones as a last column, a copy: for kernels that take both in one product."""
        return torch.cat([self.values, self.ones.expand(*self.values.shape[:3], 1)], -1)

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
        moved = {name: getattr(self, name).to(dtype) for name in ("q", "k", "values", "ones")}
        return replace(self, **moved, states=states)

    def at_once(self, twice: bool = False) -> LinearCall:
        """The same call with the features of all rows made, where they are no wider than the values: quicker, and
        memory of the same order. Wider ones are made tile by tile, so that memory does not depend on their number.
        twice: by operations whose gradient can be differentiated again.
        """
        if self.phi.module is None or 0 in self.shape:
            return self
        if self.phi(self.q[:1, :1, :1]).shape[-1] > self.values.shape[-1] + 1:
            return self
        if twice:
            q, k = (torch.cat([self.phi(part) for part in torch.split(x, ROWS, 2)], 2) for x in (self.q, self.k))
        else:
            q, k = (_AtOnce.apply(self.phi, x, *self.phi.parameters) for x in (self.q, self.k))  # type: ignore[no-untyped-call]
        return replace(self, q=q, k=k, phi=Rows(None))


class _AtOnce(torch.autograd.Function):
    """phi of all rows, some at a time, in both passes: what is kept and what is written is one tensor each."""

    @staticmethod
    def forward(ctx: Any, phi: Rows, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.phi = phi
        ctx.save_for_backward(x, *parameters)
        out: Tensor | None = None
        for first in range(0, x.shape[2], ROWS):
            part = phi(x[:, :, first : first + ROWS])
            out = part.new_empty(*x.shape[:3], part.shape[-1]) if out is None else out
            out[:, :, first : first + ROWS] = part
        assert out is not None
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        into, totals = torch.empty_like(x), [torch.zeros_like(p) for p in parameters]
        for first in range(0, x.shape[2], ROWS):
            rows = slice(first, first + ROWS)
            into[:, :, rows], found = ctx.phi.back(x[:, :, rows], grad[:, :, rows])
            for total, part in zip(totals, found, strict=True):
                total += part
        return None, into, *totals
