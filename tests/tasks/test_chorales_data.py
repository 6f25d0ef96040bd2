"""Tokens, grouping, splitting, caching and writing of four-part pieces, on invented ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks import cache
from relpos.tasks.music import collection, midi, roll, tunes
from relpos.tasks.music.piece import SILENT, pack, unpack
from tests.tasks import synthetic

# --- the grid and its tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", [1, 2, 3, 31, 257])
def test_tokens_hold_the_whole_grid(ticks: int) -> None:
    piece = synthetic.piece(5, ticks=ticks)
    tokens = roll.encode(piece)
    assert tokens.shape == (4 * (ticks + 1),) and (tokens[:4] == roll.START).all()
    pitch, onset = roll.decode(tokens)
    np.testing.assert_array_equal(pitch, piece.pitch)
    np.testing.assert_array_equal(onset, piece.onset)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 1, 1, 2, 3, 20, 48]), max_size=60))
def test_any_sequence_of_tokens_means_something(tokens: list[int]) -> None:
    pitch, onset = roll.decode(np.array(tokens, dtype=np.int64))
    assert pitch.shape == onset.shape and pitch.shape[0] <= len(tokens) // 4
    assert (pitch[onset] != SILENT).all()
    started = onset | np.vstack([np.zeros((1, 4), bool), pitch[:-1] == pitch[1:]])[: len(pitch)]
    assert (started | (pitch == SILENT)).all(), "a note that nobody struck"


def test_hold_after_nothing_is_silence_and_bad_tokens_are_refused() -> None:
    pitch, onset = roll.decode(np.array([1, 2, 0, 3, 1, 1, 1, 1, 5]))
    np.testing.assert_array_equal(pitch, [[SILENT, SILENT, SILENT, 36]] * 2)
    np.testing.assert_array_equal(onset, [[False, False, False, True], [False] * 4])
    with pytest.raises(ValueError, match="from 0 to 48"):
        roll.decode(np.array([49]))


def test_pitches_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="tune0 has pitches"):
        roll.encode(synthetic.piece(0, shift=20))


def test_transposition_moves_pitches_only_and_stays_within_the_voices() -> None:
    piece = synthetic.piece(1)
    allowed = roll.shifts(piece)
    assert 0 in allowed and allowed == list(range(allowed[0], allowed[-1] + 1)) and -5 <= allowed[0] < allowed[-1] <= 6
    for shift in allowed:
        pitch, onset = roll.decode(roll.transpose(roll.encode(piece), shift))
        np.testing.assert_array_equal(pitch, np.where(piece.pitch == SILENT, SILENT, piece.pitch + shift))
        np.testing.assert_array_equal(onset, piece.onset)
        for voice, (low, high) in enumerate(roll.RANGES):
            sounding = pitch[:, voice][pitch[:, voice] != SILENT]
            assert low <= sounding.min() and sounding.max() <= high


# --- tunes and the split ----------------------------------------------------------------------------------------------


def test_a_tune_is_known_in_every_key_and_under_every_title() -> None:
    pieces = [
        synthetic.piece(1, title="Befiehl du deine Wege", name="a"),
        synthetic.piece(2, title="Nun danket alle Gott", name="b"),
        synthetic.piece(1, shift=3, title="O Haupt voll Blut", name="c"),
        synthetic.piece(3, title="Nun danket alle Gott!", name="d"),
        synthetic.piece(4, name="e"),
        synthetic.piece(5, name="f"),
    ]
    np.testing.assert_array_equal(tunes.groups(pieces), [0, 1, 0, 1, 2, 3])


def test_the_split_is_whole_disjoint_and_keeps_tunes_together() -> None:
    group = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 6, 60))
    sides = tunes.split(group, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(sides.values()))), np.arange(len(group)))
    owners = [set(group[members]) for members in sides.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    assert len(sides["test"]) == len(sides["validation"]) == round(0.1 * len(group))
    again = tunes.split(group, seed=0)
    assert all(np.array_equal(sides[name], again[name]) for name in sides)
    assert not np.array_equal(sides["test"], tunes.split(group, seed=1)["test"])


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_pieces_survive_packing_and_the_cache(cache_folder: Path) -> None:
    pieces = [synthetic.piece(seed, ticks=5 + seed, title="Grüß dich") for seed in range(3)]
    arrays = cache.cached("x", {"kind": "test"}, lambda: pack(pieces))
    again = cache.cached("x", {"kind": "test"}, lambda: pytest.fail("built twice"))
    for arrays_now in (arrays, again):
        assert all(synthetic.same(a, b) for a, b in zip(pieces, unpack(arrays_now), strict=True))
    assert [p.name for p in cache_folder.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "no header", "version"])
def test_a_damaged_or_foreign_cache_is_made_again_with_a_notice(cache_folder: Path, damage: str) -> None:
    header = {"kind": "test", "format": "1"}
    path = cache_folder / "x.npz"
    cache.write(path, header | ({"format": "0"} if damage == "version" else {}), {"a": np.arange(1000)})
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "no header":
        np.savez(path, a=np.arange(1000))
    elif damage != "version":
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flip": flipped, "empty": b"", "text": b"hello"}[damage])
    with pytest.warns(UserWarning, match=r"making .*x\.npz again"):
        arrays = cache.cached("x", header, lambda: {"a": np.arange(3)})
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    np.testing.assert_array_equal(cache.read(path, header)["a"], np.arange(3))


def test_a_failed_write_leaves_the_old_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_folder / "x.npz"
    cache.write(path, {}, {"a": np.arange(3)})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        cache.write(path, {}, {"a": np.arange(4)})
    np.testing.assert_array_equal(cache.read(path, {})["a"], np.arange(3))
    assert [p.name for p in cache_folder.iterdir()] == ["x.npz"]


def test_the_cache_serves_without_music21(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"kind": collection._KIND, "format": collection._FORMAT, "music21": "9.9"}
    cache.write(cache_folder / "chorales.npz", header, pack([synthetic.piece(0)]))
    monkeypatch.setattr(collection, "music21_version", lambda: "")
    assert synthetic.same(collection.load()[0], synthetic.piece(0))


# --- MIDI -------------------------------------------------------------------------------------------------------------


def test_midi_round_trip_with_rests_repeats_and_a_pickup(tmp_path: Path) -> None:
    piece = synthetic.piece(2, ticks=131)
    midi.write(tmp_path / "x.mid", piece.pitch, piece.onset, pickup=4, meter=(3, 4))
    pitch, onset = midi.read(tmp_path / "x.mid")
    np.testing.assert_array_equal(pitch, piece.pitch)
    np.testing.assert_array_equal(onset, piece.onset)


def test_a_midi_file_without_notes_is_refused(tmp_path: Path) -> None:
    midi.write(tmp_path / "x.mid", np.full((4, 4), SILENT), np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="no notes"):
        midi.read(tmp_path / "x.mid")
