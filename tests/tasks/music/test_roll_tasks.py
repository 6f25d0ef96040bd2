"""The piano-roll tasks: what is read, what is written, that nothing leaks, that every length scores the same ticks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relpos import tasks
from relpos.tasks.music import sets
from relpos.tasks.music.chords import TABLE
from relpos.tasks.music.frames import Frames, places
from relpos.tasks.music.guess import guessed_chords
from relpos.tasks.music.judging import METRICS, best_threshold
from relpos.tasks.music.song import Level, Song

TASKS = ("next-step", "accompaniment")


@pytest.fixture(scope="module")
def songs() -> sets.Songs:
    return sets.load("toy", count=12, seed=1)


def made(name: str, songs: sets.Songs, **options: Any) -> Any:
    return tasks.get(name, songs=songs, quarters=8, **options)


def song(melody: list[int], **levels: Level) -> Song:
    """A song of one track whose melody has a note a quarter; 0 is a rest."""
    notes = np.array([(4 * i, 4, pitch, 0, 80) for i, pitch in enumerate(melody) if pitch], dtype=np.int64)
    ticks = 4 * len(melody)
    level = Level(np.repeat(np.array(melody, dtype=np.int64), 4), source="made")
    return Song("made", ticks, 4, ("melody",), notes.reshape(-1, 5), {"melody": level, **levels})


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_holds_the_songs_own_bits(name: str, songs: sets.Songs) -> None:
    task = made(name, songs)
    data = task.prepared
    read, written, *labels = task.batch(0, 0, 5)
    assert read.shape == (5, 32, data.read.width) and written.shape == (5, 32, data.written.width)
    assert len(labels) == len(task.levels()) and all(x.shape == (5, 32) for x in labels)
    place = data.windows["train"][int(np.random.default_rng([0, 0]).integers(len(data.windows["train"]), size=5)[0])]
    roll = data.songs[place.song].roll(place.start, place.start + 33)
    assert torch.equal(read[0], torch.from_numpy(data.read.cut(roll[:32][:, list(data.read.tracks)])))
    ahead = 1 if name == "next-step" else 0
    want = roll[ahead : 32 + ahead][:, list(data.written.tracks)]
    assert torch.equal(written[0], torch.from_numpy(data.written.cut(want)))
    again = task.batch(0, 0, 5)
    assert all(torch.equal(a, b) for a, b in zip((read, written, *labels), again, strict=True))


def test_an_accompaniment_does_not_read_what_it_writes(songs: sets.Songs) -> None:
    task = made("accompaniment", songs)
    data = task.prepared
    assert not set(data.read.tracks) & set(data.written.tracks)
    names = songs.songs[0].tracks
    other = made("accompaniment", songs, given=names[1].upper())
    assert other.prepared.read.tracks == (1,)
    for wrong in ("flute", "+".join(names)):
        with pytest.raises(ValueError, match="given names some of the tracks"):
            made("accompaniment", songs, given=wrong).prepare()


@pytest.mark.parametrize("name", TASKS)
def test_honest_labels_do_not_depend_on_what_is_written(name: str, songs: sets.Songs) -> None:
    """A level that was computed from the music is left out, and where it is asked for, the run says so."""
    read_off = [
        replace(each, levels={**each.levels, "chord": replace(each.levels["chord"], from_target=True)})
        for each in songs.songs
    ]
    songs = replace(songs, songs=read_off)
    task = made(name, songs)
    assert task.levels()["chord"].startswith("guessed from the melody")
    assert ("late" in task.levels()["chord"]) == (name == "next-step")  # whose melody is not known yet
    assert all(not level.from_target for each in task.prepared.songs for n, level in each.levels.items())
    oracle = made(name, songs, labels="oracle")
    leaking = [n for n, level in songs.songs[0].levels.items() if level.from_target]
    assert leaking and "no level" in task.describe()["LEAKS"]
    assert all(n in oracle.describe()["LEAKS"] for n in leaking if n in oracle.levels())
    assert "ORACLE" in oracle.title and "ORACLE" not in task.title


@pytest.mark.parametrize("name", TASKS)
def test_the_network_sees_no_future(name: str, songs: sets.Songs) -> None:
    task = made(name, songs)
    torch.manual_seed(0)
    model = task.model("rope", dim=16, heads=2, dropout=0.0)
    read, written, *labels = task.batch(0, 0, 2)
    before = task._logits(model, (read, written, *labels))
    changed = read.clone()
    changed[:, 20:] = ~changed[:, 20:]
    after = task._logits(model, (changed, written, *labels))
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.equal(before[:, 20:], after[:, 20:])


class Oracle(nn.Module):
    """Writes what it is told to: the right bits."""

    def __init__(self, task: Any, split: str, length: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        rows = [torch.from_numpy(task.prepared.targets(task._parts(s, length))) for s in (split, "validation")]
        self.bits = torch.cat(rows).float()
        self.at = 0

    def forward(self, frames: torch.Tensor, positions: object) -> torch.Tensor:
        rows = self.bits[self.at : self.at + len(frames)]
        self.at += len(frames)
        return 40 * (rows - 0.5) + self.nothing


@pytest.mark.parametrize("name", TASKS)
def test_the_right_bits_score_best_at_every_length(name: str, songs: sets.Songs) -> None:
    task = made(name, songs)
    counts = set()
    for multiple in task.multiples:
        length = multiple * task.train_length
        found = task.evaluate(Oracle(task, "test", length), "test", length)
        assert found.loss == pytest.approx(0, abs=1e-4) and found.by_position.shape == (length,)
        assert set(found.metrics) == {metric.name for metric in METRICS}
        assert found.metrics["f1"] == found.metrics["onset_f1"] == found.metrics["density"] == 1
        assert found.metrics["mse"] == found.metrics["ssmd"] == found.metrics["ndd"] == 0
        counts.add(found.count)
    assert len(counts) == 1  # the same ticks


@pytest.mark.parametrize("name", TASKS)
def test_baselines_score_the_same_ticks(name: str, songs: sets.Songs) -> None:
    task = made(name, songs, labels="oracle")
    rows = task.baselines("test", task.train_length)
    plain = {row.split(" (")[0]: values for row, values in rows.items()}
    assert {"silence", "marginal", "persistence", "copy-a-bar", "chord-block", "chord-table"} <= set(plain)
    assert plain["silence"]["density"] == 0 and plain["silence"]["loss"] == np.inf
    if name == "next-step":
        assert plain["persistence"]["loss"] < plain["marginal"]["loss"]
    else:  # it sees what the network does not
        assert "loss" not in plain["persistence"] and "f1" in plain["persistence"]
    fresh = task.evaluate(task.model("nope"), "test", task.train_length)
    assert fresh.loss == pytest.approx(plain["marginal"]["loss"], rel=0.15)  # the output starts at the frequencies
    seen = [row for row in rows if "sees the target" in row]
    assert len(seen) == (0 if name == "next-step" else 2)


def test_sample_draws_a_picture(songs: sets.Songs, tmp_path: Path) -> None:
    task = made("accompaniment", songs)
    (artifact,) = task.sample(task.model("nope", dim=8, heads=2), tmp_path, 0)
    assert artifact.kind == "image" and artifact.path.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused(songs: sets.Songs) -> None:
    for options in ({"labels": "guess"}, {"ticks": 0}, {"quarters": 0}):
        with pytest.raises(ValueError, match="got"):
            tasks.get("next-step", **options)
    with pytest.raises(ValueError, match="longer than"):
        tasks.get("next-step", songs=songs, quarters=5000).prepare()
    task = made("next-step", songs)
    with pytest.raises(ValueError, match="unknown split"):
        task.baselines("train", task.train_length)
    with pytest.raises(ValueError, match="must divide"):
        task.evaluate(task.model("nope"), "test", 7)
    uneven = replace(songs, songs=[replace(songs.songs[0], tracks=(*songs.songs[0].tracks, "more")), *songs.songs[1:]])
    with pytest.raises(ValueError, match="equally many"):
        tasks.get("next-step", songs=uneven).prepare()


def test_frames_go_back_to_rolls() -> None:
    frames = Frames((0, 2), 40, 50)
    bits = np.random.default_rng(0).random((3, 7, frames.width)) < 0.3
    full = frames.full(bits)
    assert full.shape == (3, 7, 2, 128) and np.array_equal(frames.cut(full), bits)
    assert full.sum() == bits.sum() and not full[..., :40].any()


def test_places_stay_within_their_songs() -> None:
    made_songs = [song([60] * n) for n in (3, 8, 5)]
    found = places(made_songs, [0, 1, 2], 16, 1)
    assert [(p.song, p.start) for p in found] == [(1, 0), (2, 0)]
    assert [(p.song, p.start) for p in places(made_songs, [1], 16, 0, 4)] == [(1, s) for s in (0, 4, 8, 12, 16)]
    assert [p.start for part in found[:1] for p in part.parts(4)] == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("melody", "wanted"),
    [([60, 64, 67, 60], ["C", "C"]), ([69, 72, 69, 76], ["Am", "Am"]), ([0, 0, 62, 65], ["N", "Dm"])],
)
def test_chords_are_guessed_from_the_melody(melody: list[int], wanted: list[str]) -> None:
    level = guessed_chords(song(melody))["chord"]
    assert [level.names[level.values[8 * i]] for i in range(len(melody) // 2)] == wanted
    assert not level.from_target and "guessed" in level.source


def test_guessed_chords_move_with_the_melody_and_know_silence() -> None:
    low, high = (guessed_chords(song([60 + s, 64 + s, 67 + s, 60 + s] * 2))["chord"] for s in (0, 5))
    assert np.array_equal(np.roll(TABLE[low.values], 5, axis=1), TABLE[high.values])
    assert not guessed_chords(song([0, 0]))["chord"].values.any()
    held = guessed_chords(song([60, 64, 0, 0]))["chord"]
    assert (held.values == held.values[0]).all()  # silence keeps the chord
    bare = song([60])
    assert guessed_chords(replace(bare, levels={})) == {}
    now, later = (guessed_chords(song([60, 64, 69, 72, 62, 65]), late)["chord"].values for late in (0, 1))
    assert np.array_equal(later[8:], now[:-8]) and not later[:8].any()


def test_the_threshold_with_the_best_f1() -> None:
    target = np.array([[[True, False, True, False]]])
    assert best_threshold(np.array([[[0.45, 0.35, 0.55, 0.1]]]), target, (0.2, 0.4, 0.5)) == 0.4
