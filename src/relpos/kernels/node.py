"""One node of a rewritten program for a computation that looks at values: `relpos::compute` and its gradient.

Linear attention, pointwise attention and products with Toeplitz matrices choose their sums by what they meet, and run
in Python, tile by tile. A tracer sees a name, tensors and numbers go in, and the shapes of what comes out; inside, the
eager code runs as it is. The gradient runs it once more under autograd, so nothing but the inputs is kept.

A kind of computation says what it does with them in a `Job`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from relpos.encodings.base import State, States
from relpos.encodings.handles import handled, number_of
from relpos.kernels.mask import Mask
from relpos.kernels.operators import recording
from relpos.positions import is_exporting, is_traced

Results = tuple[Tensor, ...]
M = TypeVar("M", bound=nn.Module)
MASK = ("q_order", "k_order", "key_mask", "q_segments", "k_segments")


def transformed() -> bool:
    """Whether a transform of torch.func acts on what is computed."""
    return bool(torch._C._are_functorch_transforms_active())


def wanted() -> bool:
    """Whether a call is to be one operator: it is being traced, or a transform of torch.func acts on it."""
    return is_traced() or transformed()


def known_small(n_q: Any, n_k: Any, most: int) -> bool:
    """True where a tracer has numbers for the lengths, and sees them to be small: exporting without dynamic lengths,
    or a transform of torch.func, for which the plain formula has every derivative."""
    known = is_exporting() or not is_traced()
    return known and isinstance(n_q, int) and isinstance(n_k, int) and n_q * n_k <= most


@dataclass(frozen=True)
class Given:
    """What goes into a node, by name. Words stand in the graph as they are; numbers may be symbols of a tracer."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def module(self, name: str, module: nn.Module | None) -> None:
        if module is not None:
            self.numbers[name] = number_of(module)

    def module_of(self, name: str, kind: type[M]) -> M | None:
        return handled(self.numbers[name], kind) if name in self.numbers else None

    def states(self, states: States) -> None:
        for name, state in states.items():
            self.tensors[f"state.{name}"] = state.tensor
            self.words[name] = f"{state.along} {state.axis} {state.batched}"

    def states_of(self) -> States:
        found: States = {}
        for name, tensor in self.tensors.items():
            if name.startswith("state."):
                along, axis, batched = self.words[name[6:]].split()
                said = {"True": True, "False": False, "None": None}[batched]
                found[name[6:]] = State(tensor, along, int(axis), said)  # type: ignore[arg-type]
        return found

    def mask(self, mask: Mask) -> None:
        for name in MASK:
            if (tensor := getattr(mask, name)) is not None:
                self.tensors[name] = tensor
        for name in ("n_q", "n_k", "offset", "left", "right"):
            if (number := getattr(mask, name)) is not None:
                self.numbers[name] = number

    def mask_of(self) -> Mask:
        numbers = {name: self.numbers.get(name) for name in ("n_q", "n_k", "offset", "left", "right")}
        tensors = {name: self.tensors.get(name) for name in MASK}
        real = tensors["key_mask"]
        if real is not None and bool(real.all()):
            tensors["key_mask"] = None
        return Mask(**numbers, **tensors)  # type: ignore[arg-type]

    def flat(self) -> tuple[list[Tensor], list[int], list[float], str]:
        """As the operator takes it."""
        names = "|".join(",".join(part) for part in (self.tensors, self.numbers, self.factors))
        words = ",".join([f"{name}={word}" for name, word in self.words.items()])
        return [*self.tensors.values()], [*self.numbers.values()], [*self.factors.values()], f"{names}|{words}"


def _given(tensors: list[Tensor], numbers: list[int], factors: list[float], spec: str) -> Given:
    names = [part.split(",") if part else [] for part in spec.split("|")]
    return Given(
        dict(zip(names[0], tensors, strict=True)),
        dict(zip(names[1], numbers, strict=True)),
        dict(zip(names[2], factors, strict=True)),
        dict(pair.split("=") for pair in names[3]),
    )


@dataclass(frozen=True)
class Job:
    """run: what is computed; shapes: empty tensors like its results, for whoever may not run it."""

    run: Callable[[Given], Results]
    shapes: Callable[[Given], Results]


JOBS: dict[str, Job] = {}


def compute(kind: str, given: Given) -> Results:
    """The results of `JOBS[kind]`, as one node."""
    tensors, *rest = given.flat()
    if is_traced():
        return tuple(_compute(kind, tensors, *rest))
    found: Results = _Node.apply((kind, *rest), *tensors)  # type: ignore[no-untyped-call]
    return found


