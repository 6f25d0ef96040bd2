"""DeBERTa-v2 and v3: disentangled attention without the matrices of lags, of masks and of scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relpos.encodings.content.deberta import DeBERTa
from relpos.integrations.transformers.interface import Lag, Visible, attend, hiding
from relpos.integrations.transformers.patch import Undo, given

CLASSES = ("DisentangledSelfAttention",)
ENCODERS = ("DebertaV2Encoder",)


class Projected(DeBERTa):
    """DeBERTa whose tables come with the call: the model projects its table of lags in every layer."""

    def __init__(self, heads: int, dim: int, span: int, max_lag: int | None, terms: tuple[str, ...]) -> None:
        super().__init__(heads, dim, span, max_lag, terms)
        del self.keys, self.queries


def patch(module: nn.Module, undo: Undo) -> str:
    if type(module).__name__ in ENCODERS:
        undo.method(module, "get_attention_mask", _mask)
        undo.method(module, "get_rel_pos", _no_lags)
        return "no matrices of lags and masks"
    undo.set(module, "_relpos_rule", (_rule(module),))
    undo.method(module, "forward", _forward)
    return "disentangled attention in the exact kernel"


def unfit(module: Any) -> str | None:
    """Why a module cannot be changed, or None."""
    if not getattr(module, "relative_attention", False):
        return "it has no relative positions"
    if not set(module.pos_att_type) & {"c2p", "p2c"}:
        return "it has none of the terms c2p and p2c"
    return None


def _rule(module: Any) -> Projected:
    """Made once: a compiled program knows an encoding by its number, and none that it makes itself has one."""
    terms = tuple(term for term in ("c2p", "p2c") if term in module.pos_att_type)
    max_lag = module.max_relative_positions if module.position_buckets > 0 else None
    return Projected(module.num_attention_heads, module.attention_head_size, module.pos_ebd_size, max_lag, terms)


def _mask(self: Any, attention_mask: Tensor) -> Tensor:
    """(batch, n), as it came: pads are keys that nobody sees. Their own rows see real tokens, and are read by none."""
    return attention_mask if attention_mask.dim() == 2 else attention_mask.flatten(1, -2).any(1)


def _no_lags(self: Any, hidden_states: Tensor, query_states: Any = None, relative_pos: Any = None) -> None:
    if relative_pos is not None:
        raise NotImplementedError("relpos computes the lags of DeBERTa itself; relative_pos is not taken")


def _forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor, output_attentions: bool = False,
    query_states: Tensor | None = None, relative_pos: Any = None, rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:  # fmt: skip
    if output_attentions:
        raise ValueError("relpos makes no matrix of weights: output_attentions=True is not possible; restore(model)")
    (rule,), heads = self._relpos_rule, self.num_attention_heads
    asked = hidden_states if query_states is None else query_states
    q, k, v = (
        layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, x in ((self.query_proj, asked), (self.key_proj, hidden_states), (self.value_proj, hidden_states))
    )
    table = self.pos_dropout(rel_embeddings)[: 2 * rule.span]
    rows = {}
    for term, shared, own in (("c2p", "key_proj", "pos_key_proj"), ("p2c", "query_proj", "pos_query_proj")):
        layer = getattr(self, shared if self.share_att_key else own) if term in rule.terms else None
        rows[term] = None if layer is None else layer(table).unflatten(-1, (heads, -1)).transpose(0, 1)
    seen = Visible(0, hiding(attention_mask), causal=False)
    with given(rule, keys=rows["c2p"], queries=rows["p2c"]) as encoding:
        scale = encoding.score_scale(q.shape[-1])
        out = attend(q, k, v, seen, Lag(encoding), scale, self.dropout.p if self.training else 0.0)
    return out.flatten(2), None
