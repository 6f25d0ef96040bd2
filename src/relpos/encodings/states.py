"""What an encoding hands to a kernel: tensors, how they may be sliced, and the tile that is wanted of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Along = Literal["lag", "query", "key", "whole"]


class State(NamedTuple):
    """A tensor that `tile` reads, and how a kernel may slice it.

    along  "query" / "key": axis `axis` has one entry a query / key; "lag": it has n_q + n_k - 1 entries, entry
           j - i + n_q - 1 belongs to query i and key j; "whole": never sliced.
    batched  True: axis 0 is that of the sequences, with an entry for each or one for all; False: there is none;
           None: not said, and a kernel then keeps the batch together.
    """

    tensor: Tensor
    along: Along
    axis: int = -1
    batched: bool | None = None

    def of(self, b0: int, b1: int) -> State:
        """The part of sequences b0..b1-1, a view."""
        return self if not self.batched or len(self.tensor) == 1 else self._replace(tensor=self.tensor[b0:b1])


States = dict[str, State]
Slices = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tile:
    """Queries i0..i1-1 against keys j0..j1-1 of an attention of n_q queries and n_k keys."""

    i0: int
    i1: int
    j0: int
    j1: int
    n_q: int
    n_k: int

    @property
    def t_q(self) -> int:
        return self.i1 - self.i0

    @property
    def t_k(self) -> int:
        return self.j1 - self.j0

    def span(self, along: Along) -> tuple[int, int] | None:
        """Start and length of this tile's slice of a state, None for a whole one."""
        if along == "query":
            return self.i0, self.t_q
        if along == "key":
            return self.j0, self.t_k
        if along == "lag":  # local index: (j - j0) - (i - i0) + t_q - 1
            return self.j0 - (self.i1 - 1) + self.n_q - 1, max(self.t_q + self.t_k - 1, 0)
        return None

    def slice(self, state: State) -> Tensor:
        """The part of the state that this tile needs, a view."""
        span = self.span(state.along)
        return state.tensor if span is None else state.tensor.narrow(state.axis, *span)


class Tail(NamedTuple):
    """How a bias ends: beyond `reach` tokens it goes on as a straight line, so that its exponential is geometric.

    bias(lag) = bias(-reach) - rates[:, 0] * (-lag - reach) for lag <= -reach, keys before the query, and
    bias(lag) = bias(+reach) - rates[:, 1] * (lag - reach) for lag >= reach. Linear attention then needs a band of
    that width and running sums, and decodes in constant time a token.
    """

    reach: int
    rates: Tensor | None = None  # (heads, 2) >= 0, nats a token, without gradient; None: constant on both sides
