"""Attention as one operator, for what rewrites programs: torch.compile, torch.export and the transforms of torch.func.

`relpos::attend` and `relpos::attend_backward` are the tiled kernels behind one node each: a tracer sees shapes and no
tiles, so a graph serves every length, memory stays linear, and what depends on values (whether padding stands at the
ends) is looked at when the program runs. Both compute what the eager kernels compute, to the last bit.

A term's own code runs inside the node; the graph holds its number (`Encoding.handle`), which lives as long as this
process. A bias that is one generator of lags needs none, so that an exported program of it can be loaded elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, State, States, handled
from relpos.kernels import hankel, tiles
from relpos.kernels.call import Call, Refusal, computing, exactly
from relpos.kernels.dropout import Dropout
from relpos.kernels.fused import one_width
from relpos.kernels.mask import Mask
from relpos.positions import is_exporting, is_traced

NONE = -1  # the handle of no term
TWICE = 'the gradient of this attention kernel is differentiated again, which it does not support; kernel="dense" does'


def wanted() -> bool:
    """Whether a call is to be one operator: it is being traced, or a transform of torch.func acts on it."""
    return is_traced() or transformed()


def transformed() -> bool:
    return bool(torch._C._are_functorch_transforms_active())


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
    rest = (
        0.0 if drop is None else drop.rate, NONE if term is None else term.handle, spec, way, call.scale, mask.offset,
        mask.left, mask.right,
    )  # fmt: skip
    if is_traced():
        out: Tensor = _attend(q, k, v, states, *optional, *rest)[0]
    else:
        out = _Attend.apply(q, k, v, *optional, rest, *states)[0]  # type: ignore[no-untyped-call]
    return out.to(call.q.dtype)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    states: Sequence[Tensor],
    q_order: Tensor | None,
    k_order: Tensor | None,
    key_mask: Tensor | None,
    q_segments: Tensor | None,
    k_segments: Tensor | None,
    seed: Tensor | None,
    rate: float,
    term: int,
    spec: str,
    way: str,
    scale: float,
    offset: int,
    left: int | None,
    right: int | None,
) -> Call:
    """The call that these arguments of the operator stand for."""
    named: States = {}
    for part, tensor in zip(spec.split(";") if spec else (), states, strict=True):
        name, along, axis = part.split(",")
        named[name] = State(tensor, along, int(axis))  # type: ignore[arg-type]
    mask = Mask(q.shape[2], k.shape[2], offset, left, right, q_order, k_order, _some(key_mask), q_segments, k_segments)
    own: Pairwise | None = None
    if term != NONE:
        found = handled(term)
        assert isinstance(found, Pairwise)
        own = found
    elif named:
        own = _LAGS
    drop = None if seed is None else Dropout(rate, int(seed))
    return Call(q, k, v, scale, mask, own, named, dropout=drop)


def _some(key_mask: Tensor | None) -> Tensor | None:
    """A mask that hides something, None where it hides nothing."""
    return None if key_mask is None or bool(key_mask.all()) else key_mask


class _Lags(Pairwise):
    """A generator that somebody has already made: the term of index j - i + n_q - 1."""

    def tile(self, q: Tensor, k: Tensor, states: Any, tile: Any) -> Tensor:
        from relpos.encodings.diagonals import toeplitz

        return toeplitz(states["lags"], tile.t_q).unsqueeze(0)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Any, tile: Any) -> dict[str, Tensor]:
        from relpos.encodings.diagonals import diagonal_sums

        return {"lags": diagonal_sums(grad.sum(0))}


_LAGS = _Lags()


def _by_view(call: Call, way: str) -> bool:
    if way == "generic":
        return False
    why = hankel.refusal(call)
    if way == "hankel" and why is not None:
        raise Refusal(f'kernel "hankel" cannot serve this call: {why}; use kernel="tiled"')
    return why is None and (way == "hankel" or call.q.device.type == "cpu")


class _Kept(SimpleNamespace):
    """What an autograd.Function would keep between its two passes."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _forward(call: Call, way: str) -> tuple[Tensor, Tensor]:
    kept = _Kept()
    if 0 in call.shape:
        return call.q.new_zeros(*call.shape[:3], call.v.shape[-1]), call.q.new_zeros(call.shape[:3])
    if _by_view(call, way):
        q, k, v, width = one_width(call.q, call.k, call.v)
        out = hankel._Hankel.forward(kept, q, k, v, _generator(call), call.mask, call.scale)
        return out[..., :width], kept.saved_tensors[5]
    tensors = [state.tensor for state in call.states.values()]
    out = tiles._Generic.forward(kept, call, call.q, call.k, call.v, *tensors)
    return out, kept.saved_tensors[4].squeeze(-1)


