"""Reads the four-part Bach chorales of the music21 package; nothing here touches the network.

music21 takes about 0.15 s a score, so several processes share the work. They are started as commands rather than
by ``multiprocessing``, which would import the caller's script once more in every worker.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, VOICES, Piece

Progress = Callable[[int, int, str], None]


def score_paths() -> list[Path]:
    """The files of music21's Bach folder that can hold a chorale, in order of name.

    Left out: the Roman-numeral analyses, and the kern files, which are second copies of scores that are there as
    MusicXML.
    """
    try:
        from music21 import corpus
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the chorales come with the package music21, which is not installed: pip install 'relpos[music]'"
        ) from error
    paths = {Path(path) for path in corpus.getComposer("bach")}
    return sorted(path for path in paths if path.suffix in (".mxl", ".xml"))


def read(path: Path) -> Piece | None:
    """The score as a `Piece`; None where it does not have exactly four parts."""
    from music21 import converter

    score = converter.parse(path, forceSource=True, storePickle=False)
    parts = list(score.parts)
    if len(parts) != len(VOICES):
        return None
    ticks = round(float(score.highestTime) * TICKS_PER_QUARTER)
    shape = (ticks, len(VOICES))
    pitch = np.full(shape, SILENT, dtype=np.int16)
    onset, fermata = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for voice, part in enumerate(parts):
        _draw_part(part, pitch[:, voice], onset[:, voice], fermata[:, voice], lowest=voice == len(VOICES) - 1)
    beat, bar, meter = _bars(parts[0], ticks)
    keys = list(parts[0].recurse().getElementsByClass("KeySignature"))
    number, listed = _listed(path.stem)
    return Piece(
        name=path.stem,
        number=number,
        riemenschneider=int(listed.get("riemenschneider") or 0),
        title=str(listed.get("title") or ""),
        sharps=int(keys[0].sharps) if keys else 0,
        pitch=pitch,
        onset=onset,
        fermata=fermata,
        beat=beat,
        bar=bar,
        meter=meter,
    )


def _draw_part(part: Any, pitch: np.ndarray, onset: np.ndarray, fermata: np.ndarray, lowest: bool) -> None:
    for note in part.flatten().notes:
        start = round(float(note.offset) * TICKS_PER_QUARTER)
        end = max(start + 1, round(float(note.offset + note.quarterLength) * TICKS_PER_QUARTER))
        if note.duration.isGrace or start >= len(pitch):
            continue
        numbers = [p.midi for p in note.pitches]
        pitch[start:end] = min(numbers) if lowest else max(numbers)
        onset[start:end] = False
        onset[start] = note.tie is None or note.tie.type == "start"
        fermata[start] |= any("Fermata" in e.classes for e in note.expressions)
    # A held tick must hold something: damaged ties and overwritten notes become onsets.
    before = np.concatenate([[SILENT], pitch[:-1]])
    onset |= (pitch != SILENT) & (pitch != before)
    onset &= pitch != SILENT


def _bars(part: Any, ticks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ticks since the bar's start, bar number and time signature of every tick."""
    beat, bar = np.zeros(ticks, dtype=np.int16), np.zeros(ticks, dtype=np.int16)
    meter = np.tile(np.array([4, 4], dtype=np.int16), (ticks, 1))
    filled, index, previous_end = 0, -1, 0
    signature = (4, 4)
    for order, measure in enumerate(part.getElementsByClass("Measure")):
        start = round(float(measure.offset) * TICKS_PER_QUARTER)
        length = round(float(measure.duration.quarterLength) * TICKS_PER_QUARTER)
        whole = round(float(measure.barDuration.quarterLength) * TICKS_PER_QUARTER)
        completes = order > 0 and 0 < filled < whole and filled + length <= whole and start == previous_end
        if not completes:
            index += 1
            filled = max(0, whole - length) if order == 0 else 0
        here = slice(start, min(start + length, ticks))
        beat[here] = filled + np.arange(max(0, here.stop - start))
        bar[here] = index
        if measure.timeSignature is not None:
            signature = (measure.timeSignature.numerator, measure.timeSignature.denominator)
        meter[here] = signature
        filled, previous_end = filled + length, start + length
        if filled >= whole or order == 0:
            filled = 0
    return beat, bar, meter


def _listed(stem: str) -> tuple[str, dict[str, Any]]:
    """Catalogue number and the entry of music21's list; variants as 248.23-s stand under their plain number."""
    from music21.corpus.chorales import ChoraleListRKBWV

    number = stem.removeprefix("bwv")
    by_number = ChoraleListRKBWV().byBWV
    return number, by_number.get(number) or by_number.get(number.split("-")[0]) or {}


def read_all(paths: Sequence[Path], processes: int = 2, progress: Progress | None = None) -> list[Piece]:
    """The four-part scores among ``paths``, in their order. RuntimeError where a worker fails."""
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    results: list[Piece | None] = [None] * len(paths)
    shares = [range(first, len(paths), processes) for first in range(min(processes, len(paths)))]
    for done, (index, piece) in enumerate(_from_workers(paths, shares), start=1):
        results[index] = piece
        if progress is not None:
            progress(done, len(paths), paths[index].stem)
    return [piece for piece in results if piece is not None]


def _from_workers(paths: Sequence[Path], shares: Sequence[range]) -> Iterable[tuple[int, Piece | None]]:
    inbox: queue.Queue[tuple[int, Piece | None] | Exception | None] = queue.Queue()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, *(f"{index}={paths[index]}" for index in share)],
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the workers
        )
        for share in shares
    ]

    def listen(worker: subprocess.Popen[bytes], count: int) -> None:
        assert worker.stdout is not None
        try:
            for _ in range(count):
                inbox.put(pickle.load(worker.stdout))
            inbox.put(None)
        except (EOFError, pickle.UnpicklingError):
            inbox.put(RuntimeError(f"a process that reads scores ended with exit status {worker.wait()}"))

    try:
        for worker, share in zip(workers, shares, strict=True):
            threading.Thread(target=listen, args=(worker, len(share)), daemon=True).start()
        running = len(workers)
        while running:
            item = inbox.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


def _work(arguments: Sequence[str]) -> None:
    """A worker: writes (index, piece) pickled to the standard output for every ``index=path``."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # nothing that music21 prints may get between the pieces
    for argument in arguments:
        index, path = argument.split("=", 1)
        pickle.dump((int(index), read(Path(path))), out)
        out.flush()


if __name__ == "__main__":
    _work(sys.argv[1:])
