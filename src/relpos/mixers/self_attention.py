"""A multi-head attention layer that takes any encoding of the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, Encoding, Transform
from relpos.encodings.registry import entry, fitted
from relpos.features import Features, named, unit
from relpos.mixers.functional import Window, attention, rate
from relpos.mixers.kernel_stream import KernelStream
from relpos.mixers.linear import linear_attention, width_met
from relpos.mixers.pointwise import check_length, pointwise_attention
from relpos.mixers.prefix import beside
from relpos.mixers.stream import Stream
from relpos.positions import as_positions

MIXERS = ("softmax", "kernelized", "pointwise")


class SelfAttention(nn.Module):
    """Projects x to queries, keys and values, attends with a relative encoding, and projects back.

    x (batch, n, dim) to (batch, n, dim); with `context` (batch, m, dim) it is cross attention.

    dim, heads     model width and number of query heads; the head width is dim / heads, or head_dim
    encoding       an Encoding, a name (built with heads, dim, model_dim and causal filled in), or None
    encoding_options   further arguments for an encoding given by name, e.g. {"max_lag": 64}
    kv_heads       key and value heads, a divisor of heads (grouped-query attention); default heads
    causal, window, dropout, scale, kernel   as in `relpos.attention`; dropout acts in training only, and there are no
                   window, dropout and scale in kernelised attention
    features       of mixer="kernelized": prf, orf, sphere, trf, elu1, relu, or an object of relpos.features; random
                   ones are `feature_count` (default 16), drawn with torch's global generator
    normalize      True: queries and keys of unit length, so that the logits are q.k / temperature (Luo et al. 2021), in
                   either mixer; False: q.k / sqrt(head width); None: as the mixer's method has it
    length         of mixer="pointwise" (weights silu(score) / length, scale 1): see `relpos.pointwise_attention`
    temperature    divides q.k in kernelised attention, and in softmax attention with normalize
    bias           whether the four projections have a bias

    An encoding given as an object is used as it is, so passing one object to several layers shares its parameters.
    A token of NaN changes no output that does not see it; the weights that project it do have a gradient of NaN.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        encoding: Encoding | str | None = None,
        mixer: str = "softmax",
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: Window | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        bias: bool = True,
        kernel: str = "auto",
        encoding_options: Mapping[str, Any] | None = None,
        features: Features | str = "prf",
        feature_count: int | None = None,
        normalize: bool | None = None,
        temperature: float = 1.0,
        length: int | None = None,
    ) -> None:
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"mixer is one of {', '.join(MIXERS)}, got {mixer!r}")
        kv_heads = heads if kv_heads is None else kv_heads
        if dim < 1 or heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads is positive and a multiple of kv_heads, got heads={heads}, kv_heads={kv_heads}")
        if head_dim is None and dim % heads:
            raise ValueError(f"heads divides dim, got dim={dim}, heads={heads}; or give head_dim")
        rate(dropout)
        self.dim, self.heads, self.kv_heads, self.mixer = dim, heads, kv_heads, mixer
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.causal, self.window, self.dropout, self.scale, self.kernel = causal, window, dropout, scale, kernel
        self.temperature, self.normalize, self.length = temperature, normalize, check_length(length)
        if length is not None and mixer != "pointwise":
            raise ValueError(f'length divides the weights of mixer="pointwise"; mixer={mixer!r} has sums of its own')
        if mixer == "kernelized":
            self._refuse_softmax_only()
            self.features: Features | None = self._features(features, feature_count, encoding, encoding_options)
        else:
            self.features = None
            if normalize:
                if scale is not None:
                    raise ValueError("normalize fixes the scale at 1/temperature; leave scale out")
                self.scale = 1 / temperature
        self.encoding = self._encoding(encoding, encoding_options)
        self.q = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=bias)

    def _refuse_softmax_only(self) -> None:
        given = {"window": self.window is not None, "dropout": self.dropout > 0, "scale": self.scale is not None}
        for name, there in given.items():
            if there:
                raise ValueError(f'{name} has no meaning with mixer="kernelized": no matrix of weights is made')

    def _features(
        self, given: Features | str, count: int | None, encoding: Encoding | str | None, options: Any
    ) -> Features:
        if isinstance(given, Features):
            if self.normalize not in (None, given.normalize):
                raise ValueError(f"the features given have normalize={given.normalize}; leave normalize out, or agree")
            return given
        width = self.head_dim
        if isinstance(encoding, str):
            cls = entry(encoding).load()
            if issubclass(cls, Transform) and cls.side == "before":
                encoding = fitted(encoding, self._known(self.head_dim), options)
        if isinstance(encoding, Transform) and encoding.side == "before":
            width = encoding.width_after(width)
        return named(given, width, count, self.normalize)

    def _known(self, dim: int) -> dict[str, Any]:
        return {"heads": self.heads, "dim": dim, "model_dim": self.dim, "causal": self.causal}

    def _encoding(self, encoding: Encoding | str | None, options: Mapping[str, Any] | None) -> Encoding | None:
        if isinstance(encoding, str):
            met = self.head_dim if self.features is None else width_met(encoding, self.head_dim, self.features)
            encoding = fitted(encoding, self._known(met), options)
        elif options:
            raise ValueError("encoding_options go with an encoding given by name")
        if encoding is None:
            return None
        if not isinstance(encoding, Encoding):
            raise TypeError(f"encoding is a relpos Encoding, a name or None, got {type(encoding).__name__}")
        if self.mixer not in encoding.mixers and "input" not in encoding.mixers:
            takes = " or ".join(encoding.mixers) or "none of the built-in mixers"
            raise TypeError(f"{type(encoding).__name__} has no meaning in {self.mixer} attention; it works in {takes}")
        if encoding.causal_only and not self.causal:
            raise ValueError(f"{type(encoding).__name__} is defined for causal attention only; pass causal=True")
        return encoding

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        q_pos: object = None,
        k_pos: object = None,
        key_mask: Tensor | None = None,
        segments: Tensor | tuple[Tensor, Tensor] | None = None,
        prefix: int = 0,
        codes: Any = None,
        generator: torch.Generator | None = None,
        stream: Stream | KernelStream | None = None,
    ) -> Tensor:
        """x (batch, n, dim), optional context (batch, m, dim) to (batch, n, dim). Other arguments: `relpos.attention`.

        prefix: the first so many tokens (a class token) stand outside an additive encoding, and a Transform finds them
        at the position that they are given, which is best 0; q_pos holds one position for each of all tokens.
        stream: what `self.stream()` returned; x is then the next chunk of a causal sequence, q_pos its positions (and
        k_pos those of its keys, where a query is asked from elsewhere).
        """
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape (batch, n, {self.dim}), got {tuple(x.shape)}")
        if context is not None and (context.dim() != 3 or context.shape[::2] != (x.shape[0], self.dim)):
            raise ValueError(f"context has shape ({x.shape[0]}, m, {self.dim}), got {tuple(context.shape)}")
        if stream is not None and (context is not None or segments is not None or not self.causal):
            raise ValueError("a stream serves causal self-attention without segments")
        if prefix and (context is not None or stream is not None or not 0 < prefix <= x.shape[1]):
            raise ValueError(f"prefix={prefix}: leading tokens of plain self-attention, 0..{x.shape[1]}")
        x, memory = self._input(x, context, q_pos, k_pos, stream)
        q = self._split(self.q(x), self.heads)
        k, v = self._split(self.k(memory), self.kv_heads), self._split(self.v(memory), self.kv_heads)
        encoding = None if isinstance(self.encoding, Absolute) else self.encoding
        if self.normalize and self.features is None:
            q, k = unit(q), unit(k)
        if stream is not None:
            if self.normalize and self.features is None:
                q, k = unit(q), unit(k)
            if k_pos is not None and self.features is not None:
                raise ValueError("a stream of kernelized attention takes one position a token; leave k_pos out")
            asked = {} if k_pos is None else {"query": q_pos}
            own = q_pos if k_pos is None else k_pos
            out = stream.step(q, k, v, position=own, key_mask=key_mask, content=x, **asked)
        else:
            k_pos = q_pos if context is None and k_pos is None else k_pos
            options: dict[str, Any] = {
                "q_pos": q_pos, "k_pos": k_pos, "causal": self.causal, "key_mask": key_mask, "segments": segments,
                "codes": codes, "generator": generator, "kernel": self.kernel,
            }  # fmt: skip
            if self.features is not None:
                options["prefix"] = prefix
            else:
                encoding = beside(encoding, prefix)
            out = self._attend(q, k, v, encoding, memory, options)
        merged: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return merged

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, encoding: Encoding | None, content: Tensor, options: dict[str, Any]
    ) -> Tensor:
        if self.features is not None:
            return linear_attention(
                q, k, v, encoding, features=self.features, temperature=self.temperature, **options
            )  # fmt: skip
        options |= {"window": self.window, "scale": self.scale, "content": content}
        options["dropout"] = self.dropout if self.training else 0.0
        if self.mixer == "pointwise":
            return pointwise_attention(q, k, v, encoding, length=self.length, **options)
        return attention(q, k, v, encoding, **options)

    def stream(self, codes: Any = None) -> Stream | KernelStream:
        """A fresh cache for decoding with this layer."""
        encoding = None if isinstance(self.encoding, Absolute) else self.encoding
        if self.features is not None:
            return KernelStream(encoding, features=self.features, temperature=self.temperature, codes=codes)
        scale = 1 / self.temperature if self.normalize else self.scale
        more: dict[str, Any] = {"codes": codes, "kernel": self.kernel, "mixer": self.mixer, "length": self.length}
        return Stream(encoding, scale=scale, window=self.window, **more)

    def _input(
        self, x: Tensor, context: Tensor | None, q_pos: object, k_pos: object, stream: Stream | KernelStream | None
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(self.encoding, Absolute):
            return x, x if context is None else context
        start = 0 if stream is None else stream.length
        select = self.encoding.select
        x = self.encoding.add(x, select(as_positions(q_pos, x.shape[1], start, "q_pos", x.device)))
        if context is None:
            return x, x
        return x, self.encoding.add(context, select(as_positions(k_pos, context.shape[1], 0, "k_pos", x.device)))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.head_dim).transpose(1, 2)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, mixer={self.mixer!r}, causal={self.causal}"
        )
