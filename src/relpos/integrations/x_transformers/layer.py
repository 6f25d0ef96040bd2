"""One attention layer of x-transformers: what it must not do to be computed here, and how it is computed then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding, Transform
from relpos.encodings.bias.alibi import ALiBi
from relpos.encodings.bias.t5 import T5Bias
from relpos.integrations.common import Lent
from relpos.integrations.transformers.patch import Undo
from relpos.integrations.transformers.replace import PART
from relpos.mixers.functional import attention
from relpos.mixers.prefix import beside, with_prefix
from relpos.positions import Index, Position

BIASES = ("AlibiPositionalBias", "RelativePositionBias")
"""The modules of a bias that have an encoding here."""

UNFIT = {
    "pre_softmax_talking_heads": "talking heads mix the scores of all heads",
    "post_softmax_talking_heads": "talking heads mix the weights of all heads",
    "pre_scale_post_talking_heads": "talking heads mix the scores of all heads",
    "l2_distance": "its scores are distances",
    "selective": "selective attention sums the scores of earlier queries",
    "cog_signed": "its weights keep the signs of the scores",
    "add_zero_kv": "its softmax has a key of zeros",
    "head_learned_sink": "its softmax has sinks",
    "softclamp_logits": "its scores are capped by a tanh",
    "cope": "CoPE counts along the scores",
    "flash_pack_seq": "it packs documents by another package",
    "data_dependent_alibi": "it makes a bias of queries x keys from its input",
    "rel_proj_pos_bias": "it makes a bias of queries x keys from its input",
}
"""Options of a layer whose results this library does not compute, by attribute."""


class Buckets(Lent, T5Bias):  # type: ignore[misc]
    """The rule and the table of a RelativePositionBias, with its factor; edges are read off it."""

    def __init__(self, module: Any) -> None:
        self.borrow(module)
        self.causal, self.buckets, self.max_distance = bool(module.causal), module.num_buckets, module.max_distance
        self.heads, side = module.relative_attention_bias.embedding_dim, self.buckets // (1 if self.causal else 2)
        back = -torch.arange(4 * self.max_distance + side, device=module.relative_attention_bias.weight.device)
        numbers = module._relative_position_bucket(back, self.causal, self.buckets, self.max_distance)
        first = torch.searchsorted(numbers.contiguous(), torch.arange(1, side, device=back.device))
        self.reach = int(first[-1])
        self.register_buffer("first", first, persistent=False)

    def lent(self) -> Tensor:
        owner = self.owner[0]
        table: Tensor = owner.relative_attention_bias.weight
        return (table if table.dtype.itemsize >= 4 else table.float()) * float(owner.scale)


def borrowed(module: Any) -> Encoding:
    """The encoding that a bias module of x-transformers holds, kept with it and moved where it goes."""
    kept: Encoding | None = vars(module).get("_relpos")
    if kept is None and hasattr(module, "slopes"):
        slopes = module.slopes.flatten().double()
        kept = ALiBi(module.total_heads, symmetric=True)
        kept.slopes = nn.functional.pad(slopes, (0, module.total_heads - len(slopes)))
    elif kept is None:
        kept = Buckets(module)
    vars(module)["_relpos"] = kept
    device = next(t.device for t in (*module.parameters(), *module.buffers()))
    for name, buffer in kept.named_buffers():
        if buffer.device != device:
            setattr(kept, name, buffer.to(device))
    return kept


class Lag:
    """Stands for the bias of queries x keys that a layer asks `rel_pos` for: an encoding, and the places of tokens."""

    ndim = 3

    def __init__(self, encoding: Encoding | None, pos: Tensor | None = None) -> None:
        self.encoding, self.pos, self.keys = encoding, pos, 0

    def __call__(self, i: int, j: int) -> Lag:
        self.keys = j
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]  # a layer pads its bias for memory keys; how many, the keys tell

    def placed(self, n_q: int, n_k: int, device: torch.device) -> dict[str, Any]:
        """Arguments of `attention`. Memory keys come first and stand outside of the encoding."""
        prefix = n_k - self.keys
        found: dict[str, Any] = {"encoding": beside(self.encoding, prefix)}
        if self.pos is not None:  # places of the caller; what is seen follows the order of the tensor
            k_pos = nn.functional.pad(self.pos, (prefix, 0))
            order = torch.arange(n_k, device=device)
            return found | {"q_pos": k_pos[..., -n_q:], "k_pos": k_pos, "q_order": order[-n_q:], "k_order": order}
        keys: Position = Index.arange(n_k, -prefix, device)
        if isinstance(self.encoding, Transform):
            keys = with_prefix(Index.arange(self.keys, 0, device), prefix)
        return found | {"q_pos": Index.arange(n_q, self.keys - n_q, device), "k_pos": keys}


def unfit_around(layers: Any, own: bool) -> str:
    """Why layers of this encoder or decoder are not computed here, "" where they are; own: with its own bias."""
    if own and layers.rel_pos is not None and type(layers.rel_pos).__name__ not in BIASES:
        return f"relpos has no form for its {type(layers.rel_pos).__name__}"
    if layers.residual_attn or layers.cross_residual_attn:
        return "its scores are handed on to the next layer (residual_attn)"
    if any(cls.__name__ == "PrefixDecoder" for cls in type(layers).__mro__):
        return "the mask of a prefix decoder is of queries x keys"
    return ""


def unfit(part: Any) -> str:
    """Why this layer is not computed here, "" where it is."""
    weights = part.attend.attn_fn
    if getattr(weights, "func", None) is not nn.functional.softmax or weights.keywords.get("dim") != -1:
        return "its weights are no softmax over the keys (sigmoid, hard, top-k, Gumbel, inverted or custom)"
    if part.max_attend_past is not None and part.num_mem_kv:
        return "max_attend_past does not bound its memory keys"
    for owner in (part.attend, part):
        for option, why in UNFIT.items():
            if getattr(owner, option, None) not in (None, False):
                return f"{why} ({option})"
    return ""


def patch(part: Any, undo: Undo) -> str:
    undo.method(part, "forward", _layer)
    undo.method(part.attend, "forward", _attend)
    if part.max_attend_past is not None:  # the layer would make a mask of it
        undo.set(part.attend, "_relpos_window", (part.max_attend_past, None))
        undo.set(part, "max_attend_past", None)
    return "attention by the exact kernel"


def _layer(self: Any, x: Tensor, *args: Any, rel_pos: Any = None, pos: Any = None, **options: Any) -> Any:
    """As the layer's own, where its bias module is asked for a `Lag`."""
    if PART in self._modules:
        rel_pos, pos = Lag(getattr(self, PART)), None
        options |= {"rotary_pos_emb": None, "polar_pos_emb": None}
    elif rel_pos is not None:
        rel_pos, pos = Lag(borrowed(rel_pos), pos), None
    return type(self).forward(self, x, *args, rel_pos=rel_pos, pos=pos, **options)


