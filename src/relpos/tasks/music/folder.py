"""A folder of MIDI files of one's own as songs, with the structure written beside them or estimated.

Beside ``tune.mid`` there may be ``tune.structure``, a text file with a line for each thing that is known:

    # comments begin with a number sign
    form: i4A4B8
    chords: C | Am | F G | N
    key: G minor
    group: versions of this song

Any of them may be missing. Without a form the sections are estimated from the notes; without chords there is no level
"chord". Files of one group lie on one side of a split.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from relpos.tasks import cache
from relpos.tasks.music import chords, midifile, packing, structure
from relpos.tasks.music.song import Level, Song

KEYS = tuple(f"{root} {mode}" for mode in ("major", "minor") for root in chords.ROOTS)
_ENTRIES = ("form", "chords", "key", "group")
_FORMAT = "1"
Progress = Callable[[int, int, str], None]


def load(
    path: str | Path,
    ticks: int = 4,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Song], list[str]]:
    """The songs of all MIDI files below ``path`` in order of name, and what was wrong with the files left out.

    A song is named by its path in the folder. Both come from the cache until a file changes. strict: raise
    a ValueError that lists all unreadable files instead of leaving them out. FileNotFoundError where there is no such
    folder; ValueError where no file in it can be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in (".mid", ".midi") and file.is_file())
    if not files:
        raise ValueError(f"{root} holds no MIDI files (.mid or .midi), in no folder below it either")
    beside = [sidecar(file) for file in files]
    told = [(str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns) for f in [*files, *filter(None, beside)]]

    def build() -> dict[str, np.ndarray]:
        songs, wrong = [], []
        for done, file in enumerate(files, start=1):
            try:
                songs.append(replace(read(file, ticks), name=str(file.relative_to(root).as_posix())))
            except (ValueError, OSError) as error:
                wrong.append(str(error) if str(file.name) in str(error) else f"{file}: {error}")
            if progress is not None:
                progress(done, len(files), file.name)
        return packing.pack(songs) | {"wrong": np.array(json.dumps(wrong))}

    name = f"midi-{_digest(str(root.resolve()))}-{ticks}"
    arrays = cache.cached(name, {"kind": "MIDI files", "format": _FORMAT, "files": _digest(repr(told))}, build)
    wrong = json.loads(str(arrays.pop("wrong")))
    songs = packing.unpack(arrays)
    if wrong and (strict or not songs):
        raise ValueError(f"{len(wrong)} of {len(files)} files in {root} cannot be read:\n" + "\n".join(wrong))
    return songs, wrong


def read(file: Path, ticks: int = 4) -> Song:
    """One MIDI file with its levels: "bar", "beat", "melody", "section", and "chord" and "key" where they are given."""
    song, beside = midifile.read(file, ticks), sidecar(file)
    if beside is not None:
        song = _with_sidecar(song, beside)
    return structure.complete(song)


def sidecar(file: Path) -> Path | None:
    """The file with the structure beside a MIDI file, where there is one."""
    path = file.with_suffix(".structure")
    return path if path.is_file() else None


def _with_sidecar(song: Song, path: Path) -> Song:
    levels = {}
    for line, key, value, column in entries(path):
        where = f"{path}, line {line}"
        if key == "form":
            levels["section"] = structure.form(value, song, f"{where}: the form")
        elif key == "chords":
            # Blank lines and blanks in front, so that an error counts lines and columns of the file.
            levels["chord"] = structure.chart("\n" * (line - 1) + " " * column + value, song, str(path))
        elif key == "key":
            levels["key"] = Level(np.full(song.ticks, key_number(value, where)), KEYS, "key given by hand")
        else:
            song = replace(song, group=value)
    return structure.with_levels(song, levels)


def entries(path: Path) -> list[tuple[int, str, str, int]]:
    """(line, entry, value, column before the value) of a sidecar file; ValueError with the line for anything else."""
    found: list[tuple[int, str, str, int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", line)
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\w+)\s*:\s*(.*?)\s*", line)
        if match is None or match[1] not in _ENTRIES or not match[2]:
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is not one of {', '.join(_ENTRIES)}, : and a value"
            )
        if match[1] in (entry for _, entry, _, _ in found):
            raise ValueError(f"{path}, line {number}: {match[1]} is given twice")
        found.append((number, match[1], match[2], match.start(2)))
    return found


def key_number(text: str, where: str = "the key") -> int:
    """0 to 11 for a major key from C up, 12 to 23 for a minor one: "G", "F# minor", "Bbm", "Eb major", "Gb:min"."""
    match = re.fullmatch(r"([A-G][#b]?)[\s:]*(major|minor|maj|min|m|)", text)
    if match is None:
        raise ValueError(f"{where}: unknown key {text!r}: write it as G, G minor or Bbm")
    return chords.pitch_class(match[1]) + (12 if match[2] in ("minor", "min", "m") else 0)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
