"""Non-stationary structure-informed encoding (NS-RPE): time within a segment counts where labels agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import States, consecutive
from relpos.encodings.content._released import Released
from relpos.encodings.content._structure import LevelVectors, Scores
from relpos.encodings.content.structure import StructureRPE
from relpos.encodings.levels import labels_of
from relpos.positions import Index, Positions

Level = Literal["chord", "section", "both"]
TWO: tuple[Literal["chord"], Literal["section"]] = ("chord", "section")
CLOCKS = {"chord": 9919.0, "section": 24149.0}  # bases


class NonStationaryRPE(StructureRPE):
    """StructureRPE of chords and sections, and the time since a segment began for keys of the query's own label.

        sum over r in (chord, section) of q_t^h . p^h(i_t^r - i_s^r) / sqrt(dim), and for each r of `level`, if
        i_t^r = i_s^r,  q_t^h . z_r^h(tau_t - tau_s) / sqrt(dim) + q_t^h . z_r^h(tau_t) / sqrt(dim)
        z_r(x) = map.weight (clocks[r].weight code_r(x) + clocks[r].bias), base 9919 for chord and 24149 for section
        p, code, the split into heads: see StructureRPE;   tau: tokens since the segment began, 0 at its first

    A segment is a longest run of equal labels of the level; equal labels of two distant segments see each other too.
    The part in tau_t alone makes the term depend on where a query stands in its segment.

    level        "chord", "section" or "both": whose clock counts
    as_released  True: as the published code computes it. Every segment begins one token early (labels 1 1 4 4 have tau
                 0 0 1 2), so a label shows before it comes, and decoding differs from the whole; with a chord clock the
                 lag term counts twice and the part in tau_t not at all
    shared       as in StructureRPE; the clocks are shared too
    Positions are {"chord": .., "section": ..}, labels (n,) or (batch, n), with "index" too where queries are not the
    last of the keys: they must be tokens of one sequence, whose labels give the clock. The bounds of packed documents
    are not known here: let labels change where a document does.

    Cost: as StructureRPE, and a product of the queries with the vectors of the lags that occur within a tile.
    Source: Agarwal, Wang and Richard 2024, NS-RPE. The bias of the map reaches every key there and cancels; it is kept.
    """

    in_parts = False  # the labels of all tokens say when a segment began

    def __init__(
        self,
        heads: int,
        model_dim: int,
        level: Level = "both",
        as_released: bool = False,
        *,
        shared: NonStationaryRPE | None = None,
    ) -> None:
        if level not in (*TWO, "both"):
            raise ValueError(f'level is "chord", "section" or "both", got {level!r}')
        super().__init__(heads, model_dim, TWO)
        self.level, self.as_released = level, bool(as_released)
        self.timed = TWO if level == "both" else (level,)
        self.twice: tuple[str, ...] = ("chord",) if self.as_released else ()  # whose lag term stands for both
        self.clocks = nn.ModuleList(LevelVectors(model_dim, base=CLOCKS[name]) for name in self.timed)
        if shared is not None:
            self.share(shared)

    def share(self, other: StructureRPE) -> StructureRPE:
        """Uses the weights of each level and clock of another encoding, alike in all but `map`. Returns self."""
        if not isinstance(other, NonStationaryRPE) or other.level != self.level:
            raise ValueError(f"a NonStationaryRPE with level={self.level!r} shares with its like, got {other}")
        super().share(other)
        self.clocks = other.clocks
        return self

    @classmethod
    def from_reference(  # type: ignore[override]
        cls,
        arrays: Mapping[str, Any],
        *,
        level: Level | None = None,
        as_released: bool = False,
        heads: int | None = None,
        layer: int = 0,
        slots: tuple[int, ...] | None = None,
        shared: NonStationaryRPE | None = None,
    ) -> NonStationaryRPE:
        """From "lin_w", "lin_b" (chord, section, then the clocks), "layer_lin_w", "layer_lin_b", and "bases" that tell
        which clocks; or rpe.weights.j and rw.l of layer l. "emb_order", names of the terms, says what as_released adds.

        level: default what the bases say, "both" for two clocks. heads: as in StructureRPE. slots: the j of chord,
        section and the clocks; default the usual 2 and 3 and what follows them, or all where there are no more.
        """
        found = Released(arrays, layer, cls.__name__)
        clocks = _clocks(found, level)
        level = "both" if len(clocks) == 2 else level or clocks[0]
        names = (*TWO, *(f"clock of {name}" for name in clocks))
        if slots is None and (there := found.slots()):
            after = [slot for slot in there if slot >= 2]
            slots = tuple(there if len(there) == len(names) else after)
        weights, biases = found.levels(names, slots)
        encoding = cls(heads or found.heads(), weights.shape[-1], level, as_released).to(weights.dtype)
        terms = [str(name) for name in found.arrays.get("emb_order", ())]
        if as_released and terms:
            encoding.twice = tuple(
                name for name in encoding.timed if not any(term.startswith(f"{name} elapsed") for term in terms)
            )
        with torch.no_grad():
            own_clocks = [encoding.clocks[encoding.timed.index(name)] for name in clocks]
            for part, weight, bias in zip((*encoding.parts, *own_clocks), weights, biases, strict=True):
                assert isinstance(part, LevelVectors)
                part.weight.copy_(weight), part.bias.copy_(bias)
            for own, given in zip((encoding.map.weight, encoding.map.bias), found.map()):
                own.copy_(given)
        if shared is not None:
            encoding.share(shared)
        return encoding

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        if not (q.shape[2] and k.shape[2]):
            return {}
        scores = self._scores(q, q_pos, k_pos)
        queries, keys = (labels_of("NonStationaryRPE", position, self.levels) for position in (q_pos, k_pos))
        first = _first_query(q_pos, k_pos, k.shape[2] - q.shape[2])
        for name, clock in zip(self.timed, self.clocks):
            assert isinstance(clock, LevelVectors)
            taus = self.taus(name, queries[name], keys[name], first)
            self._clock(scores, clock, taus, (queries[name], keys[name]), name in self.twice)
        return scores.finish()

    def taus(self, level: str, queries: Tensor, keys: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Tokens since the segment of each query and key began, (rows, n_q) and (rows, n_k); query 0 is token `first`
        of the keys."""
        n_q, n_k = queries.shape[1], keys.shape[1]
        if first > n_k or first + n_q < 0:
            raise ValueError(
                f"queries are tokens {first}..{first + n_q - 1} and keys 0..{n_k - 1}: between them labels of level "
                f"{level!r} are missing, from which the time in a segment is counted"
            )
        rows = max(len(queries), len(keys))
        queries, keys = queries.expand(rows, -1), keys.expand(rows, -1)
        low, high = max(first, 0), min(first + n_q, n_k)
        if not torch.equal(queries[:, low - first : high - first], keys[:, low:high]):
            raise ValueError(
                f"queries are tokens {first}..{first + n_q - 1} of the keys, but their labels of level {level!r} "
                'differ; give "index" positions beside the labels where queries are not the last of the keys'
            )
        before, after = queries[:, : max(-first, 0)], queries[:, max(n_k - first, 0) :]
        whole = segment_clock(torch.cat([before, keys, after], 1), early=self.as_released)
        start = before.shape[1]
        return whole.narrow(1, start + first, n_q), whole.narrow(1, start, n_k)

    def _clock(
        self,
        scores: Scores,
        clock: LevelVectors,
        taus: tuple[Tensor, Tensor],
        labels: tuple[Tensor, Tensor],
        twice: bool,
    ) -> None:
        low, high = int(taus[0].amin() - taus[1].amax()), int(taus[0].amax() - taus[1].amin())
        lags = torch.arange(min(low, 0), max(high, int(taus[0].amax())) + 1, device=taus[0].device)
        vectors = self.split(nn.functional.linear(clock(lags), self.map.weight)).to(scores.dtype)
        once: Tensor | None = None
        if not twice:
            of_query = vectors[..., taus[0] - lags[0]]  # (heads, dim, rows, n_q)
            once = (scores.q * of_query.permute(2, 0, 3, 1)).sum(-1, keepdim=True)
        scores.vectors(vectors * 2 if twice else vectors, int(lags[0]), *taus, labels, once)
        scores.constantly(2 * self.map.bias)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, model_dim={self.model_dim}, level={self.level!r}, as_released={self.as_released}"


