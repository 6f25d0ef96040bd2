"""From a MIDI file to a MIDI file: what the commands `relpos music ..` do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from relpos.lab import composing
from relpos.lab.checkpoint import write_atomic
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter
from relpos.tasks.music import compose, events, midifile, structure
from relpos.tasks.music.arrange import KNOWN_METERS, known_meter
from relpos.tasks.music.song import Song

GRID = 4  # ticks a quarter
_NEAR = 0.15  # of a tick: an onset that lies on the grid
_LEAST_ON_GRID = 0.5


@dataclass(frozen=True)
class Request:
    """What `continue` and `accompany` have in common; see the options of the commands."""

    seed: int = 0
    takes: int = 1
    temperature: float = 0.8
    top_p: float = 0.9
    chords: str | None = None
    form: str | None = None
    meter: str | None = None
    model: Path | None = None
    png: bool = False
    wav: bool = False

    def wishes(self, take: int, context: int) -> compose.Wishes:
        given = self.chords
        chart = (
            None if given is None else Path(given) if Path(given).suffix == ".txt" or Path(given).is_file() else given
        )
        return compose.Wishes(self.seed + take, self.temperature, self.top_p, context, chart, self.form)


def continue_file(file: Path, output: Path, bars: int, request: Request, reporter: Reporter) -> None:
    """Writes the file with ``bars`` more bars. LabError, and nothing written, where it cannot."""

    def write(model: Any, song: Song, wishes: compose.Wishes, step: Any) -> compose.Written:
        return compose.continuation(model, song, bars, wishes, step)

    _compose(file, output, request, reporter, write)


def accompany_file(file: Path, output: Path, melody: str | None, request: Request, reporter: Reporter) -> None:
    """Writes the file with three more tracks. LabError, and nothing written, where it cannot."""

    def write(model: Any, song: Song, wishes: compose.Wishes, step: Any) -> compose.Written:
        written = compose.accompaniment(model, song, _track(song, melody), wishes, step)
        taken = set(song.tracks)
        names = tuple(name if name not in taken else f"{name} (new)" for name in written.song.tracks)
        return replace(written, song=replace(written.song, tracks=names))

    _compose(file, output, request, reporter, write)


def _compose(
    file: Path,
    output: Path,
    request: Request,
    reporter: Reporter,
    write: Callable[[Any, Song, compose.Wishes, Any], compose.Written],
) -> None:
    if request.wav:
        _player()
    if output.exists() and file.exists() and output.samefile(file):
        raise LabError(f"-o names {file} itself, which stays as it is: give another name")
    score, song, late = _opened(file, request.meter)
    _say_about(song, reporter)
    try:
        write(_Silent(), song, request.wishes(0, 64), None)
    except _Asked:
        pass  # the wishes fit the piece; a network that has to be trained first is not trained in vain
    except (ValueError, OSError) as error:
        raise LabError(str(error)) from error
    loaded = composing.load(request.model) if request.model else composing.default(reporter)
    reporter.say(loaded.about)
    for take in range(request.takes):
        wishes = request.wishes(take, loaded.size.context)
        with reporter.step(f"seed {wishes.seed}") as step:
            written = write(loaded.model, song, wishes, step)
        target = output if request.takes == 1 else output.with_stem(f"{output.stem}-{take + 1}")
        # Tempo and meter are the file's: what the new song has of them beyond its beginning stands there already.
        new = replace(written.song, tempos=written.song.tempos[:1], meters=written.song.meters[:1])
        data = midifile.append(score, new, written.start / GRID + late).dumps_midi()
        write_atomic(target, data)
        reporter.say(f"wrote {target}: {len(written.song.notes)} new notes (seed {wishes.seed})")
        if request.png:
            _draw(target, written, song, request.form, reporter)
        if request.wav:
            sound = target.with_suffix(".wav")
            write_atomic(sound, _played(data))
            reporter.say(f"wrote {sound}")


class _Asked(Exception):
    pass


class _Silent:
    """Stands for a network where only the wishes are to be looked at: it stops at the first question."""

    training = False

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def streams(self) -> list[Any]:
        return []

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise _Asked


def _opened(file: Path, meter: str | None = None) -> tuple[Any, Song, float]:
    """The file in its own ticks, on the grid, and where the grid begins, in quarters: up to half a 16th off.

    LabError where the file cannot be read or its notes lie on no grid.
    """
    try:
        score = midifile.read_exact(file)
        late = _late(score, file)
        song = midifile.song_of(score.shift_time(-late) if late else score, file.stem, GRID)
    except FileNotFoundError:
        raise LabError(f"there is no file {file}") from None
    except (ValueError, OSError) as error:
        raise LabError(str(error)) from error
    if meter is not None:
        song = replace(song, meters=((0, *_meter(meter)),), levels={})
    return score, song, late / score.ticks_per_quarter


def _late(score: Any, file: Path) -> int:
    """By how many of its ticks the file's notes begin after the 16ths of its beat, as a whole."""
    onsets = np.concatenate([np.asarray(track.notes.numpy()["time"]) for track in score.tracks])
    parts = onsets * GRID / score.ticks_per_quarter
    turn = float(np.angle(np.exp(2j * np.pi * parts).mean())) / (2 * np.pi)
    off = np.abs(parts - turn - np.rint(parts - turn))
    share = float((off <= _NEAR).mean())
    if share < _LEAST_ON_GRID:
        raise LabError(
            f"{file}: only {share:.0%} of its notes begin on a 16th of its beat, so that bars and beats cannot be made "
            "out; quantise it in your sequencer (to 16ths) first"
        )
    late = round(turn * score.ticks_per_quarter / GRID)
    return late if abs(turn) > _NEAR and onsets.min() >= late else 0


