"""One question to the bench: a shape, a mode, and the inputs that every contestant gets alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor


class Refused(Exception):
    """A contestant cannot take part; the message is the reason that the tables show."""


@dataclass(frozen=True)
class Problem:
    """Attention of `heads` heads of width `dim` over n tokens; forward, or forward and backward.

    features   random features of kernelised attention; nothing else reads it
    """

    n: int
    heads: int = 8
    dim: int = 64
    causal: bool = False
    backward: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = 1
    features: int = 16

    @property
    def kind(self) -> torch.dtype:
        kind = getattr(torch, self.dtype)
        assert isinstance(kind, torch.dtype)
        return kind

    @property
    def mode(self) -> str:
        """Words for a heading, such as `forward + backward, causal`."""
        return ("forward + backward" if self.backward else "forward") + (", causal" if self.causal else "")

    @property
    def flops(self) -> float:
        """Additions and multiplications of the matrix products that no exact method can leave out.

        Two products forward (4 n^2 d h), five more backward (14 n^2 d h in all: the weights are computed again, since
        keeping them would take n x n), half of it where causality hides half of the pairs.
        """
        return (
            (14.0 if self.backward else 4.0)
            * self.n**2
            * self.dim
            * self.heads
            * self.batch
            / (2 if self.causal else 1)
        )

    @property
    def exponentials(self) -> float:
        return (2.0 if self.backward else 1.0) * self.n**2 * self.heads * self.batch / (2 if self.causal else 1)

    @property
    def scores(self) -> float:
        """Bytes of one tensor of float32 scores, batch x heads x n x n: what linear memory is compared with."""
        return 4.0 * self.batch * self.heads * self.n**2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_mode(self) -> dict[str, Any]:
        """What tells the rows of one run apart."""
        return {key: getattr(self, key) for key in ("n", "causal", "backward", "features")}

    def inputs(self) -> Inputs:
        return Inputs(self)

    def table(self) -> Tensor:
        """The learned bias of the contestants that have one: (heads, 2 n - 1) float32, index lag + n - 1."""
        seeded = torch.Generator().manual_seed(1)
        return (torch.randn(self.heads, 2 * self.n - 1, generator=seeded) * 0.5).to(self.device)


class Inputs:
    """q, k, v and the gradient that comes back; the same for every contestant of one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = self.problem
        seeded = torch.Generator().manual_seed(0)
        q, k, v, grad = (
            torch.randn(p.batch, p.heads, p.n, p.dim, generator=seeded).to(p.device, p.kind) for _ in range(4)
        )
        if p.backward:
            for x in (q, k, v):
                x.requires_grad_()
        return q, k, v, grad


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prepared:
    """A contestant ready to run: what it computes, and its parameters that get a gradient."""

    attend: Attend
    parameters: Sequence[Tensor] = ()


def call(prepared: Prepared, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """The work of one measurement. Forward: the output; with backward: the output and all gradients."""
    q, k, v, grad = inputs.tensors
    if not inputs.problem.backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (prepared.attend(q, k, v),)

        return forward
    wanted = (q, k, v, *prepared.parameters)

    def both() -> tuple[Tensor, ...]:
        out = prepared.attend(q, k, v)
        return (out.detach(), *torch.autograd.grad(out, wanted, grad))

    return both


@lru_cache(maxsize=1)
def lag_index(n: int, device: str) -> Tensor:
    """(n, n) int64: lag + n - 1 of every pair, the ready index of those who materialise; one copy for all of them."""
    place = torch.arange(n, device=device)
    return place - place[:, None] + n - 1