def _generator(call: Call) -> Tensor:
    if call.term is not None:
        return call.states["lags"].tensor.to(call.q.dtype)
    return call.q.new_zeros(call.q.shape[1], call.mask.n_q + call.mask.n_k - 1)


def _backward(call: Call, way: str, grad: Tensor, out: Tensor, lse: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """Gradients of q, k, v and every state; of those that are not wanted, an empty tensor."""
    names, states = list(call.states), [state.tensor for state in call.states.values()]
    if 0 in call.shape:
        return [torch.zeros_like(x) for x in (call.q, call.k, call.v, *states)]
    found: Sequence[Tensor | None]
    if _by_view(call, way):
        dim, width, generator = call.q.shape[-1], call.v.shape[-1], _generator(call)
        q, k, v, _ = one_width(call.q, call.k, call.v)
        wide = q.shape[-1] - width
        out, grad = (torch.nn.functional.pad(x, (0, wide)) if wide else x for x in (out, grad))
        kept = _Kept(
            saved_tensors=(q, k, v, hankel._visible(generator, call.mask), out, lse), mask=call.mask, scale=call.scale,
            rectangles=call.mask.rectangles(q.shape[0]), needs_input_grad=(True,) * 3 + (bool(names) and wanted[0],),
        )  # fmt: skip
        dq, dk, dv, dgen, *_ = _plain(hankel._Hankel.backward)(kept, grad)
        own = [dgen.to(states[0].dtype)] if names and dgen is not None else [None] * len(names)
        found = [dq[..., :dim], dk[..., :dim], dv[..., :width], *own]
    else:
        kept = _Kept(
            saved_tensors=(call.q, call.k, call.v, out, lse.unsqueeze(-1), *states), call=call,
            needs_input_grad=(False, True, True, True, *wanted),
        )  # fmt: skip
        found = _plain(tiles._Generic.backward)(kept, grad)[1:]
    return [x.new_empty(0) if g is None else g.contiguous() for g, x in zip(found, (call.q, call.k, call.v, *states))]


def _plain(backward: Any) -> Callable[..., Any]:
    """A backward pass without the guard of `once`: an operator without a derivative refuses by itself."""
    plain: Callable[..., Any] = backward.__wrapped__
    return plain


_AUTOGRAD = tuple(
    getattr(torch._C.DispatchKey, name) for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")
)


def recording() -> AbstractContextManager[Any]:
    """Autograd inside of an operator, where torch leaves it out: a tile may be differentiated there."""
    left_out = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD:
        left_out = left_out.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out)


@torch.library.custom_op("relpos::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    states: list[Tensor],
    q_order: Tensor | None,
    k_order: Tensor | None,
    key_mask: Tensor | None,
    q_segments: Tensor | None,
    k_segments: Tensor | None,
    seed: Tensor | None,
    rate: float,
    term: int,
    spec: str,
    way: str,
    scale: float,
    offset: int,
    left: int | None,
    right: int | None,
) -> tuple[Tensor, Tensor]:
    call = _call(
        q, k, v, states, q_order, k_order, key_mask, q_segments, k_segments, seed, rate, term, spec, way, scale,
        offset, left, right,
    )  # fmt: skip
    with exactly(q):
        out, lse = _forward(call, way)
    return out.contiguous(), lse.contiguous()


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])


@torch.library.custom_op("relpos::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    states: list[Tensor],
    q_order: Tensor | None,
    k_order: Tensor | None,
    key_mask: Tensor | None,
    q_segments: Tensor | None,
    k_segments: Tensor | None,
    seed: Tensor | None,
    rate: float,
    term: int,
    spec: str,
    way: str,
    scale: float,
    offset: int,
    left: int | None,
    right: int | None,
) -> list[Tensor]:
    call = _call(
        q, k, v, states, q_order, k_order, key_mask, q_segments, k_segments, seed, rate, term, spec, way, scale,
        offset, left, right,
    )  # fmt: skip
    with exactly(q), recording(), torch.no_grad():
        return _backward(call, way, grad, out, lse, wanted)


