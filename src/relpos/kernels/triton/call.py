"""Triton's kernels behind calls of the library. Imports Triton only when a call is served."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from relpos.kernels.call import Call, Refusal, beyond_a_generator, exactly

WIDEST = 128  # columns of q, k and v: the tiles of wider heads do not fit a multiprocessor
ROWS = 65535  # the most programs along the second axis of a grid: batch rows times heads


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """True where Triton's kernels run in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def missing(device: torch.device) -> str | None:
    """Why Triton cannot run here, None where it can."""
    if not _installed():
        return 'Triton is not installed: pip install "relpos[gpu]", on Linux'
    if device.type != "cuda" and not interpreted():
        return (
            f"the tensors are on {device.type}, Triton needs a CUDA device; for tests its interpreter runs on the CPU, "
            "with TRITON_INTERPRET=1 set before Python starts"
        )
    return None


def refusal(call: Call) -> str | None:
    """Why the Triton kernel cannot serve the call, None where it can."""
    why = beyond_a_generator(call)
    if why is not None:
        return why
    widest = max(call.q.shape[-1], call.v.shape[-1])
    if widest > WIDEST or 0 in (call.q.shape[-1], call.v.shape[-1]):
        return f"it takes heads of width 1 to {WIDEST}, not {widest if widest > WIDEST else 0}"
    if call.q.shape[0] * call.q.shape[1] > ROWS:
        return f"a CUDA grid holds {ROWS} batch rows times heads, not {call.q.shape[0] * call.q.shape[1]}"
    return missing(call.q.device)


def triton(call: Call) -> Tensor:
    """softmax(scale q k^T + b[j - i]) v, or without b."""
    why = refusal(call)
    if why is not None:
        raise Refusal(f'kernel "triton" cannot serve this call: {why}; use kernel="tiled"')
    from relpos.kernels.triton.launch import attend

    generator = None if call.term is None else call.states["lags"].tensor
    with exactly(call.q):
        return attend(call.q, call.k, call.v, generator, call.mask, call.scale)


def refusal_of_product(c: Tensor, x: Tensor) -> str | None:
    """Why the Triton kernel cannot multiply these, None where it can."""
    if x.dtype != torch.float32:
        return f"it sums in float32, and this product is one of {x.dtype}"
    if c.shape[0] > ROWS:
        return f"a CUDA grid holds {ROWS} matrices, not {c.shape[0]}"
    return missing(x.device)
