"""What relpos hands to transformers' attention interface: a mask that is no matrix, and attention that reads it.

transformers builds masks by the name of the attention implementation; under the name "relpos" it gets a `Visible`, some
numbers and one row a sequence, in place of a tensor of queries x keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding
from relpos.mixers.functional import Window, attention
from relpos.positions import Index, is_traced

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
    key_mask = None
    if attention_mask is not None:
        missing = kv_length + kv_offset - attention_mask.shape[-1]
        padded = nn.functional.pad(attention_mask, (0, missing)) if missing > 0 else attention_mask
        key_mask = hiding(padded[:, kv_offset : kv_offset + kv_length])
    causal, window, packed = _read(mask_function)
    segments = _packed(mask_function) if packed else None
    return Visible(q_offset - kv_offset, key_mask, causal, window, segments)


def hiding(key_mask: Tensor) -> Tensor | None:
    """The mask as bool, None where it hides nothing, which costs nothing then: to look is one synchronisation a forward
    pass, and a compiled program does not look."""
    if not is_traced() and bool(key_mask.all()):
        return None
    return key_mask.bool()


Rule = Callable[..., Any]
INSIDE = ".<locals>.inner_mask"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _read(rule: Rule | None) -> tuple[bool, Window | None, bool]:
    """A rule of transformers' masking_utils, known by the name of the function that made it: causal, window, and
    whether there are documents that do not see each other."""
    name = getattr(rule, "__qualname__", "causal_mask_function").removesuffix(INSIDE)
    inner = _inner(rule)
    if name == "causal_mask_function":
        return True, None, False
    if name == "bidirectional_mask_function":
        return False, None, False
    if name == "sliding_window_overlay":
        return False, (int(inner["sliding_window"]) - 1, None), False
    if name == "sliding_window_bidirectional_overlay":
        width = int(inner["sliding_window"])
        return False, (width, width), False
    if name == "packed_sequence_mask_function":
        return False, None, True
    if name == "remap_positions_for_packed_sequence":
        read: tuple[bool, Window | None, bool] = _read(inner["mask_function"])
        return read  # indices within a document, in the same order and at the same distances
    if name == "and_masks.<locals>.and_mask":
        parts = [_read(part) for part in inner["mask_functions"]]
        windows = [window for _, window, _ in parts if window is not None]
        return any(part[0] for part in parts), windows[-1] if windows else None, any(part[2] for part in parts)
    raise NotImplementedError(
        f"relpos has no form for the attention mask {name!r} of transformers; "
        "restore(model) gives the model its own back"
    )


def _packed(rule: Rule | None) -> Tensor:
    """The numbers of documents, (batch, keys), that a rule holds."""
    inner = _inner(rule)
    if "packed_sequence_mask" in inner:
        found: Tensor = inner["packed_sequence_mask"]
        return found
    parts = inner["mask_functions"] if "mask_functions" in inner else [inner["mask_function"]]
    return _packed(next(part for part in parts if _read(part)[2]))


def _inner(rule: Rule | None) -> Mapping[str, Any]:
    """What a function holds of the one that made it."""
    return inspect.getclosurevars(rule).nonlocals if callable(rule) else {}


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
        q_pos=Index.arange(n_q, start, query.device),
        k_pos=Index.arange(n_k, device=query.device),
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
