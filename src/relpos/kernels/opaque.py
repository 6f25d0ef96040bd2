"""Attention as one operator, for what rewrites programs: torch.compile, torch.export and the transforms of torch.func.

`relpos::attend` and `relpos::attend_backward` are the tiled kernels behind one node each: a tracer sees shapes and no
tiles, so a graph serves every length, memory stays linear, and what depends on values (whether padding stands at the
ends) is looked at when the program runs. Both compute what the eager kernels compute, to the last bit.

A term's own code runs inside the node; the graph holds its number (`Encoding.handle`), which lives as long as this
process. A bias that is one generator of lags needs none, so that an exported program of it can be loaded elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relpos.encodings.handles import number_of
from relpos.kernels import operators
from relpos.kernels.call import Call, Refusal, computing
from relpos.kernels.mask import Mask
from relpos.kernels.node import FORWARD, Dims, Last, mapped
from relpos.kernels.operators import NONE
from relpos.positions import is_exporting, is_traced


def attend(call: Call, way: str = "tiled") -> Tensor:
    """The output of a call by the kernel "tiled", "hankel" or "generic", as one node."""
    term = None if call.term is None or call.toeplitz else call.term
    if term is not None and is_exporting():
        raise Refusal(
            f"the tiles of {type(term).__name__} are Python code, which an exported program cannot hold; "
            'kernel="dense" exports its definition, n_q x n_k, in plain operators'
        )
    dtype = computing(call.q.dtype)
    mask, drop = call.mask, call.dropout
    spec = ";".join(f"{name},{state.along},{state.axis}" for name, state in call.states.items())
    states = [state.tensor for state in call.states.values()]
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    optional = (
        mask.q_order, mask.k_order, mask.key_mask, mask.q_segments, mask.k_segments,
        None if drop is None else torch.as_tensor(drop.seed),
    )  # fmt: skip
    number = NONE if term is None else number_of(term)
    rest = (
        0.0 if drop is None else drop.rate, number, spec, way, call.scale, mask.offset, mask.left, mask.right,
    )  # fmt: skip
    if is_traced():
        out: Tensor = operators.attend(q, k, v, states, *optional, *rest)[0]
    else:
        out = _Attend.apply(q, k, v, *optional, rest, *states)[0]  # type: ignore[no-untyped-call]
    return out.to(call.q.dtype)


def lost(mask: Mask, bad: Tensor, bad_q: Tensor) -> Tensor:
    """Queries (batch, heads, n_q) that are bad themselves and see a key, or that see a bad one of (batch, heads, n_k),
    as one node."""
    return operators.lost(  # type: ignore[no-any-return]
        bad, bad_q, mask.q_order, mask.k_order, mask.key_mask, mask.q_segments, mask.k_segments, mask.offset, mask.left,
        mask.right,
    )  # fmt: skip


class _Attend(torch.autograd.Function):
    """The operator for torch.func, whose transforms do not know the derivatives of operators."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = operators.attend(q, k, v, list(more[7:]), *more[:6], *more[6])
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors = (*inputs[:9], *inputs[10:])
        ctx.save_for_backward(*output, *(x for x in tensors if x is not None))
        ctx.there, ctx.rest = [x is not None for x in tensors], inputs[9]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *saved = ctx.saved_tensors
        there = iter(saved)
        tensors = [next(there) if given else None for given in ctx.there]
        wanted = tuple(ctx.needs_input_grad[10:])
        found = _Backward.apply(grad, out, lse, wanted, ctx.rest, *tensors)  # type: ignore[no-untyped-call]
        states = [g if need else None for g, need in zip(found[3:], wanted, strict=True)]
        return *found[:3], *[None] * 7, *states

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Any, Any]:
        return mapped(_Attend, info.batch_size, in_dims, args)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(FORWARD)


class _Backward(Last):
    @staticmethod
    def forward(
        grad: Tensor, out: Tensor, lse: Tensor, wanted: tuple[bool, ...], rest: Any, *tensors: Any
    ) -> tuple[Tensor, ...]:
        return tuple(
            operators.attend_backward(
                grad, out, lse, list(wanted), *tensors[:3], list(tensors[9:]), *tensors[3:9], *rest
            )
        )

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Any, Any]:
        return mapped(_Backward, info.batch_size, in_dims, args)
