"""The user's own event sequences in the layouts of point-process libraries and of action annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.data import pickles
from relpos.tasks.data.readers.event_packages import by_sequence, numbered
from relpos.tasks.data.sets import Card, Events
from relpos.tasks.events.sequences import Sequences

SIDES = {"train": ("train",), "validation": ("dev", "val", "valid", "validation"), "test": ("test",)}
Part = Mapping[str, Any]  # times, marks, window, profiles: lists with an entry a sequence


def _found(path: Path, endings: tuple[str, ...], stem: str = "{}") -> dict[str, Path]:
    """Side to file: of a folder those of a known name, of a file that file, under the side that its name says."""
    if path.is_file():
        side = next((side for side, names in SIDES.items() if any(name in path.stem for name in names)), "train")
        return {side: path}
    candidates = {
        side: [path / f"{stem.format(name)}{ending}" for name in names for ending in endings]
        for side, names in SIDES.items()
    }
    there = {side: [file for file in files if file.exists()] for side, files in candidates.items()}
    found = {side: files[0] for side, files in there.items() if files}
    if not found:
        raise ValueError(f"{path} has no file {', '.join(stem.format('train') + each for each in endings)}")
    return found


def _joined(card: Card, sides: Mapping[str, Part], marks: int | None, unit: str = "", **more: Any) -> Events:
    """All sides in one set of sequences, with the split that they came in; names are side/index."""
    split, ids, start = {}, [], 0
    columns: dict[str, Any] = {}
    for side, part in sides.items():
        count = len(part["times"])
        split[side] = np.arange(start, start + count)
        ids += [f"{side}/{index}" for index in range(count)]
        start += count
        for name, values in part.items():
            columns.setdefault(name, []).extend(values)
    window = columns.pop("window", [])
    names = more.pop("mark_names", ())
    bounds = tuple(np.array(window, dtype=np.float64).T) if window and len(window) == start else None
    found = Sequences.of(**columns, window=bounds, ids=ids, unit=unit, mark_count=marks, mark_names=names)
    return Events.of(card, split, found, **more)


# --- EasyTPP, THP, Gatech ---------------------------------------------------------------------------------------------


def easytpp(path: Path, card: Card) -> Events:
    """{train,dev,test}.pkl, .json or .jsonl: sequences of time_since_start and type_event (from 0).

    A sequence that begins at time 0 has its first event there. The format knows no windows, so they end with the last
    event; where all JSON objects have t_start and t_end, which other readers pass over, those are the windows.
    """
    sides: dict[str, Part] = {}
    marks = 0
    for side, file in _found(path, (".pkl", ".json", ".jsonl")).items():
        part, number = (_pickled if file.suffix == ".pkl" else _json)(file, side)
        sides[side], marks = part, max(marks, number)
    top = max((int(max(each)) for part in sides.values() for each in part["marks"] if len(each)), default=-1) + 1
    return _joined(card, sides, max(marks, top))


def _pickled(file: Path, side: str) -> tuple[Part, int]:
    held = pickles.load(file)
    names = [name for name in (*SIDES[side], *sum(SIDES.values(), ())) if held.get(name)]
    if not names:
        raise ValueError(f"{file} has no sequences under {', '.join(SIDES[side])}; it has {', '.join(map(str, held))}")
    times, marks = [], []
    for row, sequence in enumerate(held[names[0]]):
        where = f"{file}, sequence {row}"
        try:
            columns = {key: [event[key] for event in sequence] for key in ("time_since_start", "type_event")}
        except (TypeError, KeyError) as error:
            raise ValueError(f"{where}: an event lacks {error}") from error
        times.append(_row(where, columns, "time_since_start", float))
        marks.append(_row(where, columns, "type_event", int))
    return {"times": times, "marks": marks}, int(held.get("dim_process", 0))


def _json(file: Path, side: str) -> tuple[Part, int]:
    times, marks, windows, number = [], [], [], 0
    for where, entry in _entries(file):
        times.append(_row(where, entry, "time_since_start", float))
        marks.append(_row(where, entry, "type_event", int))
        number = max(number, int(_row(where, {"dim_process": [entry.get("dim_process", 0)]}, "dim_process", int)[0]))
        if {"t_start", "t_end"} <= set(entry):
            windows.append(_row(where, {"window": [entry["t_start"], entry["t_end"]]}, "window", float))
    held = {"window": windows} if windows and len(windows) == len(times) else {}
    return {"times": times, "marks": marks, **held}, number


def _row(where: str, entry: Mapping[str, Any], key: str, kind: type, axes: int = 1) -> np.ndarray:
    """The list of numbers under ``key``, (n,) or (n, width). ValueError where there is none, or it holds others."""
    if key not in entry:
        raise ValueError(f"{where} lacks {key}")
    try:
        array = _numbers(entry[key], kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {key} is not a list of numbers: {error}") from error
    if array.ndim != axes and array.size:
        raise ValueError(f"{where}: {key} has {array.ndim} axes, not {axes}")
    return array.reshape(-1, *array.shape[1:axes])


def _numbers(values: Any, kind: type) -> np.ndarray:
    """float64, or int64 where ``kind`` is int: then a number with a fraction is refused, and not cut off."""
    array = np.array(values, dtype=np.float64)
    if kind is float:
        return array
    odd = array[~np.isfinite(array) | (array != np.trunc(array))]
    if odd.size:
        raise ValueError(f"{odd.flat[0]:g} is no whole number")
    return array.astype(np.int64)


def _entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array, or of a line each, and where they stand."""
    try:
        text = file.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            entries: Iterable[Any] = json.loads(text)
        else:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON, and no JSON lines: {error}") from error
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{file}, sequence {row}: a {type(entry).__name__}, not an object")
        yield f"{file}, sequence {row}", entry


