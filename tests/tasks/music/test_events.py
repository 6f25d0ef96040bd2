"""Songs become rows of events and come back; the automaton and the vectorised clock agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import events, tokens
from relpos.tasks.music.grammar import State
from relpos.tasks.music.song import Level, Song

METERS = [(4, 4), (3, 4), (6, 8), (5, 4), (7, 8), (2, 2), (1, 4), (12, 8)]


@st.composite
def songs(draw: st.DrawFn, velocity: bool = False) -> Song:
    """Any song: some meters, a pick-up or none, a last bar that may be cut, 1 to 4 tracks of which one may be drums."""
    grid = draw(st.sampled_from([4, 6, 12]))
    known = [(n, d) for n, d in METERS if n * 4 * grid % d == 0]
    meters, bars, tick = [], [], 0
    for index in range(draw(st.integers(1, 3))):
        numerator, denominator = draw(st.sampled_from(known))
        whole = n if (n := numerator * 4 * grid // denominator) else 1
        meters.append((tick, numerator, denominator))
        for bar in range(draw(st.integers(1, 3))):
            ticks = draw(st.integers(1, whole)) if bar == 0 and index == 0 else whole
            bars.append(np.full(ticks, len(bars)))
            tick += ticks
    bars[-1] = bars[-1][: draw(st.integers(1, len(bars[-1])))]
    label = np.concatenate(bars)
    tracks = draw(st.integers(1, 4))
    note = st.tuples(
        st.integers(0, len(label) - 1), st.integers(1, 100), st.integers(0, 127), st.integers(0, tracks - 1)
    )
    drawn = draw(st.lists(note, max_size=25, unique_by=lambda n: (n[0], n[2], n[3])))
    loud = [4 * draw(st.integers(0, 31)) + 2 if velocity else 80 for _ in drawn]
    rows = sorted(((*n, v) for n, v in zip(drawn, loud, strict=True)), key=lambda n: (n[0], n[3], n[2]))
    return Song(
        name="drawn",
        ticks=len(label),
        ticks_per_quarter=grid,
        tracks=tuple(f"t{i}" for i in range(tracks)),
        notes=np.array(rows, dtype=np.int64).reshape(-1, 5),
        levels={"bar": Level(label)},
        meters=tuple(meters),
        drums=(tracks - 1,) if draw(st.booleans()) else (),
    )


@given(songs(velocity=True), st.booleans(), st.booleans())
def test_a_song_comes_back_note_for_note_and_bar_for_bar(song: Song, ordered: bool, velocity: bool) -> None:
    lead = 0 if ordered else None
    back = events.decode(
        events.encode(song, lead, velocity),
        song.ticks_per_quarter,
        lead,
        velocity,
        like=song,
    )
    columns = 5 if velocity else 4
    np.testing.assert_array_equal(back.notes[:, :columns], song.notes[:, :columns])
    np.testing.assert_array_equal(back.levels["bar"].values, song.levels["bar"].values)
    assert (back.ticks, back.drums) == (song.ticks, song.drums)
    thinned = [m for i, m in enumerate(song.meters) if not i or m[1:] != song.meters[i - 1][1:]]
    assert back.meters == tuple(thinned)


@given(songs(), st.booleans())
def test_the_clock_is_that_of_the_automaton(song: Song, ordered: bool) -> None:
    lead = 0 if ordered else None
    row = events.encode(song, lead)
    clock = events.clock(row, song, song.ticks_per_quarter)
    state = State(song.ticks_per_quarter, lead)
    ticks, bars = [], []
    for token in row.tolist():
        state.advance(token)
        ticks.append(state.tick)
        bars.append(max(len(state.bars) - 1, 0))
    cut = (row >= tokens.CUT) & (row < tokens.POSITION)
    np.testing.assert_array_equal(clock["time"], ticks)
    np.testing.assert_array_equal(clock["bar"], bars)
    assert (clock["beat"][(row < tokens.BAR) | cut] >= 0).all()
    np.testing.assert_array_equal(clock["index"], np.arange(len(row)))


def test_the_clock_names_track_and_levels() -> None:
    notes = np.array([[0, 4, 60, 0, 80], [4, 4, 62, 1, 80]])
    section = Level(np.array([7] * 4 + [9] * 12))
    song = Song("s", 16, 4, ("a", "b"), notes, {"section": section})
    row = events.encode(song)
    clock = events.clock(row, song)
    words = [tokens.text(t) for t in row.tolist()]
    assert words == [
        "BEGIN", "BAR 4/4", "POSITION 0", "TRACK 0", "PITCH 60", "LENGTH 4",
        "POSITION 4", "TRACK 1", "PITCH 62", "LENGTH 4", "END",
    ]  # fmt: skip
    assert clock["track"].tolist() == [-1, -1, -1, 0, 0, 0, -1, 1, 1, 1, 1]
    assert clock["section"].tolist() == [7] * 6 + [9] * 5
    assert clock["beat"].tolist() == [0] * 6 + [4] * 5


def test_lengths_of_any_size_are_exact() -> None:
    for ticks in (1, 31, 32, 33, 64, 65, 1000):
        song = Song("s", 16, 4, ("a",), np.array([[3, ticks, 60, 0, 80]]))
        assert events.decode(events.encode(song)).notes[0, 1] == ticks


def test_of_equal_notes_the_longest_is_kept() -> None:
    song = Song("s", 16, 4, ("a",), np.array([[0, 2, 60, 0, 80], [0, 9, 60, 0, 80]]))
    assert events.decode(events.encode(song)).notes.tolist() == [[0, 9, 60, 0, 80]]


@given(songs(), st.integers(-20, 20))
def test_transposition_moves_pitches_and_no_drum(song: Song, semitones: int) -> None:
    row = events.encode(song)
    pitches = np.array([n[2] for n in song.notes.tolist() if n[3] not in song.drums])
    if len(pitches) and not 0 <= pitches.min() + semitones <= pitches.max() + semitones <= 127:
        with pytest.raises(ValueError, match="transpose by less"):
            tokens.transpose(row, semitones)
        return
    moved = events.decode(tokens.transpose(row, semitones), song.ticks_per_quarter, like=song)
    expected = song.notes[:, 2] + np.where(np.isin(song.notes[:, 3], song.drums), 0, semitones)
    np.testing.assert_array_equal(np.sort(moved.notes[:, 2]), np.sort(expected))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([tokens.BAR], "may not stand at the beginning"),
        ([tokens.BEGIN, tokens.POSITION], "token 1: POSITION 0 may not stand after BEGIN"),
        ([tokens.BEGIN, tokens.bar(3, 4), tokens.POSITION + 12], "POSITION 12"),
        ([tokens.BEGIN, tokens.bar(4, 4), tokens.POSITION + 4, tokens.TRACK], "in the middle of a note"),
        (
            [tokens.BEGIN, tokens.bar(4, 4), tokens.POSITION + 4, tokens.TRACK, tokens.PITCH + 60, tokens.LENGTH,
             tokens.POSITION + 3],
            "token 6: POSITION 3 may not stand after LENGTH at tick 4",
        ),
        (
            [tokens.BEGIN, tokens.bar(4, 4), tokens.POSITION, tokens.TRACK, tokens.PITCH + 60, tokens.LENGTH,
             tokens.PITCH + 60],
            "PITCH 60",
        ),
    ],
)  # fmt: skip
def test_rows_that_mean_nothing_are_refused_with_their_place(row: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        events.decode(row)


def test_what_the_vocabulary_does_not_hold_is_refused() -> None:
    empty = np.zeros((0, 5), dtype=np.int64)
    with pytest.raises(ValueError, match="17 tracks"):
        events.encode(Song("s", 16, 4, ("t",) * 17, empty))
    with pytest.raises(ValueError, match="1 to 96"):
        events.encode(Song("s", 300, 64, ("t",), empty))
    with pytest.raises(ValueError, match="beyond its last tick"):
        events.encode(Song("s", 16, 4, ("t",), np.array([[16, 1, 60, 0, 80]])))
    with pytest.raises(ValueError, match="33/4"):
        tokens.bar(33, 4)


def test_every_token_has_a_text_and_a_family() -> None:
    texts = [tokens.text(t) for t in range(tokens.VOCABULARY)]
    assert len(set(texts)) == tokens.VOCABULARY
    assert tokens.family(tokens.LENGTH) == ("LENGTH", 1)
    with pytest.raises(ValueError, match="tokens are 0 to"):
        tokens.family(tokens.VOCABULARY)