@_attend_backward.register_fake
def _(grad: Tensor, out: Tensor, lse: Tensor, wanted: list[bool], *given: Any) -> list[Tensor]:
    states = [x if need else x.new_empty(0) for x, need in zip(given[3], wanted, strict=True)]
    return [x.new_empty(x.shape) for x in (*given[:3], *states)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.states = len(inputs[3])
    ctx.save_for_backward(*output, *inputs[:3], *inputs[3], *(x for x in inputs[4:10] if x is not None))
    ctx.there, ctx.rest = [x is not None for x in inputs[4:10]], inputs[10:]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 18
    out, lse, q, k, v, *more = ctx.saved_tensors
    states, masks = more[: ctx.states], iter(more[ctx.states :])
    optional = [next(masks) if there else None for there in ctx.there]
    wanted = list(ctx.needs_input_grad[3])
    found = _attend_backward(grad, out, lse, wanted, q, k, v, states, *optional, *ctx.rest)
    own = [g if need else None for g, need in zip(found[3:], wanted, strict=True)]
    return *found[:3], own, *[None] * 14


_attend.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("relpos::lost", mutates_args=())
def _lost(
    bad: Tensor,
    bad_q: Tensor,
    q_order: Tensor | None,
    k_order: Tensor | None,
    key_mask: Tensor | None,
    q_segments: Tensor | None,
    k_segments: Tensor | None,
    offset: int,
    left: int | None,
    right: int | None,
) -> Tensor:
    if not bool(bad.any() | bad_q.any()):
        return torch.zeros_like(bad_q)
    mask = Mask(bad_q.shape[-1], bad.shape[-1], offset, left, right, q_order, k_order, key_mask, q_segments, k_segments)
    return mask.seeing(bad) | (bad_q & mask.seeing(torch.ones_like(bad)))


@_lost.register_fake
def _(bad: Tensor, bad_q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(bad_q)


def lost(mask: Mask, bad: Tensor, bad_q: Tensor) -> Tensor:
    """Queries (batch, heads, n_q) that are bad themselves and see a key, or that see a bad one of (batch, heads, n_k),
    as one node."""
    return _lost(  # type: ignore[no-any-return]
        bad, bad_q, mask.q_order, mask.k_order, mask.key_mask, mask.q_segments, mask.k_segments, mask.offset, mask.left,
        mask.right,
    )  # fmt: skip


Dims = tuple[Any, ...]


def _mapped(function: Any, size: int, in_dims: Dims, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The rule for torch.vmap: one call after the other, each in its own O(n) memory."""

    def at(x: Any, dim: int | None, index: int) -> Any:
        return x.select(dim, index) if isinstance(x, Tensor) and dim is not None else x

    done = [function.apply(*(at(x, d, i) for x, d in zip(args, in_dims, strict=True))) for i in range(size)]
    stacked = tuple(torch.stack(parts) for parts in zip(*done, strict=True))
    return stacked, (0,) * len(stacked)


class _Attend(torch.autograd.Function):
    """The operator for torch.func, whose transforms do not know the derivatives of operators."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _attend(q, k, v, list(more[7:]), *more[:6], *more[6])
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
        return _mapped(_Attend, info.batch_size, in_dims, args)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            'the tiled kernels have no forward-mode derivative (torch.func.jvp, jacfwd, hessian); kernel="dense" has '
            "every derivative, in n_q x n_k memory"
        )


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor, out: Tensor, lse: Tensor, wanted: tuple[bool, ...], rest: Any, *tensors: Any
    ) -> tuple[Tensor, ...]:
        return tuple(
            _attend_backward(grad, out, lse, list(wanted), *tensors[:3], list(tensors[9:]), *tensors[3:9], *rest)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(TWICE)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Any, Any]:
        return _mapped(_Backward, info.batch_size, in_dims, args)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(TWICE)
