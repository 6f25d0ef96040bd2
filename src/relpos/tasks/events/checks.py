"""What is wrong with events, said once for all readers: every error names the sequence and the index of the event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

TIES = ("keep", "error", "first", "spread")
_EXACT32 = 2.0**24  # from here on neighbours in float32 are a unit or more apart
_EXACT64 = 2**53
# Times since 1970 by unit: 1979 to 2128, which no two units share.
_UNIX = {"seconds": (3e8, 5e9), "milliseconds": (3e11, 5e12), "microseconds": (3e14, 5e15), "nanoseconds": (3e17, 5e18)}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def name_of(row: int, ids: Sequence[str]) -> str:
    return f"sequence {row} ({ids[row]})" if len(ids) > row else f"sequence {row}"


def where(event: int, offsets: np.ndarray, ids: Sequence[str]) -> str:
    row = int(np.searchsorted(offsets, event, side="right")) - 1
    return f"{name_of(row, ids)}, event {event - int(offsets[row])}"


def firsts(offsets: np.ndarray) -> np.ndarray:
    """Indices of the first event of each sequence that has one."""
    return offsets[:-1][np.diff(offsets) > 0]


def as_times(given: Any, name: str, unit: str) -> np.ndarray:
    """(n,) int64 or float64. datetime64 and datetimes become float64 in ``unit``, those with a zone by way of UTC, so
    that an hour that daylight saving repeats is two; float32 is refused where coarse."""
    array = np.asarray(given)
    if array.size == 0:
        return np.zeros(0)
    if array.dtype == object and array.ndim == 1 and all(isinstance(each, datetime) for each in array):
        return _dates(_utc(array, name), name, unit)
    if array.dtype == object or array.dtype.kind in "US":
        raise TypeError(f"{name}: times are numbers or datetime64, got {array.dtype}; parse text first, as UTC")
    if array.ndim != 1:
        raise ValueError(f"{name}: times have one axis, got the shape {array.shape}")
    if array.dtype.kind == "M":
        return _dates(array, name, unit)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: times are real numbers, got {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
        if largest >= _EXACT32 or array.dtype.itemsize < 4:
            apart = float(np.spacing(np.asarray(largest, dtype=array.dtype)))
            raise ValueError(
                f"{name}: {array.dtype} cannot hold times up to {largest:.9g}: neighbours there are {apart:g} apart. "
                "Give float64 or int64 from the file on; a cast now does not bring the digits back"
            )
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64, copy=False)


def _utc(array: np.ndarray, name: str) -> np.ndarray:
    """datetimes, also those of pandas, as datetime64[ns]. ValueError where some have a zone and others none."""
    aware = np.array([each.tzinfo is not None for each in array])
    if aware.any() and not aware.all():
        at = int(aware.argmin())
        raise ValueError(
            f"{name}, event {at}: the time {array[at]} has no zone, where others have one; give all or none"
        )
    epoch = datetime(1970, 1, 1, tzinfo=UTC) if aware.any() else datetime(1970, 1, 1)
    step = timedelta(microseconds=1)
    nanoseconds = [((each - epoch) // step) * 1000 + getattr(each, "nanosecond", 0) for each in array]
    return np.array(nanoseconds, dtype=np.int64).astype("datetime64[ns]")


def _dates(array: np.ndarray, name: str, unit: str) -> np.ndarray:
    per = {"seconds": 10**9, "minutes": 60 * 10**9, "hours": 3600 * 10**9, "days": 86400 * 10**9}
    per["weeks"] = 7 * per["days"]
    if unit not in per:
        raise ValueError(f"{name}: dates need a unit, one of {', '.join(per)}, got {unit!r}")
    missing = np.isnat(array)
    if missing.any():
        raise ValueError(f"{name}, event {int(missing.argmax())}: the time is missing (NaT)")
    whole, rest = np.divmod(array.astype("datetime64[ns]").astype(np.int64), per[unit])
    return whole.astype(np.float64) + rest / per[unit]


def as_offsets(given: Any) -> np.ndarray:
    offsets = np.asarray(given)
    fits = offsets.ndim == 1 and len(offsets) > 0 and offsets.dtype.kind in "iu" and offsets[0] == 0
    require(
        fits and bool((np.diff(offsets) >= 0).all()), "offsets are integers that rise from 0, one more than sequences"
    )
    return offsets.astype(np.int64)


def column(given: Any, rows: int, name: str) -> np.ndarray:
    array = np.asarray(given)
    require(len(array) == rows, f"{name} have {len(array)} rows, times have {rows}")
    return array


def joined(given: Sequence[Any], offsets: np.ndarray, name: str, ids: Sequence[str]) -> np.ndarray:
    """One array a sequence, end to end; lengths must be those of the times."""
    require(len(given) == len(offsets) - 1, f"{name} are of {len(given)} sequences, times of {len(offsets) - 1}")
    arrays = [np.asarray(each) for each in given]
    for row, (each, length) in enumerate(zip(arrays, np.diff(offsets))):
        require(len(each) == length, f"{name_of(row, ids)} has {length} times and {len(each)} {name}")
    # An empty list has no width; an empty array may have one.
    found = [each for each in arrays if len(each)] or [each for each in arrays if each.ndim > 1]
    return np.concatenate(found) if found else np.zeros({"places": (0, 2), "profiles": (0, 0)}.get(name, (0,)))


class Table:
    """Events end to end while they are being checked; the steps run in the order in which they are written here."""

    def __init__(self, times: np.ndarray, offsets: np.ndarray, ids: tuple[str, ...]) -> None:
        require(len(times) == offsets[-1], f"there are {len(times)} times, and offsets end at {offsets[-1]}")
        self.times, self.offsets, self.ids = times, offsets, ids
        self.columns: dict[str, np.ndarray] = {}
        self._finite(times, "time")

    def where(self, event: int) -> str:
        return where(event, self.offsets, self.ids)

    def _finite(self, values: np.ndarray, what: str) -> None:
        bad = ~np.isfinite(values if values.ndim == 1 else values.sum(-1))
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(
                f"{self.where(at)}: the {what} is {values[at]}; drop events without one ({bad.sum()} here)"
            )

    def take(self, name: str, given: Any) -> None:
        if given is not None:
            self.columns[name] = column(given, len(self.times), name)

    def _inner(self) -> np.ndarray:
        """(events,) True where the event before is of the same sequence."""
        inner = np.ones(len(self.times), dtype=bool)
        inner[firsts(self.offsets)] = False
        return inner

    def order(self, sort: bool) -> None:
        if len(self.times) < 2:
            return
        falls = self._inner()
        falls[1:] &= self.times[1:] < self.times[:-1]
        if not falls.any():
            return
        if not sort:
            at = int(falls.argmax())
            raise ValueError(
                f"{self.where(at)}: the time falls from {self.times[at - 1]} to {self.times[at]} (a gap below 0); are "
                "these gaps instead of times? Else sort=True sorts, and keeps events at one time in their order"
            )
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        self._pick(np.lexsort((self.times, rows)))

    def _pick(self, events: np.ndarray) -> None:
        self.times = self.times[events]
        self.columns = {name: values[events] for name, values in self.columns.items()}

    def ties(self, policy: str) -> None:
        require(policy in TIES, f"ties is one of {', '.join(TIES)}, got {policy!r}")
        if policy == "keep" or len(self.times) < 2:
            return
        tied = self._inner()
        tied[1:] &= self.times[1:] == self.times[:-1]
        if not tied.any():
            return
        if policy == "error":
            at = int(tied.argmax())
            raise ValueError(
                f"{self.where(at)}: the same time {self.times[at]} as the event before ({int(tied.sum())} such); "
                "choose a policy: ties='keep', 'first' or 'spread'"
            )
        if policy == "first":
            self.offsets = np.concatenate([[0], np.cumsum(~tied)])[self.offsets].astype(np.int64)
            self._pick(np.flatnonzero(~tied))
            return
        self._spread(tied)

    def _spread(self, tied: np.ndarray) -> None:
        """m events at one time t go to t + j r / m, j = 0..m-1; r: the clock's tick, the smallest gap above 0 of all,
        but no more than the gap to the next event."""
        first = np.flatnonzero(~tied)
        size = np.diff(np.append(first, len(tied)))
        times = self.times.astype(np.float64)
        gap = np.full(len(first), np.inf)
        gap[:-1] = times[first[1:]] - times[first[:-1]]
        gap[np.isin(np.append(first, len(tied))[1:], self.offsets)] = np.inf  # a sequence ends here
        positive = gap[np.isfinite(gap) & (gap > 0)]
        gap = np.minimum(gap, float(positive.min()) if len(positive) else 1.0)
        group = np.cumsum(~tied) - 1
        self.times = times + (np.arange(len(tied)) - first[group]) * gap[group] / size[group]

    def units(self) -> None:
        """Times since 1970 in two units at once, and in nothing else, are a mix-up."""
        sizes = np.abs(self.times[self.times != 0].astype(np.float64))
        if not len(sizes):
            return
        here = {name: (sizes >= low) & (sizes <= high) for name, (low, high) in _UNIX.items()}
        found = [name for name, mask in here.items() if mask.any()]
        if len(found) < 2 or sum(int(mask.sum()) for mask in here.values()) < len(sizes):
            return
        event = int(np.flatnonzero(self.times != 0)[here[found[1]].argmax()])
        raise ValueError(
            f"{self.where(event)}: {self.times[event]} looks like {found[1]} since 1970, where other times look like "
            f"{found[0]}: are units mixed? Bring all times to one unit first"
        )

    def window(self, given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]:
        """(times, start, end, origin, windowed), in float64."""
        count, filled = len(self.offsets) - 1, np.diff(self.offsets) > 0
        times, origin = self.times, 0
        if given is None:
            if not filled.all():
                empty = name_of(int((~filled).argmax()), self.ids)
                raise ValueError(f"{empty} has no event, so that its window is unknown: give window=(start, end)")
            bounds = [times[self.offsets[:-1]], times[self.offsets[1:] - 1]] if count else [np.zeros(0), np.zeros(0)]
        else:
            require(len(given) == 2, "a window is (start, end), two numbers or two arrays with an entry a sequence")
            bounds = [np.asarray(each) for each in given]
        if times.dtype.kind in "iu" and len(times) and np.abs(times).max() > _EXACT64:
            origin = int(times.min())
            times = times - origin
            bounds = [np.asarray(each) - origin for each in bounds]
        try:
            start, end = (np.array(np.broadcast_to(np.asarray(each, np.float64), (count,))) for each in bounds)
        except ValueError:
            shapes = " and ".join(str(np.shape(each)) for each in bounds)
            raise ValueError(f"a window has two numbers or arrays of {count} entries, got shapes {shapes}") from None
        values = times.astype(np.float64)
        self._inside(values, start, end)
        return values, start, end, float(origin), given is not None

    def _inside(self, times: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        bad = ~(np.isfinite(start) & np.isfinite(end) & (start <= end))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{name_of(row, self.ids)}: the window {start[row]} to {end[row]} is not one")
        lengths = np.diff(self.offsets)
        low, high = np.repeat(start, lengths), np.repeat(end, lengths)
        out = (times < low) | (times > high)
        if out.any():
            at = int(out.argmax())
            raise ValueError(
                f"{self.where(at)}: the time {times[at]:.9g} lies outside of the window {low[at]:.9g} to {high[at]:.9g}"
                f" ({int(out.sum())} such events); are both in one unit?"
            )

    def marks(self, count: int | None, names: Sequence[str]) -> tuple[np.ndarray | None, int]:
        values = self.columns.get("marks")
        number = count if count is not None else (len(names) or None)
        require(not names or number == len(names), f"there are {len(names)} mark_names and mark_count is {count}")
        if values is None:
            require(number in (None, 1), f"mark_count is {number}, and there are no marks")
            return None, 1
        if len(values) and values.dtype.kind not in "iu":
            raise TypeError(
                f"marks are integers from 0, got {values.dtype}; number the names first and give mark_names"
            )
        kinds = values.astype(np.int64)
        top = int(kinds.max(initial=-1)) + 1
        known = top if number is None else number
        bad = (kinds < 0) | (kinds >= max(known, 1))
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(
                f"{self.where(at)}: mark {kinds[at]} is unknown; marks are 0..{known - 1} (is it data that counts from "
                "1, or a mark that training never had?)"
            )
        return kinds, max(known, 1)

    def places(self) -> np.ndarray | None:
        if "places" not in self.columns:
            return None
        values = self.columns["places"].astype(np.float64)
        values = values.reshape(len(self.times), -1) if values.size else np.zeros((len(self.times), 2))
        require(values.shape[1] == 2, f"places are (latitude, longitude), got {values.shape[1]} numbers an event")
        self._finite(values, "place")
        latitude, longitude = values.T
        bad = (np.abs(latitude) > 90) | (longitude < -180) | (longitude > 360)
        if bad.any():
            at = int(bad.argmax())
            turned = "; the two seem to be swapped" if (np.abs(longitude) <= 90).all() else ""
            raise ValueError(
                f"{self.where(at)}: the place ({latitude[at]:g}, {longitude[at]:g}) is not (latitude -90..90, "
                f"longitude -180..360) in degrees{turned}"
            )
        return values

    def profiles(self) -> np.ndarray | None:
        if "profiles" not in self.columns:
            return None
        values = self.columns["profiles"].astype(np.float64)
        require(values.ndim == 2, f"profiles have one row an event, got the shape {values.shape}")
        self._finite(values, "profile")
        return values
