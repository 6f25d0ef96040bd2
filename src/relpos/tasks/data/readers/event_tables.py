"""The user's own tables of check-ins and ratings, a row an event: Foursquare, Gowalla, RecBole, MovieLens, ..."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.data.readers.event_packages import by_sequence, numbered, utc
from relpos.tasks.data.sets import Card, Events
from relpos.tasks.events.sequences import Sequences

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: f"{index:02}" for index, name in enumerate(_NAMES, 1)}
_EVERY = 50_000  # lines between two words of progress


def _one(path: Path, *patterns: str) -> Path:
    """The file, or the one of a folder that matches the first pattern that any matches."""
    if path.is_file():
        return path
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
    raise ValueError(f"{path} has no file {', '.join(patterns)}")


def _columns(
    file: Path,
    counts: Sequence[int],
    separator: str | None,
    progress: Progress | None,
    encoding: str = "utf-8",
    skip: int = 0,
) -> list[list[str]]:
    """The columns of a text file; each line has one of the numbers of cells. None: blanks or tabs separate."""
    columns: list[list[str]] = []
    size, done = file.stat().st_size, 0
    with open(file, encoding=encoding, errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            done += len(line)
            cells = line.rstrip("\r\n").split(separator)
            if number <= skip or cells in ([], [""]):
                continue
            if len(cells) not in counts or (columns and len(cells) != len(columns)):
                wanted = len(columns) or " or ".join(map(str, counts))
                raise ValueError(f"{file}, line {number}: {len(cells)} cells, not {wanted}: {line.rstrip()[:80]!r}")
            columns = columns or [[] for _ in cells]
            for column, cell in zip(columns, cells):
                column.append(sys.intern(cell) if len(cell) < 40 else cell)
            if progress is not None and number % _EVERY == 0:
                progress(min(done, size), size, f"reading {file.name}")
    if not columns:
        raise ValueError(f"{file} holds no line")
    return columns


def _numbers(values: Sequence[str], file: Path, what: str) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except ValueError:
        row = next(
            index for index, value in enumerate(values) if not re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", value)
        )
        raise ValueError(f"{file}, row {row + 1}: the {what} {values[row]!r} is no number") from None


def _users(values: Sequence[str]) -> np.ndarray:
    """Ids as integers where all are, so that 2 comes before 10."""
    return np.array(values, dtype=np.int64) if all(value.isdigit() for value in values) else np.array(values)


def _made(card: Card, user: Any, times: np.ndarray, item: Sequence[str], **more: Any) -> Events:
    names = more.pop("profile_names", ())
    marks, mark_names = numbered(item)
    found = Sequences.from_columns(_users(user), times, marks=marks, mark_names=mark_names, unit="seconds", **more)
    return Events.of(card, by_sequence(found), found, profile_names=names)


# --- check-ins --------------------------------------------------------------------------------------------------------


def foursquare(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """TSMC2014: user, venue, category id, category, latitude, longitude, offset in minutes, UTC time; ISO-8859-1.

    Marks are venues. Times are UTC, seconds since 1970; the profile is the local hour (0..24) and weekday (0 = Monday),
    from UTC + offset.
    """
    file = _one(path, "dataset_TSMC2014_*.txt")
    columns = _columns(file, (8,), "\t", progress, "iso-8859-1")
    user, venue, _, _, lat, lon, offset, stamp = columns
    try:
        iso = [f"{s[-4:]}-{_MONTHS[s[4:7]]}-{s[8:10]}T{s[11:19]}" for s in stamp]
        seconds = np.array(iso, dtype="datetime64[s]").astype(np.int64)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: times are like `Tue Apr 03 18:00:09 +0000 2012`; {error}") from error
    odd = [s for s in stamp if s[20:25] != "+0000"]
    if odd:
        raise ValueError(f"{file}: the time {odd[0]!r} is not in UTC (+0000)")
    local = seconds + 60 * _numbers(offset, file, "offset")
    clock = np.c_[local % 86400 / 3600, (local // 86400 + 3) % 7]  # 1970-01-01 was a Thursday
    return _made(
        card, user, seconds.astype(np.float64), venue, profiles=clock, profile_names=("local hour", "local weekday"),
        places=np.c_[_numbers(lat, file, "latitude"), _numbers(lon, file, "longitude")],
    )  # fmt: skip


def gowalla(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """Gowalla or Brightkite: user, ISO time, latitude, longitude, place; the newest first.

    A place has the mean of its coordinates. Rows with no place, no time, or at (0, 0), are left out. Rows of a user
    are turned round before they are sorted by time, so that of two at one time the later row comes first.
    """
    file = _one(path, "*_totalCheckins.txt", "*Checkins*.txt")
    rows = [column[::-1] for column in _columns(file, (1, 2, 5), "\t", progress)] if _all_five(file) else _five(file)
    user, stamp, lat, lon, place = rows
    point = np.c_[_numbers(lat, file, "latitude"), _numbers(lon, file, "longitude")]
    kept = (point != 0).any(1)
    seconds = utc(stamp).astype(np.int64).astype(np.float64)
    marks, names = numbered(np.array(place)[kept])
    count = np.bincount(marks, minlength=len(names))
    mean = np.stack([np.bincount(marks, point[kept, axis], len(names)) / count for axis in (0, 1)], 1)
    found = Sequences.from_columns(
        _users(user)[kept], seconds[kept], marks=marks, mark_names=names, places=mean[marks], unit="seconds"
    )
    return Events.of(card, by_sequence(found), found)


def _all_five(file: Path) -> bool:
    with open(file, encoding="utf-8") as lines:
        return all(line.count("\t") == 4 and "\t\t" not in line for line in lines)


def _five(file: Path) -> list[list[str]]:
    """The columns of the rows that have all five cells."""
    with open(file, encoding="utf-8") as lines:
        rows = [
            cells for cells in (line.rstrip("\r\n").split("\t") for line in lines) if len(cells) == 5 and all(cells)
        ]
    if not rows:
        raise ValueError(f"{file} has no row of user, time, latitude, longitude and place")
    return [list(column) for column in zip(*rows[::-1])]


def libcity(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """NAME.dyna (dyna_id, type, time, entity_id, location) and NAME.geo (geo_id, type, "[lon,lat]")."""
    dyna, geo = _table(_one(path, "*.dyna"), progress), _table(_one(path, "*.geo"), progress)
    for name, table, wanted in (
        ("dyna", dyna, ("time", "entity_id", "location")),
        ("geo", geo, ("geo_id", "coordinates")),
    ):
        missing = [each for each in wanted if each not in table]
        if missing:
            raise ValueError(f"{path}: the .{name} has no column {', '.join(missing)}; it has {', '.join(table)}")
    where = {key: json.loads(point)[::-1] for key, point in zip(geo["geo_id"], geo["coordinates"])}
    lost = [place for place in dyna["location"] if place not in where]
    if lost:
        raise ValueError(f"{path}: the location {lost[0]} of the .dyna is not in the .geo ({len(lost)} such rows)")
    places = np.array([where[place] for place in dyna["location"]], dtype=np.float64)
    seconds = utc(dyna["time"]).astype(np.int64).astype(np.float64)
    return _made(card, dyna["entity_id"], seconds, dyna["location"], places=places)


def _table(file: Path, progress: Progress | None) -> dict[str, list[str]]:
    """A csv file with a header, by column."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, [])
        columns: list[list[str]] = [[] for _ in header]
        for number, cells in enumerate(rows, 2):
            if len(cells) != len(header):
                raise ValueError(f"{file}, line {number}: {len(cells)} cells, the header has {len(header)}")
            for column, cell in zip(columns, cells):
                column.append(cell)
            if progress is not None and number % _EVERY == 0:
                progress(0, 1, f"reading {file.name}")
    return dict(zip(header, columns))


