"""A trained network with another mixer in its self-attention, on the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from relpos.encodings.base import Transform
from relpos.features import Features, Random
from relpos.mixers.functional import score_factor
from relpos.mixers.self_attention import SelfAttention


def convert(
    model: nn.Module,
    mixer: str = "kernelized",
    *,
    features: str | Features = "prf",
    feature_count: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The network with every `SelfAttention` in it changed to `mixer`; the weights are shared with `model`, not copied.

    So training one trains the other. Everything that is not self-attention (cross attention, MLPs) stays as it is.
    The new layers stand for the same function of q.k and of the lag: q and k are normalised in both or in neither, the
    factor of q.k is the same (by way of the temperature), and so is the encoding; the features then approximate
    exp(factor q.k) where they are random features of it, and do not where they are not (ELU1, ReLU).

    features, feature_count   of kernelised layers, as in `SelfAttention`; each layer gets features of its own
    generator                 of the draw of random features

    TypeError where an encoding means something else in the other mixer: a Transform that acts after the features (RoPE)
    turns phi(k) in one and k in the other. ValueError where there is no self-attention, or where features given as an
    object normalise and the layer does not, or the reverse.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    found = [(name, layer) for name, layer in twin.named_modules() if isinstance(layer, SelfAttention)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no SelfAttention that could be converted")
    for name, layer in found:
        new = _converted(layer, mixer, features, feature_count, generator)
        if not name:
            return new
        parent, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, new)
    return twin


def _converted(
    old: SelfAttention,
    mixer: str,
    features: str | Features,
    feature_count: int | None,
    generator: torch.Generator | None,
) -> SelfAttention:
    if isinstance(old.encoding, Transform) and old.encoding.side == "after" and mixer != old.mixer:
        raise TypeError(
            f"{type(old.encoding).__name__} acts on q and k in softmax attention and on their features in kernelised "
            "attention: the weights of one mean nothing in the other; train with the mixer that you want"
        )
    if "pointwise" in (mixer, old.mixer):
        raise TypeError("weights without a softmax mean something else: a network of one kind is not one of the other")
    normalize = _normalizes(old)
    if isinstance(features, Features) and features.normalize != normalize:
        raise ValueError(
            f"the layer was trained with normalize={normalize} and the features have normalize={features.normalize}; "
            f"build them with normalize={normalize}"
        )
    options: dict[str, Any] = {"kv_heads": old.kv_heads, "head_dim": old.head_dim, "causal": old.causal}
    options |= {"window": old.window, "bias": old.q.bias is not None, "normalize": normalize}
    factor = _factor(old)
    if mixer == "kernelized":
        own = copy.deepcopy(features) if isinstance(features, Features) else features
        options |= {"features": own, "feature_count": feature_count}
    else:
        options |= {"dropout": old.dropout}
        options |= {"temperature": 1 / factor} if normalize else {"scale": factor}
    new = SelfAttention(old.dim, old.heads, old.encoding, mixer, **options)
    if new.features is not None:
        new.temperature = new.features.scale(old.head_dim) / factor
        if isinstance(new.features, Random):
            new.features.redraw(generator)
    new.q, new.k, new.v, new.out = old.q, old.k, old.v, old.out
    new.to(old.q.weight.device)
    return new.train(old.training)


def _normalizes(layer: SelfAttention) -> bool:
    return layer.features.normalize if layer.features is not None else bool(layer.normalize)


def _factor(layer: SelfAttention) -> float:
    """What the layer's q.k (of unit rows where it normalises) is multiplied by."""
    if layer.features is not None:
        return layer.features.scale(layer.head_dim) / layer.temperature
    if layer.normalize:
        return 1 / layer.temperature
    return score_factor(layer.scale, layer.encoding, layer.head_dim)
