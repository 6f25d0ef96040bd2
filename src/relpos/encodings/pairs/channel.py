"""One channel: a pair feature, its encoder, and where the result enters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.pairs import encoders
from relpos.encodings.pairs.cuts import Cuts, bounds_of
from relpos.encodings.pairs.encoders import HSTU_STEP, Encoder, Sparse, natural, spaced
from relpos.encodings.pairs.features import SOURCE, feature_of

ENCODERS = ("buckets", "log", "linear", "sinusoid", "decay", "rotary")
INJECTIONS = ("key", "value", "bias", "gate", "rotation")


class Channel(nn.Module):
    """Learned numbers of one feature of a pair; phi_r are the functions of its encoder (see `encoders`).

    feature   index, time, place, profile, mark or key (see `features`)
    encoder   "buckets" (unit, clip; or edges), "log" (unit, step, clip), "linear" (unit, clip, start), "sinusoid",
              "decay" or "rotary" (count numbers from shortest to longest, or scales=(..))
    unit      a number; "learned" (buckets then become straight lines between their rows: a floor has no gradient);
              "user", of time: the smallest gap above zero between the keys of each sequence
    inject    any of "key", "value", "bias", "gate" together; "rotation" alone, which is what rotary does
    signed    whether differences before and after the query are told apart. Default: for index only
    where     the name of a position of labels: the channel counts only where query and key have labels other than 0
    position  the name of the position that it reads, default that of its feature ("index" for key)
    name      what its arrays are called in `from_reference`, default that of its feature

    shared    True: bias and gate have one number for all heads, (1, rows)

    keys, values  (rows, dim)      Glorot uniform        None without that injection
    bias, gate    (heads, rows)    0 and 1 at the start
    """

    keys: Tensor | None
    values: Tensor | None
    bias: Tensor | None
    gate: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int | None,
        feature: str,
        encoder: str = "buckets",
        inject: str | Iterable[str] | None = None,
        *,
        unit: float | str = 1.0,
        clip: int | None = None,
        edges: Sequence[float] | None = None,
        step: float = HSTU_STEP,
        start: float = 0.0,
        scales: Sequence[float] | None = None,
        shortest: float = 1.0,
        longest: float = 10000.0,
        count: int | None = None,
        learned: bool = False,
        signed: bool | None = None,
        where: str | None = None,
        position: str | None = None,
        name: str | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        odd = [each for each in (where, position, name) if not (each is None or isinstance(each, str))]
        if odd:
            raise ValueError(f"where, position and name are names, got {odd[0]!r}")
        self.feature = feature_of(feature)
        self.kind, self.position = feature, position or SOURCE.get(feature, feature)
        self.name, self.where = name or feature, where
        self.inject = _injections(inject, encoder)
        signed = self.feature.signed if signed is None else bool(signed)
        if signed and not (self.feature.ordered):
            raise ValueError(f"{feature} has no sign; leave signed out")
        if unit == "user" and (feature != "time" or encoder != "buckets" or edges is not None):
            raise ValueError('unit="user" is for feature="time" in buckets')
        if encoder == "rotary" and not self.feature.ordered:
            raise ValueError(f"a rotation turns by a difference of numbers: index or time, not {feature}")
        if feature == "mark" and encoder == "buckets" and clip is None and edges is None:
            clip = 1
        numbers: list[float] = []
        if encoder in ("sinusoid", "decay", "rotary"):
            pairs = max(dim // 2, 1) if encoder == "rotary" else 8
            numbers = (
                spaced(shortest, longest, pairs if count is None else count) if scales is None else _checked(scales)
            )
        self.encoder = _encoder(encoder, unit, clip, edges, step, start, numbers, learned, signed)
        self.bounds = self._bounds()
        pointwise = self.bounds is None or self.encoder.signed or feature == "mark"
        self.cuts = None if pointwise else Cuts.of(self.bounds or ())
        self._build(dim, 1 if shared else heads)

    def _build(self, dim: int, heads: int | None) -> None:
        rows = self.encoder.rows
        if heads is None and {"bias", "gate"} & set(self.inject):
            raise ValueError(f'inject="bias" and "gate" have numbers a head; give heads=.. (got {self.inject})')
        bound = (6 / (rows + dim)) ** 0.5
        for name in ("key", "value"):
            table = nn.Parameter(torch.empty(rows, dim).uniform_(-bound, bound)) if name in self.inject else None
            self.register_parameter(name + "s", table)
        for name, value in (("bias", 0.0), ("gate", 1.0)):
            numbers = nn.Parameter(torch.full((heads or 1, rows), value)) if name in self.inject else None
            self.register_parameter(name, numbers)

    def _bounds(self) -> tuple[float, ...] | None:
        """Of one row a pair and a unit that is stated: from which raw size of its feature on each bucket counts."""
        own, finish = self.encoder, self.feature.finish
        if not isinstance(own, Sparse) or own.personal or self.absolute:
            return None
        return bounds_of(lambda raw: own.size(finish(raw), None), own.reach)

    @property
    def absolute(self) -> bool:
        """Depends on the key alone."""
        return self.kind == "key"

    @property
    def rotates(self) -> bool:
        return isinstance(self.encoder, encoders.Rotary)

    @property
    def by_row(self) -> bool:
        """Whether its scores depend on the query's content, through the keys."""
        return self.keys is not None

    def extra_repr(self) -> str:
        return f"{self.kind}, inject={self.inject}"


def _injections(inject: str | Iterable[str] | None, encoder: str) -> tuple[str, ...]:
    if inject is None:
        inject = ("rotation",) if encoder == "rotary" else ("key", "value")
    names = (inject,) if isinstance(inject, str) else tuple(inject)
    unknown = [name for name in names if name not in INJECTIONS]
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"inject is one or several of {', '.join(INJECTIONS)}, each once; got {inject!r}")
    if ("rotation" in names or encoder == "rotary") and (names != ("rotation",) or encoder != "rotary"):
        raise ValueError(f'encoder="rotary" and inject="rotation" go together and alone; got {encoder!r} and {names}')
    return names


def _checked(scales: Sequence[float]) -> list[float]:
    if not scales:
        raise ValueError("scales are one or more positive numbers, got none")
    return [encoders.positive_number("scales", s) for s in scales]


def _encoder(
    kind: str,
    unit: Any,
    clip: int | None,
    edges: Sequence[float] | None,
    step: float,
    start: float,
    scales: list[float],
    learned: bool,
    signed: bool,
) -> Encoder:
    if kind not in ENCODERS:
        raise ValueError(f"encoder is one of {', '.join(ENCODERS)}; got {kind!r}")
    if kind == "sinusoid":
        return encoders.Sinusoid(scales, learned, signed)
    if kind == "decay":
        return encoders.Decay(scales, learned)
    if kind == "rotary":
        return encoders.Rotary(scales, learned)
    if kind == "buckets" and edges is not None:
        return encoders.Edges(edges, signed)
    reach = natural("clip", clip)
    if unit == "learned":
        unit, learned = 1.0, True
    if learned and kind == "log":
        raise ValueError('a floor of logarithms has no gradient to a unit; take encoder="linear" to learn one')
    if kind == "linear" or learned:
        return encoders.Linear(reach, unit, start, learned, signed)
    if kind == "log":
        return encoders.LogBuckets(reach, unit, step, signed)
    return encoders.Buckets(reach, unit, signed)