def segment_clock(labels: Tensor, early: bool = False) -> Tensor:
    """Tokens since the run of equal labels (rows, n) began, int64; early: every run but the first begins one before."""
    at = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    begins = torch.zeros_like(labels, dtype=torch.bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    if early:
        begins = torch.cat([begins[:, 1:], torch.zeros_like(begins[:, :1])], 1)
    return at - at.masked_fill(~begins, 0).cummax(1).values


def _first_query(q_pos: Positions, k_pos: Positions, default: int) -> int:
    """Which token of the keys query 0 is: by consecutive "index" positions where both have them, else at the end."""
    places = [position.get("index") for position in (q_pos, k_pos) if isinstance(position, Mapping)]
    queries, keys = places if len(places) == 2 else (None, None)
    found = consecutive(queries, keys) if isinstance(queries, Index) and isinstance(keys, Index) else None
    return default if found is None else found


def _clocks(found: Released, level: Level | None) -> tuple[Literal["chord", "section"], ...]:
    """Whose clock each map beyond the two levels' belongs to, in stored order: by the bases, else by `level`."""
    bases = [float(base) for base in found.arrays.get("bases", ())][len(TWO) :]
    stored = tuple(name for base in bases for name in TWO if CLOCKS[name] == base)
    wanted = stored if level is None else TWO if level == "both" else (level,)
    if level is None and (not stored or len(stored) != len(bases)):
        raise ValueError(
            f"which clocks these weights have is not known (bases beyond the levels': {bases}); give level="
        )
    if stored and sorted(stored) != sorted(wanted):
        raise ValueError(f"these weights have the clocks of {' and '.join(stored)}, not those of level={level!r}")
    return stored or wanted
