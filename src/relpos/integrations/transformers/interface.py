"""What relpos hands to transformers' attention interface: a mask that is no matrix, and attention that reads it.

transformers builds masks by the name of the attention implementation; under the name "relpos" it gets a `Visible`, some
numbers and one row a sequence, in place of a tensor of queries x keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding
from relpos.mixers.functional import Window, attention
from relpos.positions import Index

NAME = "relpos"


@dataclass(frozen=True)
class Visible:
    """Which keys a query may see.

    start      index of the first query, that of the first key being 0: a number, or a tensor of one
    key_mask   bool (batch, keys), True = real; None: all
    causal     keys up to the query's own index
    window     as in `relpos.attention`
    segments   (batch, keys): documents that do not see each other
    """

    start: int | Tensor = 0
    key_mask: Tensor | None = None
    causal: bool = True
    window: Window | None = None
    segments: Tensor | None = None

    # transformers asks a mask for these two, and leaves one of four axes as it is.
    ndim = 4
    shape = (0, 0, 0, 0)

    def to(self, *_: Any, **__: Any) -> Visible:
        """Models send their masks to a device; a mask follows its queries here."""
        return self

    def contiguous(self) -> Visible:
        """Up to 5.23 `generate` lays its masks anew for a static cache."""
        return self


@dataclass(frozen=True)
class Lag:
    """Stands for the bias of queries x keys that a model would build: an encoding, and where the queries begin."""

    encoding: Encoding | None
    start: int | Tensor = 0
    requires_grad = False


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Any = None,
    **_: Any,
) -> Visible:
    """A `Visible` of what transformers asks a mask for. NotImplementedError for rules that it has no place for."""
    if isinstance(attention_mask, Visible):
        return attention_mask
    found = _read(mask_function)
    if attention_mask is not None:
        missing = kv_length + kv_offset - attention_mask.shape[-1]
        padded = nn.functional.pad(attention_mask, (0, missing)) if missing > 0 else attention_mask
        padded = padded[:, kv_offset : kv_offset + kv_length]
        # A mask that hides nothing costs nothing; to look is one synchronisation a forward pass.
        found = replace(found, key_mask=None if bool(padded.all()) else padded)
    return replace(found, start=q_offset - kv_offset)


def _read(rule: Callable[..., Any] | None) -> Visible:
    """The rule of transformers' masking_utils, read by the name of the function that made it."""
    name = getattr(rule, "__qualname__", "causal_mask_function").removesuffix(".<locals>.inner_mask")
    inner = inspect.getclosurevars(rule).nonlocals if callable(rule) else {}
    if name == "causal_mask_function":
        return Visible(causal=True)
    if name == "bidirectional_mask_function":
        return Visible(causal=False)
    if name == "sliding_window_overlay":
        return Visible(causal=False, window=(int(inner["sliding_window"]) - 1, None))
    if name == "sliding_window_bidirectional_overlay":
        width = int(inner["sliding_window"])
        return Visible(causal=False, window=(width, width))
    if name == "packed_sequence_mask_function":
        return Visible(causal=False, segments=inner["packed_sequence_mask"])
    if name == "remap_positions_for_packed_sequence":
        return _read(inner["mask_function"])  # indices within a document, in the same order and at the same distances
    if name == "and_masks.<locals>.and_mask":
        found = Visible(causal=False)
        for part in map(_read, inner["mask_functions"]):
            changed = {key: value for key, value in vars(part).items() if value is not None and value is not False}
            found = replace(found, **{key: value for key, value in changed.items() if key != "start"})
        return found
    raise NotImplementedError(
        f"relpos has no form for the attention mask {name!r} of transformers; "
        "restore(model) gives the model its own back"
    )


def forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: heads second, output (batch, queries, heads, dim); there are no weights to return."""
    for name in ("softcap", "s_aux", "cu_seq_lens_q", "cu_seq_lens_k"):
        if options.get(name) is not None:
            raise NotImplementedError(f"relpos does not compute attention with {name}; restore(model) gives it back")
    if options.get("output_attentions"):
        raise ValueError("relpos makes no matrix of weights: output_attentions=True is not possible; restore(model)")
    lag = position_bias if isinstance(position_bias, Lag) else None
    put_in = getattr(module, "relpos_encoding", None)  # by replace_encoding; T5 hands the first layer's on to all
    if isinstance(position_bias, Tensor) or isinstance(attention_mask, Tensor):
        what = "bias" if isinstance(position_bias, Tensor) else "mask"
        raise NotImplementedError(
            f"{type(module).__name__} was given a {what} of queries x keys; relpos takes none. "
            "restore(model) gives the model its own attention back"
        )
    seen = attention_mask if attention_mask is not None else _alone(module, query, key, options)
    if put_in is not None:
        lag = Lag(put_in, seen.start if lag is None else lag.start)
    return attend(query, key, value, seen, lag, scaling, dropout), None


def _alone(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> Visible:
    """What is seen where no mask came along."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return Visible(key.shape[2] - query.shape[2], causal=bool(causal) and query.shape[2] > 1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, seen: Visible, lag: Lag | None, scaling: float | None, dropout: float
) -> Tensor:
    """(batch, heads, n, dim) to (batch, n, heads, dim)."""
    encoding = None if lag is None else lag.encoding
    start = seen.start if lag is None or not seen.causal else lag.start
    start = int(start) if seen.causal or encoding is not None or seen.window is not None else 0
    n_q, n_k = query.shape[2], key.shape[2]
    segments = None
    if seen.segments is not None:
        segments = (seen.segments[:, start : start + n_q], seen.segments)
    out = attention(
        query,
        key,
        value,
        encoding,
        q_pos=Index(torch.arange(start, start + n_q, device=query.device)),
        k_pos=Index(torch.arange(n_k, device=query.device)),
        causal=seen.causal,
        key_mask=seen.key_mask,
        segments=segments,
        window=seen.window,
        scale=scaling,
        dropout=dropout,
    )
    return out.transpose(1, 2)


def register() -> None:
    """Makes the name "relpos" known to transformers; again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, mask)
