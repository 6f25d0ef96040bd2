"""BLOOM and MPT: ALiBi, in place of scores that are all kept at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.bias.alibi import ALiBi
from relpos.integrations.transformers.interface import Lag, Visible, attend
from relpos.integrations.transformers.patch import Undo

CLASSES = ("BloomAttention", "MptAttention")


def encoding_of(slopes: Tensor) -> ALiBi:
    """ALiBi with a model's own slopes (heads,), which differ where the heads are no power of two."""
    made = ALiBi(len(slopes), causal=True)
    made.slopes = slopes.to(torch.float64)
    return made


def patch(module: nn.Module, undo: Undo) -> str:
    bloom = type(module).__name__ == "BloomAttention"
    undo.set(module, "_relpos_alibi", (encoding_of(_bloom_slopes(module) if bloom else _mpt_slopes(module)),))
    undo.method(module, "forward", _bloom if bloom else _mpt)
    return "ALiBi in the exact kernel"


def _bloom_slopes(module: Any) -> Tensor:
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    found: Tensor = _get_alibi_slopes(module.num_heads, None)
    return found


def _mpt_slopes(module: Any) -> Tensor:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    bias: Tensor = build_mpt_alibi_tensor(module.n_heads, 2)[:, 0]  # a row a head that rises by its slope
    return bias[:, 1] - bias[:, 0]


def _lag(module: Any, seen: Visible, device: torch.device) -> Lag:
    (encoding,) = module._relpos_alibi
    if encoding.slopes.device != device:
        encoding.slopes = encoding.slopes.to(device)
    return Lag(encoding, seen.start)


def _refuse(output_attentions: bool) -> None:
    if output_attentions:
        raise ValueError("relpos makes no matrix of weights: output_attentions=True is not possible; restore(model)")


def _bloom(
    self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, attention_mask: Any, layer_past: Any = None,
    use_cache: bool = False, output_attentions: bool = False, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As BloomAttention, with tokens standing at their index: left pads shift all of a row, which no lag sees."""
    _refuse(output_attentions)
    q, k, v = self._reshape(self.query_key_value(hidden_states))
    if layer_past is not None:
        k, v = layer_past.update(k, v, self.layer_idx)
    seen = attention_mask if attention_mask is not None else Visible(k.shape[2] - q.shape[2])
    lag = _lag(self, seen, q.device)
    dropout = self.attention_dropout.p if self.training else 0.0
    mixed = attend(q, k, v, seen, lag, self.inv_norm_factor, dropout).flatten(2)
    out = torch.nn.functional.dropout(self.dense(mixed), self.hidden_dropout, self.training) + residual
    return out, None


def _mpt(
    self: Any, hidden_states: Tensor, position_bias: Tensor, cache: Any = None, attention_mask: Any = None, **_: Any
) -> tuple[Tensor, None]:
    mixed = self.Wqkv(hidden_states)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    q, k, v = (x.unflatten(2, (self.n_heads, self.head_dim)).transpose(1, 2) for x in mixed.chunk(3, dim=2))
    if cache is not None:
        k, v = cache.update(k, v, self.layer_idx)
    seen = attention_mask if attention_mask is not None else Visible(k.shape[2] - q.shape[2])
    lag = None if position_bias is None else _lag(self, seen, q.device)
    dropout = self.attn_dropout_p if self.training else 0.0
    return self.out_proj(attend(q, k, v, seen, lag, self.softmax_scale, dropout).flatten(2)), None
