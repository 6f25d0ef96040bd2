"""POP909 as songs: melody, bridge and piano, with sections by hand, chords, melody and tempo.

A song is put on the grid of the published experiments, 16 ticks a quarter (to the nearest, of two the even one), its
leading silence is cut off, and the labels are laid over it by ``startpos.csv``: they begin that many ticks after the
first note or, where the number is negative, that many before it. What labels do not reach is x, no chord, no
melody. `Raw` is that, and equal to the published windows in every cell; `Raw.song` brings it to a coarser grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relpos.tasks import cache
from relpos.tasks.music import chords, midifile, packing
from relpos.tasks.music import pop909_files as files
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, VELOCITY, Level, Song
from relpos.tasks.music.structure import SECTIONS, UNNAMED

TRACKS = ("MELODY", "BRIDGE", "PIANO")
FINE = 16  # ticks a quarter of the published grid
BAR = 4 * FINE
TEMPOS = ("30 to 59", "60 to 89", "90 to 119", "120 and more")
MISSING = ("skip", "unlabelled", "error")
_FORMAT = "1"
Progress = Callable[[int, int, str], None]


class Vocabulary:
    """Integers of chords: the rows of the published table where it is given, then others as they come; 0 is none
    where there is no table."""

    def __init__(self, table: np.ndarray | None = None) -> None:
        table = np.zeros((1, 13), dtype=np.int64) if table is None else table
        self.rows: list[files.Chord] = [(int(row[0]), tuple(np.flatnonzero(row[1:]).tolist())) for row in table]
        self.index: dict[files.Chord, int] = {}
        for number, row in enumerate(self.rows):
            self.index.setdefault(row, number)
        self.published = len(self.rows)

    def __call__(self, chord: files.Chord) -> int:
        if chord not in self.index:
            self.index[chord] = len(self.rows)
            self.rows.append(chord)
        return self.index[chord]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(chords.name(bass - 1, set(tones)) if bass else "N" for bass, tones in self.rows)

    @property
    def table(self) -> np.ndarray:
        """(chords, 13) int64: bass + 1 or 0, and the twelve pitch classes."""
        found = np.zeros((len(self.rows), 13), dtype=np.int64)
        for number, (bass, tones) in enumerate(self.rows):
            found[number, [0]] = bass
            found[number, [1 + tone for tone in tones]] = 1
        return found


@dataclass(frozen=True)
class Raw:
    """A song on the published grid.

    notes: as in `Song`, save that a length may be 0: such a note has an onset and does not sound.
    chord, melody, section: (ticks,) int64; tempo: quarters a minute; start: the tick at which the labels begin.
    """

    number: int
    ticks: int
    notes: np.ndarray
    chord: np.ndarray
    melody: np.ndarray
    section: np.ndarray
    tempo: int
    start: int
    tempos: tuple[tuple[int, float], ...]
    labelled: bool

    def rolls(self) -> tuple[np.ndarray, np.ndarray]:
        """What sounds and what begins, each (384, ticks) uint8; rows are tracks times pitches."""
        sounding = np.zeros((len(TRACKS) * 128, self.ticks), dtype=np.uint8)
        begins = np.zeros_like(sounding)
        for onset, length, pitch, track, _ in self.notes.tolist():
            sounding[track * 128 + pitch, onset : onset + length] = 1
            begins[track * 128 + pitch, onset] = 1
        return sounding, begins

    def song(self, ticks_per_quarter: int, names: tuple[str, ...], annotator: int, aligned: bool = True) -> Song:
        """The song on a grid that divides the published one; notes of no length are one tick long."""
        step = FINE // ticks_per_quarter
        ticks = -(-self.ticks // step)
        notes = self.notes.copy()
        notes[:, ONSET] = (self.notes[:, ONSET] + step // 2) // step
        end = (self.notes[:, ONSET] + self.notes[:, LENGTH] + step // 2) // step
        notes[:, LENGTH] = np.maximum(end - notes[:, ONSET], 1)
        ticks = max(ticks, int((notes[:, ONSET] + notes[:, LENGTH]).max()))
        # A tick's label is that of the last fine tick whose notes come to it, so that labels move with the notes.
        sample = (np.arange(ticks) * step + max(step // 2 - 1, 0)).clip(0, self.ticks - 1)
        start = (self.start + step // 2) // step
        bar, beat, meters = _bars(ticks, ticks_per_quarter, start)
        mark = "" if aligned else ", offset unknown and taken as 0"
        source = {key: text + mark if self.labelled else _UNLABELLED for key, text in _SOURCES.items()}
        bucket = (min(max(self.tempo, 30), 149) - 30) // 30
        levels = {
            "bar": Level(bar, source=source["bar"]),
            "beat": Level(beat, source=source["bar"]),
            "tempo": Level(np.full(ticks, bucket), TEMPOS, source["tempo"]),
            "section": Level(self.section[sample], SECTIONS, source["section"].format(annotator)),
            "chord": Level(self.chord[sample], names, source["chord"], from_target=True),
            "melody": Level(self.melody[sample], source=source["melody"]),
        }
        tempos = {(tick + step // 2) // step: tempo for tick, tempo in self.tempos}
        return Song(
            name=f"{self.number:03d}",
            ticks=ticks,
            ticks_per_quarter=ticks_per_quarter,
            tracks=TRACKS,
            notes=midifile.tidy(notes),
            levels=levels,
            tempos=tuple(sorted(tempos.items())),
            meters=meters,
            programs=(0, 0, 0),
        )


_SOURCES = {
    "bar": "start of the labels, bars of 4/4",
    "tempo": "tempo.txt in four classes",
    "section": "annotation by hand, annotator {}",
    "chord": "finalized_chord.txt, read off the accompaniment",
    "melody": "melody.txt",
}
_UNLABELLED = "none: a label file is missing"


def _bars(ticks: int, ticks_per_quarter: int, start: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Bar, beat and meters of 4/4 with a bar line at tick ``start``; what precedes a whole bar is a pick-up."""
    length = 4 * ticks_per_quarter
    pick_up = start % length
    at = np.arange(ticks, dtype=np.int64)
    bar = (at - pick_up) // length + (pick_up > 0)
    meters = ((0, pick_up, length), (pick_up, 4, 4)) if pick_up else ((0, 4, 4),)
    return bar, (at - pick_up) % length, meters


