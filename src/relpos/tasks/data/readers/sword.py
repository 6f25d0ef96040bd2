"""SWORD modules: blocks of zlib with two index files a testament, one record a slot of the verse grid.

zText (Bibles) has files {ot,nt}.bzs/.bzv/.bzz, zCom4 (commentaries) .czs/.czv/.czz. ``s``: 12 bytes a block, three
little-endian uint32: offset in ``z``, packed size, plain size. ``v``: a record a slot, uint32 block, uint32 start in
the plain block, and the length as uint16 (zText) or uint32 (zCom4); an empty slot has length 0. The first slots are
the headings of module, testament, book and chapter. Text is OSIS, an XML.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from relpos.tasks.data import archives

_NOTE = re.compile(r"<note\b[^>]*/>|<note\b.*?</note>", re.DOTALL)
_BREAK = re.compile(r"</?(?:chapter|div|item|l|lb|lg|list|milestone|p|speaker|title)\b[^>]*>")
_TAG = re.compile(r"<[^>]*>")
_RECORD = {"b": struct.Struct("<IIH"), "c": struct.Struct("<III")}
_BLOCK = struct.Struct("<III")

Slot = tuple[str, int]
"""Testament ("ot" or "nt") and number of the slot in it: the same place in every module of one verse grid."""


@dataclass(frozen=True)
class Entry:
    """The text of a slot; ``place`` is where it is stored, so entries shared by several slots can be told."""

    text: str
    place: tuple[str, int, int]


def entries(package: Path) -> dict[Slot, Entry]:
    """The filled slots of the one module in a package, in the order of the book. ValueError where it is no module."""
    parts = dict(archives.members(package, lambda name: bool(re.search(r"/[on]t\.[bc]z[svz]$", name))))
    files = {name.rsplit("/", 1)[1]: data for name, data in parts.items()}
    slots: dict[Slot, Entry] = {}
    for testament in ("ot", "nt"):
        for kind in _RECORD:
            if f"{testament}.{kind}zv" in files:
                slots |= _testament(testament, kind, files)
    if not slots:
        raise ValueError(f"{package} holds no SWORD text of the kinds zText and zCom4")
    return slots


def _testament(testament: str, kind: str, files: Mapping[str, bytes]) -> dict[Slot, Entry]:
    index, records, packed = (files[f"{testament}.{kind}z{part}"] for part in "svz")

    @lru_cache(maxsize=4)
    def block(number: int) -> bytes:
        offset, size, plain = _BLOCK.unpack_from(index, number * _BLOCK.size)
        text = zlib.decompress(packed[offset : offset + size])
        if len(text) != plain:
            raise ValueError(f"block {number} of {testament} unpacks to {len(text)} bytes instead of {plain}")
        return text

    found: dict[Slot, Entry] = {}
    for slot, (number, start, size) in enumerate(_RECORD[kind].iter_unpack(records)):
        if size:
            text = plain(block(number)[start : start + size].decode("utf-8", "replace"))
            if text:
                found[testament, slot] = Entry(text, (testament, number, start))
    return found


def plain(osis: str) -> str:
    """Text without notes, mark-up and paragraph signs, blanks collapsed.

    Only tags that break a line part words: "<w>day</w>." is "day.", as words are tagged one by one.
    """
    text = _TAG.sub("", _BREAK.sub(" ", _NOTE.sub("", osis)))
    return " ".join(html.unescape(text).replace("¶", " ").split())
