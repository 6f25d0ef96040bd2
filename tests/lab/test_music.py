"""A musician's commands, from file to file, with a network that has seen next to nothing."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import symusic

from relpos.lab import composing, musician
from relpos.tasks.music import midifile
from relpos.tasks.music.song import Song
from tests.lab import console


def relpos(*words: object, status: int = 0) -> str:
    return " ".join(console.relpos("music", *words, status=status).split())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "tiny"
    size = composing.Size(dim=32, depth=1, heads=2, context=96)
    composing.train(folder, "toy", size, 3, musician.Reporter(quiet=True), batch=2)
    return folder


@pytest.fixture
def tune(tmp_path: Path) -> Path:
    """Two tracks of a waltz at 97 quarters a minute, off the grid by a little, with a controller and a program."""
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, qpm=97))
    score.tempos.append(symusic.Tempo(2885, qpm=120))
    score.time_signatures.append(symusic.TimeSignature(0, 3, 4))
    for name, program, low in (("Flute", 73, 72), ("Left hand", 0, 48)):
        track = symusic.Track(name, program, False)
        for i in range(12):
            track.notes.append(symusic.Note(480 * i + (7 if i else 0), 460, low + (0, 4, 7, 5)[i % 4], 61 + i))
        track.controls.append(symusic.ControlChange(100, 64, 127))
        score.tracks.append(track)
    path = tmp_path / "waltz.mid"
    midifile.write(path, score)
    return path


def notes(path: Path) -> list[list[tuple[int, int, int, int]]]:
    score = midifile.read_exact(path)
    return [[(n.time, n.duration, n.pitch, n.velocity) for n in track.notes] for track in score.tracks]


@pytest.mark.parametrize("name", ["continue", "accompany", "view", "train", "check"])
def test_every_help_teaches_by_an_example(name: str) -> None:
    assert f"Example: relpos music {name}" in relpos(name, "--help")


def test_continuing_keeps_every_note_tempo_meter_name_program_and_controller(network: Path, tune: Path) -> None:
    out = tune.with_name("longer.mid")
    text = relpos("continue", tune, "--bars", 2, "--model", network, "-o", out, "--png")
    assert "4 bars in 3/4, tracks: Flute, Left hand" in text and "new notes" in text
    old, new = midifile.read_exact(tune), midifile.read_exact(out)
    for before, after in zip(notes(tune), notes(out), strict=True):
        assert [n for n in after if n[0] < 4 * 3 * 480] == before
        assert all(n[0] + n[1] <= 6 * 3 * 480 for n in after)
    assert sum(map(len, notes(out))) > sum(map(len, notes(tune)))
    assert [(t.name, t.program) for t in new.tracks] == [("Flute", 73), ("Left hand", 0)]
    assert [[(c.time, c.number, c.value) for c in t.controls] for t in new.tracks] == [[(100, 64, 127)]] * 2
    assert [(t.time, t.mspq) for t in new.tempos] == [(t.time, t.mspq) for t in old.tempos] and len(
        new.time_signatures
    ) == 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_writes_the_same_bytes_and_takes_are_seeds_in_a_row(network: Path, tune: Path) -> None:
    words = ("continue", tune, "--bars", 1, "--model", network)
    relpos(*words, "--seed", 4, "--takes", 2, "-o", tune.with_name("take.mid"))
    relpos(*words, "--seed", 5, "-o", tune.with_name("again.mid"))
    first, second = (tune.with_name(f"take-{n}.mid").read_bytes() for n in (1, 2))
    assert second == tune.with_name("again.mid").read_bytes() != first


def test_an_accompaniment_adds_three_tracks_under_the_melody(network: Path, tune: Path) -> None:
    out = tune.with_name("choir.mid")
    relpos("accompany", tune, "--melody", "Flute", "--chords", "C | F", "--form", "AA", "--model", network, "-o", out)
    assert notes(out)[:2] == notes(tune)
    old, new = midifile.read_exact(tune), midifile.read_exact(out)
    assert [(t.time, t.mspq) for t in new.tempos] == [(t.time, t.mspq) for t in old.tempos]
    assert len(new.time_signatures) == 1
    tracks = [track.name for track in midifile.read_exact(out).tracks]
    assert tracks == ["Flute", "Left hand", "Alto", "Tenor", "Bass"]
    again = tune.with_name("again.mid")
    relpos("accompany", out, "--melody", 1, "--model", network, "-o", again)
    assert [t.name for t in midifile.read_exact(again).tracks][5:] == ["Alto (new)", "Tenor (new)", "Bass (new)"]


def test_a_view_marks_estimated_or_given_sections(tune: Path) -> None:
    assert "sections A" in relpos("view", tune)
    assert tune.with_suffix(".png").exists()
    assert "sections A B" in relpos("view", tune, "--form", "A2B2", "-o", tune.with_name("form.png"))


def broken(kind: str, path: Path) -> Path:
    header = lambda form, count: b"MThd" + struct.pack(">IHHH", 6, form, count, 480)  # noqa: E731
    empty = b"MTrk" + struct.pack(">I", 4) + b"\x00\xff\x2f\x00"
    data = {
        "text": b"not a MIDI file at all",
        "format 2": header(2, 1) + empty,
        "no notes": header(1, 1) + empty,
        "cut off": header(1, 1) + empty[:-3],
    }
    if kind == "off the grid":
        draw = np.random.default_rng(0)
        score = symusic.Score(480)
        score.tracks.append(symusic.Track("free", 0, False))
        for time in np.sort(draw.integers(0, 10_000, 40)).tolist():
            score.tracks[0].notes.append(symusic.Note(time, 100, 60, 80))
        midifile.write(path, score)
    elif kind == "drums alone":
        midifile.write(path, Song("d", 16, 4, ("kit",), np.array([[0, 1, 36, 0, 80]]), drums=(0,)))
    elif kind != "missing":
        path.write_bytes(data[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no file"),
        ("text", "is not a MIDI file"),
        ("format 2", "format 2; formats 0 and 1 are read"),
        ("no notes", "has no notes"),
        ("cut off", "cut off"),
        ("off the grid", "quantise it in your sequencer"),
        ("drums alone", "no notes but those of drums|all its notes are drums"),
    ],
)
@pytest.mark.parametrize("name", ["continue", "accompany"])
def test_bad_files_end_in_one_line_and_no_output(name: str, kind: str, words: str, tmp_path: Path) -> None:
    out = tmp_path / "out.mid"
    text = relpos(name, broken(kind, tmp_path / "in.mid"), "-o", out, status=2)
    assert any(word in text for word in words.split("|")) and not out.exists() and "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--form", "A99B1"], "100 bars long, the piece only"),
        (["--form", "A(B)"], "is not written as AABA"),
        (["--chords", "C | X7"], "line 1, column 5: unknown chord 'X7'"),
        (["--chords", "gone.txt"], "gone.txt"),
        (["--meter", "4-4"], "--meter is written as 4/4"),
        (["--model", "nowhere"], "there is no network in nowhere"),
    ],
)
def test_bad_wishes_end_in_one_line_before_anything_is_trained(options: list[str], words: str, tune: Path) -> None:
    out = tune.with_name("out.mid")
    assert words in relpos("continue", tune, "-o", out, *options, status=2)
    assert words in relpos("accompany", tune, "-o", out, *options, status=2)
    assert not out.exists()


def test_the_file_itself_is_never_written_over(tune: Path) -> None:
    before = tune.read_bytes()
    assert "stays as it is" in relpos("continue", tune, "-o", tune, status=2)
    assert tune.read_bytes() == before


def test_a_melody_that_is_not_there_is_named(tune: Path) -> None:
    text = relpos("accompany", tune, "--melody", "Oboe", "-o", tune.with_name("out.mid"), status=2)
    assert "there is no track 'Oboe'" in text and "1 'Flute', 2 'Left hand'" in text


def test_sound_without_its_packages_names_the_extra(tune: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "midirenderer", None)
    text = relpos("continue", tune, "--wav", "-o", tune.with_name("out.mid"), status=2)
    assert "pip install 'relpos[audio]'" in text and not tune.with_name("out.mid").exists()


def test_the_default_network_is_trained_once_and_says_so(
    tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    for name, value in (("DEFAULT_DATA", "toy"), ("DEFAULT_STEPS", 2), ("SMALL", composing.Size(32, 1, 2, 96))):
        monkeypatch.setattr(composing, name, value)
    words = ("continue", tune, "--bars", 1, "-o", tune.with_name("out.mid"))
    assert "training the small default one" in relpos(*words)
    first = tune.with_name("out.mid").read_bytes()
    assert "training the small" not in relpos(*words)
    assert tune.with_name("out.mid").read_bytes() == first


def test_training_goes_on_where_it_was_and_refuses_another_network(tmp_path: Path) -> None:
    folder, size = tmp_path / "net", composing.Size(32, 1, 2, 96)
    quiet = musician.Reporter(quiet=True)
    composing.train(folder, "toy", size, 4, quiet, batch=2)
    weights = (folder / "checkpoint.safetensors").read_bytes()
    composing.train(folder, "toy", size, 4, quiet, batch=2)
    assert (folder / "checkpoint.safetensors").read_bytes() == weights
    with pytest.raises(composing.LabError, match="holds another network"):
        composing.train(folder, "toy", composing.Size(64, 1, 2, 96), 4, quiet, batch=2)


def test_a_check_prints_its_table(network: Path) -> None:
    text = relpos("check", "--model", network, "--count", 1, "--seeds", 2, "--bars", 2)
    for words in ("2 pieces of writing, from 1 pieces never seen", "| notes against the real ones |", "copy a bar"):
        assert words in text
    assert "| prompt unchanged | 1.00 |" in text
