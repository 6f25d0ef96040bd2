"""Levels from a meter, a form, a chart, or the notes themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import chords, structure, toy
from relpos.tasks.music.song import Level, Song


def letters(level: Level, every: int = 16) -> str:
    return "".join(structure.SECTIONS[value] for value in level.values[::every])


def song(bars: int, meters: tuple[tuple[int, int, int], ...] = ((0, 4, 4),), ticks: int | None = None) -> Song:
    """A C in every quarter."""
    length = bars * 16 if ticks is None else ticks
    at = np.arange(0, length, 4)
    one = np.ones_like(at)
    return Song("plain", length, 4, ("lead",), np.stack([at, 4 * one, 60 * one, 0 * one, 80 * one], 1), meters=meters)


# --- chords -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbol", "tones"),
    [
        ("C", {0, 4, 7}),
        ("Am", {9, 0, 4}),
        ("F#m7", {6, 9, 1, 4}),
        ("Bb", {10, 2, 5}),
        ("Gsus4", {7, 0, 2}),
        ("Cmaj7", {0, 4, 7, 11}),
        ("Ddim", {2, 5, 8}),
        ("C/E", {0, 4, 7}),
        ("Cb", {11, 3, 6}),
        ("A:min7", {9, 0, 4, 7}),
        ("E-7/B", {4, 7, 11, 2}),
        ("N", set()),
    ],
)
def test_chord_symbols_mean_their_tones(symbol: str, tones: set[int]) -> None:
    assert set(np.flatnonzero(chords.TABLE[chords.chord(symbol)])) == tones


def test_every_chord_of_the_vocabulary_reads_its_own_name_and_is_named_by_its_tones() -> None:
    assert len(set(chords.NAMES)) == len(chords.NAMES) == len(chords.TABLE) == 1 + 12 * len(chords.QUALITIES)
    for number, name in enumerate(chords.NAMES):
        assert chords.chord(name) == number
        if number:
            root = (number - 1) // len(chords.QUALITIES)
            assert chords.name(root, set(np.flatnonzero(chords.TABLE[number]))) == name
    assert chords.name(4, {0, 4, 7}) == "C/E" and chords.name(0, {0, 1, 2}) == "C[0 1 2]"


@pytest.mark.parametrize("bad", ["H", "c", "Cfoo", "C/", "C/H", "", "Am 7", "N7", "#"])
def test_unknown_chords_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        chords.chord(bad)


def test_chart_is_read_by_bars_and_lines() -> None:
    named = [[chords.NAMES[c] for c in bar] for bar in chords.chart("# intro\n| C | Am F# |\n% | N  # the end\n||")]
    assert named == [["C"], ["Am", "F#"], ["Am", "F#"], ["N"]]
    assert chords.chart("C Am  F G") == [[chords.chord(c)] for c in ("C", "Am", "F", "G")]
    assert chords.chart("C Am\nF") == [[chords.chord("C"), chords.chord("Am")], [chords.chord("F")]]


def test_unknown_chord_is_reported_with_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "chart.txt"
    path.write_text("C | Am\n\nF | Hm7 G\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"chart\.txt, line 3, column 5: unknown chord 'Hm7'"):
        structure.chart(path, song(4))
    with pytest.raises(ValueError, match="has no chords"):
        structure.chart(" | | ", song(4))


def test_chart_fills_bars_evenly_and_begins_again() -> None:
    level = structure.chart("C | F G | Am Dm Em", song(5))
    names = [level.names[value] for value in level.values]
    assert names[:16] == ["C"] * 16 and names[16:32] == ["F"] * 8 + ["G"] * 8
    assert names[32:48] == ["Am"] * 6 + ["Dm"] * 5 + ["Em"] * 5
    assert names[48:] == names[:32] and not level.from_target
    with pytest.raises(ValueError, match=r"3 bars, plain only 2"):
        structure.chart("C | F | G", song(2))
    with pytest.raises(ValueError, match=r"bar 1 has 17 chords in 16 ticks"):
        structure.chart("C " * 17 + "|", song(1))


def test_chart_and_form_follow_the_bars_of_the_meter() -> None:
    waltz = song(0, ((0, 1, 4), (4, 3, 4)), ticks=28)  # a pick-up and two bars
    assert letters(structure.form("ABC", waltz), 4) == "ABBBCCC"
    assert [chords.NAMES[v] for v in structure.chart("N | C | G", waltz).values[::4]] == ["N", *"CCCGGG"]


# --- forms ------------------------------------------------------------------------------------------------------------


def test_form_with_lengths_and_without() -> None:
    assert letters(structure.form("i1A2B1", song(6))) == "iAABxx"
    assert letters(structure.form("AABA", song(8))) == "AAAABBAA"
    assert letters(structure.form("ABC", song(7))) == "AAABBCC"
    level = structure.form("AB", song(2))
    assert level.values.tolist() == [26] * 16 + [27] * 16 and not level.from_target


@given(st.text("ABi", min_size=1, max_size=9), st.integers(0, 60))
def test_evenly_divided_sections_differ_by_one_bar_at_most(form: str, more: int) -> None:
    count = len(form) + more
    found = structure.form_bars(form, count)
    assert len(found) == count
    ends = [structure.form_bars("".join(chr(65 + i) for i in range(len(form))), count)]
    sizes = np.bincount(ends[0] - 26)
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == len(form)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("A4A4B4", "12 bars long, the piece only 8"),
        ("AABACADAB", "9 sections, the piece only 8 bars"),
        ("A4B", "section B has no length"),
        ("A4B0", "section B has no length"),
        ("A-B", "not written as"),
        ("", "not written as"),
        ("4A", "not written as"),
    ],
)
def test_bad_forms_are_refused(form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure.form(form, song(8))


def test_labels_of_the_wrong_length_are_refused() -> None:
    assert structure.per_bar([3, 4], song(2)).values.tolist() == [3] * 16 + [4] * 16
    with pytest.raises(ValueError, match=r"plain has 2 bars, got 3 labels"):
        structure.per_bar([1, 2, 3], song(2))
    with pytest.raises(ValueError, match=r"'section' has \(5,\) labels for 32 ticks"):
        structure.with_levels(song(2), {"section": Level(np.zeros(5, dtype=np.int64))})


# --- read off the notes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bars", "form"), [(4, "AABA"), (8, "AABA"), (4, "AABAC"), (8, "ABACA")])
def test_form_of_toy_songs_is_found(bars: int, form: str) -> None:
    for made in toy.make(10, seed=3, form=form, bars=bars).songs:
        found = structure.sections(made)
        assert letters(found, 16 * bars) == form, made.name
        np.testing.assert_array_equal(found.values, made.levels["section"].values)
        assert found.from_target and "estimated" in found.source and f"phrases of {bars} bars" in found.source


def test_estimate_keeps_to_the_bars_after_a_pick_up_and_does_not_hear_drums() -> None:
    made = toy.make(1, seed=5, bars=4).songs[0]
    notes = made.notes.copy()
    notes[:, 0] += 4
    drums = np.array([[t, 1, 36 + t % 7, 2, 90] for t in range(0, made.ticks, 3)])
    moved = replace(
        made,
        ticks=made.ticks + 4,
        tracks=(*made.tracks, "drums"),
        drums=(2,),
        notes=np.concatenate([notes, drums]),
        meters=((0, 1, 4), (4, 4, 4)),
        levels={},
    )
    assert letters(Level(structure.sections(moved).values[4:]), 64) == "AABA"


@pytest.mark.parametrize("bars", [0, 1, 2, 3, 5, 31])
def test_estimate_of_short_and_uniform_pieces(bars: int) -> None:
    assert set(letters(structure.sections(song(bars)), 1)) <= {"A"}


def test_estimate_of_a_song_without_repetition_names_four_bars_at_a_time() -> None:
    draw = np.random.default_rng(0)
    notes = [(t, 4, int(draw.integers(40, 90)), 0, 80) for t in range(0, 8 * 16, 2)]
    made = Song("free", 128, 4, ("a",), np.array(notes))
    assert letters(structure.sections(made)) == "AAAABBBB"


def test_melody_is_the_highest_note_of_the_named_or_highest_track() -> None:
    notes = np.array([[0, 8, 48, 0, 80], [0, 4, 60, 1, 80], [2, 4, 67, 1, 80], [0, 8, 90, 2, 80]])
    made = Song("m", 8, 4, ("low", "high", "kit"), notes, drums=(2,))
    assert structure.melody(made).values.tolist() == [60, 60, 67, 67, 67, 67, 0, 0]
    assert structure.melody(made, "low").values.tolist() == [48] * 8
    assert structure.melody_track(replace(made, tracks=("The Melody", "high", "kit"))) == 0
    with pytest.raises(ValueError, match="no track 'bass'"):
        structure.melody(made, "bass")
    with pytest.raises(ValueError, match="all its notes are drums"):
        structure.melody(replace(made, drums=(0, 1, 2)))


def test_complete_adds_only_what_is_missing() -> None:
    made = song(8)
    given_form = structure.with_levels(made, {"section": structure.form("AB", made)})
    levels = structure.complete(given_form).levels
    assert set(levels) == {"bar", "beat", "section", "melody"} and levels["section"].source == "form given by hand"
    assert "estimated" in structure.complete(made).levels["section"].source
