"""An encoder and a decoder for sequence to sequence work, with any encoding in the self-attention of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, Encoding
from relpos.mixers.functional import attention
from relpos.mixers.self_attention import SelfAttention
from relpos.models.search import beam, greedy
from relpos.models.transformer import Block, _resolve
from relpos.positions import as_positions

KeysAndValues = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Softmax attention from x (batch, n, dim) to the keys and values that `memory` made of another sequence, once.

    It has no encoding: a lag between positions of two languages means nothing.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, kernel: str = "auto") -> None:
        super().__init__()
        self.heads, self.dropout, self.kernel = heads, dropout, kernel
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def memory(self, context: Tensor) -> KeysAndValues:
        """context (batch, m, dim) to keys and values, each (batch, heads, m, dim / heads)."""
        return self._split(self.k(context)), self._split(self.v(context))

    def forward(self, x: Tensor, memory: KeysAndValues, key_mask: Tensor | None = None) -> Tensor:
        """key_mask bool (batch, m), True = real."""
        rate = self.dropout if self.training else 0.0
        out = attention(self._split(self.q(x)), *memory, key_mask=key_mask, dropout=rate, kernel=self.kernel)
        merged: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class DecoderBlock(Block):
    """x + attention(norm(x)), then x + cross(norm(x), memory), then x + mlp(norm(x))."""

    def __init__(
        self, attention: SelfAttention, cross: CrossAttention, dim: int, expansion: int, dropout: float
    ) -> None:
        super().__init__(attention, dim, expansion, dropout)
        self.norm_cross, self.cross = nn.LayerNorm(dim), cross

    def forward(  # type: ignore[override]
        self, x: Tensor, *, memory: KeysAndValues, memory_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x), **options))
        x = x + self.dropout(self.cross(self.norm_cross(x), memory, memory_mask))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out


class Decoding:
    """What decoding keeps of one batch: a stream a layer, and the keys and values of the source, made once."""

    def __init__(self, model: Seq2Seq, source: Tensor, source_mask: Tensor | None) -> None:
        memory = model.encode(source, source_mask)
        self._model, self._mask = model, source_mask
        self._memory = model.memory(memory)
        self._streams = [block.attention.stream() for block in model.decoder]  # type: ignore[union-attr, operator]

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every row, (rows, 1), to its logits (rows, vocabulary)."""
        return self._model.decode(tokens, self._memory, self._mask, streams=self._streams)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        for stream in self._streams:
            if stream.length:  # before the first step there is nothing to reorder
                stream.reorder(rows)
        self._memory = [(k[rows], v[rows]) for k, v in self._memory]
        self._mask = None if self._mask is None else self._mask[rows]


