"""POP909: the fixture to the bit, damaged and missing files, and the real data where they are present."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks.music import pop909, pop909_files, pop909_windows, sets
from relpos.tasks.music.song import Song
from tests.tasks.music import smf

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = ROOT / "tests" / "golden" / "music_fixture"
LABELS = Path("hierarchical-structure-analysis") / "POP909"
DATA = Path(os.environ.get("RELPOS_POP909") or ROOT.parent / "shared" / "data" / "pop909")
real = pytest.mark.skipif(not DATA.is_dir(), reason="POP909 is not here; RELPOS_POP909 names its folder")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "data"))


def zipped(root: Path, folder: Path) -> Path:
    """The same data as the two archives."""
    folder.mkdir()
    for name, base in (("pop909_main.zip", root), ("hsa_labels.zip", root / LABELS.parent)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file in sorted((base / "POP909").rglob("*")):
                if file.is_file() and "versions" not in file.parts:
                    archive.write(file, file.relative_to(base))
    shutil.copy(root / "startpos.csv", folder)
    return folder


def check_fixture(raws: list[pop909.Raw]) -> None:
    assert [raw.number for raw in raws] == [901, 902, 903]
    with np.load(FIXTURE / "expected.npz") as expected:
        for raw in raws:
            roll, onsets = raw.rolls()
            assert roll.shape == tuple(expected[f"{raw.number}_shape"])
            np.testing.assert_array_equal(np.packbits(roll), expected[f"{raw.number}_roll"])
            np.testing.assert_array_equal(np.packbits(onsets), expected[f"{raw.number}_onset"])
            for key in ("chord", "melody", "section"):
                np.testing.assert_array_equal(getattr(raw, key), expected[f"{raw.number}_{key}"])


def test_fixture_is_reproduced_bit_for_bit_from_folders_and_from_zips(tmp_path: Path) -> None:
    for root in (FIXTURE, zipped(FIXTURE, tmp_path / "zips")):
        raws, vocabulary = pop909.read_raw(root)
        check_fixture(raws)
        with np.load(FIXTURE / "expected.npz") as expected:
            np.testing.assert_array_equal(vocabulary.table, expected["chord_vocab"])
        assert vocabulary.names == ("N", "C", "Am", "F", "G7")


def test_song_on_the_published_grid_has_the_same_roll() -> None:
    raws, vocabulary = pop909.read_raw(FIXTURE)
    for raw in raws:
        song, (roll, onsets) = raw.song(16, vocabulary.names, 1), raw.rolls()
        np.testing.assert_array_equal(song.roll().reshape(raw.ticks, 384).T, roll)
        np.testing.assert_array_equal(song.onsets().reshape(raw.ticks, 384).T, onsets)
        np.testing.assert_array_equal(song.levels["section"].values, raw.section)
        np.testing.assert_array_equal(song.levels["chord"].values, raw.chord)


@pytest.mark.parametrize("ticks", [1, 2, 4, 8])
def test_coarser_grids_keep_notes_and_labels_together(ticks: int) -> None:
    """On every grid a note begins under the label, and in the bar, that it begins under on the published one."""
    step = 16 // ticks
    for fine, song in zip(pop909.load(FIXTURE, 16), pop909.load(FIXTURE, ticks), strict=True):
        assert song.ticks_per_quarter == ticks and song.programs == (0, 0, 0)
        at = fine.notes[:, 0]
        coarse = (at + step // 2) // step
        np.testing.assert_array_equal(np.unique(song.notes[:, 0]), np.unique(coarse))
        exact = at % step == 0  # what the grid can hold
        for level in ("section", "bar"):
            np.testing.assert_array_equal(
                fine.levels[level].values[at[exact]], song.levels[level].values[coarse[exact]], err_msg=level
            )


def test_levels_of_a_song_say_where_they_come_from() -> None:
    by_name = {song.name: song for song in pop909.load(FIXTURE, 4)}
    levels = by_name["902"].levels
    assert set(levels) == {"bar", "beat", "tempo", "section", "chord", "melody"}
    assert [name for name, level in levels.items() if level.from_target] == ["chord"]
    assert levels["section"].source == "annotation by hand, annotator 1"
    assert levels["tempo"].names[levels["tempo"].values[0]] == "120 and more"
    # the labels begin a quarter after the first note: a pick-up of four ticks
    assert by_name["902"].meters == ((0, 4, 16), (4, 4, 4)) and levels["beat"].values[:5].tolist() == [
        12,
        13,
        14,
        15,
        0,
    ]
    assert levels["bar"].values[[0, 3, 4, 19, 20]].tolist() == [0, 0, 1, 1, 2]
    second = pop909.load(FIXTURE, 4, annotator=2, songs=[902])[0]
    assert "annotator 2" in second.levels["section"].source


def test_cache_gives_the_same_songs_and_notices_changes(copy: Path) -> None:
    first, again = pop909.load(copy), pop909.load(copy)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    (copy / LABELS / "901" / "human_label1.txt").write_text("A13")
    with pytest.warns(UserWarning, match="again: files"):
        changed = pop909.load(copy)
    assert (changed[0].levels["section"].values[:-4] == 26).all() and same(changed[1], first[1])


def same(a: Song, b: Song) -> bool:
    plain = ("name", "ticks", "ticks_per_quarter", "tracks", "tempos", "meters", "programs", "drums", "group")
    return (
        all(getattr(a, key) == getattr(b, key) for key in plain)
        and np.array_equal(a.notes, b.notes)
        and list(a.levels) == list(b.levels)
        and all(
            np.array_equal(x.values, y.values)
            and (x.names, x.source, x.from_target) == (y.names, y.source, y.from_target)
            for x, y in zip(a.levels.values(), b.levels.values(), strict=True)
        )
    )


def made(root: Path, start: int, times: list[tuple[int, int]]) -> Path:
    """A data set of one song: a note of the melody at each (begin, end) of 480 a quarter, one bar of A and one of B."""
    events, at = [(0, smf.name("MELODY"))], 0
    for begin, end in times:
        events += [(begin - at, smf.on(0, 60)), (end - begin, smf.off(0, 60))]
        at = end
    (root / "POP909" / "001").mkdir(parents=True)
    (root / "POP909" / "001" / "001.mid").write_bytes(smf.file(1, 480, smf.track(*events)))
    labels = root / LABELS / "001"
    labels.mkdir(parents=True)
    texts = {"human_label1": "A1B1", "melody": "60 32", "tempo": "90", "finalized_chord": "C:maj [0, 4, 7] 0 8 "}
    for name, text in texts.items():
        (labels / f"{name}.txt").write_text(text)
    (root / "startpos.csv").write_text(f"ID,Position,Beats\n1,{start},0\n")
    return root


def test_times_go_to_the_nearest_tick_and_of_two_to_the_even_one(tmp_path: Path) -> None:
    times = [(0, 30), (44, 60), (75, 104), (105, 106), (135, 164), (166, 200)]  # ticks of 30: 1.5 and 2.5, 3.5, 4.5
    raw = pop909.read_raw(made(tmp_path, 0, times))[0][0]
    assert raw.notes[:, :2].tolist() == [[0, 1], [1, 1], [2, 1], [4, 0], [4, 1], [6, 1]]
    roll, onsets = raw.rolls()
    assert roll[60].tolist() == [1, 1, 1, 0, 1, 0, 1, 0] and onsets[60].tolist() == [1, 1, 1, 0, 1, 0, 1, 0]
    song = raw.song(16, ("N",), 1)
    assert song.notes[:, :2].tolist() == [[0, 1], [1, 1], [2, 1], [4, 1], [6, 1]]  # two on one tick are one


@pytest.mark.parametrize("start", [0, 8, 9, 10, 11])
def test_notes_on_a_bar_line_stay_on_it_on_the_coarse_grid(tmp_path: Path, start: int) -> None:
    line = 30 * (start + 64)  # where B begins
    root = made(tmp_path, start, [(0, 30), (line - 300, line - 270), (line, line + 30), (line + 300, line + 1980)])
    song = pop909.load(root, 4)[0]
    before, on, _ = song.notes[1:, 0].tolist()
    section = song.levels["section"]
    assert [section.names[section.values[tick]] for tick in (before, on - 1, on)] == ["A", "A", "B"]
    assert (
        song.levels["beat"].values[on] == 0 and song.levels["bar"].values[on] == song.levels["bar"].values[on - 1] + 1
    )


# --- traps and damage -------------------------------------------------------------------------------------------------


def test_traps_of_the_chord_files() -> None:
    text = (
        b"C:maj [0, 4, 7] 0 4 \n"
        b"N [] 3 \n"
        b"N [10] 18 2 \n"
        b"Ab:maj/3 [0, 3, 8] 8 4 2 \n"  # a bass as a fourth number
        b"F:sus4\x0b(b7)\x1c [0, 5, 10] 5 2\r\n"  # control characters, which some would take for line ends
    )
    assert pop909_files.chord_lines(text, "x") == [
        ((1, (0, 4, 7)), 4),
        ((0, ()), 3),
        ((0, ()), 2),
        ((9, (0, 3, 8)), 4),
        ((6, (0, 5, 10)), 2),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("finalized_chord.txt", "C:maj [0, 4, 7] 0 4 \nC:maj 0 4", r"finalized_chord\.txt, line 2"),
        ("finalized_chord.txt", "C:maj [0, 4, 7] 12 4 ", r"finalized_chord\.txt, line 1"),
        ("finalized_chord.txt", "C:maj [0, 4, 7] 0 ", r"finalized_chord\.txt, line 1"),
        ("melody.txt", "60 4\n\n62 x", r"melody\.txt, line 3: '62 x'"),
        ("melody.txt", "128 4", r"melody\.txt, line 1"),
        ("human_label1.txt", "i4A4B", r"human_label1\.txt, line 1: 'i4A4B'"),
        ("tempo.txt", "", r"tempo\.txt, line 1"),
    ],
)
def test_damaged_line_is_reported_with_its_file(copy: Path, name: str, text: str, message: str) -> None:
    (copy / LABELS / "902" / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        pop909.load(copy)
    assert "902" in str(caught.value)


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "pop909_main.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"pop909_main\.zip is damaged"):
        pop909.load(tmp_path)
    whole = zipped(FIXTURE, tmp_path / "whole") / "hsa_labels.zip"
    data = bytearray(whole.read_bytes())
    data[data.find(b"C:maj [0, 4, 7]")] ^= 1
    whole.write_bytes(data)
    with pytest.raises(ValueError, match=r"hsa_labels\.zip/POP909/901/finalized_chord\.txt is damaged"):
        pop909.load(tmp_path / "whole")


def test_damaged_midi_and_startpos_are_reported(copy: Path) -> None:
    (copy / "startpos.csv").write_text("ID,Position,Beats\n901,0,0\n902,,1\n")
    with pytest.raises(ValueError, match=r"startpos\.csv, line 3"):
        pop909.load(copy)
    (copy / "startpos.csv").unlink()
    path = copy / "POP909" / "902" / "902.mid"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"902\.mid is cut off"):
        pop909.load(copy)


@pytest.mark.parametrize("name", ["human_label1.txt", "melody.txt", "tempo.txt", "finalized_chord.txt"])
def test_missing_label_file_is_a_choice(copy: Path, name: str) -> None:
    (copy / LABELS / "902" / name).unlink()
    assert [song.name for song in pop909.load(copy)] == ["901", "903"]
    with pytest.raises(FileNotFoundError, match=name):
        pop909.load(copy, missing="error")
    bare = pop909.load(copy, missing="unlabelled")[1]
    assert bare.name == "902" and "missing" in bare.levels["section"].source
    assert (bare.levels["melody"].values == 0).all() and (bare.levels["section"].values == 23).all()
    with pytest.raises(ValueError, match="missing one of"):
        pop909.load(copy, missing="maybe")


def test_data_without_labels_or_without_offsets(copy: Path, tmp_path: Path) -> None:
    (copy / "startpos.csv").unlink()
    assert "offset unknown" in pop909.load(copy, songs=[901])[0].levels["section"].source
    shutil.rmtree(copy / LABELS.parent)
    with pytest.raises(FileNotFoundError, match="has no labels"):
        pop909.load(copy)
    assert len(pop909.load(copy, missing="unlabelled")) == 3
    with pytest.raises(FileNotFoundError, match="holds neither"):
        pop909.load(tmp_path)
    with pytest.raises(ValueError, match="must divide 16"):
        pop909.load(FIXTURE, 3)
    with pytest.raises(ValueError, match=r"no songs \[5\]"):
        pop909.load(FIXTURE, songs=[5])


def test_chord_table_that_is_given_keeps_its_numbers(copy: Path) -> None:
    table = np.zeros((2, 13))
    table[0, [0, 8, 12, 3, 6]] = 8, 1, 1, 1, 1  # G7: root 7 + 1, tones 7, 11, 2, 5
    np.savez(copy / "chord_db.npz", chord_db=table)
    _, vocabulary = pop909.read_raw(copy)
    assert vocabulary.names[:2] == ("G7", "N") and vocabulary.published == 2
    assert set(vocabulary.names[2:]) == {"C", "Am", "F"}
    assert {song.levels["chord"].names for song in pop909.load(copy, songs=[903])} == {vocabulary.names}


def test_published_split_is_taken_where_it_is_given(copy: Path) -> None:
    assert "split by piece" in sets.load("pop909", path=copy).source
    np.savez(copy / "split.npz", train_idx=[903], val_idx=[901, 1], test_idx=[902])
    found = sets.load("pop909", path=copy)
    assert {side: [song.name for song in found.side(side)] for side in found.split} == {
        "train": ["903"],
        "validation": ["901"],
        "test": ["902"],
    }
    assert "published" in found.source and found.from_target == ("chord",)


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows() -> pop909_windows.Windows:
    return pop909_windows.read(DATA / "pop909_512_compact.npz")


@real
@pytest.mark.slow(5)
def test_published_windows_are_equal_in_every_cell(windows: pop909_windows.Windows) -> None:
    chosen = np.unique(windows.song)[::72].tolist()
    raws, vocabulary = pop909.read_raw(DATA, songs=chosen)
    np.testing.assert_array_equal(vocabulary.table[:395], windows.chord_table)
    compared = 0
    for raw in raws:
        roll, onsets = raw.rolls()
        for index in np.flatnonzero(windows.song == raw.number).tolist():
            part = slice(pop909_windows.HOP * int(windows.part[index]), None)
            part = slice(part.start, part.start + pop909_windows.LENGTH)
            for mine, theirs in ((roll, windows.roll(index)), (onsets, windows.onsets(index))):
                np.testing.assert_array_equal(mine[:, part].T.reshape(-1, 3, 128), theirs)
            for key in ("chord", "melody", "section"):
                np.testing.assert_array_equal(getattr(raw, key)[part], getattr(windows, key)[index])
            compared += 1
    assert len(raws) == 13 and compared > 100


@real
def test_window_file_has_its_split_and_several_windows_at_once(windows: pop909_windows.Windows) -> None:
    assert {side: len(windows.of(side)) for side in windows.split} == {"train": 7667, "validation": 983, "test": 960}
    both = windows.roll(np.array([3, 5]))
    assert both.shape == (2, 513, 3, 128)
    np.testing.assert_array_equal(both[1], windows.roll(5))
    with pytest.raises(ValueError, match="unknown split"):
        windows.of("dev")


def test_another_npz_is_not_taken_for_the_windows(tmp_path: Path) -> None:
    np.savez(tmp_path / "pop909_512_compact.npz", chord=[1])
    with pytest.raises(ValueError, match="it lacks"):
        pop909_windows.read(tmp_path)
