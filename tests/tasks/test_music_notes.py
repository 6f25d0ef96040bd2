"""Metrics on notes, copies, attention maps and grooves, each against a plain count."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.music.metrics import (
    Library,
    Matches,
    density_ratio,
    histogram_similarity,
    longest_copy,
    match_notes,
    match_onsets,
    monotonicity,
    notes_of,
    onset_duration_histogram,
    onset_pitch_histogram,
    pitch_classes,
    polyphony,
    scale,
    scale_of,
    scale_share,
    share_in_range,
    style_profile,
    style_similarity,
    time_pitch_histogram,
    translation_invariance,
)
from relpos.tasks.music.song import Song


def melody(*pitches: int, step: int = 4, start: int = 0) -> np.ndarray:
    """One note a step, (count, 4)."""
    return np.array([(start + index * step, step, pitch, 0) for index, pitch in enumerate(pitches)])


NOTES = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 5), st.integers(60, 62), st.integers(0, 1)), max_size=7
).map(lambda notes: np.array(notes, dtype=np.int64).reshape(-1, 4))


def brute_matching(one: np.ndarray, other: np.ndarray, allowed) -> int:
    """The largest matching by trying all: small sets only."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    flipped = len(one) > len(other)
    pair = (lambda a, b: allowed(b, a)) if flipped else allowed
    return max(
        sum(pair(a, b) for a, b in zip(small, chosen, strict=True))
        for chosen in itertools.permutations(large, len(small))
    )


def test_notes_of_a_song_come_back_from_its_rolls() -> None:
    notes = np.array([[0, 4, 60, 0, 80], [4, 4, 60, 0, 80], [4, 2, 72, 1, 80], [9, 1, 60, 0, 80]])
    song = Song("a", 12, 4, ("one", "two"), notes)
    np.testing.assert_array_equal(notes_of(song.roll(), song.onsets()), notes[:, :4])
    assert notes_of(song.roll())[0].tolist() == [0, 8, 60, 0]  # without onsets, two notes are one
    np.testing.assert_array_equal(notes_of(song.roll().reshape(12, -1), song.onsets()), notes[:, :4])
    assert len(notes_of(np.zeros((5, 1, 128), dtype=bool))) == 0
    with pytest.raises(TypeError, match="binarise"):
        notes_of(song.roll() * 0.5)


@settings(max_examples=60)
@given(one=NOTES, other=NOTES, tolerance=st.integers(0, 3))
def test_the_matching_of_notes_is_the_largest(one, other, tolerance) -> None:
    def near(a, b) -> bool:
        return a[2] == b[2] and a[3] == b[3] and abs(a[0] - b[0]) <= tolerance

    def ends_near(a, b) -> bool:
        return near(a, b) and abs(a[0] + a[1] - b[0] - b[1]) <= max(0.2 * b[1], 1)

    found = match_notes(one, other, tolerance)
    assert found == Matches(brute_matching(one, other, near), len(one), len(other))
    assert match_notes(one, other, tolerance, length_ratio=0.2).matched == brute_matching(one, other, ends_near)


def test_a_note_is_given_up_where_another_needs_it() -> None:
    """The first target could take either of two notes, the second only the first of them."""
    target = np.array([[2, 2, 60, 0], [0, 2, 60, 0]])
    prediction = np.array([[1, 2, 60, 0], [3, 2, 60, 0]])
    assert match_notes(prediction, target, tolerance=1, length_ratio=0.0).matched == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_matching_of_many_notes_is_the_largest(seed) -> None:
    """A crowd in which most notes have several to choose from, against the textbook's recursion."""
    random = np.random.default_rng(seed)
    prediction, target = (
        np.stack([random.integers(0, 6, 20), random.integers(1, 6, 20), np.full(20, 60), np.zeros(20, int)], axis=1)
        for _ in range(2)
    )
    allowed = [
        [j for j, b in enumerate(prediction) if abs(a[0] - b[0]) <= 1 and abs(a[0] + a[1] - b[0] - b[1]) <= 1]
        for a in target
    ]
    owner: dict[int, int] = {}

    def place(note: int, tried: set[int]) -> bool:
        for candidate in allowed[note]:
            if candidate not in tried:
                tried.add(candidate)
                if candidate not in owner or place(owner[candidate], tried):
                    owner[candidate] = note
                    return True
        return False

    expected = sum(place(note, set()) for note in range(20))
    found = match_notes(prediction, target, tolerance=1, length_ratio=0.0, length_tolerance=1)
    assert found.matched == expected


