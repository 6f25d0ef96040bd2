"""The operators `relpos::attend`, `relpos::attend_backward` and `relpos::lost`: kernels as tracers see them.

Each is an eager kernel behind a schema of tensors and numbers, with a rule for shapes and, for the first, a derivative;
results are those of the eager kernels to the last bit. torch reads a schema off a signature, so signatures are written
out, once for each pass. A term is named by its handle, the rest of a call by what its fields hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, State, States
from relpos.encodings.handles import handled
from relpos.kernels import hankel, tiles
from relpos.kernels.call import Call, Refusal, exactly
from relpos.kernels.dropout import Dropout
from relpos.kernels.fused import one_width
from relpos.kernels.mask import Mask

NONE = -1  # the handle of no term


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
        own = handled(term, Pairwise)
    elif named:
        own = LAGS
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


LAGS = _Lags()


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
def attend(
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


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])


@torch.library.custom_op("relpos::attend_backward", mutates_args=())
def attend_backward(
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


@attend_backward.register_fake
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
    found = attend_backward(grad, out, lse, wanted, q, k, v, states, *optional, *ctx.rest)
    own = [g if need else None for g, need in zip(found[3:], wanted, strict=True)]
    return *found[:3], own, *[None] * 14


attend.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("relpos::lost", mutates_args=())
def lost(
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


@lost.register_fake
def _(bad: Tensor, bad_q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(bad_q)
