"""torch's flex_attention with the generator of a bias captured by its score function, and its gradient.

On a CPU it has no backward, and compiles for a while. The gradient of the generator is added up by atomic operations on
CUDA, so that two runs differ in the last bits; the kernel "triton" does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from relpos.kernels.call import Call, Refusal, beyond_a_generator
from relpos.kernels.documents import Documents
from relpos.kernels.mask import Mask

BLOCK = 128  # queries and keys of a block that is left out, looked at or taken whole
NARROWEST = 16  # columns of q, k and v that its compiled kernel takes


def refusal(call: Call) -> str | None:
    """Why flex_attention cannot serve the call, None where it can."""
    why = beyond_a_generator(call)
    if why is not None:
        return why
    if min(call.q.shape[-1], call.v.shape[-1]) < NARROWEST:
        return f"it takes heads of width {NARROWEST} or more, not {min(call.q.shape[-1], call.v.shape[-1])}"
    device = call.q.device.type
    if device not in ("cuda", "cpu"):
        return f"it runs on CUDA devices, not on {device}"
    learned = (call.q, call.k, call.v, *(state.tensor for state in call.states.values()))
    if device == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in learned):
        return "flex_attention has no backward on the CPU; use torch.no_grad() or a CUDA device"
    return None


def flex(call: Call) -> Tensor:
    """softmax(scale q k^T + b[j - i]) v, compiled; never the unfused version, which holds n x n."""
    why = refusal(call)
    if why is not None:
        raise Refusal(f'kernel "flex" cannot serve this call: {why}; kernel="tiled" serves any')
    return attend(call, _compiled(call.q.device.type))


@cache
def _compiled(device: str) -> Callable[..., Any]:
    """fullgraph: where torch would give up compiling, after many shapes, it raises instead of running unfused. On the
    CPU every shape is compiled anew: the code that torch 2.13 writes for lengths that vary does not compile."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False if device == "cpu" else None)


def attend(call: Call, attention: Callable[..., Any]) -> Tensor:
    """The call by one version of flex_attention."""
    n_q = call.mask.n_q
    score = None
    if call.term is not None:
        generator = call.states["lags"].tensor.float()

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + generator[h, j - i + (n_q - 1)]

    q, k, v = (x.contiguous() for x in (call.q, call.k, call.v))
    blocks = None if call.mask.full else block_mask(call.mask, q.shape[0], q.device)
    out = attention(q, k, v, score_mod=score, block_mask=blocks, scale=call.scale)
    assert isinstance(out, Tensor)
    return out


def block_mask(mask: Mask, batch: int, device: torch.device) -> Any:
    """The mask for flex_attention, in memory (n / 128)^2: torch's own `create_block_mask` looks at all n x n pairs."""
    from torch.nn.attention.flex_attention import BlockMask

    documents = Documents.of(mask, batch, device)
    partial, whole = _flags(mask, documents, device)
    listed = (*_indices(partial), *_indices(whole))
    return BlockMask.from_kv_blocks(
        *listed, BLOCK_SIZE=BLOCK, mask_mod=_seen(mask, documents), seq_lengths=(mask.n_q, mask.n_k)
    )


def _flags(mask: Mask, documents: Documents | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Blocks in which some pairs see each other, not all, and in which all do: bool (batch or 1, 1, blocks, blocks)."""
    i0, j0 = (torch.arange(0, n, BLOCK, device=device) for n in (mask.n_q, mask.n_k))
    i1, j1 = (i0 + BLOCK).clamp(max=mask.n_q) - 1, (j0 + BLOCK).clamp(max=mask.n_k) - 1
    lowest, highest = j0 - i1[:, None] - mask.offset, j1 - i0[:, None] - mask.offset
    some = torch.ones_like(lowest, dtype=torch.bool)
    every = some.clone()
    if mask.right is not None:
        some, every = some & (lowest <= mask.right), every & (highest <= mask.right)
    if mask.left is not None:
        some, every = some & (highest >= -mask.left), every & (lowest >= -mask.left)
    some, every = some[None, None], every[None, None]
    if documents is not None:
        first, end = documents.spans(True, BLOCK).unsqueeze(1).unsqueeze(-2).unbind(-1)
        some = some & (j0 < end) & (j1 >= first)
        every = torch.zeros_like(some)
    return some & ~every, every & some


def _indices(flags: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    order = torch.sort((~flags).to(torch.int8), dim=-1, stable=True).indices
    return flags.sum(-1).int(), order.int().contiguous()


def _seen(mask: Mask, documents: Documents | None) -> Callable[..., Tensor]:
    offset, left, right = mask.offset, mask.left, mask.right

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        lag = j - i - offset
        visible = lag == lag
        if right is not None:
            visible = visible & (lag <= right)
        if left is not None:
            visible = visible & (lag >= -left)
        if documents is not None:
            visible = visible & (documents.q[b, i] == documents.k[b, j])
        return visible

    return seen
