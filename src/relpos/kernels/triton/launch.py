"""The autograd function of attention in Triton: what is handed to the kernels, and in blocks of which size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relpos.kernels.call import once
from relpos.kernels.documents import Documents
from relpos.kernels.mask import Mask
from relpos.kernels.triton import attention as kernels
from relpos.kernels.triton.blocks import FAR, by_lag, padded, power

LOG2E = math.log2(math.e)
SIDE = 64  # of the square tiles that walk along a diagonal


@dataclass(frozen=True)
class Blocks:
    """Queries and keys of a tile, warps of a program, tiles that are loaded ahead. Fixed, not tuned at run time: other
    sizes add up in another order, and two runs are to agree bit by bit."""

    rows: int
    keys: int
    warps: int
    stages: int


def blocks(kernel: str, width: int, size: int) -> Blocks:
    """For heads of a width (padded, q or v, the wider one) and numbers of a size in bytes.

    Chosen by what the compiler reports for compute capability 8.0 and 9.0: registers that spill little or nothing, and
    below 99 KiB of shared memory but for the bias of wide heads on 9.0.
    """
    if size == 4:  # float32 fills twice the memory, and is multiplied without tensor cores
        return Blocks(32, 32, 8, 1)
    if kernel == "forward":
        return Blocks(128, 64, 8 if width > 64 else 4, 3)
    if kernel == "keys":
        return Blocks(64, 64 if width > 64 else 128, 8, 2)
    if kernel == "queries":
        return Blocks(64 if width > 64 else 128, 64, 8, 2)
    return Blocks(SIDE, SIDE, 4 if width <= 64 else 8, 2)


def side(size: int) -> int:
    """Rows and columns of a tile on a diagonal of blocks, for numbers of a size in bytes."""
    return SIDE if size == 2 else min(SIDE, 32)


@dataclass(frozen=True)
class Shape:
    """What every kernel is told of one call."""

    batch: int
    heads: int
    n_q: int
    n_k: int
    dim: int
    dim_v: int
    size: int  # bytes of a number
    mask: Mask
    biased: bool

    @property
    def ordered(self) -> bool:
        return self.mask.left is not None or self.mask.right is not None

    @property
    def pad(self) -> int:
        """Numbers on either side of the generator that a tile at the edge reads, and nobody uses."""
        found = (blocks(name, self.width, self.size) for name in ("forward", "keys", "queries"))
        return max(max(each.rows, each.keys) for each in found)

    @property
    def width(self) -> int:
        return max(power(self.dim), power(self.dim_v))

    def numbers(self, lags: int) -> tuple[int, ...]:
        mask = self.mask
        left, right = (FAR if bound is None else min(bound, FAR) for bound in (mask.left, mask.right))
        return self.heads, self.n_q, self.n_k, lags, mask.offset, left, right

    def constants(self, marked: bool) -> dict[str, Any]:
        return {
            "DIM": self.dim, "DIM_V": self.dim_v, "D": power(self.dim), "W": power(self.dim_v), "PAD": self.pad,
            "ORDERED": self.ordered, "MARKED": marked,
        }  # fmt: skip

    def grid(self, programs: int) -> tuple[int, int]:
        return programs, self.batch * self.heads


def attend(q: Tensor, k: Tensor, v: Tensor, generator: Tensor | None, mask: Mask, scale: float) -> Tensor:
    """softmax(scale q k^T + generator[j - i + n_q - 1]) v; q, k and v with equal heads, in bf16, fp16 or fp32."""
    wanted = q.new_zeros(q.shape[1], 1, dtype=torch.float32) if generator is None else generator.float()
    out: Tensor = _Attention.apply(q, k, v, wanted, mask, scale, generator is not None)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, generator: Tensor, mask: Mask, scale: float, biased: bool
    ) -> Tensor:
        batch, heads, n_q, dim = q.shape
        shape = Shape(batch, heads, n_q, k.shape[2], dim, v.shape[-1], q.element_size(), mask, biased)
        q, k, v = (x.contiguous() for x in (q, k, v))
        bias = padded(generator * LOG2E, shape.pad)
        documents = Documents.of(mask, batch, q.device)
        out = q.new_empty(batch, heads, n_q, v.shape[-1])
        lse = q.new_empty(batch, heads, n_q, dtype=torch.float32)
        size = blocks("forward", shape.width, shape.size)
        marks = _marks(documents, True, size.rows, q)
        kernels.forward[shape.grid(-(-n_q // size.rows))](
            q, k, v, bias, *marks, out, lse, *shape.numbers(bias.shape[1]), scale * LOG2E,
            **shape.constants(documents is not None), BIASED=biased, ROWS=size.rows, KEYS=size.keys,
            num_warps=size.warps, num_stages=size.stages,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.shape, ctx.documents, ctx.scale = shape, documents, scale
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).sum(-1)
        dq = dk = dv = dgenerator = None
        if ctx.needs_input_grad[0]:
            dq = _backward(ctx, "queries", (q, k, v, bias), (grad, lse, delta))[0]
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dk, dv = _backward(ctx, "keys", (q, k, v, bias), (grad, lse, delta))
        if ctx.needs_input_grad[3] and ctx.shape.biased:
            dgenerator = _bias_backward(ctx, (q, k, v, bias), (grad, lse, delta))
        return dq, dk, dv, dgenerator, None, None, None


def _marks(documents: Documents | None, of_queries: bool, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The documents of queries and keys and the spans of the walk; anything where there are none."""
    if documents is None:
        nothing = torch.empty(1, dtype=torch.int32, device=like.device)
        return nothing, nothing, nothing
    return documents.q, documents.k, documents.spans(of_queries, size)


def _backward(ctx: Any, side_of: str, tensors: tuple[Tensor, ...], saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of q, or of k and v."""
    shape: Shape = ctx.shape
    q, k, v, bias = tensors
    of_queries = side_of == "queries"
    size = blocks(side_of, shape.width, shape.size)
    own, n = (size.rows, shape.n_q) if of_queries else (size.keys, shape.n_k)
    results = (torch.empty_like(q),) if of_queries else (torch.empty_like(k), torch.empty_like(v))
    kernel = kernels.queries_backward if of_queries else kernels.keys_backward
    kernel[shape.grid(-(-n // own))](
        *tensors, *_marks(ctx.documents, of_queries, own, q), *saved, *results,
        *shape.numbers(bias.shape[1]), ctx.scale * LOG2E, ctx.scale,
        **shape.constants(ctx.documents is not None), BIASED=shape.biased, ROWS=size.rows, KEYS=size.keys,
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    return results


def _bias_backward(ctx: Any, tensors: tuple[Tensor, ...], saved: tuple[Tensor, ...]) -> Tensor:
    """The gradient of the generator, (heads, n_q + n_k - 1), float32."""
    shape: Shape = ctx.shape
    q, bias = tensors[0], tensors[3]
    edge = side(shape.size)
    size = blocks("bias", shape.width, shape.size)
    turns = -(-max(shape.n_q, shape.n_k) // edge)
    partial = q.new_empty(shape.batch, shape.heads, 2 * turns, 2 * edge, dtype=torch.float32)
    kernels.bias_backward[shape.grid(turns)](
        *tensors, *_marks(ctx.documents, True, edge, q)[:2], *saved, partial,
        *shape.numbers(bias.shape[1]), ctx.scale * LOG2E,
        **shape.constants(ctx.documents is not None), SIDE=edge, num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    return by_lag(partial.sum(0), shape.n_q, shape.n_k)
