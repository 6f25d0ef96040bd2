"""Another encoding in a trained decoder, for experiments: everything else keeps its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding, Pairwise
from relpos.encodings.registry import fitted
from relpos.integrations.common import KEPT
from relpos.integrations.transformers import apply as models
from relpos.integrations.transformers.interface import Lag
from relpos.integrations.transformers.patch import Undo

PART = "relpos_encoding"


def replace_encoding(model: Any, encoding: str, *, share: bool = True, **options: Any) -> models.Report:
    """Takes a model's own encoding out and puts another in: "alibi", "t5", "kerple", "shaw", .. or "nope".

    For rotary decoders and the T5 family. The model is accelerated besides, if it was not. All other weights stay, and
    the first outputs are as far off as the two encodings are apart: train on. `restore` undoes it.

    share    one encoding for all layers; False: one a layer
    options  of the encoding; heads, dim and causal are filled in
    A learned encoding becomes part of the model, as ``relpos_encoding`` of each attention module: trained and saved.

    ValueError for a name that is not known, for an encoding that is no term of the scores, and for models without a
    form here.
    """
    fresh = KEPT not in vars(model)
    family = models._family_of(model)
    if family.name not in ("T5", "rotary decoders"):
        raise ValueError(f"replace_encoding is for the T5 family and rotary decoders, not for {family.name}")
    if fresh:
        models.accelerate(model)
    undo: Undo = vars(model)[KEPT]
    try:
        return _replaced(model, family, encoding, share, options, undo)
    except BaseException:
        if fresh:
            models.restore(model)
        raise


def _replaced(
    model: Any, family: models.Family, name: str, share: bool, options: dict[str, Any], undo: Undo
) -> models.Report:
    parts = [(where, part) for where, part in model.named_modules() if _is_self_attention(part, family)]
    made: Encoding | None = None
    changes = []
    for where, part in parts:
        if name != "nope" and (made is None or not share):
            made = _built(part, family, name, options)
        target = next(part.parameters())
        undo.submodule(part, PART, None if made is None else made.to(target.device))
        if family.name == "T5":
            undo.set(part, "has_relative_attention_bias", True)
            undo.method(part, "compute_bias", _own)
        changes.append(models.Change(where, True, f"{name} in place of its own encoding"))
    if family.name != "T5":
        for where, part in model.named_modules():
            if type(part).__name__.endswith("RotaryEmbedding"):
                undo.method(part, "forward", _unturned)
                changes.append(models.Change(where, True, "turns nothing"))
    return models.Report(family.name, tuple(changes))


def _is_self_attention(part: nn.Module, family: models.Family) -> bool:
    kind = type(part).__name__
    if family.patches is not None:
        crossed = getattr(part, "is_decoder", False) and not getattr(part, "is_causal", False)
        return kind in family.patches.CLASSES and not crossed
    return kind.endswith("Attention") and hasattr(part, "layer_idx")


def _built(part: Any, family: models.Family, name: str, options: dict[str, Any]) -> Encoding:
    if family.name == "T5":
        heads, dim, causal = part.n_heads, part.key_value_proj_dim, bool(part.is_decoder)
    else:
        heads, dim, causal = part.config.num_attention_heads, part.head_dim, True
    made = fitted(name, {"heads": heads, "dim": dim, "model_dim": heads * dim, "causal": causal}, options)
    if not isinstance(made, Pairwise):
        raise ValueError(f"{name} is no term of the scores; replace_encoding takes biases and their like")
    return made


def _own(self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Lag:
    return Lag(getattr(self, PART), past_seen_tokens)


def _unturned(self: Any, x: Tensor, position_ids: Tensor | None = None, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Cosines of 1 and sines of 0, in the shape that the model's own would have."""
    cos, sin = type(self).forward(self, x, position_ids, *_, **__)
    return torch.ones_like(cos), torch.zeros_like(sin)
