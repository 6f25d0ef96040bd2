"""Corpora that come cut into words: WikiText and the Penn Treebank, and the reviews of IMDB."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.data.sets import Blob, Card, Corpus, Texts
from relpos.tasks.data.splits import validated

_WIKI = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
_PTB = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
_END, _UNKNOWN = "<eos>", "<unk>"


def wikitext(path: Path, card: Card, progress: Progress | None = None) -> Corpus:
    """WikiText-2 or -103 from the folder with wiki.train.tokens, or of its raw form with wiki.train.raw."""
    raw = {side: name.replace(".tokens", ".raw") for side, name in _WIKI.items()}
    return _words(path, raw if (path / raw["train"]).is_file() else _WIKI, card, progress)


def ptb(path: Path, card: Card) -> Corpus:
    """The Penn Treebank in Mikolov's form: ptb.train.txt, ptb.valid.txt, ptb.test.txt."""
    return _words(path, _PTB, card, None)


def _words(folder: Path, names: dict[str, str], card: Card, progress: Progress | None) -> Corpus:
    """Words between blanks, <eos> after every line; ids in order of first appearance in train, <unk> for others."""
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}")
    ids: dict[str, int] = {_END: 0, _UNKNOWN: 1}
    tokens = array("I")
    split = {}
    total = sum((folder / name).stat().st_size for name in names.values())
    done = 0
    for side, name in names.items():
        start = len(tokens)
        with open(folder / name, encoding="utf-8", newline="\n") as file:
            for line in file:
                words = line.split()
                if side == "train":
                    tokens.extend([ids.setdefault(word, len(ids)) for word in words])
                else:
                    tokens.extend([ids.get(word, 1) for word in words])
                tokens.append(0)
                done += len(line)
                if progress is not None and not len(tokens) % 1000:
                    progress(min(done, total), total, f"reading {name}")
        split[side] = np.array([start, len(tokens)], dtype=np.int64)
    width = np.uint16 if len(ids) <= 1 << 16 else np.uint32
    return Corpus(card, split, np.frombuffer(tokens, dtype=np.uint32).astype(width), tuple(ids))


def imdb(path: Path, card: Card, progress: Progress | None = None) -> Texts:
    """aclImdb/{train,test}/{pos,neg}/ID_RATING.txt; a tenth of train, by hash of the text, is validation."""
    folder = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    classes = ("neg", "pos")
    texts: list[bytes] = []
    labels: list[int] = []
    ends = {}
    for side in ("train", "test"):
        for label, name in enumerate(classes):
            files = sorted((folder / side / name).glob("*.txt"), key=lambda each: each.name)
            if not files:
                raise ValueError(f"{folder / side / name} holds no .txt files: give the folder aclImdb")
            for done, file in enumerate(files):
                texts.append(file.read_bytes())
                if progress is not None:
                    progress(done, len(files), f"reading {side}/{name}")
            labels += [label] * len(files)
        ends[side] = len(texts)
    rows = np.arange(len(texts))
    split = validated(rows[: ends["train"]], rows[ends["train"] :], texts)
    return Texts(card, split, Blob.of(texts), np.array(labels, dtype=np.int64), classes)