def read_raw(
    root: str | Path,
    songs: Sequence[int] | None = None,
    annotator: int = 1,
    missing: str = "skip",
    progress: Progress | None = None,
) -> tuple[list[Raw], Vocabulary]:
    """The songs below ``root`` (see `pop909_files`) on the published grid, and the integers of their chords.

    songs: numbers; None for all that ``startpos.csv`` lists, or without it all that are there. missing: what becomes of
    a song without one of its label files: "skip" leaves it out, "unlabelled" gives it filler labels, "error" raises
    FileNotFoundError. ValueError with file and line for a damaged one.
    """
    if annotator not in (1, 2) or missing not in MISSING:
        raise ValueError(f"annotator is 1 or 2 and missing one of {MISSING}, got {annotator!r} and {missing!r}")
    root = Path(root)
    music, labels = files.find(root)
    if labels is None and missing == "skip":
        raise FileNotFoundError(
            f"{root} has no labels (hsa_labels.zip or hierarchical-structure-analysis): add them, or take the songs "
            "with missing='unlabelled'"
        )
    starts = files.start_positions(root)
    there = [number for number in music.songs() if starts is None or number in starts]
    vocabulary = Vocabulary(files.chord_table(root))
    chord_lines = {number: _chord_lines(labels, number) for number in there}
    for _, lines in sorted(chord_lines.items()):  # over all songs: a chord has one integer whichever are chosen
        for chord, _ in lines or ():
            vocabulary(chord)
    unknown = sorted(set(songs or ()) - set(there))
    if unknown:
        raise ValueError(f"{root} has no songs {unknown[:5]}: it holds {len(there)}, {there[:1]} to {there[-1:]}")
    chosen, found = list(there if songs is None else songs), []
    for done, number in enumerate(chosen, start=1):
        start = (starts or {}).get(number, 0)
        raw = _read_one(music, labels, number, chord_lines[number], vocabulary, start, annotator, missing)
        found += [raw] if raw else []
        if progress is not None:
            progress(done, len(chosen), f"song {number:03d}")
    return found, vocabulary


def _chord_lines(labels: files.Files | None, number: int) -> list[tuple[files.Chord, int]] | None:
    data = labels.read(number, "finalized_chord.txt") if labels else None
    if data is None or labels is None:
        return None
    return files.chord_lines(data, labels.where(number, "finalized_chord.txt"))


