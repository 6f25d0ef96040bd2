"""T5 and its relatives (mT5, UMT5, Flan, ByT5): a table of buckets in place of the bias of queries x keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.bias.t5 import T5Bias
from relpos.integrations.common import Lent
from relpos.integrations.transformers.interface import Lag
from relpos.integrations.transformers.patch import Undo

CLASSES = ("T5Attention", "MT5Attention", "UMT5Attention")


class Borrowed(Lent, T5Bias):  # type: ignore[misc]
    """The rule and the table of a module of transformers. Edges of the buckets are read off the module, whose logarithm
    is in float32."""

    def __init__(self, module: Any) -> None:
        self.borrow(module)
        self.causal, self.heads = bool(module.is_decoder), module.n_heads
        self.buckets, self.max_distance = module.relative_attention_num_buckets, module.relative_attention_max_distance
        side = self.buckets if self.causal else self.buckets // 2
        named = {} if type(module).__name__ == "UMT5Attention" else {
            "bidirectional": not self.causal, "num_buckets": self.buckets, "max_distance": self.max_distance
        }  # fmt: skip
        numbers = module._relative_position_bucket(-torch.arange(4 * self.max_distance + side), **named)
        first = torch.searchsorted(numbers.contiguous(), torch.arange(1, side))
        self.register_buffer("first", first, persistent=False)
        self.reach = int(first[-1])

    def lent(self) -> Tensor:
        found: Tensor = self.owner[0].relative_attention_bias.weight
        return found


def patch(module: nn.Module, undo: Undo) -> str:
    """Gives one attention module the lazy bias. What changed, in words."""
    if not getattr(module, "has_relative_attention_bias", False):
        # Layers without a table ask for zeros of queries x keys; told that they had one, they ask for it.
        undo.set(module, "has_relative_attention_bias", True)
        undo.method(module, "compute_bias", _no_bias)
        return "no bias of zeros"
    undo.set(module, "_relpos_bias", (Borrowed(module),))
    undo.method(module, "compute_bias", _bias)
    return "table of buckets, exact kernel"


def _bias(self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Lag:
    (encoding,) = self._relpos_bias
    if encoding.owner[0] is not self:  # a copy of the model: its own table
        encoding = Borrowed(self)
        self.__dict__["_relpos_bias"] = (encoding,)
    if encoding.first.device != self.relative_attention_bias.weight.device:
        encoding.first = encoding.first.to(self.relative_attention_bias.weight.device)
    return Lag(encoding, past_seen_tokens)


def _no_bias(self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Lag:
    return Lag(None, past_seen_tokens)
