"""`accelerate` and `replace_encoding`: what relpos does to a model of x-transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from relpos.encodings.base import Encoding, Pairwise
from relpos.integrations.common import KEPT, Given, check_unchanged, check_version, encoding_of
from relpos.integrations.transformers.apply import Change, Report
from relpos.integrations.transformers.patch import Undo
from relpos.integrations.transformers.replace import PART
from relpos.integrations.x_transformers import layer
from relpos.mixers.functional import explain

TESTED = ((2, 31), (2, 31))
"""The first and the last minor version of x-transformers that the tests were run with."""


def accelerate(model: nn.Module, *, untested: bool = False) -> Report:
    """Lets a model of x-transformers compute its attention by relpos: no tensor of queries x keys, forward or backward.

    For alibi_pos_bias, rel_pos_bias (T5's buckets), rotary, polar or no positions, in encoders, decoders and
    cross-attention; with key masks, left padding, memories, memory keys, max_attend_past, grouped heads, any
    normalisation of queries and keys, and whatever acts on values or outputs. Weights and their names stay; outputs and
    gradients are equal up to rounding, and `generate` gives the same tokens, with its cache or without. Rows of pads on
    the left differ, and are read by nobody. What is lost: scores and weights among the intermediates, which are None as
    they are with attn_flash=True.

    untested: also with a version of x-transformers outside of `TESTED`.
    Returns what changed, what did not, and why: layers with other options (`layer.UNFIT`, weights that are no softmax,
    dynamic_pos_bias, residual_attn, prefix decoders) stay as they are. ValueError where nothing could be changed, and
    where relpos is in the model already; RuntimeError for an untested version; ImportError without x-transformers. The
    model itself raises NotImplementedError where it is called with a mask or a bias of queries x keys.
    """
    undo = _begun(model, untested)
    changes = [Change(name, not why, why or layer.patch(part, undo)) for name, part, _, why in _parts(model)]
    if not any(each.changed for each in changes):
        reasons = "; ".join(f"{each.name or 'model'}: {each.what}" for each in changes)
        raise ValueError(f"nothing in this {type(model).__name__} can be changed: {reasons or 'it has no attention'}")
    for part in model.modules():
        if type(part).__name__ in layer.BIASES:
            undo.set(part, "_relpos", None)
            layer.borrowed(part)
            if "bias" in part._buffers:
                part._buffers["bias"] = None  # a bias of queries x keys that ALiBi kept from an earlier call
    model.__dict__[KEPT] = undo
    return Report("x-transformers", tuple(changes))


def replace_encoding(
    model: nn.Module, encoding: Given, *, share: bool = True, untested: bool = False, **options: Any
) -> Report:
    """Takes the encoding out of every self-attention and puts another in, for experiments; all other weights stay.

    encoding  a name ("fire", "kerple", "shaw", "rope", .., "nope"), one object for all layers, or a callable without
              arguments that makes one a layer
    share     of a name: one encoding for all layers; False: one a layer
    options   of a name; heads, dim, model_dim and causal are filled in
    A learned encoding becomes part of the model, as ``relpos_encoding`` of each layer: trained and saved. Scores keep
    the model's own scale. Positions that are added to the input stay. Attention is computed by relpos, as after
    `accelerate`, and `restore` undoes it.

    ValueError or TypeError for what does not fit, with the layer named, and nothing is changed then.
    """
    undo = _begun(model, untested)
    parts = list(_parts(model, own=False))
    made: dict[str, Encoding] = {}
    for name, part, kind, why in parts:
        if kind == "a":
            if why:
                raise ValueError(f"{name}: {why}, which relpos does not compute; no encoding was replaced")
            again = made and share and isinstance(encoding, str)
            made[name] = next(iter(made.values())) if again else _made(name, part, encoding, options)
    if not made:
        raise ValueError(f"this {type(model).__name__} has no self-attention of x-transformers")
    changes = []
    for name, part, _, why in parts:
        what = why or layer.patch(part, undo)
        if name in made:
            undo.submodule(part, PART, made[name].to(part.to_q.weight.device))
            what = f"{type(made[name]).__name__} in place of its own encoding"
        changes.append(Change(name, not why, what))
    added = ("AbsolutePositionalEmbedding", "ScaledSinusoidalEmbedding")
    stays = "stays: positions that are added to the input; a model built with use_abs_pos_emb=False has none"
    changes += [Change(name, False, stays) for name, part in model.named_modules() if type(part).__name__ in added]
    model.__dict__[KEPT] = undo
    return Report("x-transformers", tuple(changes))


def _begun(model: nn.Module, untested: bool) -> Undo:
    check_version("x-transformers", "x-transformers", TESTED, untested)
    check_unchanged(model, "x-transformers")
    return Undo()


def _parts(model: nn.Module, own: bool = True) -> Iterator[tuple[str, Any, str, str]]:
    """Attention layers: name, module, "a" (self) or "c" (cross), and why relpos does not compute it, "" where it does.

    own: with the bias that the model has, which may have no form here.
    """
    from x_transformers.x_transformers import Attention, AttentionLayers

    around: dict[nn.Module, tuple[str, str]] = {}
    for layers in model.modules():
        if isinstance(layers, AttentionLayers):
            why = layer.unfit_around(layers, own)
            for kind, (_, block, _) in zip(layers.layer_types, layers.layers):
                around |= {part: (kind, why) for part in block.modules() if isinstance(part, Attention)}
    for name, part in model.named_modules():
        if isinstance(part, Attention):
            kind, why = around.get(part, ("c", ""))
            yield name, part, kind, why or layer.unfit(part)


def _made(name: str, part: Any, given: Given, options: dict[str, Any]) -> Encoding:
    """The encoding for one layer, asked once whether it fits."""
    dim, wide = part.to_q.out_features // part.heads, part.to_v.out_features // part.kv_heads
    known = {"heads": part.heads, "dim": dim, "model_dim": part.to_q.in_features, "causal": part.causal}
    made = encoding_of(given, known, options)
    if isinstance(made, Pairwise) and made.needs_content:
        raise ValueError(f"{type(made).__name__} reads the layer's input, of which x-transformers caches nothing")
    q, v = torch.zeros(1, part.heads, 2, dim), torch.zeros(1, part.heads, 2, wide)
    try:
        explain(q, q, v, made.cpu(), causal=part.causal)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return made
