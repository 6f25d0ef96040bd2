"""Swin: the table of a window's lags, without the bias and the masks of cells x cells of shifted windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.bias.swin import SwinBias
from relpos.integrations.common import Lent
from relpos.integrations.transformers.patch import Undo
from relpos.mixers.functional import attention
from relpos.positions import Grid

CLASSES = ("SwinAttention",)
ENCODERS = ("SwinLayer",)


class Borrowed(Lent, SwinBias):  # type: ignore[misc]
    """Swin's rule over the table of a module, of transformers or of timm."""

    def __init__(self, owner: nn.Module, window: Sequence[int]) -> None:
        self.borrow(owner)
        self.window = (int(window[0]), int(window[1]))
        self.heads = self.table.shape[1]

    def lent(self) -> Tensor:
        found: Tensor = self.owner[0].relative_position_bias_table
        return found


def patch(module: nn.Module, undo: Undo) -> str:
    if type(module).__name__ in ENCODERS:
        undo.method(module, "get_attn_mask", _regions)
        return "no masks of cells x cells"
    own: Any = module.relative_position_bias
    undo.set(module, "_relpos_rule", (Borrowed(own, own.window_size),))
    undo.method(module, "forward", _forward)
    return "table of a window's lags in the exact kernel"


def _regions(self: Any, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """(windows, cells) integers: after the cyclic shift, cells of a window that were apart have different ones.

    None without a shift. The model adds -100 to scores between regions; here they are not seen, which is the same in
    float32 unless scores differ by some eighty.
    """
    if self.shift_size <= 0:
        return None
    window, shift = int(self.window_size), int(self.shift_size)
    rows, columns = (
        (place >= side - window).long() + (place >= side - shift).long()
        for side in (height, width)
        for place in (torch.arange(side, device=device),)
    )
    regions = rows[:, None] * 3 + columns
    return regions.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)


def _forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    if options.get("output_attentions"):
        raise ValueError("relpos makes no matrix of weights: output_attentions=True is not possible; restore(model)")
    q, k, v = (
        layer(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for layer in (self.q_proj, self.k_proj, self.v_proj)
    )
    cells = Grid.of(*[math.isqrt(q.shape[2])] * 2, device=q.device)
    segments = None if attention_mask is None else attention_mask.repeat(len(q) // len(attention_mask), 1)
    out = attention(
        q,
        k,
        v,
        self._relpos_rule[0],
        q_pos=cells,
        k_pos=cells,
        segments=segments,
        scale=self.scaling,
        dropout=self.attention_dropout if self.training else 0.0,
    )
    return self.o_proj(out.transpose(1, 2).flatten(2)), None