@torch.library.custom_op("relpos::compute", mutates_args=())
def _compute(kind: str, tensors: list[Tensor], numbers: list[int], factors: list[float], spec: str) -> list[Tensor]:
    with torch.no_grad():
        found = JOBS[kind].run(_given(tensors, numbers, factors, spec))
    return _apart(found, [*tensors])


def _apart(found: Sequence[Tensor], taken: list[Tensor]) -> list[Tensor]:
    """Results of an operator: contiguous, and in no memory of its inputs or of each other."""
    own = {x.untyped_storage().data_ptr() for x in taken}
    results = []
    for x in found:
        x = x.detach().contiguous()
        x = x.clone() if x.untyped_storage().data_ptr() in own else x
        own.add(x.untyped_storage().data_ptr())
        results.append(x)
    return results


@_compute.register_fake
def _(kind: str, tensors: list[Tensor], numbers: list[int], factors: list[float], spec: str) -> list[Tensor]:
    return list(JOBS[kind].shapes(_given(tensors, numbers, factors, spec)))


@torch.library.custom_op("relpos::compute_backward", mutates_args=())
def _backward(
    kind: str,
    grads: list[Tensor],
    met: list[bool],
    wanted: list[bool],
    tensors: list[Tensor],
    numbers: list[int],
    factors: list[float],
    spec: str,
) -> list[Tensor]:
    """met: of which results there are gradients; wanted: of which tensors."""
    with recording(), torch.enable_grad():
        leaves = [x.detach().requires_grad_() if want else x.detach() for x, want in zip(tensors, wanted, strict=True)]
        out = [x for x, there in zip(JOBS[kind].run(_given(leaves, numbers, factors, spec)), met, strict=True) if there]
        pairs = [(x, g) for x, g in zip(out, grads, strict=True) if x.requires_grad]
        sources = [x for x, want in zip(leaves, wanted, strict=True) if want]
        found = iter(
            torch.autograd.grad([x for x, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
            if pairs and sources
            else [None] * len(sources)
        )
    result = []
    for x, want in zip(tensors, wanted, strict=True):
        g = next(found) if want else None
        result.append(torch.zeros_like(x) if want and g is None else x.new_empty(0) if g is None else g.contiguous())
    return _apart(result, [*tensors, *grads])


@_backward.register_fake
def _(kind: str, grads: Any, met: Any, wanted: list[bool], tensors: list[Tensor], *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) if want else x.new_empty(0) for x, want in zip(tensors, wanted, strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.kind, tensors, *ctx.rest = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[1])
    there = [g for g in grads if g is not None]
    found = _backward(ctx.kind, there, [g is not None for g in grads], wanted, list(ctx.saved_tensors), *ctx.rest)
    own = [g if want else None for g, want in zip(found, wanted, strict=True)]
    numbers, factors, _ = ctx.rest
    return None, own, None if numbers else [], None if factors else [], None  # torch wants an empty list for one


_compute.register_autograd(_gradients, setup_context=_keep)

Dims = tuple[Any, ...]


def mapped(function: Any, size: int, in_dims: Dims, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The rule for torch.vmap: one call after the other, each in its own O(n) memory."""

    def at(x: Any, dim: int | None, index: int) -> Any:
        return x.select(dim, index) if isinstance(x, Tensor) and dim is not None else x

    done = [function.apply(*(at(x, d, i) for x, d in zip(args, in_dims, strict=True))) for i in range(size)]
    stacked = tuple(torch.stack(parts) for parts in zip(*done, strict=True))
    return stacked, (0,) * len(stacked)


FORWARD = 'this kernel has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); kernel="dense" has every one'
TWICE = 'the gradient of this kernel is differentiated again, which it does not support; kernel="dense" does'


class Last(torch.autograd.Function):
    """The gradient of a node for torch.func, which has none of its own. A subclass gives forward and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(TWICE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(TWICE)


class _Node(torch.autograd.Function):
    """The operator for torch.func, whose transforms do not know the derivatives of operators."""

    @staticmethod
    def forward(rest: tuple[Any, ...], *tensors: Tensor) -> Results:
        return tuple(_compute(rest[0], list(tensors), *rest[1:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        ctx.rest = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[1:])
        found = _NodeBackward.apply((ctx.rest, wanted, len(grads)), *grads, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, *(g if want else None for g, want in zip(found, wanted, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Any, Any]:
        return mapped(_Node, info.batch_size, in_dims, args)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(FORWARD)


class _NodeBackward(Last):
    @staticmethod
    def forward(rest: tuple[Any, ...], *tensors: Tensor) -> Results:
        (kind, *more), wanted, count = rest
        grads, inputs = list(tensors[:count]), list(tensors[count:])
        return tuple(_backward(kind, grads, [True] * count, list(wanted), inputs, *more))

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Any, Any]:
        return mapped(_NodeBackward, info.batch_size, in_dims, args)
