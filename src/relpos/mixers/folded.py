"""What a gate need not make twice: the matrices of its weights, while nobody asks for gradients and nothing changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relpos.encodings.base import Bias
from relpos.kernels import window as kernel
from relpos.kernels.call import computing
from relpos.kernels.node import wanted

MOST = 2**21  # entries of a unit's matrices that are kept: 8 MiB


class Folded:
    """The matrix of each group (groups, n, n), row = query, kept from one call to the next.

    For few pictures making the matrices costs as much as using them. They are made again where any parameter or buffer
    of the encoding holds other values, however it came by them; copies and pickles of a unit begin without.
    """

    def __init__(self) -> None:
        self._made_of: list[Tensor] = []
        self._made_for: torch.dtype | None = None
        self._weights: Tensor | None = None

    def serves(self, encoding: Bias, sides: tuple[int, ...], method: str) -> bool:
        """Whether the next call may take a kept matrix: no gradient, no tracer, a matrix anyway, and not too large."""
        small = encoding.heads * math.prod(sides) ** 2 <= MOST
        return not torch.is_grad_enabled() and small and not wanted() and kernel.pick(sides, method) == "dense"

    def of(self, encoding: Bias, sides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """For x of this type."""
        now = [*encoding.parameters(), *encoding.buffers()]
        if self._weights is None or dtype != self._made_for or not _same(now, self._made_of):
            self._weights, self._made_for = matrices(encoding, sides, dtype), dtype
            self._made_of = [x.detach().clone() for x in now]
        return self._weights

    def forget(self) -> None:
        self._made_of, self._weights = [], None

    def __deepcopy__(self, memo: object) -> Folded:
        return Folded()

    def __reduce__(self) -> tuple[type[Folded], tuple[()]]:
        return Folded, ()


def matrices(encoding: Bias, sides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weights of every pair of cells, in what sums for x of this type run in."""
    scores = encoding.lags(sides) if len(sides) > 1 else encoding.lags(sides[0])
    scores = scores.to(torch.promote_types(computing(scores.dtype), computing(dtype)))
    found = kernel.matrices(scores, sides)
    return found.softmax(-1) if encoding.normalized else found


def _same(now: list[Tensor], then: list[Tensor]) -> bool:
    """Of one device and type, with the same numbers."""
    return len(now) == len(then) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(now, then, strict=True)
    )
