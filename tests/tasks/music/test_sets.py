"""Chorales as songs, folders of MIDI files with and without structure beside them, packing and splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import (
    chorales_songs,
    chords,
    collection,
    folder,
    midifile,
    packing,
    sets,
    structure,
    toy,
    tunes,
)
from relpos.tasks.music.piece import SILENT, Piece
from relpos.tasks.music.song import Level, Song
from tests.tasks import synthetic
from tests.tasks.music import smf
from tests.tasks.music.test_pop909 import same


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))


# --- chorales ---------------------------------------------------------------------------------------------------------


def test_chorale_as_song_has_the_same_notes() -> None:
    piece = synthetic.piece(3)
    song = chorales_songs.song(piece, "tune 4")
    assert song.tracks == ("soprano", "alto", "tenor", "bass") and song.group == "tune 4"
    roll, onsets = song.roll(), song.onsets()
    for voice in range(4):
        sounding = np.where(roll[:, voice].any(axis=1), roll[:, voice].argmax(axis=1), SILENT)
        np.testing.assert_array_equal(sounding, piece.pitch[:, voice])
        np.testing.assert_array_equal(onsets[:, voice].any(axis=1), piece.onset[:, voice])


def test_only_the_harmony_of_a_chorale_is_marked_as_of_the_target() -> None:
    levels = chorales_songs.song(synthetic.piece(3)).levels
    assert set(levels) == {"bar", "beat", "phrase", "section", "melody", "chord"}
    assert [name for name, level in levels.items() if level.from_target] == ["chord"]
    other = synthetic.piece(3)
    lower = other.pitch.copy()
    lower[:, 1:] = np.where(lower[:, 1:] == SILENT, SILENT, lower[:, 1:] - 1)
    changed = chorales_songs.song(replace(other, pitch=lower)).levels
    for name in levels:
        assert np.array_equal(levels[name].values, changed[name].values) == (name != "chord"), name


def phrased(*melodies: list[int]) -> Piece:
    """A piece whose soprano sings these quarters, a fermata at the end of each list."""
    pitches = [pitch for melody in melodies for pitch in melody]
    ticks = 4 * len(pitches)
    piece = synthetic.piece(0, ticks=ticks)
    pitch, onset, fermata = piece.pitch.copy(), piece.onset.copy(), np.zeros((ticks, 4), dtype=bool)
    pitch[:, 0], onset[:, 0] = np.repeat(pitches, 4), np.arange(ticks) % 4 == 0
    fermata[4 * (np.cumsum([len(melody) for melody in melodies]) - 1), 0] = True
    return replace(piece, pitch=pitch, onset=onset, fermata=fermata)


def test_phrases_end_with_the_note_under_the_fermata_and_like_ones_share_a_letter() -> None:
    a, b = [60, 62, 64, 65, 67], [72, 71, 72, 69, 67]
    levels = chorales_songs.song(phrased(a, b, [p + 2 for p in a], a, b)).levels
    np.testing.assert_array_equal(levels["phrase"].values, np.repeat(np.arange(5), 20))
    found = "".join(levels["section"].names[value] for value in levels["section"].values[::20])
    assert found == "ABAAB"


def test_pitch_classes_are_those_of_the_quarter() -> None:
    piece = synthetic.piece(6)
    (song,) = chorales_songs.songs([piece])
    level = song.levels["chord"]
    chroma = np.stack([chords.classes(name) for name in level.names])[level.values]
    counts = np.bincount(level.values)[1:]
    assert (counts[:-1] >= counts[1:]).all() and len(set(level.names)) == len(level.names)
    for start in range(0, piece.ticks, 4):
        want = set((piece.pitch[start : start + 4][piece.pitch[start : start + 4] != SILENT] % 12).tolist())
        assert set(np.flatnonzero(chroma[start])) == want and (chroma[start : start + 4] == chroma[start]).all()


def test_meters_of_a_piece_with_a_pick_up() -> None:
    piece = synthetic.piece(1, ticks=40)
    at = np.arange(40)
    moved = replace(piece, beat=((at + 12) % 16).astype(np.int16), bar=((at + 12) // 16).astype(np.int16))
    song = chorales_songs.song(moved)
    assert song.meters == ((0, 1, 4), (4, 4, 4))
    made = structure.metre(song)
    np.testing.assert_array_equal(made["bar"].values, song.levels["bar"].values)


def test_chorales_are_split_as_the_pieces_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = synthetic.pieces()
    monkeypatch.setattr(collection, "load", lambda progress=None: pieces)
    found, whole = sets.load("chorales"), collection.Collection.of(pieces)
    for side, members in whole.split.items():
        np.testing.assert_array_equal(found.split[side], members)
    assert [song.group for song in found.songs] == [f"tune {g}" for g in tunes.groups(pieces)]
    assert found.from_target == ("chord",) and found.sources["phrase"] == "fermatas of the soprano"
    with pytest.raises(ValueError, match="grid of 4 ticks"):
        sets.load("chorales", ticks=8)


# --- a folder of one's own --------------------------------------------------------------------------------------------


def filled(root: Path) -> Path:
    """Six good files in two folders, one broken, one that is no music."""
    for index, song in enumerate(toy.make(6, seed=1).songs):
        midifile.write(root / ("more" if index % 2 else ".") / f"song{index}.mid", song)
    (root / "broken.mid").write_bytes(b"RIFF, a sound and not the notes of it")
    (root / "silent.MID").write_bytes(smf.file(1, 480, smf.track((0, smf.tempo(500_000)))))
    (root / "notes.txt").write_text("not a MIDI file")
    return root


def test_folder_is_read_with_what_is_wrong_named(tmp_path: Path) -> None:
    root = filled(tmp_path / "music")
    seen: list[tuple[int, int, str]] = []
    found = sets.load(root, progress=lambda *told: seen.append(told))
    assert [s.name for s in found.songs] == [
        *(f"more/song{i}.mid" for i in (1, 3, 5)),
        *(f"song{i}.mid" for i in (0, 2, 4)),
    ]
    assert len(found.skipped) == 2 and "broken.mid is not a MIDI" in found.skipped[0]
    assert "silent.MID has no notes" in found.skipped[1] and "2 unreadable" in found.source
    assert seen[-1][:2] == (8, 8) and set(found.levels) == {"bar", "beat", "section", "melody"}
    assert found.from_target == ("section",)
    section = found.songs[3].levels["section"]
    assert "".join(section.names[v] for v in section.values[::64]) == "AABA"
    with pytest.raises(ValueError, match=r"(?s)2 of 8 files.*broken\.mid.*silent\.MID"):
        folder.load(root, strict=True)


def test_folder_comes_from_the_cache_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = filled(tmp_path / "music")
    first, wrong = folder.load(root)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "read", None)
        again, wrong_again = folder.load(root)
    assert wrong == wrong_again and all(same(a, b) for a, b in zip(first, again, strict=True))
    (root / "song0.structure").write_text("form: ABCD\n")
    with pytest.warns(UserWarning, match="again"):
        changed = folder.load(root)[0]
    assert changed[3].levels["section"].source == "form given by hand"


def test_sidecar_gives_form_chords_key_and_group(tmp_path: Path) -> None:
    midifile.write(tmp_path / "a.mid", toy.make(1, bars=1).songs[0])
    (tmp_path / "a.structure").write_text(
        "# mine\n\nform: i1A2o1  # with ends\nchords: C | Am G\nkey: G minor\ngroup: g\n"
    )
    song = folder.read(tmp_path / "a.mid")
    assert "".join(song.levels["section"].names[v] for v in song.levels["section"].values[::16]) == "iAAo"
    assert [chords.NAMES[v] for v in song.levels["chord"].values[::8]] == ["C", "C", "Am", "G", "C", "C", "Am", "G"]
    assert song.levels["key"].names[song.levels["key"].values[0]] == "G minor" and song.group == "g"
    assert not any(level.from_target for level in song.levels.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("form: A2B9", r"a\.structure, line 1: the form 'A2B9' is 11 bars long, the piece only 4"),
        ("# x\nchords: C | Foo", r"a\.structure, line 2, column 13: unknown chord 'Foo'"),
        ("\n\nkey: H", r"a\.structure, line 3: unknown key 'H'"),
        ("speed: 3", r"a\.structure, line 1: 'speed: 3' is not one of form, chords, key, group"),
        ("form:", r"a\.structure, line 1"),
        ("form: AB\nform: AA", r"a\.structure, line 2: form is given twice"),
    ],
)
def test_mistakes_in_a_sidecar_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    midifile.write(tmp_path / "a.mid", toy.make(1, bars=1).songs[0])
    (tmp_path / "a.structure").write_text(text)
    with pytest.raises(ValueError, match=message):
        folder.read(tmp_path / "a.mid")


def test_folders_that_are_none_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        folder.load(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no MIDI files"):
        sets.load(tmp_path)
    (tmp_path / "a.mid").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 1 files"):
        sets.load(tmp_path)
    with pytest.raises(ValueError, match="unknown set of songs 'chorals'"):
        sets.load("chorals")
    with pytest.raises(ValueError, match="say where it lies"):
        sets.load("pop909")


# --- splits and packing -----------------------------------------------------------------------------------------------


def named(groups: list[int]) -> list[Song]:
    note = np.array([[0, 1, 60, 0, 80]])
    return [Song(f"s{i}", 1, 4, ("a",), note, group=f"g{g}" if g else "") for i, g in enumerate(groups)]


@given(st.lists(st.integers(0, 6), min_size=3, max_size=60), st.integers(0, 5))
def test_groups_stay_on_one_side_of_a_split(groups: list[int], seed: int) -> None:
    songs = named(groups)
    split = sets.split_by_group(songs, seed)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(songs)))
    keys = [{songs[i].group or songs[i].name for i in side.tolist()} for side in split.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert all(keys) or len(set().union(*keys)) < 3


def test_split_is_eighty_ten_ten_and_depends_on_the_seed_alone() -> None:
    songs = named([0] * 100)
    split = sets.split_by_group(songs)
    assert {side: len(members) for side, members in split.items()} == {"train": 80, "validation": 10, "test": 10}
    assert all(np.array_equal(split[side], sets.split_by_group(songs)[side]) for side in split)
    assert not np.array_equal(split["test"], sets.split_by_group(songs, 1)["test"])


def test_toy_set_has_its_levels_and_sides() -> None:
    found = sets.load("toy", count=10, bars=2, ticks=2)
    assert len(found.side("train")) == 8 and len(found.side("test")) == 1 and found.from_target == ()
    assert found.songs[0].ticks_per_quarter == 2 and "chord" in found.levels
    with pytest.raises(ValueError, match="unknown split"):
        found.side("dev")


def test_packed_songs_come_back() -> None:
    songs = [*toy.make(3).songs, replace(toy.make(1).songs[0], levels={"x": Level(np.full(256, -3))}, drums=(1,))]
    songs.append(Song("empty", 0, 4, (), np.zeros((0, 5), dtype=np.int64)))
    assert all(same(a, b) for a, b in zip(songs, packing.unpack(packing.pack(songs)), strict=True))
    assert packing.unpack(packing.pack([])) == []
