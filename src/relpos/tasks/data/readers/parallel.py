"""Pairs of sentences in two languages: Bible verses, two line-aligned files, or one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from relpos.tasks.data.readers import sword
from relpos.tasks.data.sets import Blob, Card, Parallel
from relpos.tasks.data.splits import THREE, hashed

_SIDES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def bible(files: Mapping[str, Path], card: Card) -> Parallel:
    """King James and Reina-Valera verses that fill the same slot of their common grid; 90/5/5 by hash of the English.

    Verses come in tens of near repeats ("And the LORD spake unto Moses, saying,"), so equal English stays together.
    """
    english, spanish = (sword.entries(files[name]) for name in ("sword-text-kjv", "sword-text-sparv"))
    slots = [slot for slot in english if slot in spanish]
    source, target = ([module[slot].text.encode() for slot in slots] for module in (english, spanish))
    names = tuple(f"{testament}.{slot}" for testament, slot in slots)
    return Parallel(card, hashed(source, THREE), Blob.of(source), Blob.of(target), names)


def parallel(path: Path, card: Card) -> Parallel:
    """A .tsv of two columns; or a folder with train.XX, train.YY (and val, test); or the common start of two files.

    English is the source where one of the two is "en", else the languages stand in the order of their names. Without
    files of its own a side is cut off by hash of the source, 90/5/5. ValueError where lines do not pair up.
    """
    if path.suffix == ".tsv" and path.is_file():
        return _cut(_columns(path), card)
    if path.is_dir():
        found = {side: pair for side, stems in _SIDES.items() for stem in stems if (pair := _lines_of_two(path / stem))}
        if "train" not in found:
            raise ValueError(f"{path} has no two files train.XX and train.YY, one sentence a line")
        return found_sides(found, card) if len(found) > 1 else _cut(found["train"], card)
    pair = _lines_of_two(path)
    if pair is None:
        raise ValueError(f"{path} is neither a .tsv, nor a folder, nor the common start of two files {path.name}.XX")
    return _cut(pair, card)


Lines = tuple[list[bytes], list[bytes]]


def found_sides(found: Mapping[str, Lines], card: Card) -> Parallel:
    """Sides that have files of their own, end to end."""
    edges = np.cumsum([0, *(len(source) for source, _ in found.values())])
    split = {side: np.arange(edges[index], edges[index + 1]) for index, side in enumerate(found)}
    source, target = ([line for pair in found.values() for line in pair[index]] for index in (0, 1))
    return Parallel(card, split, Blob.of(source), Blob.of(target))


def _cut(pair: Lines, card: Card) -> Parallel:
    return Parallel(card, hashed(pair[0], THREE), Blob.of(pair[0]), Blob.of(pair[1]))


def _columns(path: Path) -> Lines:
    rows = [line.split(b"\t") for line in _lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"{path}, line {number}: {len(row)} columns, there must be two with one tab between them")
    return [row[0] for row in rows], [row[1] for row in rows]


def _lines_of_two(stem: Path) -> Lines | None:
    languages = {each.suffix[1:]: each for each in sorted(stem.parent.glob(f"{stem.name}.*")) if each.is_file()}
    if len(languages) != 2:
        return None
    names = sorted(languages, key=lambda name: (name != "en", name))
    source, target = (_lines(languages[name]) for name in names)
    if len(source) != len(target):
        raise ValueError(f"{stem}.{names[0]} has {len(source)} lines, {stem}.{names[1]} {len(target)}: they must pair")
    return source, target


def _lines(path: Path) -> list[bytes]:
    """Lines by \\n alone: other separators of Unicode stand inside sentences."""
    lines = path.read_bytes().split(b"\n")
    return [line.rstrip(b"\r") for line in (lines[:-1] if not lines[-1] else lines)]
