"""relpos: relative positional encoding for any attention-like layer, exact, in memory that grows linearly with length.

A position says where a token is; a lag is the difference of two positions; an encoding says what a lag does; a mixer is
the layer in which it does it; a kernel is how that is computed without an n x n tensor.
"""

from __future__ import annotations

from relpos import encodings, features, models, nn, positions
from relpos.encodings.channels import Channels, channels
from relpos.encodings.registry import encoding, names, register
from relpos.kernels.toeplitz import toeplitz_matmul
from relpos.mixers.context_parallel import context_parallel_attention
from relpos.mixers.functional import attention, explain
from relpos.mixers.gating import SGU, PoSGU
from relpos.mixers.kernel_stream import KernelStream
from relpos.mixers.linear import linear_attention
from relpos.mixers.pointwise import pointwise_attention
from relpos.mixers.self_attention import SelfAttention
from relpos.mixers.stream import Stream
from relpos.mixers.window_mix import window_mix

__version__ = "0.1.0"

__all__ = [
    "SGU",
    "Channels",
    "KernelStream",
    "PoSGU",
    "SelfAttention",
    "Stream",
    "__version__",
    "attention",
    "channels",
    "context_parallel_attention",
    "encoding",
    "encodings",
    "explain",
    "features",
    "linear_attention",
    "models",
    "names",
    "nn",
    "pointwise_attention",
    "positions",
    "register",
    "toeplitz_matmul",
    "window_mix",
]
