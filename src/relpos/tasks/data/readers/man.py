"""Pairs of man pages that point to each other: retrieval by SEE ALSO, with that section taken out of the text.

The text of a page begins at its first section: what stands before (comments, the title line, up to 4 kB of macros
that tell which generator made it) is dropped, and so are later comments and index lines. The rest stays roff.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from relpos.tasks.data import archives
from relpos.tasks.data.sets import Blob, Card, DocumentPairs
from relpos.tasks.data.splits import hashed

PACKAGES = ("manpages", "manpages-dev", "perl-doc", "git-man")
SHORTEST = 300  # bytes; below it a page only redirects
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}

_PAGE = re.compile(r"usr/share/man/man\d\w*/([^/]+)\.(\d\w*)\.gz")
_SECTION = re.compile(rb"(?m)^\.S[Hh][ \t]*")
_NOISE = re.compile(rb"(?m)^[.'][ \t]*(?:\\\"|IX\b).*\n?")
_SEE_ALSO = re.compile(rb"\"?SEE ALSO\"?[ \t]*\n", re.IGNORECASE)
_MACRO = re.compile(r"(?m)^\.(?:BR|B|IR|I|RB|RI|SM|SB)\b")
_ESCAPE = re.compile(r"\\(?:f\(..|f\[[^]]*\]|f.|s[-+]?\d|[|&%/,:]|\*\([^\s])")
_CITED = re.compile(r"([A-Za-z_][\w.:+@-]*)\s*\(\s*(\d\w*)\s*\)")
_WORD = re.compile(r"[A-Za-z_][\w:-]*")

Name = tuple[str, str]


def cut(page: bytes) -> tuple[bytes, str]:
    """(text without head, comments and SEE ALSO; the SEE ALSO section without mark-up) of a page in roff."""
    _, *sections = _SECTION.split(page)
    kept, cited = [], b""
    for section in sections:
        if _SEE_ALSO.match(section):
            cited += section.partition(b"\n")[2]
        else:
            kept.append(b".SH " + _NOISE.sub(b"", section))
    text = _MACRO.sub("", _NOISE.sub(b"", cited).decode("utf-8", "replace"))
    return b"".join(kept), _ESCAPE.sub("", text.replace(r"\-", "-")).replace('"', "")


def manpages(files: Mapping[str, Path], card: Card) -> DocumentPairs:
    """Linked pages of one side of the split against as many unlinked pairs of the same side."""
    pages: dict[Name, tuple[bytes, str]] = {}
    for package in PACKAGES:
        for path, data in sorted(archives.members(files[package], lambda name: _PAGE.fullmatch(name) is not None)):
            match = _PAGE.fullmatch(path)
            page = gzip.decompress(data)
            if match and len(page) > SHORTEST:
                pages.setdefault((match[1], match[2]), cut(page))
    names = [name for name, (text, _) in pages.items() if text]
    links = linked(names, [pages[name][1] for name in names])
    sides = page_sides(len(names), links)
    pairs, labels, split = paired(links, sides)
    documents = Blob.of([pages[name][0] for name in names])
    return DocumentPairs(card, split, documents, pairs, labels, tuple(f"{n}({s})" for n, s in names))


def linked(names: Sequence[Name], cited: Sequence[str]) -> np.ndarray:
    """(count, 2) int64, the undirected links i < j, sorted. Pages of Perl cite others by bare name."""
    exact = {name: index for index, name in enumerate(names)}
    bare: dict[str, int] = {}
    for index, (name, _) in enumerate(names):
        bare.setdefault(name, index)
    found: set[tuple[int, int]] = set()
    for index, text in enumerate(cited):
        targets = {exact.get((name, section), -1) for name, section in _CITED.findall(text)}
        if names[index][1].endswith("perl") or names[index][0].startswith("perl"):
            targets |= {bare.get(word, -1) for word in _WORD.findall(_CITED.sub(" ", text))}
            targets |= {bare.get(name, -1) for name, _ in _CITED.findall(text)}
        found |= {(min(index, other), max(index, other)) for other in targets - {-1, index}}
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def page_sides(count: int, links: np.ndarray) -> dict[str, np.ndarray]:
    """Splits pages, not pairs, so that no page of test was seen in training; whole neighbourhoods go together.

    With pages thrown one by one, a side of a fifth would keep but a 25th of its links. Neighbourhoods are found by
    label propagation: each page takes the label most common among its links, in a fixed order, five times.
    """
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for first, second in links.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    label = list(range(count))
    order = sorted(range(count), key=lambda page: hashlib.sha256(b"%d" % page).digest())
    for _ in range(5):
        for page in order:
            votes = Counter(label[other] for other in neighbours[page])
            if votes:
                label[page] = min(votes, key=lambda mark: (-votes[mark], mark))
    return hashed([b"%d" % mark for mark in label], SHARES)


def paired(
    links: np.ndarray, sides: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(pairs, labels, split): links within a side are the positives, as many unlinked pairs of it the negatives.

    Both ends of a negative are drawn as often as they are ends of positives, so that one page alone tells nothing. A
    side so small and dense that it lacks unlinked pairs gets fewer.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    known = set(map(tuple, links.tolist()))
    pairs: list[tuple[int, int]] = []
    labels: list[int] = []
    split: dict[str, np.ndarray] = {}
    for side, pages in sides.items():
        positive = links[np.isin(links, pages).all(axis=1)]
        negative: dict[tuple[int, int], None] = {}
        for first, second in generator.choice(positive.ravel(), (100 * len(positive), 2)).tolist():
            pair = (min(first, second), max(first, second))
            if first != second and pair not in known and len(negative) < len(positive):
                negative[pair] = None
        start = len(pairs)
        pairs += [*map(tuple, positive.tolist()), *negative]
        labels += [1] * len(positive) + [0] * len(negative)
        split[side] = np.arange(start, len(pairs))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(labels, dtype=np.int64), split