def test_precision_recall_and_f1() -> None:
    target = melody(60, 62, 64, 65)
    prediction = melody(60, 62, 63, 65, 67)
    found = match_notes(prediction, target)
    assert (found.precision, found.recall) == (3 / 5, 3 / 4)
    assert found.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert match_onsets(prediction, target) == Matches(4, 5, 4)
    nothing = np.zeros((0, 4), dtype=np.int64)
    assert (match_notes(nothing, target).precision, match_notes(target, nothing).recall) == (0, 0)
    assert np.isnan(match_notes(nothing, nothing).f1)
    assert found + match_notes(nothing, target) == Matches(3, 5, 8)
    with pytest.raises(ValueError, match="at least 0"):
        match_notes(target, target, tolerance=-1)
    with pytest.raises(ValueError, match="4 or 5"):
        match_notes(target[:, :3], target)


def test_density_and_polyphony() -> None:
    target = np.zeros((2, 8, 128), dtype=bool)
    target[0, :4, 60] = target[0, 2:4, 64] = True
    prediction = np.zeros_like(target)
    prediction[0, :2, 60] = True
    np.testing.assert_array_equal(density_ratio(prediction, target), [1 / 3, np.nan])
    np.testing.assert_array_equal(density_ratio(prediction, target, of="onsets"), [1 / 2, np.nan])
    np.testing.assert_array_equal(polyphony(target), [1.5, np.nan])
    with pytest.raises(ValueError, match='"cells" or "onsets"'):
        density_ratio(prediction, target, of="notes")


def test_shares_of_scale_and_range() -> None:
    notes = melody(62, 64, 66, 67, 69, 71, 73, 74, 65)  # D major and one f
    assert (scale_of(notes) == scale(2)).all()
    assert (scale(9, "minor") == scale(0)).all()
    assert scale_share(notes, scale(2)) == 8 / 9
    assert scale_share(melody(60, 62), pitch_classes(notes)) == 1 / 2
    assert np.isnan(scale_share(notes[:0], scale(2)))
    notes[0, 3] = 1
    np.testing.assert_allclose(share_in_range(notes, [(64, 71), (0, 60), (0, 127)]), [6 / 8, 0, np.nan])
    with pytest.raises(ValueError, match="track 1"):
        share_in_range(notes, [(0, 127)])
    with pytest.raises(ValueError, match='"major" or "minor"'):
        scale(0, "dorian")
    with pytest.raises(ValueError, match="12"):
        scale_share(notes, np.ones(7))


def test_the_longest_copy() -> None:
    pieces = [melody(60, 62, 64, 65), melody(50, 67, 65, 64, 62, 60, 59, start=100)]
    found = longest_copy(melody(70, 64, 62, 60, 80, start=8), pieces)
    assert (found.ticks, found.events, found.piece, found.tick, found.source_tick) == (9, 3, 1, 12, 112)
    assert found.bars(16) == 9 / 16
    assert longest_copy(melody(64, 62, 60, step=5), pieces).ticks == 1  # another rhythm
    assert longest_copy(melody(65, 63, 62), pieces).ticks == 1
    moved = longest_copy(melody(69, 67, 65), pieces, transposed=True)
    assert (moved.ticks, moved.piece, moved.source_tick) == (9, 1, 112)
    assert longest_copy(melody(90), pieces).piece == -1
    assert longest_copy(np.zeros((0, 4)), []).ticks == 0


