"""Sequences of events in continuous time: when, and what, where and in what state; each within a window of observation.

    from relpos.tasks.events import Sequences

    two = Sequences.of([[0.5, 2.0], [1.0]], marks=[[0, 1], [1]], window=(0.0, 3.0), unit="hours")
    two.padded()["time"]      # a library position, as all of index, time, place, profile, mark

Times are float64 in one stated unit. Storage is ragged: all events end to end, and offsets. The window (start, end] is
what a likelihood needs: that nothing happened after the last event is part of what was observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relpos.tasks.events import checks

UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0}
"""Known units in seconds; any other word is taken as it is, and cannot be converted."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Event sequences, ragged. Make them with `of` or `from_columns`, which check everything.

    times       (events,) float64, not decreasing within a sequence, in ``unit`` since ``origin``
    offsets     (count + 1,) int64: events offsets[i] .. offsets[i + 1] - 1 are of sequence i
    start, end  (count,) float64: the window of observation; events lie in [start, end]
    marks       (events,) int64 from 0, or None
    places      (events, 2) float64, latitude and longitude in degrees, or None
    profiles    (events, width) float64, or None
    ids         names of the sequences, or ()
    mark_names  names of the marks, or ()
    mark_count  number of marks, 1 where there are none
    windowed    False where no window was given: then it ends with the last event, which biases a likelihood
    origin      what was taken off all times before they became float64, in ``unit``
    """

    times: np.ndarray
    offsets: np.ndarray
    start: np.ndarray
    end: np.ndarray
    marks: np.ndarray | None = None
    places: np.ndarray | None = None
    profiles: np.ndarray | None = None
    ids: tuple[str, ...] = ()
    mark_names: tuple[str, ...] = ()
    mark_count: int = 1
    unit: str = ""
    windowed: bool = True
    origin: float = 0.0

    @classmethod
    def of(
        cls,
        times: Sequence[Any],
        *,
        marks: Sequence[Any] | None = None,
        places: Sequence[Any] | None = None,
        profiles: Sequence[Any] | None = None,
        window: Any = None,
        ids: Sequence[str] = (),
        mark_names: Sequence[str] = (),
        mark_count: int | None = None,
        unit: str = "",
        sort: bool = False,
        ties: str = "keep",
    ) -> Sequences:
        """From one list or array a sequence. See `from_flat` for window, sort, ties and what is refused."""
        if isinstance(times, np.ndarray) and times.dtype != object and times.ndim == 1:
            raise TypeError("times are a list of sequences; for a single one give [times]")
        arrays = [checks.as_times(each, name, unit) for each, name in zip(times, _names(ids, len(times)))]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in arrays], out=offsets[1:])
        whole = len(arrays) > 0 and all(each.dtype.kind in "iu" for each in arrays)
        flat = np.concatenate(arrays) if arrays else np.zeros(0)
        if not whole:
            flat = flat.astype(np.float64)
        columns = {"marks": marks, "places": places, "profiles": profiles}
        joined = {key: checks.joined(value, offsets, key, ids) for key, value in columns.items() if value is not None}
        return cls.from_flat(
            flat, offsets, **joined, window=window, ids=ids, mark_names=mark_names, mark_count=mark_count, unit=unit,
            sort=sort, ties=ties,
        )  # fmt: skip

    @classmethod
    def from_columns(cls, sequence: Any, times: Any, *, sort: bool = True, **more: Any) -> Sequences:
        """From a table with a row an event: ``sequence`` (events,) says to which sequence each row belongs.

        Sequences come in rising order of their ids; rows of one sequence are sorted by time, ties in the order of the
        table. more: as in `from_flat`, with marks, places and profiles as columns of the table.
        """
        key = np.asarray(sequence)
        values = checks.as_times(times, "the table", more.get("unit", ""))
        if key.shape != values.shape:
            raise ValueError(f"the columns have {len(key)} and {len(values)} rows")
        names, rows = np.unique(key.astype(str) if key.dtype == object else key, return_inverse=True)
        order = np.lexsort((values, rows)) if sort else np.argsort(rows, kind="stable")
        offsets = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(names)), out=offsets[1:])
        for name in ("marks", "places", "profiles"):
            if more.get(name) is not None:
                more[name] = checks.column(more[name], len(values), name)[order]
        more.setdefault("ids", tuple(map(str, names)))
        return cls.from_flat(values[order], offsets, **more)

    @classmethod
    def from_flat(
        cls,
        times: Any,
        offsets: Any,
        *,
        marks: Any = None,
        places: Any = None,
        profiles: Any = None,
        window: Any = None,
        ids: Sequence[str] = (),
        mark_names: Sequence[str] = (),
        mark_count: int | None = None,
        unit: str = "",
        sort: bool = False,
        ties: str = "keep",
    ) -> Sequences:
        """From events end to end. Everything is checked; an error names the sequence and the index of the event.

        window: (start, end) of all, or two arrays (count,); without it from the first event to the last. sort: sort
        events that are not in order, stably, instead of refusing them. ties, of events at one time: "keep" them in
        the order of the input, "error", "first" to keep only the first of each time, or "spread" to lay them evenly
        within one tick of the clock, the smallest gap above 0. Integers beyond 2^53, such as nanoseconds since 1970,
        lose their origin before they become float64 (see ``origin``).

        ValueError for times that fall, NaN, gaps below 0, coordinates out of range, marks outside of
        0..mark_count-1, events outside of the window; for times of 2^24 or more in float32, which cannot tell them
        apart; and where the times look like several units at once.
        """
        offsets = checks.as_offsets(offsets)
        count = len(offsets) - 1
        names = tuple(map(str, ids))
        checks.require(len(names) in (0, count), f"{len(names)} ids for {count} sequences")
        table = checks.Table(checks.as_times(times, "times", unit), offsets, names)
        table.take("marks", marks)
        table.take("places", places)
        table.take("profiles", profiles)
        table.order(sort)
        table.ties(ties)
        table.units()
        values, start, end, origin, windowed = table.window(window)
        kinds, number = table.marks(mark_count, mark_names)
        return cls(
            values, table.offsets, start, end, kinds, table.places(), table.profiles(), names, tuple(mark_names),
            number, unit, windowed, origin,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Sequences]:
        return (self.select([row]) for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(count,) events of each sequence."""
        return np.diff(self.offsets)

    @property
    def kinds(self) -> np.ndarray:
        """(events,) marks, all 0 where there are none."""
        return np.zeros(len(self.times), dtype=np.int64) if self.marks is None else self.marks

    @property
    def rows(self) -> np.ndarray:
        """(events,) the sequence that each event belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def name_of(self, row: int) -> str:
        """How errors call sequence ``row``."""
        return checks.name_of(row, self.ids)

    def where(self, event: int) -> str:
        """How errors call an event, by its index among all."""
        return checks.where(event, self.offsets, self.ids)

    @property
    def firsts(self) -> np.ndarray:
        """(sequences that have events,) indices of their first events."""
        return checks.firsts(self.offsets)

    @property
    def latest(self) -> np.ndarray:
        """(count,) time of the last event of each sequence, or the start of the window where there is none."""
        filled = self.lengths > 0
        last = self.start.copy()
        last[filled] = self.times[self.offsets[1:][filled] - 1]
        return last

    def count_marks(self) -> np.ndarray:
        """(mark_count,) events of each mark, float64."""
        return np.bincount(self.kinds, minlength=self.mark_count).astype(np.float64)

    def gaps(self) -> np.ndarray:
        """(events,) time since the event before; NaN for the first of a sequence."""
        gaps = np.diff(self.times, prepend=np.nan)
        gaps[self.firsts] = np.nan
        return gaps

    def require_marks(self, known: int) -> None:
        """ValueError where an event has a mark that a model of ``known`` marks has never seen."""
        if self.marks is None or not len(self.marks) or self.marks.max() < known:
            return
        at = int((self.marks >= known).argmax())
        raise ValueError(
            f"{self.where(at)}: mark {self.marks[at]} is unknown to a model of "
            f"{known} marks (0..{known - 1}); give all data the marks of training (mark_count, or one list mark_names)"
        )

    def select(self, rows: Any) -> Sequences:
        """Some of the sequences, in the order of ``rows``: indices, or a mask (count,)."""
        rows = np.arange(len(self))[np.asarray(rows, dtype=bool if _is_mask(rows) else np.int64)]
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        events = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        ids = tuple(self.ids[row] for row in rows) if self.ids else ()
        return self.replace(events, offsets, start=self.start[rows], end=self.end[rows], ids=ids)

    def keep(self, mask: np.ndarray, **more: Any) -> Sequences:
        """The events where ``mask`` (events,) is True; windows stay."""
        offsets = np.concatenate([[0], np.cumsum(mask)])[self.offsets].astype(np.int64)
        return self.replace(np.flatnonzero(mask), offsets, **more)

    def until(self, time: Any) -> Sequences:
        """What had been seen by ``time``, one for all or one a sequence: events up to then, and windows cut there."""
        end = np.minimum(np.broadcast_to(np.asarray(time, dtype=np.float64), self.end.shape), self.end)
        end = np.maximum(end, self.start)
        return self.keep(self.times <= np.repeat(end, self.lengths), end=end, windowed=True)

    def within(self, start: float, end: float) -> Sequences:
        """Events in (start, end], and windows cut to it; sequences stay, even where empty."""
        mask = (self.times > start) & (self.times <= end)
        first, last = np.clip(self.start, start, end), np.clip(self.end, start, end)
        return self.keep(mask, start=first, end=last, windowed=True)

    def replace(self, events: np.ndarray, offsets: np.ndarray, **more: Any) -> Sequences:
        """The events of these indices with new offsets; other fields as they are, or as in ``more``."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("times", "marks", "places", "profiles"):
            if values[name] is not None:
                values[name] = values[name][events]
        return Sequences(**{**values, "offsets": offsets, **more})

    def to_unit(self, unit: str) -> Sequences:
        """The same events in another of the known units. Log likelihoods change by n log c and in nothing else."""
        unknown = [each for each in (self.unit, unit) if each not in UNITS]
        if unknown:
            raise ValueError(f"no conversion from {self.unit!r} to {unit!r}: known units are {', '.join(UNITS)}")
        return self.scaled(UNITS[self.unit] / UNITS[unit], unit)

    def scaled(self, factor: float, unit: str = "") -> Sequences:
        """All times multiplied by ``factor`` > 0."""
        checks.require(factor > 0 and np.isfinite(factor), f"a factor is positive, got {factor}")
        changed = {name: getattr(self, name) * factor for name in ("times", "start", "end", "origin")}
        return Sequences(
            **{**{name: getattr(self, name) for name in self.__dataclass_fields__}, **changed, "unit": unit}
        )

    def shifted(self, by: float) -> Sequences:
        """All times and windows later by ``by``."""
        changed = {name: getattr(self, name) + by for name in ("times", "start", "end")}
        return Sequences(**{**{name: getattr(self, name) for name in self.__dataclass_fields__}, **changed})

    def padded(self, side: str = "right") -> dict[str, Any]:
        """Named positions (count, longest) and "mask", True for real events; see `views.padded`."""
        from relpos.tasks.events.views import padded

        return padded(self, side)

    def packed(self) -> dict[str, Any]:
        """Named positions (events,) of all sequences in one row, and "segments"; see `views.packed`."""
        from relpos.tasks.events.views import packed

        return packed(self)


def _is_mask(rows: Any) -> bool:
    return np.asarray(rows).dtype == bool


def _names(ids: Sequence[str], count: int) -> list[str]:
    return [checks.name_of(row, ids if len(ids) == count else ()) for row in range(count)]
