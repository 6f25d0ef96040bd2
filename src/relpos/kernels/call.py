"""What every attention kernel receives: one prepared call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, States
from relpos.kernels.dropout import Dropout
from relpos.kernels.mask import Mask
from relpos.positions import Positions


@dataclass(frozen=True)
class Call:
    """Queries (batch, heads, n_q, dim), keys and values with as many heads, the term that is added, and who sees whom.

    term is None where a transform has already acted on q and k, or where there is no encoding.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Mask
    term: Pairwise | None = None
    states: States = field(default_factory=dict)
    q_pos: Positions | None = None
    k_pos: Positions | None = None
    dropout: Dropout | None = None

    @property
    def toeplitz(self) -> bool:
        """True where the term is one generator of consecutive lags."""
        return set(self.states) == {"lags"}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """batch, heads, n_q, n_k"""
        return *self.q.shape[:3], self.k.shape[2]


class Refusal(ValueError):
    """A kernel cannot serve a call; the message says why and what would."""


def exactly(x: object) -> torch.autocast:
    """Switches autocast off: it would run products of scores and positions in bfloat16."""
    kind = x.device.type if isinstance(x, Tensor) and x.device.type != "meta" else "cpu"
    return torch.autocast(kind, enabled=False)


def computing(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums and softmax run: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