def _read_one(
    music: files.Files,
    labels: files.Files | None,
    number: int,
    lines: list[tuple[files.Chord, int]] | None,
    vocabulary: Vocabulary,
    start: int,
    annotator: int,
    missing: str,
) -> Raw | None:
    names = (f"human_label{annotator}.txt", "melody.txt", "tempo.txt")
    texts = {name: labels.read(number, name) if labels else None for name in names}
    absent = [name for name, data in texts.items() if data is None] + ["finalized_chord.txt"] * (lines is None)
    if absent and missing == "skip":
        return None
    if absent and missing == "error":
        place = labels.where(number, absent[0]) if labels else f"{absent[0]} of song {number:03d}"
        raise FileNotFoundError(f"{place} is missing; missing='skip' or 'unlabelled' goes on without")
    notes, ticks, tempos = _notes(music, number, max(0, -start))
    start = max(0, start)
    section, melody, chord, tempo = [], [], [], round(tempos[0][1])
    if labels and not absent:
        told = [texts[name] or b"" for name in names]
        where = [labels.where(number, name) for name in names]
        section = files.section_bars(told[0], where[0])
        melody = files.melody_lines(told[1], where[1])
        tempo = files.tempo_value(told[2], where[2])
        chord = [(vocabulary(each), quarters) for each, quarters in lines or ()]
    return Raw(
        number,
        ticks,
        notes,
        _stream(chord, FINE, start, ticks, vocabulary(files.NO_CHORD)),
        _stream(melody, FINE // 4, start, ticks, 0),
        _stream(section, BAR, start, ticks, UNNAMED),
        tempo,
        start,
        tempos,
        labelled=not absent,
    )


def _notes(music: files.Files, number: int, lead: int) -> tuple[np.ndarray, int, tuple[tuple[int, float], ...]]:
    """Notes from ``lead`` ticks before the first on, the length of the roll, and the tempos."""
    where = music.where(number, f"{number:03d}.mid")
    data = music.read(number, f"{number:03d}.mid")
    if data is None:
        raise FileNotFoundError(f"{where} is missing")
    score = midifile.parse(data, where)
    resolution, parts = score.ticks_per_quarter, []
    for track in score.tracks:
        if track.name not in TRACKS:
            raise ValueError(f"{where} has a track {track.name!r}; the tracks of POP909 are {', '.join(TRACKS)}")
        columns = {key: value.astype(np.int64) for key, value in track.notes.numpy().items()}
        begin = _even(columns["time"], resolution)
        length = _even(columns["time"] + columns["duration"], resolution) - begin
        which = np.full(len(begin), TRACKS.index(track.name))
        parts.append(np.stack([begin, length, columns["pitch"], which, columns["velocity"]], axis=1))
    notes = np.concatenate(parts)
    first = int(notes[:, ONSET].min()) - lead
    notes[:, ONSET] -= first
    notes = notes[np.lexsort((notes[:, PITCH], notes[:, TRACK], notes[:, ONSET]))]
    notes[:, VELOCITY] = notes[:, VELOCITY].clip(1, 127)
    ticks = int((notes[:, ONSET] + notes[:, LENGTH]).max()) + 1
    tempos = {0: 120.0}
    for event in score.tempos:
        tempos[max(int(_even(np.array([event.time]), resolution)[0]) - first, 0)] = round(event.qpm, 3)
    return notes, ticks, tuple(sorted(tempos.items()))


def _even(time: np.ndarray, resolution: int) -> np.ndarray:
    """To the nearest tick of the published grid, of two equally near to the even one."""
    return np.rint(time * FINE / resolution).astype(np.int64)


def _stream(runs: Sequence[tuple[int, int]], unit: int, start: int, ticks: int, filler: int) -> np.ndarray:
    """(ticks,) int64: every label for its length times ``unit`` from ``start`` on, the filler elsewhere."""
    values = np.full(ticks, filler, dtype=np.int64)
    labels, lengths = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    laid = np.repeat(labels, lengths * unit)[: max(ticks - start, 0)]
    values[start : start + len(laid)] = laid
    return values


def load(
    root: str | Path,
    ticks: int = 4,
    annotator: int = 1,
    missing: str = "skip",
    songs: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Song]:
    """POP909 as songs at 1, 2, 4, 8 or 16 ticks a quarter; all of them come from the cache the second time.

    Levels: "bar", "beat", "tempo", "section", "chord" (from_target: it was read off the accompaniment), "melody".
    """
    if ticks < 1 or FINE % ticks:
        raise ValueError(f"ticks a quarter must divide {FINE}, got {ticks}")
    root = Path(root)

    def build() -> list[Song]:
        raws, vocabulary = read_raw(root, songs, annotator, missing, progress)
        aligned, names = files.start_positions(root) is not None, vocabulary.names
        return [raw.song(ticks, names, annotator, aligned) for raw in raws]

    if songs is not None:
        return build()
    music, labels = files.find(root)
    starts, table = files.start_positions(root), files.chord_table(root)
    beside = f"{sorted((starts or {}).items())} {None if table is None else table.tolist()}"
    beside = hashlib.sha256(beside.encode()).hexdigest()[:16]
    digest = f"{music.digest()} {labels.digest() if labels else 'none'} {beside}"
    header = {"kind": "POP909", "format": _FORMAT, "files": digest}
    name = f"pop909-{ticks}-annotator{annotator}-{missing}"
    return packing.unpack(cache.cached(name, header, lambda: packing.pack(build())))