def _attend(
    self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, attn_bias: Any = None,
    prev_attn: Any = None, attn_delta: Any = None, row_mask: Any = None, flash_pack_seq_kwargs: Any = None,
    causal: bool | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """As the layers call it: mask bool (batch, 1, 1, keys), True = real; what is returned besides holds no scores."""
    from x_transformers.attend import Intermediates

    _refuse(mask, attn_bias, prev_attn, attn_delta)
    if mask is not None:
        mask = (mask if mask.ndim == 2 else mask[:, 0, 0]).expand(len(q), -1)
    groups = q.shape[1] // k.shape[1]
    if 1 < groups < q.shape[1]:  # x-transformers deals its key heads round, this library in runs
        k, v = (x.repeat(1, groups, 1, 1) for x in (k, v))
    placed = {} if attn_bias is None else attn_bias.placed(q.shape[2], k.shape[2], q.device)
    out = attention(
        q,
        k,
        v,
        causal=bool(self.causal if causal is None or self.flash else causal),  # its flash attention reads its own too
        key_mask=mask,
        window=vars(self).get("_relpos_window"),
        scale=self.scale,
        dropout=self.attn_dropout.p if self.training else 0.0,
        **placed,
    )
    return out, Intermediates()


def _refuse(mask: Tensor | None, bias: Any, previous: Any, delta: Any) -> None:
    pairs = mask is not None and mask.ndim > 2 and mask.shape[1:3] != (1, 1)
    given = {"mask": pairs, "bias": isinstance(bias, Tensor), "prev_attn": previous is not None,
             "attn_delta": delta is not None}  # fmt: skip
    for what, there in given.items():
        if there:
            raise NotImplementedError(
                f"this layer was given a {what} of queries x keys; relpos takes none. restore(model) gives the model "
                "its own attention back"
            )
