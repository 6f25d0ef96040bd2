"""Songs to rolls and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import midifile, rolls
from relpos.tasks.music.song import Song

NOTES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(50, 54), st.integers(0, 1), st.just(80)), max_size=40
)


@given(NOTES)
def test_every_note_comes_back_with_onsets_and_repeated_ones_are_merged_without(given_notes: list[tuple]) -> None:
    notes = midifile.tidy(np.array(given_notes, dtype=np.int64).reshape(-1, 5))
    song = Song("s", 50, 4, ("a", "b"), notes)
    np.testing.assert_array_equal(rolls.notes(song.roll(), song.onsets()), notes)
    merged = rolls.notes(song.roll())
    again = Song("t", 50, 4, ("a", "b"), merged)
    np.testing.assert_array_equal(again.roll(), song.roll())
    ends = {(on + length, pitch, track) for on, length, pitch, track, _ in notes.tolist()}
    repeated = sum((on, pitch, track) in ends for on, _, pitch, track, _ in notes.tolist())
    assert len(merged) == len(notes) - repeated


def test_rolls_of_the_wrong_shape_are_refused_and_silence_is_no_notes() -> None:
    assert rolls.notes(np.zeros((0, 2, 128), dtype=bool)).shape == (0, 5)
    assert rolls.notes(np.zeros((4, 0, 128)), np.zeros((4, 0, 128))).shape == (0, 5)
    onsets = np.ones((3, 1, 128))
    assert len(rolls.notes(np.zeros((3, 1, 128)), onsets)) == 0
    with pytest.raises(ValueError, match=r"got \(3, 128\)"):
        rolls.notes(np.zeros((3, 128)))
    with pytest.raises(ValueError, match=r"got \(4, 1, 128\) and onsets \(3, 1, 128\)"):
        rolls.notes(np.zeros((4, 1, 128)), onsets)
