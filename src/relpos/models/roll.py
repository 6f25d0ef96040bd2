"""A Transformer over frames of numbers, such as the columns of a piano-roll."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding
from relpos.mixers.kernel_stream import KernelStream
from relpos.mixers.stream import Stream
from relpos.models.transformer import Stack


class FrameTransformer(Stack):
    """Frames (batch, n, frame_in) to logits (batch, n, frame_out); causal by default.

    frame_in, frame_out   numbers in a frame that is read and in one that is written (128 pitches a track)
    prior                 (frame_out,), logits that the output starts at, such as the log odds of each pitch; default 0
    Frames go through one linear layer in and one out. Other arguments: `Stack`.
    """

    def __init__(
        self,
        frame_in: int,
        frame_out: int,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        causal: bool = True,
        prior: Tensor | None = None,
        **options: Any,
    ) -> None:
        if min(frame_in, frame_out) < 1:
            raise ValueError(f"a frame has at least one number, got frame_in={frame_in}, frame_out={frame_out}")
        super().__init__(dim, depth, heads, encoding, causal=causal, **options)
        self.frame_in, self.frame_out = frame_in, frame_out
        self.into = nn.Linear(frame_in, dim)
        self.head = nn.Linear(dim, frame_out)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if prior is not None:
            if prior.shape != (frame_out,):
                raise ValueError(f"prior holds a logit for each of {frame_out} outputs, got {tuple(prior.shape)}")
            with torch.no_grad():
                self.head.bias.copy_(prior)

    def forward(
        self,
        frames: Tensor,
        *,
        positions: object = None,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        streams: list[Stream | KernelStream] | None = None,
    ) -> Tensor:
        """frames (batch, n, frame_in), any real type, to logits. Other arguments: as in `relpos.attention`."""
        if frames.dim() != 3 or frames.shape[-1] != self.frame_in:
            raise ValueError(f"frames have shape (batch, n, {self.frame_in}), got {tuple(frames.shape)}")
        x = self.into(frames.to(self.into.weight.dtype))
        x = self.encode(x, positions=positions, key_mask=key_mask, segments=segments, streams=streams)
        logits: Tensor = self.head(x)
        return logits
