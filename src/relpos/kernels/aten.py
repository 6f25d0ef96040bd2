"""The one place that touches private operators of torch: the CPU flash kernel with its log-sum-exp.

Each has a plain fallback, used where the operator is missing (another device or another torch) and tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
ROWS = 256  # queries at a time in the fallbacks: memory ROWS * n_k a head


def native(x: Tensor) -> bool:
    """True where the private operators serve this tensor."""
    return _FORWARD is not None and _BACKWARD is not None and x.device.type == "cpu"


def rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies those whose last axis is strided: the private operators read it as if it were not, and the public one
    takes its n x n path."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, n_q, dim_v) and log-sum-exp (batch, heads, n_q) of softmax(scale q k^T + bias) v.

    bias (1 or batch, heads, n_q, n_k), any strides, in the dtype of q: never copied. q, k and v of one width.
    """
    if not native(q):
        return plain(q, k, v, bias, scale)
    q, k, v = rows(q, k, v)
    out, lse = _FORWARD(q, k, v, 0.0, False, attn_mask=bias, scale=scale)  # type: ignore[misc]
    return out, lse


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and v of `flash` for a bias that needs none."""
    if not native(q):
        return plain_backward(grad, q, k, v, out, lse, bias, scale)
    grad, q, k, v, out = rows(grad, q, k, v, out)
    dq, dk, dv = _BACKWARD(grad, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)  # type: ignore[misc]
    return dq, dk, dv


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`flash` in public operations, a block of rows at a time."""
    out, lse = torch.empty_like(q[..., : v.shape[-1]]), q.new_empty(q.shape[:-1])
    for start in range(0, q.shape[-2], ROWS):
        rows = slice(start, min(start + ROWS, q.shape[-2]))
        score = q[..., rows, :] @ k.transpose(-1, -2) * scale
        if bias is not None:
            score = score + bias[..., rows, :]
        lse[..., rows] = torch.logsumexp(score, -1)
        weight = torch.exp(score - lse[..., rows, None].nan_to_num(neginf=0.0))
        out[..., rows, :] = weight @ v
    return out, lse


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`flash_backward` in public operations, a block of rows at a time."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for start in range(0, q.shape[-2], ROWS):
        rows = slice(start, min(start + ROWS, q.shape[-2]))
        score = q[..., rows, :] @ k.transpose(-1, -2) * scale
        if bias is not None:
            score = score + bias[..., rows, :]
        weight = torch.exp(score - lse[..., rows, None].nan_to_num(neginf=0.0))
        dv += weight.transpose(-1, -2) @ grad[..., rows, :]
        delta = (grad[..., rows, :] * out[..., rows, :]).sum(-1, keepdim=True)
        dscore = weight * (grad[..., rows, :] @ v.transpose(-1, -2) - delta) * scale
        dq[..., rows, :] = dscore @ k
        dk += dscore.transpose(-1, -2) @ q[..., rows, :]
    return dq, dk, dv
