"""Wav2Vec2-Conformer and its kind: Transformer-XL's terms, without the scores of queries against lags."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relpos.encodings.base import Encoding, State, States
from relpos.encodings.content.transformer_xl import TransformerXL
from relpos.encodings.network import wide
from relpos.integrations.transformers.interface import Lag, Visible, attend
from relpos.integrations.transformers.patch import Undo, given
from relpos.positions import Positions

CLASSES = ("Wav2Vec2ConformerSelfAttention",)


class Lags(TransformerXL):
    """((q_i + w_h) . lags_h[i - j] + u_h . k_j) scale, of lags that a model has projected already.

    lags  (heads, 2 n - 1, dim), from i - j = n - 1 down to 1 - n: come with the call; u, w  (heads, dim): the model's
    """

    lags: Tensor

    def __init__(self, module: Any) -> None:
        Encoding.__init__(self)
        self.heads, self.dim = module.pos_bias_u.shape
        self.scale = module.scaling
        self.owner = (module,)  # in a tuple: a submodule would appear in the model's state

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        dtype, (owner,) = wide(q, self.lags), self.owner
        return {
            "lags": State(self.lags.to(dtype) * self.scale, "lag", -2),
            "u": State(owner.pos_bias_u.to(dtype) * self.scale, "whole"),
            "w": State(owner.pos_bias_v.to(dtype), "whole"),
        }


def patch(module: nn.Module, undo: Undo) -> str:
    undo.set(module, "_relpos_rule", (Lags(module),))
    undo.method(module, "forward", _forward)
    return "Transformer-XL's terms in the exact kernel"


def unfit(module: Any) -> str | None:
    kind = module.position_embeddings_type
    return None if kind == "relative" else f"its positions are {kind or 'none'}, which need no matrix"


def _forward(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, relative_position_embeddings: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if relative_position_embeddings is None:
        raise ValueError("a conformer of relative positions needs relative_position_embeddings")
    if options.get("output_attentions"):
        raise ValueError("relpos makes no matrix of weights: output_attentions=True is not possible; restore(model)")
    q, k, v = (
        layer(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        for layer in (self.linear_q, self.linear_k, self.linear_v)
    )
    lags = self.linear_pos(relative_position_embeddings[0]).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
    (rule,) = self._relpos_rule
    seen = attention_mask if attention_mask is not None else Visible(causal=False)
    with given(rule, lags=lags) as encoding:
        mixed = attend(q, k, v, seen, Lag(encoding), self.scaling, self.dropout.p if self.training else 0.0)
    return self.linear_out(mixed.flatten(2)), None
