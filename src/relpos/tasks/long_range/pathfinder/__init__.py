"""Pathfinder and Path-X of the Long Range Arena: are the two marked ends those of one dashed curve, or of two?

`load` makes the pictures by the released generator's exact rules (its state of 2019, which the release was made with),
`read` opens the released folders.

Source: Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal gated recurrent units"; Kim et
al. 2020, "Disentangling neural mechanisms for perceptual grouping"; drewlinsley/pathfinder (snakes.py, snakes2.py);
Tay et al. 2021, "Long Range Arena", 2.2.5, whose builders set the sizes. The released pictures were made from an
unseeded stream: these have their distribution and are not the same.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from relpos.tasks import cache
from relpos.tasks.base import Progress
from relpos.tasks.long_range.pathfinder.draw import pictures
from relpos.tasks.long_range.pathfinder.rules import LEVELS, Rules, released

__all__ = ["LEVELS", "SHARD", "Pictures", "Rules", "load", "read", "released"]

SHARD = 100
"""Pictures in a cache file, made by one process at a time."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures end to end: images uint8 (count, size, size), labels uint8 (count,), 1 where one curve joins the marks.

    margins: the gap between paddles of each picture; attempts: how many pairs of target curves were begun for it. Both
    are None for released pictures.
    """

    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray | None = None
    attempts: np.ndarray | None = None
    rules: Rules | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def metadata(self, batch: int = 0) -> list[str]:
        """A line of 11 fields for each picture, as the released metadata files have them. ValueError if unknown."""
        if self.rules is None or self.margins is None:
            raise ValueError("these pictures were read from files: their metadata are in the files beside them")
        rules = self.rules
        shape = f"{rules.continuity} {rules.length} {rules.distractor} {rules.paddle} {rules.thickness}"
        return [
            f"imgs/{batch} sample_{index}.png {index} {label} {shape} {margin} 1"
            for index, (label, margin) in enumerate(zip(self.labels, self.margins))
        ]


def load(
    size: int = 32,
    length: int = 14,
    count: int = 20_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Pictures:
    """``count`` pictures of a size (32, 64, 128, 256) and difficulty (6, 9, 14 paddles), made once and kept.

    A picture is a function of size, length, seed and its index; so fewer are a prefix of more, and the number of
    ``workers`` (processes; None: one for each core; 1: none but this one) changes nothing. Each ``SHARD`` pictures are
    written when they are done: a run that was stopped goes on from there. Processes are spawned: a script that asks for
    more than one must keep its own work under ``if __name__ == "__main__":``.

    ValueError for another size or length, and where count or workers is below 1 or the seed is negative.
    """
    rules = released(size, length)
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed at least 0, got {count} and {seed}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be None or at least 1, got {workers}")
    text = f"Pathfinder {size}, {length} paddles: drawing"
    shards = [(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    missing = [shard for shard in shards if not _path(rules, seed, *shard).exists()]
    done = sum(stop - start for start, stop in shards if (start, stop) not in set(missing))
    if progress is not None:
        progress(done, count, text)
    with closing(_make(rules, seed, missing, min(workers or os.cpu_count() or 1, len(missing)))) as made:
        for start, stop in made:
            done += stop - start
            if progress is not None:
                progress(done, count, text)
    parts = [_kept(rules, seed, *shard) for shard in shards]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Pictures(**joined, rules=rules)


def _path(rules: Rules, seed: int, start: int, stop: int) -> Path:
    return cache.folder() / f"{_name(rules, seed, start, stop)}.npz"


def _name(rules: Rules, seed: int, start: int, stop: int) -> str:
    return f"pathfinder{rules.size}/{LEVELS[rules.length]}/seed{seed}-{start:06d}-{stop:06d}"


def _kept(rules: Rules, seed: int, start: int, stop: int) -> cache.Arrays:
    """The pictures start..stop-1, from the cache or made and written there."""
    header = {"data": "Pathfinder 1", "rules": str(asdict(rules)), "seed": str(seed), "pictures": f"{start} to {stop}"}
    return cache.cached(_name(rules, seed, start, stop), header, lambda: pictures(rules, seed, start, stop))


def _shard(rules: Rules, seed: int, start: int, stop: int) -> tuple[int, int]:
    """What a process does: the pictures go through the cache, not through a pipe."""
    _kept(rules, seed, start, stop)
    return start, stop


def _make(
    rules: Rules, seed: int, shards: list[tuple[int, int]], workers: int
) -> Generator[tuple[int, int], None, None]:
    """Fills the cache, and tells each shard when it is done."""
    if workers <= 1:
        for shard in shards:
            yield _shard(rules, seed, *shard)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_shard, rules, seed, *shard) for shard in shards]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read(folder: str | Path, size: int = 32, length: int = 14, progress: Progress | None = None) -> Pictures:
    """The released pictures in ``folder``/pathfinder{size}/curv_.../imgs, in the order of the metadata's batches.

    ``folder`` may also be the difficulty's own folder, with ``imgs`` and ``metadata`` in it. Empty files are left out
    (the release has one). The metadata files are called .npy; those of the release are lines of text, the generator's
    own are arrays; both are read. FileNotFoundError; ValueError for a damaged or foreign file.
    """
    rules = released(size, length)
    base = Path(folder).expanduser()
    if not (base / "metadata").is_dir():
        base = base / f"pathfinder{size}" / LEVELS[length]
    batches = sorted(base.glob("metadata/*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not batches:
        raise FileNotFoundError(f"no metadata/*.npy in {base}: give the folder that holds pathfinder{size}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for done, batch in enumerate(batches):
        if progress is not None:
            progress(done, len(batches), f"Pathfinder {size}: reading")
        for fields in _metadata(batch):
            picture = base / fields[0] / fields[1]
            if picture.stat().st_size > 0:
                images.append(_picture(picture, rules.size))
                labels.append(int(fields[3]))
    if progress is not None:
        progress(len(batches), len(batches), f"Pathfinder {size}: read")
    if not images:
        raise ValueError(f"the metadata in {base} name no pictures")
    return Pictures(np.stack(images), np.array(labels, dtype=np.uint8))


def _metadata(path: Path) -> list[list[str]]:
    """The fields of every picture: folder, file, index, label and seven more."""
    with path.open("rb") as file:
        is_array = file.read(6) == b"\x93NUMPY"
    if is_array:
        rows = [[str(field) for field in row] for row in np.load(path, allow_pickle=False)]
    else:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != 11 or row[3] not in ("0", "1") or ".." in Path(row[0], row[1]).parts or row[0].startswith("/"):
            raise ValueError(
                f"{path}, row {number}: expected 11 fields with the label as fourth, got {' '.join(row)!r}"
            )
    return rows


def _picture(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as picture:
        if picture.mode != "L" or picture.size != (size, size):
            raise ValueError(
                f"{path}: expected {size} by {size} pixels of 8-bit grey, got {picture.size} {picture.mode}"
            )
        return np.asarray(picture)