class Seq2Seq(nn.Module):
    """Source tokens (batch, n) and target tokens (batch, m) to logits (batch, m, vocabulary) of what follows each.

    Pre-norm; one embedding, scaled by sqrt(dim), for source, target and output. The encoder sees both ways, the
    decoder back only; cross attention is softmax attention without an encoding.

    depth             layers of the encoder, and of the decoder unless decoder_depth says otherwise
    encoding          a name, an Encoding or None, as in `Transformer`. By name the encoder's is built for attention
                      both ways and the decoder's for causal attention; an Absolute one is added to both inputs
    mixer, features, feature_count, normalize, temperature   of the self-attention of both, as in `SelfAttention`;
                      None: as it has them
    dropout           after the embedding and every sublayer; attention_dropout on the weights
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        decoder_depth: int | None = None,
        mixer: str = "softmax",
        features: Any = None,
        feature_count: int | None = None,
        normalize: bool | None = None,
        temperature: float | None = None,
        expansion: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        share: bool | None = None,
        kernel: str = "auto",
        encoding_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        depths = depth, depth if decoder_depth is None else decoder_depth
        if min(vocabulary, dim, heads, *depths) < 1 or dim % heads:
            raise ValueError(
                "vocabulary, dim, depth, decoder_depth and heads are positive and heads divides dim, got "
                f"vocabulary={vocabulary}, dim={dim}, depth={depths[0]}, decoder_depth={depths[1]}, heads={heads}"
            )
        self.vocabulary, self.dim = vocabulary, dim
        self.embedding = nn.Embedding(vocabulary, dim)
        chosen = {"features": features, "feature_count": feature_count, "normalize": normalize}
        chosen |= {"temperature": temperature}
        mixing = {"mixer": mixer} | {key: value for key, value in chosen.items() if value is not None}
        self.absolute: Absolute | None = None

        def layers(count: int, causal: bool) -> Iterator[SelfAttention]:
            known = {"heads": heads, "dim": dim // heads, "model_dim": dim, "causal": causal}
            given = _resolve(encoding, share, known, encoding_options)
            if isinstance(given, Absolute):
                self.absolute, given = given, None
            for _ in range(count):
                yield SelfAttention(
                    dim, heads, given, causal=causal, dropout=attention_dropout, kernel=kernel,
                    encoding_options=encoding_options if isinstance(given, str) else None, **mixing,
                )  # fmt: skip

        self.encoder = nn.ModuleList(Block(layer, dim, expansion, dropout) for layer in layers(depths[0], False))
        self.decoder = nn.ModuleList(
            DecoderBlock(layer, CrossAttention(dim, heads, attention_dropout, kernel), dim, expansion, dropout)
            for layer in layers(depths[1], True)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Embeddings N(0, 1/dim), so that rows have unit entries after the scaling; other matrices Xavier uniform."""
        nn.init.normal_(self.embedding.weight, std=self.dim**-0.5)
        for block in (*self.encoder, *self.decoder):
            parts = [getattr(block, "attention", None), getattr(block, "cross", None), getattr(block, "mlp", None)]
            for linear in (child for part in parts if part is not None for child in part.children()):
                if isinstance(linear, nn.Linear):  # an encoding's own matrices lie deeper and stay as they are
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.zeros_(linear.bias)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source (batch, n), target (batch, m) int64 to logits (batch, m, vocabulary); row t has seen target[:, :t+1].

        source_mask bool (batch, n), True = real. The target needs no mask where it is padded at its end.
        """
        memory = self.memory(self.encode(source, source_mask))
        return self.decode(target, memory, source_mask)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source (batch, n) int64 to what the decoder attends to, (batch, n, dim)."""
        x = self._embed(source, "source", 0)
        for block in self.encoder:
            x = block(x, key_mask=source_mask)
        out: Tensor = self.encoder_norm(x)
        return out

    def memory(self, encoded: Tensor) -> list[KeysAndValues]:
        """Keys and values of the encoded source for every layer of the decoder."""
        return [block.cross.memory(encoded) for block in self.decoder]  # type: ignore[union-attr, operator]

    def decode(
        self,
        target: Tensor,
        memory: list[KeysAndValues],
        source_mask: Tensor | None = None,
        streams: list[Any] | None = None,
    ) -> Tensor:
        """target (batch, m) to logits; streams: caches of the self-attention, one a layer; target then goes on."""
        x = self._embed(target, "target", streams[0].length if streams else 0)
        for index, block in enumerate(self.decoder):
            stream = None if streams is None else streams[index]
            x = block(x, memory=memory[index], memory_mask=source_mask, stream=stream)
        logits: Tensor = self.decoder_norm(x) @ self.embedding.weight.T
        return logits

    def _embed(self, tokens: Tensor, name: str, start: int) -> Tensor:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(f"{name} is an integer tensor (batch, n), got {tokens.dtype} {tuple(tokens.shape)}")
        x = self.embedding(tokens) * self.dim**0.5
        if self.absolute is not None:
            x = self.absolute.add(x, as_positions(None, tokens.shape[1], start, name, x.device))
        out: Tensor = self.dropout(x)
        return out

    @torch.no_grad()
    def translate(
        self,
        source: Tensor,
        source_mask: Tensor | None = None,
        *,
        start: int,
        end: int,
        steps: int,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> Tensor:
        """Up to `steps` target tokens a row, (batch, at most steps): a row that ended is filled up with `end`.

        start, end      the tokens that open a target and close it; start is not part of the answer
        beams           1 takes the likeliest token each time; more keep so many beginnings, ranked by
                        log p / length^length_penalty (the length counts the end token)
        Decodes with caches; the result does not depend on them. The mode of the model is kept, dropout is off.
        """
        if min(steps, beams) < 1:
            raise ValueError(f"steps and beams are at least 1, got {steps} and {beams}")
        was_training = self.training
        self.eval()
        try:
            decoding = Decoding(self, source, source_mask)
            first = source.new_full((source.shape[0], 1), start)
            if beams == 1:
                return greedy(decoding, first, end, steps)
            return beam(decoding, first, end, steps, beams, length_penalty)
        finally:
            self.train(was_training)

    def encodings(self) -> Iterator[tuple[str, Encoding]]:
        """(name, encoding) of every distinct encoding, the encoder's first."""
        if self.absolute is not None:
            yield "input", self.absolute
            return
        seen: set[int] = set()
        for side, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            found = [block.attention.encoding for block in blocks]  # type: ignore[union-attr]
            one = len(found) > 1 and all(e is found[0] for e in found)
            for index, e in enumerate(found[:1] if one else found):
                if isinstance(e, Encoding) and id(e) not in seen:
                    seen.add(id(e))
                    yield (f"{side}, all layers" if one else f"{side}, layer {index + 1}"), e
