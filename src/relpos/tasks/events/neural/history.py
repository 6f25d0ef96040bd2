"""A causal Transformer over events: state i knows token i and those before it, and nothing of what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.registry import key_of
from relpos.models.transformer import Stack
from relpos.positions import Index, Labels, Places, Position, Profiles, Times
from relpos.tasks.events.neural.tape import Seen
from relpos.tasks.events.sequences import Sequences

CHANNELS = ("position", "time", "place", "profile", "mark")
"""What `relative_channels` may be given by name."""


@dataclass(frozen=True)
class Scales:
    """Sizes that networks measure time by, found in training data only.

    unit    the median gap above 0, in the unit of the data
    middle, spread   mean and standard deviation of log(gap / unit)
    """

    unit: float = 1.0
    middle: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, sequences: Sequences) -> Scales:
        """ValueError where there is no gap above 0."""
        gaps = sequences.gaps()
        gaps = gaps[gaps > 0]  # NaN is not
        if not len(gaps):
            raise ValueError("there is no gap above 0 to measure time by: give sequences with several events")
        unit = float(np.median(gaps))
        logs = np.log(gaps / unit)
        return cls(unit, float(logs.mean()), max(float(logs.std()), 0.1))

    def log_gap(self, gaps: Tensor) -> Tensor:
        """About standard normal; a gap of 0 counts as a thousandth of the unit."""
        return (torch.log(gaps / self.unit + 1e-3) - self.middle) / self.spread


class History(nn.Module):
    """Events to states (batch, n, dim).

    marks       kinds of events; one more is the start of a window
    encoding    any of the library by name. "relative_channels" takes ``channels``; one that reads places along a line
                reads ``clock``: the "index" of the token, or its "time" in units of ``scales`` (an absolute encoding
                then is one of absolute time)
    channels    names out of `CHANNELS` joined by +, or a list of dicts as `RelativeChannels` takes them
    inject      where the named channels enter: "bias", or "key+value"
    gap         whether a token also carries the logarithm of the gap before it: an input, not an encoding
    periods     calendar: sines and cosines of the time of a token with these periods (and their halves and thirds),
                such as (24, 168) of hours. They tie the network to the clock
    profiles    width of the events' profiles; 0 where they are not read. They enter the token, by a linear map
    query_time  "event", or "request": queries then stand at the time of the event to come, given as ``asked``. It
                tells the network when something happens next; metrics found so are to be named so
    mark_scale  multiplies the vectors of the marks at the input: beside sines of amplitude 1 they would drown
    Further options: `relpos.models.Stack`.
    """

    def __init__(
        self,
        marks: int,
        encoding: str = "relative_channels",
        *,
        channels: str | Sequence[Mapping[str, Any]] = "position+time",
        inject: str = "bias",
        clock: str = "index",
        gap: bool = True,
        periods: Sequence[float] = (),
        profiles: int = 0,
        scales: Scales | None = None,
        query_time: str = "event",
        mark_scale: float = 1.0,
        length: int = 128,
        dim: int = 32,
        depth: int = 2,
        heads: int = 2,
        causal: bool = True,
        encoding_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if clock not in ("index", "time"):
            raise ValueError(f'clock is "index" or "time", got {clock!r}')
        if query_time not in ("event", "request"):
            raise ValueError(f'query_time is "event" or "request" (a grid is for drawing), got {query_time!r}')
        if not all(0 < period < math.inf for period in periods):
            raise ValueError(f"periods are positive numbers in the unit of the data, got {tuple(periods)}")
        if isinstance(mark_scale, bool) or not 0 < mark_scale < float("inf"):
            raise ValueError(f"mark_scale is a finite number above 0, got {mark_scale!r}")
        self.scales, self.clock, self.query_time, self.causal = scales or Scales(), clock, query_time, causal
        self.mark_scale = float(mark_scale)
        self.periods, self.dim, self.marks = tuple(map(float, periods)), dim, marks
        given = dict(encoding_options or {})
        if key_of(encoding) == "relative_channels" and "channels" not in given:
            given["channels"] = channels_of(channels, inject, self.scales, length)
        self.stack = Stack(dim, depth, heads, encoding, causal=causal, encoding_options=given, **options)
        self.mark = nn.Embedding(marks + 1, dim)
        nn.init.normal_(self.mark.weight, std=0.02)
        width = 2 * gap + 6 * len(self.periods) + profiles
        self.gap, self.profiles = gap, profiles
        self.more = nn.Linear(width, dim) if width else None

    def forward(self, seen: Seen, asked: Tensor | None = None) -> Tensor:
        """asked: (batch, n) float64, the time of what follows each token, for query_time="request"."""
        self._check(seen)
        x = self.mark(seen.marks) * self.mark_scale
        if self.more is not None:
            x = x + self.more(self.features(seen))
        keys, queries = self.positions(seen), None
        if self.query_time == "request":
            if asked is None:
                raise ValueError('query_time="request" takes the times of the events to come: asked=..')
            queries = self.positions(seen, asked)
        mask = None if self.causal else seen.mask  # what a causal query does not see needs no hiding
        positions, key_positions = (keys, None) if queries is None else (queries, keys)
        return self.stack.encode(x, positions=positions, key_positions=key_positions, key_mask=mask)

    def _check(self, seen: Seen) -> None:
        width, own = seen.profiles.shape[-1], self.marks
        if self.profiles and width != self.profiles:
            raise ValueError(f"profiles have the width {self.profiles} here; those of these events {width or 'none'}")
        low, high = (int(seen.marks.min()), int(seen.marks.max())) if seen.marks.numel() else (0, 0)
        if low < 0 or high > own:
            raise ValueError(
                f"a network of {own} marks reads 0..{own - 1}, and {own} for the start of a window; got {low}..{high}. "
                "Give all data the marks of training (mark_count)"
            )

    def features(self, seen: Seen) -> Tensor:
        """(batch, n, width): the gap before each token and whether it is known, the calendar, the profile."""
        parts = []
        if self.gap:
            known = torch.ones_like(seen.times)
            known[:, 0] = 0.0
            before = seen.times.diff(dim=1, prepend=seen.times[:, :1])
            parts += [(self.scales.log_gap(before) * known)[..., None], known[..., None]]
        parts += self.calendar(seen.times)
        if self.profiles:
            parts.append(seen.profiles)
        return torch.cat(parts, -1).to(self.mark.weight.dtype)

    def calendar(self, times: Tensor) -> list[Tensor]:
        """Sines and cosines of times (..) by the periods: two of (.., 3 periods), or none."""
        if not self.periods:
            return []
        turns = torch.tensor([part / period for period in self.periods for part in (1, 2, 3)], dtype=torch.float64)
        angles = 2 * torch.pi * (times[..., None] * turns.to(times.device) % 1.0)
        return [angles.sin(), angles.cos()]

    def positions(self, seen: Seen, times: Tensor | None = None) -> Position | dict[str, Position]:
        times = seen.times if times is None else times
        if self.clock == "time":
            return Times(times / self.scales.unit)
        found: dict[str, Position] = {
            "index": Index(torch.arange(seen.marks.shape[1], device=seen.marks.device)),
            "time": Times(times),
            "mark": Labels(seen.marks + 1),
        }
        if seen.places.shape[-1]:
            found["place"] = Places(seen.places)
        if seen.profiles.shape[-1]:
            found["profile"] = Profiles(seen.profiles)
        return found


def channels_of(
    names: str | Sequence[Mapping[str, Any]], inject: str, scales: Scales, length: int
) -> list[dict[str, Any]]:
    """The channels of some names: lags up to ``length``, times by logarithm from a tenth of the unit on, places by
    logarithm from 100 m on, profiles in tenths of 1 - cosine. ValueError for others."""
    if not isinstance(names, str):
        return [dict(each) for each in names]
    known: dict[str, dict[str, Any]] = {
        "position": {"feature": "index", "encoder": "buckets", "clip": length},
        "time": {"feature": "time", "encoder": "log", "unit": scales.unit / 10, "step": 0.5, "clip": 32},
        "place": {"feature": "place", "encoder": "log", "unit": 0.1, "step": 0.5, "clip": 24},
        "profile": {"feature": "profile", "encoder": "buckets", "unit": 0.1, "clip": 10},
        "mark": {"feature": "mark"},
    }
    asked = [name.strip() for name in names.split("+") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ValueError(f"channels are names out of {', '.join(known)}, joined by +; got {names!r}")
    return [{**known[name], "inject": tuple(inject.split("+"))} for name in asked]
