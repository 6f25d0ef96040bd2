"""What a kernel of linear attention costs and does besides, in words."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from relpos.kernels.linear.call import LinearCall
from relpos.kernels.linear.choose import apart, spread_met
from relpos.kernels.linear.documents import Documents
from relpos.kernels.linear.split import GROUP
from relpos.kernels.linear.tiles import SAFE


def memory(call: LinearCall, name: str) -> str:
    """What the kernel allocates beyond inputs and outputs, forward, in words and MiB."""
    batch, heads, n_q, n_k = call.shape
    size = batch * heads * (8 if call.q.dtype == torch.float64 else 4) / 2**20
    square = n_q * n_k * size
    if name == "dense":
        return f"O(n_q n_k): {square:.1f} MiB for each of a few matrices of weights"
    width, features = call.values.shape[-1] + 1, _features(call)
    literal = f"an n_q x n_k matrix would take {square:.0f} MiB"
    if name in ("split", "grid"):
        rows = min(features, GROUP) * (n_q + n_k) * size
        whole = n_k * features * width * size
        return (
            f"O(n): {rows:.1f} MiB of features at a time and buffers of some MiB a thread, where {literal} and one FFT "
            f"of phi(k) v {whole:.0f} MiB"
        )
    kept = f"running sums of {features} x {width}{_tile(call)}" if name == "band" else "tiles of some MiB"
    return f"O(n): {kept}, where {literal}"


def _tile(call: LinearCall) -> str:
    reach = 0 if call.tail is None else call.tail.reach
    return f" and a tile as wide as the reach, {reach} tokens" if reach else ""


def _features(call: LinearCall) -> int:
    if 0 in call.shape:
        return 0
    with torch.no_grad():
        return call.phi(call.q[:1, :1, :1]).shape[-1]


def notes(call: LinearCall, name: str) -> Iterator[str]:
    """What else a user may want to know of one sum."""
    documents = Documents.of(call) if apart(call, name) else None
    parts = [call] if documents is None else documents.calls
    spread = max((spread_met(part, name) for part in parts), default=0.0)
    if call.q.dtype == torch.float32 and spread > SAFE[torch.float32]:
        yield f"the bias spans {spread:.0f} nats, too many for one factor in float32: the sums run in float64"
    if name in ("split", "grid"):
        yield "rows that the FFT's rounding could reach are summed again, in float64 or directly"
    if name != "dense":
        yield "the backward pass recomputes features and weights; differentiating the gradient again raises"
