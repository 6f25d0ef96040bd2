"""A Transformer encoder that gives one answer a sequence, or one a pair: the network of the long-range tasks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding
from relpos.models.transformer import Stack
from relpos.positions import as_positions

Pooling = Literal["mean", "cls"]


class Classifier(Stack):
    """Sequences (batch, n) to logits (batch, classes), in the manner of the Long Range Arena (Tay et al. 2021).

    vocabulary   tokens are integers 0..vocabulary - 1, embedded; None: they are vectors, projected from `channels`
    pooling      "mean" over the real tokens, or "cls": a learned vector in front of the sequence, whose output is used
    hidden       width of the head's hidden layer; default expansion * dim
    padding      the token that is no token: it is neither attended to nor pooled. None: every token is real
    two_tower    the input is (batch, 2, n): both sequences of a pair go through the same encoder, and the head sees
                 [e1, e2], or with interaction=True [e1, e2, e1 * e2, e1 - e2]
    Others as in `relpos.models.Stack`, which is never causal here.

    The head is Linear(hidden), ReLU, Linear(classes); for pairs a second hidden layer of half the width comes between.
    Embeddings are N(0, 1), so that absolute encodings of amplitude 1 do not drown them, and are not tied to anything.
    The learned vector of "cls" is one more token at position 0, which the encoding sees as such; given positions must
    therefore be integers (n,) or (batch, n), and move up by one.
    """

    def __init__(
        self,
        vocabulary: int | None,
        classes: int,
        dim: int,
        depth: int,
        heads: int,
        encoding: Encoding | str | None = None,
        *,
        channels: int | None = None,
        pooling: Pooling = "mean",
        hidden: int | None = None,
        padding: int | None = None,
        two_tower: bool = False,
        interaction: bool = False,
        expansion: int = 4,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        if (vocabulary is None) == (channels is None) or min(vocabulary or 1, channels or 1, classes) < 1:
            raise ValueError(
                "give a positive vocabulary for integer tokens, or vocabulary=None and positive channels for vectors, "
                f"and positive classes; got vocabulary={vocabulary}, channels={channels}, classes={classes}"
            )
        if pooling not in ("mean", "cls"):
            raise ValueError(f'pooling is "mean" or "cls", got {pooling!r}')
        if padding is not None and (vocabulary is None or not 0 <= padding < vocabulary):
            raise ValueError(f"padding is a token below vocabulary={vocabulary}, got {padding}")
        if interaction and not two_tower:
            raise ValueError("interaction compares the two sequences of a pair: give two_tower=True as well")
        if options.get("causal"):
            raise ValueError("a Classifier reads the whole sequence: causal=True is not possible")
        super().__init__(dim, depth, heads, encoding, expansion=expansion, dropout=dropout, **options)
        self.vocabulary, self.classes, self.padding = vocabulary, classes, padding
        self.pooling, self.two_tower, self.interaction = pooling, two_tower, interaction
        self.embedding: nn.Module = (
            nn.Linear(channels or 1, dim) if vocabulary is None else nn.Embedding(vocabulary, dim)
        )
        self.cls = nn.Parameter(torch.randn(dim)) if pooling == "cls" else None
        self.input_dropout = nn.Dropout(dropout)
        self.head = self._head(hidden or expansion * dim, classes)

    def _head(self, hidden: int, classes: int) -> nn.Sequential:
        width = self.dim * ((4 if self.interaction else 2) if self.two_tower else 1)
        middle = [nn.Linear(hidden, max(1, hidden // 2)), nn.ReLU()] if self.two_tower else []
        last = nn.Linear(max(1, hidden // 2) if self.two_tower else hidden, classes)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), *middle, last)

    def forward(self, tokens: Tensor, *, positions: object = None, key_mask: Tensor | None = None) -> Tensor:
        """tokens int64 (batch, n), or float (batch, n, channels); for pairs (batch, 2, n ..). Logits (batch, classes).

        positions, key_mask (batch, n; True = real): as in `relpos.attention`; for pairs they belong to both sequences
        of each, (2 batch, n) in the order of tokens.flatten(0, 1).
        """
        wanted = 2 + (self.vocabulary is None) + self.two_tower
        if tokens.dim() != wanted or tokens.is_floating_point() != (self.vocabulary is None):
            kind = "floats (batch, n, channels)" if self.vocabulary is None else "integers (batch, n)"
            pairs = ", for pairs with an axis of 2 after batch" if self.two_tower else ""
            raise ValueError(f"tokens are {kind}{pairs}, got {tokens.dtype} {tuple(tokens.shape)}")
        if not self.two_tower:
            logits: Tensor = self.head(self.embed(tokens, positions=positions, key_mask=key_mask))
            return logits
        if tokens.shape[1] != 2:
            raise ValueError(f"pairs have an axis of 2 after batch, got {tuple(tokens.shape)}")
        both = self.embed(tokens.flatten(0, 1), positions=positions, key_mask=key_mask)
        one, two = both[0::2], both[1::2]
        parts = [one, two, one * two, one - two] if self.interaction else [one, two]
        logits = self.head(torch.cat(parts, -1))
        return logits

    def embed(self, tokens: Tensor, *, positions: object = None, key_mask: Tensor | None = None) -> Tensor:
        """(batch, n ..) to one vector a sequence, (batch, dim); a sequence without a real token gives 0 by "mean"."""
        if key_mask is None and self.padding is not None:
            key_mask = tokens != self.padding
            if bool(key_mask.all()):
                key_mask = None  # nothing is padded: every kernel is open
        x = self.embedding(tokens)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1)
            positions = _moved_up(positions, x)
            key_mask = None if key_mask is None else nn.functional.pad(key_mask, (1, 0), value=True)
        y = self.encode(self.input_dropout(x), positions=positions, key_mask=key_mask)
        if self.cls is not None:
            return y[:, 0]
        if key_mask is None:
            return y.mean(1)
        real = key_mask.unsqueeze(-1).to(y.dtype)
        return (y * real).sum(1) / real.sum(1).clamp(min=1)


def _moved_up(positions: object, x: Tensor) -> object:
    """Room for one token at position 0 in front of x (batch, n + 1, dim); None stays None."""
    if positions is None:
        return None
    values = getattr(as_positions(positions, x.shape[1] - 1, 0, "positions", x.device), "values", None)
    if not isinstance(values, Tensor) or values.dim() > 2 or values.is_floating_point():
        raise ValueError('a learned vector in front has no place among such positions: use pooling="mean"')
    return nn.functional.pad(values + 1, (1, 0))