# --- ifl-tpp, HoTPP, Seahorse -----------------------------------------------------------------------------------------


def ifl_tpp(path: Path, card: Card) -> Events:
    """What torch.save wrote of {"sequences": [{arrival_times, marks, t_start, t_end}], "num_marks"}."""
    held = pickles.saved(path)
    if not isinstance(held.get("sequences"), list):
        raise ValueError(f"{path} has no list of sequences; it has {', '.join(map(str, held))}")
    rows = held["sequences"]
    at = [f"{path}, sequence {row}" for row in range(len(rows))]
    odd = [where for where, each in zip(at, rows) if not {"arrival_times", "t_start", "t_end"} <= set(each)]
    if odd:
        raise ValueError(f"{odd[0]} lacks arrival_times, t_start or t_end")
    number = int(held.get("num_marks") or 1)
    marked = all(each.get("marks") is not None for each in rows) and number > 1
    found = Sequences.of(
        [_row(where, each, "arrival_times", float) for where, each in zip(at, rows)],
        marks=[_row(where, each, "marks", int) for where, each in zip(at, rows)] if marked else None,
        window=tuple(np.array([float(each[key]) for each in rows]) for key in ("t_start", "t_end")),
        ids=[str(index) for index in range(len(rows))],
        mark_count=number if marked else None,
    )
    return Events.of(card, by_sequence(found), found)


def hotpp(path: Path, card: Card) -> Events:
    """Parquet with the columns id, timestamps (a list of float a row) and labels (a list of int a row)."""
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        raise ValueError("reading parquet needs pyarrow: pip install pyarrow") from None
    sides: dict[str, Part] = {}
    for side, file in _found(path, (".parquet", "")).items():
        table = parquet.read_table(file).to_pydict()
        missing = {"timestamps", "labels"} - set(table)
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(table)}")
        columns = {"times": ("timestamps", float), "marks": ("labels", int)}
        sides[side] = {
            name: [_row(f"{file}, sequence {row}", {key: each}, key, kind) for row, each in enumerate(table[key])]
            for name, (key, kind) in columns.items()
        }
    return _joined(card, sides, None)


def seahorse(path: Path, card: Card) -> Events:
    """JSON lines {"times": [..], "locations": [[x, y], ..]}; x and y are coordinates of a plane, kept as profiles."""
    sides: dict[str, Part] = {}
    for side, file in _found(path, (".jsonl",)).items():
        times, points = [], []
        for where, entry in _entries(file):
            times.append(_row(where, entry, "times", float))
            points.append(_row(where, entry, "locations", float, axes=2))
        sides[side] = {"times": times, "profiles": points}
    return _joined(card, sides, None, profile_names=("x", "y"))


# --- a line a sequence ------------------------------------------------------------------------------------------------


def _lines(file: Path, kind: type) -> list[np.ndarray]:
    """Numbers between blanks, a sequence a line."""
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    rows: list[np.ndarray] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            rows.append(_numbers(line.split(), kind))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return rows


def _lined(path: Path, sides: Mapping[str, tuple[Path, Path]], one: bool) -> dict[str, dict[str, list[np.ndarray]]]:
    """Marks and times by side; one: marks count from 1 in the files."""
    found = {}
    for side, (events, times) in sides.items():
        if events.is_file() or times.is_file():
            found[side] = {"times": _lines(times, float), "marks": [m - one for m in _lines(events, int)]}
    if not found:
        raise ValueError(f"{path} has none of {', '.join(file.name for pair in sides.values() for file in pair)}")
    return found


def proactive(path: Path, card: Card) -> Events:
    """{train,test}_{ev,ti,go}.txt: actions from 1, start times, and a goal from 1 a line; label: the goal."""
    sides = {side: (path / f"{side}_ev.txt", path / f"{side}_ti.txt") for side in ("train", "test")}
    found = _lined(path, sides, one=True)
    goals = np.concatenate([np.concatenate([*_lines(path / f"{side}_go.txt", int), []]) for side in found])
    if len(goals) != sum(len(part["times"]) for part in found.values()):
        raise ValueError(f"{path}: {len(goals)} goals for {sum(len(p['times']) for p in found.values())} sequences")
    labels = goals.astype(np.int64) - 1
    if labels.min(initial=0) < 0:
        raise ValueError(f"{path}: goals count from 1, got {int(goals.min())}")
    classes = tuple(f"goal {index + 1}" for index in range(int(labels.max(initial=-1)) + 1))
    return _joined(card, found, None, labels=labels, classes=classes)


