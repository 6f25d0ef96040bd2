"""What every attention kernel receives: one prepared call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, States
from relpos.kernels.dropout import Dropout
from relpos.kernels.mask import Mask
from relpos.positions import Positions


@dataclass(frozen=True)
class Call:
    """Queries (batch, heads, n_q, dim), keys and values with as many heads, the term that is added, and who sees whom.

    term is None where a transform has already acted on q and k, or where there is no encoding. first: the number of
    the first sequence, where the call is a part of a larger one.
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
    first: int = 0

    @property
    def toeplitz(self) -> bool:
        """True where the term is one generator of consecutive lags."""
        return set(self.states) == {"lags"} and (self.term is None or self.term.everywhere)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """batch, heads, n_q, n_k"""
        return *self.q.shape[:3], self.k.shape[2]

    @property
    def divisible(self) -> bool:
        """Whether the sequences of the batch may be taken one after another."""
        return all(state.batched is not None for state in self.states.values())

    def of(self, b0: int, b1: int) -> Call:
        """The call of sequences b0..b1-1 alone, of views."""
        if (b0, b1) == (0, len(self.q)):
            return self
        q, k, v = (x[b0:b1] for x in (self.q, self.k, self.v))
        states = {name: state.of(b0, b1) for name, state in self.states.items()}
        mask, first = self.mask.of(b0, b1), self.first + b0
        return replace(self, q=q, k=k, v=v, states=states, mask=mask, first=first, q_pos=None, k_pos=None)

    def with_states(self, tensors: Sequence[Tensor]) -> Call:
        """The same with these tensors as its states, in their order."""
        own = zip(self.states.items(), tensors, strict=True)
        return replace(self, states={name: state._replace(tensor=tensor) for (name, state), tensor in own})


def beyond_a_generator(call: Call) -> str | None:
    """Why a kernel cannot serve the call that takes one generator of lags, in the order of the tensors, in at most
    float32 and without dropout; None where that is all there is."""
    if call.term is not None and not call.toeplitz:
        return f"{type(call.term).__name__} is not a bias of consecutive integer lags in this call"
    if call.dropout is not None:
        return "it has no dropout"
    if call.mask.q_order is not None:
        return "an order that is not that of the tensors would have to be looked up pair by pair"
    if call.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes bfloat16, float16 and float32, not {call.q.dtype}"
    return None


class Refusal(ValueError):
    """A kernel cannot serve a call; the message says why and what would."""


def exactly(x: object) -> torch.autocast:
    """Switches autocast off: it would run products of scores and positions in bfloat16."""
    kind = x.device.type if isinstance(x, Tensor) and x.device.type != "meta" else "cpu"
    return torch.autocast(kind, enabled=False)


def under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Brings tensors of several types to autocast's own where it is on, as torch's attention does; float64 stays out
    of it, and so do tensors of one type, which are computed as they are."""
    if any(not isinstance(x, Tensor) or not x.is_floating_point() for x in tensors):
        return tensors
    kind, types = tensors[0].device.type, {x.dtype for x in tensors}
    if len(types) == 1 or torch.float64 in types or kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "the gradient of this attention kernel is differentiated again, which it does not support; "
            'kernel="dense" does'
        )


def once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Marks the backward pass of a Function whose gradients must not be differentiated: doing so raises.

    torch's own `once_differentiable` lets it pass, silently without that share of the gradient, where the incoming
    gradient is a constant (a loss that is linear in the output).
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        sources = [t for t in (*ctx.saved_tensors, *grads) if t is not None and t.requires_grad]
        mark = torch.zeros(
            (), requires_grad=True
        )  # where the table alone is learned, nothing saved requires a gradient
        return tuple(g if g is None else _Once.apply(g, mark, *sources) for g in found)  # type: ignore[no-untyped-call]

    return checked


def computing(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums and softmax run: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
