"""How relevant a corpus sequence is to a query: by embeddings of their own, or by a query that reads the corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute
from relpos.encodings.registry import fitted, key_of
from relpos.mixers.functional import attention
from relpos.positions import Position
from relpos.tasks.events.neural import History, Scales, Seen
from relpos.tasks.events.neural.history import channels_of
from relpos.tasks.events.retrieval import model_free
from relpos.tasks.events.retrieval.unwarping import Unwarping

RELEVANCE = ("self", "cross")


class Encoded(NamedTuple):
    """Sequences as the network knows them. seen: with the clock unwarped; states (count, n, dim); vectors (count,
    width), of length 1; events: ``seen`` without the token that starts a window."""

    seen: Seen
    states: Tensor
    vectors: Tensor
    events: Seen

    def take(self, rows: Tensor) -> Encoded:
        seen, events = (Seen(*(part[rows] for part in each)) for each in (self.seen, self.events))
        return Encoded(seen, self.states[rows], self.vectors[rows], events)


class NeuroSeqRet(nn.Module):
    """Relevance of corpus sequences to queries, (queries, corpus):

        score(q, c) = s cos(v(q), v(c)) + gamma . Sim(U(q), c)

    v         mean state of an encoder over events (`History`, not causal), less what is common to all queries or to
              all corpus sequences of a batch (of training, once that is over), mapped to ``width`` numbers
    U         the unwarping of the query's clock, which the encoder reads too; unwarp=False: the identity
    Sim       minus the model-free distances in time and in marks, each over its largest for sequences of these lengths;
              gamma > 0 is learned, one for each; model_free=False leaves the term out
    relevance "self": v(q) knows the query alone, so vectors can be stored and indexed. "cross": every event of the
              query also attends to all events of the corpus sequence, with the same relative channels between the two
              clocks, before v(q) is taken: a vector a pair, and no index. At the start both give the same scores
    span      length of the windows, in the unit of the data
    Further options: `History`; ``encoding`` and channels also hold for the attention between the two sequences.
    """

    def __init__(
        self,
        marks: int,
        encoding: str = "relative_channels",
        *,
        relevance: str = "self",
        unwarp: bool = True,
        model_free: bool = True,
        width: int = 32,
        span: float = 1.0,
        channels: str | Sequence[Mapping[str, Any]] = "position+time",
        inject: str = "bias",
        scales: Scales | None = None,
        length: int = 128,
        dim: int = 32,
        heads: int = 2,
        encoding_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if relevance not in RELEVANCE:
            raise ValueError(f"relevance is one of {', '.join(RELEVANCE)}, got {relevance!r}")
        given, scales = dict(encoding_options or {}), scales or Scales()
        if key_of(encoding) == "relative_channels" and "channels" not in given:
            given["channels"] = channels_of(channels, inject, scales, length)
        self.relevance, self.span, self.heads, self.marks = relevance, float(span), heads, marks
        self.encoder = _Encoder(
            marks, encoding, scales=scales, length=length, dim=dim, heads=heads, causal=False, encoding_options=given,
            **options,
        )  # fmt: skip
        self.unwarping = Unwarping(span) if unwarp else None
        # What all sequences of a side have in common is most of a mean state: without it, cosines are not all near 1.
        self.centre = nn.ModuleDict({side: nn.BatchNorm1d(dim, affine=False) for side in ("query", "corpus")})
        self.project = nn.Linear(dim, width)
        self.cross = _Cross(dim, width, heads, encoding, given) if relevance == "cross" else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(5.0)))
        self.log_gamma = nn.Parameter(torch.tensor([math.log(10.0), 0.0])) if model_free else None

    def forward(self, queries: Seen, corpus: Seen) -> tuple[Tensor, Tensor]:
        """(queries, corpus) scores of all against all, and the departure of the unwarping from the identity."""
        scores = self.score(self.encode(queries, query=True), self.encode(corpus, query=False))
        return scores, scores.new_zeros(()) if self.unwarping is None else self.unwarping.departure()

    def encode(self, seen: Seen, query: bool) -> Encoded:
        """seen: with the token that starts the window first, times since then; padded on the right."""
        if query and self.unwarping is not None:
            seen = seen._replace(times=self.unwarping(seen.times))
        states = self.encoder(seen)
        pooled = self.project(self.centre["query" if query else "corpus"](_mean(states, seen.mask)))
        vectors = nn.functional.normalize(pooled, dim=-1)
        return Encoded(seen, states, vectors, Seen(*(part[:, 1:] for part in seen)))

    def score(self, queries: Encoded, corpus: Encoded, pairs: int = 128) -> Tensor:
        """(queries, corpus) float64, all against all; cross-attention takes ``pairs`` of them at a time."""
        if self.cross is None:
            alike = queries.vectors @ corpus.vectors.mT
        else:
            count, width = len(queries.vectors), len(corpus.vectors)
            numbers = torch.arange(count * width, device=queries.vectors.device)
            parts = [self._alike(queries.take(at // width), corpus.take(at % width)) for at in numbers.split(pairs)]
            alike = torch.cat(parts).view(count, width)
        return self._whole(alike, *model_free.distances(queries.events, corpus.events, self.span), queries, corpus)

    def score_pairs(self, queries: Encoded, corpus: Encoded) -> Tensor:
        """(pairs,) float64: of query i and corpus sequence i."""
        alike = self._alike(queries, corpus)
        time, mark = model_free.pairwise(queries.events, corpus.events, self.span)
        return self._sum(alike, time, mark, _lengths(queries), _lengths(corpus))

    def _alike(self, queries: Encoded, corpus: Encoded) -> Tensor:
        if self.cross is None:
            return (queries.vectors * corpus.vectors).sum(-1)
        q_pos, k_pos = self.encoder.positions(queries.seen), self.encoder.positions(corpus.seen)
        read = _mean(self.cross(queries.states, corpus.states, q_pos, k_pos, corpus.seen.mask), queries.seen.mask)
        vectors = nn.functional.normalize(queries.vectors + read, dim=-1)
        return (vectors * corpus.vectors).sum(-1)

    def _whole(self, alike: Tensor, time: Tensor, mark: Tensor, queries: Encoded, corpus: Encoded) -> Tensor:
        return self._sum(alike, time, mark, _lengths(queries)[:, None], _lengths(corpus)[None])

    def _sum(self, alike: Tensor, time: Tensor, mark: Tensor, one: Tensor, two: Tensor) -> Tensor:
        score = self.log_scale.exp() * alike.to(torch.float64)
        if self.log_gamma is None:
            return score
        most = torch.maximum(one, two).clamp(min=1)
        gamma = self.log_gamma.to(torch.float64).exp()
        return score - gamma[0] * time / (most * self.span) - gamma[1] * mark / most


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(states.dtype)
    return (states * real).sum(1) / real.sum(1).clamp(min=1)


def _lengths(encoded: Encoded) -> Tensor:
    return encoded.events.mask.sum(1).to(torch.float64)


class _Encoder(History):
    """A `History` whose relative channels see times as numbers: their gradient reaches the clock through the tokens."""

    def positions(self, seen: Seen, times: Tensor | None = None) -> Position | dict[str, Position]:
        found = super().positions(seen._replace(times=seen.times.detach()), None if times is None else times.detach())
        return found


class _Cross(nn.Module):
    """What reading a corpus sequence adds to the vector of a query, by event: (pairs, n, width); 0 at the start."""

    def __init__(self, dim: int, width: int, heads: int, encoding: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        known = {"heads": heads, "dim": dim // heads, "model_dim": dim, "causal": False}
        built = fitted(encoding, known, options)
        self.encoding = None if isinstance(built, Absolute) else built  # an absolute one is in the states already
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.mix = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 2 * dim), nn.GELU())
        self.last = nn.Linear(2 * dim, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, queries: Tensor, corpus: Tensor, q_pos: object, k_pos: object, mask: Tensor) -> Tensor:
        q, k, v = (self._split(f(x)) for f, x in ((self.q, queries), (self.k, corpus), (self.v, corpus)))
        read = attention(q, k, v, self.encoding, q_pos=q_pos, k_pos=k_pos, key_mask=mask)
        read = self.out(read.transpose(1, 2).flatten(2))
        added: Tensor = self.last(self.mix(torch.cat([read - queries, read * queries], -1)))
        return added

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def hinge(scores: Tensor, relevant: Tensor, valid: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over queries q, relevant c and irrelevant d of max(0, margin - score(q, c) + score(q, d)).

    scores, relevant, valid: (queries, corpus). ValueError where no query has both a relevant and an irrelevant one.
    """
    yes, no = relevant & valid, ~relevant & valid
    each = (margin - scores[:, :, None] + scores[:, None, :]).clamp(min=0)
    counted = yes[:, :, None] & no[:, None, :]
    if not bool(counted.any()):
        raise ValueError("a ranking loss takes a query with a relevant and an irrelevant sequence; there is none")
    return each[counted].mean()