# --- ratings ----------------------------------------------------------------------------------------------------------


def recbole(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """NAME.inter: tabs, a typed header with user_id, item_id and timestamp; the rating, if there, is the profile."""
    file = _one(path, "*.inter")
    columns = _columns(file, range(2, 50), "\t", progress)
    table = {column[0].partition(":")[0]: column[1:] for column in columns}
    missing = [name for name in ("user_id", "item_id", "timestamp") if name not in table]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(table)}")
    return _rated(card, file, table["user_id"], table["item_id"], table["timestamp"], table.get("rating"))


def movielens(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """u.data (tabs), ratings.dat (::) or ratings.csv (a header): user, item, rating, seconds."""
    file = _one(path, "u.data", "ratings.dat", "ratings.csv")
    separator = {".dat": "::", ".csv": ","}.get(file.suffix, "\t")
    return _rated(card, file, *_order(_columns(file, (4,), separator, progress, skip=int(file.suffix == ".csv"))))


def _order(columns: list[list[str]]) -> tuple[list[str], list[str], list[str], list[str]]:
    user, item, rating, stamp = columns
    return user, item, stamp, rating


def tisasrec(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """Lines of user, item, perhaps a rating, and timestamp."""
    file = _one(path, "*.txt")
    columns = _columns(file, (3, 4), None, progress)
    return _rated(card, file, columns[0], columns[1], columns[-1], columns[2] if len(columns) == 4 else None)


def hstu(path: Path, card: Card, progress: Progress | None = None) -> Events:
    """A csv file of user_id, sequence_item_ids, sequence_ratings and sequence_timestamps, joined by commas."""
    file = _one(path, "*.csv")
    csv.field_size_limit(1 << 28)
    table = _table(file, progress)
    wanted = ("user_id", "sequence_item_ids", "sequence_ratings", "sequence_timestamps")
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(table)}")
    users: list[str] = []
    flat: list[list[str]] = [[], [], []]
    for row, (user, *texts) in enumerate(zip(*(table[name] for name in wanted)), 2):
        cells = [[each.strip() for each in text.strip('[]" ').split(",") if each.strip()] for text in texts]
        if len({len(each) for each in cells}) != 1:
            raise ValueError(
                f"{file}, row {row}: {', '.join(str(len(each)) for each in cells)} items, ratings and times"
            )
        users += [user] * len(cells[0])
        for column, each in zip(flat, cells):
            column += each
    return _rated(card, file, users, flat[0], flat[2], flat[1])


def _rated(
    card: Card, file: Path, user: Sequence[str], item: Sequence[str], stamp: Sequence[str], rating: Sequence[str] | None
) -> Events:
    times = _numbers(stamp, file, "timestamp")
    if rating is None:
        return _made(card, user, times, item)
    return _made(card, user, times, item, profiles=_numbers(rating, file, "rating")[:, None], profile_names=("rating",))
