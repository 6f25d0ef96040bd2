"""A plain pre-norm Transformer that takes any encoding: the network of the comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, Encoding
from relpos.encodings.registry import entry, fitted
from relpos.features import Features
from relpos.mixers.functional import Window
from relpos.mixers.kernel_stream import KernelStream
from relpos.mixers.self_attention import SelfAttention
from relpos.mixers.stream import Stream
from relpos.positions import as_positions


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention: SelfAttention, dim: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(dim), attention
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x), **options))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out


class Stack(nn.Module):
    """Vectors (batch, n, dim) to vectors: the blocks of a Transformer, without what comes before and after them.

    encoding          a name, an Encoding, or None. By name each layer gets its own, unless the method is defined with
                      one for all layers (Encoding.shared, e.g. T5) or share= says so. An object is shared by all.
                      Absolute encodings are added to the input, once.
    expansion         width of the hidden layer of the MLP, in units of dim
    head_dim          width of a head where it is not dim / heads
    mixer, features, feature_count, normalize, temperature, length   as in `relpos.SelfAttention`; every layer draws
                      random features of its own
    Weights are N(0, 0.02), residual projections scaled by 1/sqrt(2 depth).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        causal: bool = False,
        expansion: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        window: Window | None = None,
        share: bool | None = None,
        kernel: str = "auto",
        encoding_options: Mapping[str, Any] | None = None,
        mixer: str = "softmax",
        features: Features | str = "prf",
        feature_count: int | None = None,
        normalize: bool | None = None,
        temperature: float = 1.0,
        length: int | None = None,
    ) -> None:
        super().__init__()
        if min(dim, depth, heads) < 1 or (head_dim is None and dim % heads):
            raise ValueError(
                f"dim, depth and heads are positive and heads divides dim, got dim={dim}, depth={depth}, heads={heads}"
            )
        self.dim, self.causal = dim, causal
        known = {"heads": heads, "dim": head_dim or dim // heads, "model_dim": dim, "causal": causal}
        given = _resolve(encoding, share, known, encoding_options)
        self.absolute = given if isinstance(given, Absolute) else None
        layers = []
        for _ in range(depth):
            own = None if self.absolute is not None else given
            options = encoding_options if isinstance(own, str) else None
            layer = SelfAttention(
                dim, heads, own, mixer, kv_heads=kv_heads, head_dim=head_dim, causal=causal, window=window,
                dropout=attention_dropout, kernel=kernel, encoding_options=options, features=features,
                feature_count=feature_count, normalize=normalize, temperature=temperature,
                length=length,
            )  # fmt: skip
            layers.append(Block(layer, dim, expansion, dropout))
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        for block in self.blocks:
            assert isinstance(block, Block)
            inner, mlp = block.attention, block.mlp
            for linear in (inner.q, inner.k, inner.v, inner.out, mlp[0], mlp[2]):
                assert isinstance(linear, nn.Linear)
                residual = linear in (inner.out, mlp[2])
                nn.init.normal_(linear.weight, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
                nn.init.zeros_(linear.bias)

    def encode(
        self,
        x: Tensor,
        *,
        positions: object = None,
        key_positions: object = None,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        streams: list[Stream | KernelStream] | None = None,
    ) -> Tensor:
        """x (batch, n, dim) to the same shape, normalised. positions, key_mask, segments: as in `relpos.attention`.

        key_positions: where tokens stand as keys, if not where they query from (the time of a request).
        """
        if self.absolute is not None:
            start = streams[0].length if streams else 0
            given = as_positions(positions, x.shape[1], start, "positions", x.device)
            x = self.absolute.add(x, self.absolute.select(given))
        for index, block in enumerate(self.blocks):
            stream = None if streams is None else streams[index]
            x = block(x, q_pos=positions, k_pos=key_positions, key_mask=key_mask, segments=segments, stream=stream)
        out: Tensor = self.norm(x)
        return out

    def encodings(self) -> Iterator[tuple[str, Encoding]]:
        """(name, encoding) of every distinct encoding, from the input up."""
        if self.absolute is not None:
            yield "input", self.absolute
            return
        layers = [block.attention.encoding for block in self.blocks]  # type: ignore[union-attr]
        if all(e is layers[0] for e in layers):
            layers = layers[:1]
        for index, e in enumerate(layers):
            if isinstance(e, Encoding):
                yield ("all layers" if len(layers) == 1 < len(self.blocks) else f"layer {index + 1}"), e


class Transformer(Stack):
    """Tokens (batch, n) to logits (batch, n, vocabulary); decoder with causal=True, encoder with causal=False.

    Embeddings are N(0, 0.02) and tied to the output. embedding_scale multiplies them at the input alone: beside fixed
    sines of amplitude 1 they would drown (Vaswani et al. 2017, section 3.4, take sqrt(dim)). Other arguments: `Stack`.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        causal: bool = True,
        embedding_scale: float = 1.0,
        **options: Any,
    ) -> None:
        if vocabulary < 1:
            raise ValueError(f"a vocabulary has at least one token, got vocabulary={vocabulary}")
        if isinstance(embedding_scale, bool) or not 0 < embedding_scale < float("inf"):
            raise ValueError(f"embedding_scale is a finite number above 0, got {embedding_scale!r}")
        super().__init__(dim, depth, heads, encoding, causal=causal, **options)
        self.vocabulary, self.embedding_scale = vocabulary, float(embedding_scale)
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: object = None,
        key_positions: object = None,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        streams: list[Stream | KernelStream] | None = None,
    ) -> Tensor:
        """tokens int64 (batch, n) to logits. positions, key_positions, key_mask, segments: as in `encode`."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(f"tokens are integers (batch, n), got {tokens.dtype} {tuple(tokens.shape)}")
        x = self.embedding(tokens)
        x = x if self.embedding_scale == 1 else x * self.embedding_scale
        x = self.encode(
            x, positions=positions, key_positions=key_positions, key_mask=key_mask, segments=segments, streams=streams
        )
        logits: Tensor = x @ self.embedding.weight.T
        return logits

    def streams(self) -> list[Stream | KernelStream]:
        """Fresh caches for decoding, one a layer."""
        return [block.attention.stream() for block in self.blocks]  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        steps: int,
        *,
        temperature: float = 1.0,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continues prompt (batch, n >= 1) by `steps` sampled tokens: (batch, n + steps). temperature 0 is greedy.

        Decodes with a cache; the result does not depend on it. top_p keeps the smallest set of tokens with that mass.
        """
        if not self.causal:
            raise ValueError("only a causal Transformer generates; build it with causal=True")
        if prompt.dim() != 2 or prompt.shape[1] < 1 or steps < 0:
            raise ValueError(
                f"generate takes a prompt (batch, n >= 1) and steps >= 0, got {tuple(prompt.shape)}, {steps}"
            )
        if not temperature >= 0 or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"temperature is at least 0 and top_p in (0, 1], got {temperature} and {top_p}")
        was_training = self.training
        self.eval()
        streams, tokens, chunk = self.streams(), [prompt], prompt
        try:
            for _ in range(steps):
                logits = self(chunk, streams=streams)[:, -1]
                chunk = _sample(logits, temperature, top_p, generator)
                tokens.append(chunk)
        finally:
            self.train(was_training)
        return torch.cat(tokens, 1)


def _resolve(
    encoding: Encoding | str | None, share: bool | None, known: Mapping[str, Any], options: Mapping[str, Any] | None
) -> Encoding | str | None:
    """The one object that all layers share, or the name from which each builds its own."""
    if not isinstance(encoding, str):
        if share is False:
            raise ValueError("an encoding given as an object is shared by all layers; give its name for one a layer")
        return encoding
    cls = entry(encoding).load()
    one = issubclass(cls, Absolute) or (cls.shared if share is None else share)
    return fitted(encoding, known, options) if one else encoding


def _sample(logits: Tensor, temperature: float, top_p: float | None, generator: torch.Generator | None) -> Tensor:
    """(batch, vocabulary) to (batch, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    p = (logits.float() / temperature).softmax(-1)
    if top_p is not None:
        ordered, index = p.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the first token always stays
        p = torch.zeros_like(p).scatter_(-1, index, ordered.masked_fill(outside, 0))
    return torch.multinomial(p, 1, generator=generator)
