"""The text files and archives of POP909 and of its structure labels, as they are published.

Music: ``POP909/NNN/NNN.mid`` in a folder, or in ``pop909_main.zip``. Labels: ``POP909/NNN/*.txt`` in the folder
``hierarchical-structure-analysis``, or in ``hsa_labels.zip``. Beside them ``startpos.csv`` with the offset of each
song's labels, and ``chord_db.npz`` or ``pop909_512_compact.npz`` with the table of chords; those are optional.
"""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from relpos.tasks.music.structure import SECTIONS

_CHORD = re.compile(r"(.*?)\[([\d, ]*)\]\s*(\d+(?:\s+\d+)*)\s*", re.DOTALL)
_FORM = re.compile(r"(?:[A-Za-z]\d+)+")
Chord = tuple[int, tuple[int, ...]]  # bass + 1 or 0 for none, and pitch classes from C
NO_CHORD: Chord = (0, ())


class Files:
    """One of the two data sets, as a folder or as a zip file; ``read`` gives bytes, None where a file is missing."""

    def __init__(self, path: Path, inside: str = "POP909") -> None:
        self.path, self.inside = path, inside
        try:
            self.archive = zipfile.ZipFile(path) if path.is_file() else None
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def read(self, song: int, name: str) -> bytes | None:
        try:
            if self.archive is not None:
                return self.archive.read(f"{self.inside}/{song:03d}/{name}")
            return (self.path / self.inside / f"{song:03d}" / name).read_bytes()
        except (KeyError, FileNotFoundError):
            return None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.where(song, name)} is damaged: {error}") from error

    def where(self, song: int, name: str) -> str:
        return f"{self.path}/{self.inside}/{song:03d}/{name}"

    def songs(self) -> list[int]:
        """Numbers of the songs, in order; what else lies in the folder is not looked at."""
        if self.archive is not None:
            names = [name.split("/")[-2] for name in self.archive.namelist() if name.count("/") == 2]
        else:
            names = [entry.name for entry in (self.path / self.inside).iterdir() if entry.is_dir()]
        return sorted({int(name) for name in names if re.fullmatch(r"\d{3}", name)})

    def digest(self) -> str:
        """Changes where a file is added, taken away or changed."""
        if self.archive is not None:
            told = [(i.filename, i.file_size, i.CRC) for i in self.archive.infolist()]
        else:
            files = sorted(file for file in self.path.joinpath(self.inside).rglob("*") if file.is_file())
            told = [(str(f.relative_to(self.path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def find(root: Path) -> tuple[Files, Files | None]:
    """The music and, where it is there, the labels below ``root``; FileNotFoundError where there is no music."""
    if (root / "pop909_main.zip").is_file():
        music = Files(root / "pop909_main.zip")
    elif (root / "POP909").is_dir():
        music = Files(root)
    else:
        raise FileNotFoundError(f"{root} holds neither the folder POP909 nor pop909_main.zip")
    for path in (root / "hsa_labels.zip", root / "hierarchical-structure-analysis"):
        if path.is_file() or (path / "POP909").is_dir():
            return music, Files(path)
    return music, None


def start_positions(root: Path) -> dict[int, int] | None:
    """Offset of the labels in ticks of a 16th of a quarter, by song; None without ``startpos.csv``."""
    path = root / "startpos.csv"
    if not path.is_file():
        return None
    found = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                found[int(row["ID"])] = int(row["Position"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}, line {line}: {row} is not a song's ID, Position and Beats") from None
    return found


def chord_table(root: Path) -> np.ndarray | None:
    """(rows, 13): bass + 1 or 0, and twelve pitch classes, from the table that is published; None without it."""
    for name in ("chord_db.npz", "pop909_512_compact.npz"):
        if (root / name).is_file():
            with np.load(root / name, allow_pickle=False) as file:
                key = "chord_db" if "chord_db" in file.files else file.files[0]
                return file[key].astype(np.int64)
    return None


def published_split(root: Path) -> dict[str, np.ndarray] | None:
    """Numbers of the songs in "train", "validation" and "test" of the release; None without it."""
    for name in ("split.npz", "pop909_512_compact.npz"):
        if (root / name).is_file():
            with np.load(root / name, allow_pickle=False) as file:
                sides = {"train": "train_idx", "validation": "val_idx", "test": "test_idx"}
                if set(sides.values()) <= set(file.files):
                    return {side: file[key].astype(np.int64) for side, key in sides.items()}
    return None


def _lines(data: bytes) -> list[str]:
    """Lines by line feeds alone: some names of chords hold other control characters."""
    return [line.rstrip("\r") for line in data.decode("utf-8", errors="replace").split("\n")]


def chord_lines(data: bytes, where: str) -> list[tuple[Chord, int]]:
    """(chord, quarters) of every line of ``finalized_chord.txt``: ``Name [tones] bass quarters``.

    A chord named N is none, whatever its tones, and has its length in the last number; of more than two numbers
    the first two count otherwise.
    """
    found = []
    for number, line in enumerate(_lines(data), start=1):
        if not line.strip():
            continue
        match = _CHORD.fullmatch(line)
        numbers = [int(n) for n in match[3].split()] if match else []
        tones = tuple(sorted({int(t) for t in match[2].replace(",", " ").split()})) if match else ()
        if match and match[1].strip() in ("N", "N:"):
            found.append((NO_CHORD, numbers[-1]))
        elif len(numbers) >= 2 and numbers[0] < 12 and all(tone < 12 for tone in tones):
            found.append(((numbers[0] + 1, tones), numbers[1]))
        else:
            raise ValueError(f"{where}, line {number}: {line!r} is not a chord's name, [tones], bass and quarters")
    return found


def melody_lines(data: bytes, where: str) -> list[tuple[int, int]]:
    """(pitch or 0, sixteenths) of every line of ``melody.txt``."""
    found = []
    for number, line in enumerate(_lines(data), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", line)
        if match is None or int(match[1]) > 127:
            raise ValueError(f"{where}, line {number}: {line!r} is not a pitch of 0 to 127 and a number of sixteenths")
        found.append((int(match[1]), int(match[2])))
    return found


def section_bars(data: bytes, where: str) -> list[tuple[int, int]]:
    """(section, bars) of ``human_label1.txt``, such as i4A4B8; a section is its letter's place in `SECTIONS`."""
    text = "".join(_lines(data)).strip()
    if not _FORM.fullmatch(text):
        raise ValueError(f"{where}, line 1: {text!r} is not letters with lengths in bars, such as i4A4B8")
    return [(SECTIONS.index(letter), int(bars)) for letter, bars in re.findall(r"([A-Za-z])(\d+)", text)]


def tempo_value(data: bytes, where: str) -> int:
    """The first number of ``tempo.txt``, quarters a minute."""
    try:
        return int(float(_lines(data)[0].split()[0]))
    except (IndexError, ValueError):
        raise ValueError(f"{where}, line 1: {data[:40]!r} is not a tempo") from None