def neuroseqret(path: Path, card: Card) -> Events:
    """{train,test}_query_{ev,ti}.txt, and train_corpus_{ev,ti}.txt as side "corpus"; marks from 0 or 1."""
    names = {"train": "train_query", "test": "test_query", "corpus": "train_corpus"}
    found = _lined(path, {s: (path / f"{n}_ev.txt", path / f"{n}_ti.txt") for s, n in names.items()}, one=False)
    lowest = min((int(each.min()) for part in found.values() for each in part["marks"] if len(each)), default=0)
    if lowest > 0:
        for part in found.values():
            part["marks"] = [each - 1 for each in part["marks"]]
    return _joined(card, found, None)


def imtpp(path: Path, card: Card) -> Events:
    """event_{train,test}.txt and time_{train,test}.txt; marks from 1, as in RMTPP's files."""
    return _joined(card, _lined(path, _pairs(path, "event_{}.txt", "time_{}.txt"), one=True), None)


def reformd(path: Path, card: Card) -> Events:
    """{Train,Test}_{Cat,Time,Dist}: categories from 1 and times; the distances are the profile where they are there."""
    found: dict[str, Any] = _lined(path, _pairs(path, "{}_Cat", "{}_Time", str.title), one=True)
    names: tuple[str, ...] = ()
    if all((path / f"{side.title()}_Dist").is_file() for side in found):
        for side, part in found.items():
            part["profiles"] = [each[:, None] for each in _lines(path / f"{side.title()}_Dist", float)]
        names = ("distance",)
    return _joined(card, found, None, profile_names=names)


def _pairs(path: Path, events: str, times: str, case: Any = str) -> dict[str, tuple[Path, Path]]:
    """Side to the two files; a file may also have the ending .txt."""

    def named(pattern: str, side: str) -> Path:
        plain = path / pattern.format(case(side))
        return plain if plain.is_file() else plain.with_name(f"{plain.name}.txt")

    return {side: (named(events, side), named(times, side)) for side in ("train", "test")}


# --- annotated videos -------------------------------------------------------------------------------------------------


def breakfast(path: Path, card: Card) -> Events:
    """A text file a video of lines "start-end label", in frames; events are starts, the profile is how long it lasts.

    Label: the activity, which is the last part of the file's name (P03_cam01_P03_cereals).
    """
    files = sorted(path.glob("**/*.txt") if path.is_dir() else [path])
    videos: list[str] = []
    rows: list[tuple[float, float, str]] = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.strip():
                span, _, label = line.strip().partition(" ")
                start, dash, end = span.partition("-")
                if not (dash and label and start.isdigit() and end.isdigit()):
                    raise ValueError(f"{file}, line {number}: expected `start-end label`, got {line!r}")
                videos.append(file.stem)
                rows.append((float(start), float(end), label.strip()))
    found = _spans(card, videos, rows, "frames")
    classes = tuple(sorted({name.rsplit("_", 1)[-1] for name in found.ids}))
    labels = np.array([classes.index(name.rsplit("_", 1)[-1]) for name in found.ids], dtype=np.int64)
    return Events(**{**vars(found), "labels": labels, "classes": classes})


def multithumos(path: Path, card: Card) -> Events:
    """A text file a class of lines "video start end", in seconds; events are starts, the profile is the length."""
    files = sorted(path.glob("*.txt") if path.is_dir() else [path])
    videos: list[str] = []
    rows: list[tuple[float, float, str]] = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            cells = line.split()
            if cells:
                try:
                    video, start, end = cells[0], float(cells[1]), float(cells[2])
                except (IndexError, ValueError):
                    raise ValueError(f"{file}, line {number}: expected `video start end`, got {line!r}") from None
                videos.append(video)
                rows.append((start, end, file.stem))
    return _spans(card, videos, rows, "seconds")


def _spans(card: Card, videos: list[str], rows: list[tuple[float, float, str]], unit: str) -> Events:
    if not rows:
        raise ValueError(f"there is no annotation below {card.origin}")
    start, end = np.array([row[:2] for row in rows], dtype=np.float64).T
    if (end < start).any():
        at = int((end < start).argmax())
        raise ValueError(f"{videos[at]}: {rows[at][2]} ends at {end[at]:g}, before its start at {start[at]:g}")
    marks, names = numbered([row[2] for row in rows])
    found = Sequences.from_columns(
        np.array(videos), start, marks=marks, mark_names=names, profiles=(end - start)[:, None], unit=unit
    )
    return Events.of(card, by_sequence(found), found, profile_names=(f"lasts ({unit})",))