def test_a_copy_does_not_run_from_one_piece_into_the_next() -> None:
    assert longest_copy(melody(60, 62), [melody(60), melody(62, start=4)]).events == 1


@given(
    one=st.lists(st.integers(0, 2), max_size=12),
    other=st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=3),
    step=st.integers(1, 3),
)
def test_the_longest_copy_is_the_longest_common_row(one, other, step) -> None:
    longest = max(
        (
            length
            for row in other
            for length in range(len(one) + 1)
            for i in range(len(one) - length + 1)
            for j in range(len(row) - length + 1)
            if one[i : i + length] == row[j : j + length]
        ),
        default=0,
    )
    library = Library([melody(*(60 + p for p in row), step=step) for row in other])
    found = library.longest_copy(melody(*(60 + p for p in one), step=step, start=7))
    assert found.events == longest
    assert found.ticks == (step * (longest - 1) + 1 if longest else 0)


def test_attention_by_lag_alone_is_invariant_and_falls_with_distance() -> None:
    lag = np.arange(40) - np.arange(40)[:, None]
    by_lag = np.exp(0.1 * lag)
    assert translation_invariance(by_lag) == pytest.approx(0)
    assert monotonicity(by_lag) == 0
    assert monotonicity(-by_lag) == 1
    assert translation_invariance(np.ones((3, 2, 5, 5))).tolist() == [[0, 0]] * 3
    assert translation_invariance(np.ones((5, 1)) * np.arange(5)) > 0
    assert np.isnan(monotonicity(np.ones((1, 1))))


@given(
    seed=st.integers(0, 1000),
    n=st.sampled_from([2, 3, 17, 24]),
    first=st.integers(0, 1),
    max_lag=st.sampled_from([None, 0, 1, 4]),
    ties=st.booleans(),
)
def test_attention_metrics_equal_their_definition(seed, n, first, max_lag, ties) -> None:
    random = np.random.default_rng(seed)
    attention = random.integers(0, 3, (2, n, n)) * 1.0 if ties else random.random((2, n, n))
    far = n if max_lag is None else max_lag
    cells = [(i, i - lag) for i in range(first, n) for lag in range(min(i, far) + 1)]
    for one, invariance, disorder in zip(
        attention,
        translation_invariance(attention, first, max_lag),
        monotonicity(attention, first, max_lag),
        strict=True,
    ):
        values = np.array([one[cell] for cell in cells])
        lags = np.array([i - j for i, j in cells])
        means = np.array([values[lags == lag].mean() for lag in lags])
        if values.var():
            assert invariance == pytest.approx(((values - means) ** 2).mean() / values.var())
        pairs = [(i, j, k) for i, j in cells for k in range(j + 1, i + 1)]
        if pairs:
            assert disorder == np.mean([one[i, j] > one[i, k] for i, j, k in pairs])
        else:
            assert np.isnan(disorder)