def _meter(text: str) -> tuple[int, int]:
    numerator, _, denominator = text.partition("/")
    if not (numerator.isdigit() and denominator in ("1", "2", "4", "8", "16", "32") and 1 <= int(numerator) <= 32):
        raise LabError(f"--meter is written as 4/4 or 6/8, got {text!r}")
    return int(numerator), int(denominator)


def _say_about(song: Song, reporter: Reporter) -> None:
    bars = int(structure.bars(song)[-1]) + 1
    meters = list(dict.fromkeys((n, d) for _, n, d in song.meters))
    names = ", ".join(name or f"track {i + 1}" for i, name in enumerate(song.tracks))
    reporter.say(f"{song.name}: {bars} bars in {', '.join(f'{n}/{d}' for n, d in meters)}, tracks: {names}")
    strange = [f"{n}/{d}" for n, d in meters if known_meter(n, d, GRID) not in KNOWN_METERS]
    if strange:
        reporter.say(
            f"The default network knows 4/4, 3/4 and meters with bars as long; of {strange[0]} expect less. Where the "
            "file's meter is wrong, say --meter 4/4."
        )


def _track(song: Song, melody: str | None) -> int | None:
    if melody is None:
        return None
    if melody in song.tracks:
        return song.tracks.index(melody)
    if melody.isdigit() and 1 <= int(melody) <= len(song.tracks):
        return int(melody) - 1
    names = ", ".join(f"{i + 1} {name!r}" for i, name in enumerate(song.tracks))
    raise LabError(f"there is no track {melody!r} with notes; there are {names}")


def _draw(target: Path, written: compose.Written, old: Song, form: str | None, reporter: Reporter) -> None:
    from relpos.tasks.music.overview import picture

    song = midifile.read(target, GRID)
    new_from = written.start if written.start >= old.ticks - GRID else None
    starts = compose.section_starts(form, written.state.bars) if form else []
    sections = [(tick + written.before, letter) for tick, letter in starts]
    image = target.with_suffix(".png")
    write_atomic(image, picture(song, target.name, new_from, sections))
    reporter.say(f"wrote {image}")


def view_file(file: Path, output: Path, form: str | None, reporter: Reporter) -> None:
    """Draws a MIDI file; sections from the form, else estimated."""
    from relpos.tasks.music.overview import picture

    try:
        song = midifile.read(file, GRID)
        if form:
            kept, before = compose.trimmed(song)
            starts = compose.section_starts(form, events.bars_of(kept))
            sections, source = [(tick + before, letter) for tick, letter in starts], "as given"
        else:
            level = structure.sections(song)
            edges = np.flatnonzero(np.diff(level.values, prepend=-1)).tolist()
            sections, source = [(tick, level.names[level.values[tick]]) for tick in edges], level.source
        data = picture(song, f"{file.name} (sections: {source})", sections=sections)
    except FileNotFoundError:
        raise LabError(f"there is no file {file}") from None
    except (ValueError, OSError) as error:
        raise LabError(str(error)) from error
    write_atomic(output, data)
    reporter.say(f"wrote {output}: {len(song.notes)} notes, sections {' '.join(name for _, name in sections)}")


def check_model(folder: Path | None, count: int, seeds: int, bars: int, accompany: bool, reporter: Reporter) -> None:
    """Prints the figures of a network on pieces kept from its training."""
    from relpos.tasks.music.judge import judge, table

    loaded = composing.load(folder) if folder else composing.default(reporter)
    reporter.say(loaded.about)
    task, songs = composing.read(loaded.data, loaded.size, reporter)
    with reporter.step("losses") as step:
        losses = {"the network": task.evaluate(loaded.model, "test", loaded.size.context, step).loss}
        losses |= {name: row["loss"] for name, row in task.baselines("test", loaded.size.context).items()}
    with reporter.step("writing and measuring") as step:
        try:
            figures = judge(
                loaded.model,
                task,
                songs,
                count=count,
                seeds=range(seeds),
                bars=bars,
                accompany=accompany,
                progress=step,
            )
        except ValueError as error:
            raise LabError(str(error)) from error
    reporter.say(f"\n{len(figures)} pieces of writing, from {len({f.name for f in figures})} pieces never seen\n")
    reporter.say(table(figures, losses))


def _player() -> tuple[Any, Path]:
    """The renderer and its sound font. LabError where the extra is missing."""
    needed = "install it with: pip install 'relpos[audio]'"
    try:
        import midirenderer
    except ModuleNotFoundError:
        raise LabError(f"--wav needs the package midirenderer; {needed}") from None
    found = importlib.util.find_spec("pretty_midi")
    fonts = sorted(Path(found.origin).parent.glob("*.sf2")) if found is not None and found.origin else []
    if not fonts:
        raise LabError(f"--wav needs the sound font of the package pretty_midi; {needed}")
    return midirenderer, fonts[0]


def _played(midi: bytes) -> bytes:
    """The MIDI file as the bytes of a WAV file, in stereo."""
    renderer, font = _player()
    data: bytes = renderer.render_wave_from(font.read_bytes(), midi)
    return data
