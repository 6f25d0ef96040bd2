"""torch's own fused attention, for calls in which the encoding has already acted on q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.kernels.aten import rows
from relpos.kernels.call import Call, Refusal


def refusal(call: Call) -> str | None:
    """Why stock fused attention cannot serve the call, None where it can."""
    if call.term is not None:
        return f"{type(call.term).__name__} adds a term to the scores, which would have to be an n x n mask"
    if call.dropout is not None:
        return "its dropout draws from another generator than the other kernels"
    if not (call.mask.full or call.mask.is_causal):
        return "padding, documents, windows or a shifted causal order would have to be an n x n mask"
    return None


def fused(call: Call) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, as is."""
    why = refusal(call)
    if why is not None:
        raise Refusal(f'kernel "fused" cannot serve this call: {why}; use kernel="tiled"')
    q, k, v, width = one_width(call.q, call.k, call.v)
    attend = torch.nn.functional.scaled_dot_product_attention
    q, k, v = rows(q, k, v)
    causal = True if call.mask.is_causal else False  # noqa: SIM210 # a tracer has no bool for it, but decides an `if`
    return attend(q, k, v, is_causal=causal, scale=call.scale)[..., :width]


def one_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Zero columns until q, k and v are equally wide (else the n x n path is taken silently); and the width of v."""
    dim, dim_v = q.shape[-1], v.shape[-1]
    wide = max(dim, dim_v)
    pad = torch.nn.functional.pad
    q, k = (x if dim == wide else pad(x, (0, wide - dim)) for x in (q, k))
    return q, k, (v if dim_v == wide else pad(v, (0, wide - dim_v))), dim_v