def test_monotonicity_over_more_rows_than_are_sorted_at_once() -> None:
    attention = np.random.default_rng(0).random((300, 300))
    inverted = sum(
        int((row[: i + 1, None] > row[: i + 1])[np.triu_indices(i + 1, 1)].sum()) for i, row in enumerate(attention)
    )
    assert monotonicity(attention) == inverted / sum(i * (i + 1) // 2 for i in range(300))


def test_bad_attention_raises() -> None:
    with pytest.raises(ValueError, match=r"\(.., n, n\)"):
        monotonicity(np.ones((3, 4)))
    with pytest.raises(ValueError, match="first_query"):
        translation_invariance(np.ones((3, 3)), first_query=3)
    with pytest.raises(ValueError, match="max_lag"):
        monotonicity(np.ones((3, 3)), max_lag=-1)
    masked = np.where(np.tri(3, dtype=bool), 1.0, -np.inf)
    assert monotonicity(masked) == 0  # what a query may not see is not read
    with pytest.raises(ValueError, match="not finite"):
        monotonicity(-masked.T)


GROOVES = st.lists(st.tuples(st.integers(0, 200), st.integers(50, 80), st.integers(1, 40)), max_size=30).map(
    lambda notes: np.array(notes, dtype=np.int64).reshape(-1, 3)
)


@given(notes=GROOVES, ticks_per_beat=st.sampled_from([4, 12, 16]))
def test_groove_histograms_equal_those_of_numpy(notes, ticks_per_beat) -> None:
    sixths = np.arange(0, 25) / 6
    beats = notes / ticks_per_beat
    pairs = [(q, r) for q in range(len(notes)) for r in range(len(notes)) if q != r]
    pairs = [(q, r) for q, r in pairs if 0 <= notes[r, 0] - notes[q, 0] < 4 * ticks_per_beat]
    intervals = [notes[r, 1] - notes[q, 1] for q, r in pairs]
    times = [(notes[r, 0] - notes[q, 0]) / ticks_per_beat + 1e-9 for q, r in pairs]
    expected, *_ = np.histogram2d(intervals, times, bins=[np.arange(-20.5, 21), sixths])
    np.testing.assert_array_equal(time_pitch_histogram(notes, ticks_per_beat), expected)

    in_bar = beats[:, 0] % 4 + 1e-9
    lengths = np.where(beats[:, 2] == 2, 2, beats[:, 2] + 1e-9)
    expected, *_ = np.histogram2d(in_bar, lengths, bins=[sixths, sixths[:13]])
    np.testing.assert_array_equal(onset_duration_histogram(notes, ticks_per_beat), expected)
    expected, *_ = np.histogram2d(in_bar, notes[:, 1], bins=[sixths, np.arange(129) - 0.5])
    np.testing.assert_array_equal(onset_pitch_histogram(notes, ticks_per_beat), expected)

    ticks = notes[:, 0] % (4 * ticks_per_beat)  # as if they were beats
    expected, *_ = np.histogram2d(ticks, lengths, bins=[sixths, sixths[:13]])
    np.testing.assert_array_equal(onset_duration_histogram(notes, ticks_per_beat, as_released=True), expected)


def test_similarity_of_styles_by_quarters_of_the_time() -> None:
    bar = np.array([[0, 60, 12], [12, 64, 12], [24, 67, 12], [36, 64, 12]])
    reference = np.concatenate([bar + [48 * index, 0, 0] for index in range(4)])
    other = reference.copy()
    other[8:, 0] += 3  # off the beat from the middle on
    other[8:, 1] = 60
    same = style_similarity(reference, reference, 12)
    assert set(same) == {"time-pitch", "onset-duration"}
    np.testing.assert_allclose(same["onset-duration"], 1)
    assert (same["time-pitch"] > 0.5).all()  # a bar alone has no pairs across the bar line
    np.testing.assert_allclose(style_similarity(other, reference, 12, ticks=192)["onset-duration"], [1, 1, 0, 0])
    drums = style_similarity(reference[:8], reference, 12, ticks=192, drums=True)
    np.testing.assert_allclose(drums["onset-pitch"], [1, 1, np.nan, np.nan])
    assert set(style_profile(reference, 12, drums=True)) == {"onset-pitch"}
    assert histogram_similarity(np.array([1, 0]), np.array([1, 1])) == pytest.approx(0.5**0.5)
    assert np.isnan(style_similarity(reference[:0], reference, 12)["time-pitch"]).all()


def test_bad_notes_of_a_groove_raise() -> None:
    with pytest.raises(ValueError, match="count, 3"):
        time_pitch_histogram(np.zeros((2, 4)), 12)
    with pytest.raises(ValueError, match="at least 1"):
        time_pitch_histogram(np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="beginning of a bar"):
        onset_duration_histogram(np.array([[-1, 60, 1]]), 12)
