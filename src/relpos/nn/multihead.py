"""torch.nn.MultiheadAttention with an encoding: the same arguments, the same weights, no tensor of n x n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from relpos.encodings.base import Absolute, Encoding
from relpos.encodings.registry import fitted
from relpos.mixers.functional import attention


class MultiheadAttention(nn.MultiheadAttention):
    """As `torch.nn.MultiheadAttention`, whose state dicts it reads and writes, plus a relative encoding.

    embed_dim, num_heads, dropout, bias, kdim, vdim, batch_first, device, dtype   as in torch
    encoding           an Encoding, a name (heads, dim, model_dim and causal are filled in), or None
    encoding_options   further arguments of an encoding given by name
    causal             what an encoding given by name is told of the attention; is_causal says it of a call

    Without an encoding it is torch's layer, up to rounding. It also works inside `torch.nn.TransformerEncoderLayer` and
    its like: put it in the place of their ``self_attn``. torch's fused path for evaluation, which would go past the
    encoding, stays off. add_bias_kv and add_zero_attn are not there: rows that see nothing give 0 without them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        encoding: Encoding | str | None = None,
        encoding_options: Mapping[str, Any] | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, kdim=kdim, vdim=vdim, batch_first=batch_first, device=device,
            dtype=dtype,
        )  # fmt: skip
        if isinstance(encoding, str):
            known = {"heads": num_heads, "dim": self.head_dim, "model_dim": embed_dim, "causal": causal}
            encoding = fitted(encoding, known, encoding_options).to(device=device, dtype=dtype)
        elif encoding_options:
            raise ValueError("encoding_options go with an encoding given by name")
        if encoding is not None and (not isinstance(encoding, Encoding) or isinstance(encoding, Absolute)):
            raise TypeError(f"encoding is a relative Encoding, its name or None, got {type(encoding).__name__}")
        self.encoding = encoding
        self._packed = self._qkv_same_embed_dim
        # What torch's encoder layer looks at before it takes its fused path.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        q_pos: object = None,
        k_pos: object = None,
    ) -> tuple[Tensor, None]:
        """(output, None), shaped as in torch. need_weights is False by default here: there is no matrix to return.

        key_padding_mask   (batch, n_k): True, or -inf, hides a key
        attn_mask          taken only together with is_causal=True, as torch's layers give both; any other is n x n
        q_pos, k_pos       positions, as in `relpos.attention`
        """
        if need_weights:
            raise ValueError("there is no matrix of weights: need_weights=False, or kernel dense of relpos.attention")
        if attn_mask is not None and not is_causal:
            raise ValueError(
                "attn_mask is a matrix of n x n: say is_causal=True where it is the causal one, key_padding_mask for "
                "padding; segments and windows are arguments of relpos.attention"
            )
        single = query.dim() == 2
        if single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (_heads(x, self.num_heads) for x in self._projected(query, key, value))
        mixed = attention(
            q, k, v, self.encoding, q_pos=q_pos, k_pos=k_pos, causal=is_causal,
            key_mask=_real(key_padding_mask, single), dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if single:
            return out.squeeze(0), None
        return out if self.batch_first else out.transpose(0, 1), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        inputs = (query, key, value)
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        if self._packed:
            assert self.in_proj_weight is not None
            weights = list(self.in_proj_weight.chunk(3))
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        return [linear(x, weight, b) for x, weight, b in zip(inputs, weights, biases)]


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, n, width) to (batch, heads, n, width / heads)."""
    return x.view(*x.shape[:2], count, x.shape[-1] // count).transpose(1, 2)


def _real(padding: Tensor | None, single: bool) -> Tensor | None:
    """True = real, from torch's True = pad or -inf = pad."""
    if padding is None:
        return None
    hidden = padding if padding.dtype == torch.bool else torch.isinf(padding)
    if padding.dtype != torch.bool and not bool(((padding == 0) | hidden).all()):
        raise ValueError("key_padding_mask hides keys or does not: bool, or floats of 0 and -inf")
    return ~(hidden.unsqueeze(0) if single else hidden)
