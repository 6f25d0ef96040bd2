"""CS, SSMD, GS and NDD: the released values, and the laws that each definition keeps."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music.metrics import (
    DEFINITIONS,
    binarise,
    chroma_similarity,
    fill_gaps,
    grooving_similarity,
    mean_squared_error,
    note_density_distance,
    self_similarity_distance,
    top_rows,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "music_metrics.npz"
RELEASED = [
    (chroma_similarity, "2024", "chroma_similarity"),
    (self_similarity_distance, "2024", "ssmd"),
    (grooving_similarity, "2024", "grooving_hist_overlap"),
    (note_density_distance, "2024", "ndd_abs"),
    (chroma_similarity, "2025", "v2_cs"),
    (self_similarity_distance, "2025", "v2_ssmd_x100"),
    (grooving_similarity, "2025", "v2_gs"),
    (note_density_distance, "2025", "v2_ndd_missing_pct"),
    (self_similarity_distance, "2026", "v3_ssmd_half"),
    (chroma_similarity, "2026", "v2_cs"),
    (grooving_similarity, "2026", "v2_gs"),
    (note_density_distance, "2026", "v2_ndd_missing_pct"),
]
METRICS = (chroma_similarity, self_similarity_distance, grooving_similarity, note_density_distance)


def golden_rolls(task: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        shape = arrays[f"{task}_shape"]
        bits = [np.unpackbits(arrays[f"{task}_{which}_bits"])[: shape.prod()] for which in ("pred", "tgt")]
    return bits[0].reshape(shape).astype(bool), bits[1].reshape(shape).astype(bool)


def music(batch: int = 2, ticks: int = 128, tracks: int = 1, seed: int = 0, grid: int = 4) -> np.ndarray:
    """Notes of a grid step or two at random, with something struck in each half bar."""
    random = np.random.default_rng(seed)
    rolls = np.zeros((batch, ticks, tracks, 128), dtype=bool)
    for roll in rolls:
        for start in range(0, ticks, grid):
            if random.random() < 0.6 or start % 32 == 0:
                pitch = random.integers(40, 80)
                roll[start : start + grid * random.integers(1, 3) - 1, random.integers(tracks), pitch] = True
    return rolls


@pytest.mark.parametrize("task", ["acc", "ntp"])
@pytest.mark.parametrize(("metric", "definition", "name"), RELEASED)
@pytest.mark.parametrize("kind", [bool, np.float64])
def test_values_are_the_released_ones(metric, definition, name, task, kind) -> None:
    prediction, target = golden_rolls(task)
    score = metric(prediction.astype(kind), target.astype(kind), definition)
    with np.load(GOLDEN) as arrays:
        np.testing.assert_allclose(score.values, arrays[f"{task}_{name}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["acc", "ntp"])
def test_error_of_cells_is_the_released_one(task) -> None:
    with np.load(GOLDEN) as arrays:
        expected = arrays[f"{task}_mse"]
    prediction, target = golden_rolls(task)
    np.testing.assert_allclose(mean_squared_error(prediction, target), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(mean_squared_error(prediction * 1.0, target), expected, rtol=0, atol=1e-15)


def test_binarised_rolls_are_the_released_ones() -> None:
    with np.load(GOLDEN) as arrays:
        chances = 1 / (1 + np.exp(-arrays["bin_logits"]))
        for name, options in {
            "bin_thr05": {"threshold": 0.5},
            "bin_thr06": {"threshold": 0.6},
            "bin_merge_thr06_s2": {"threshold": 0.6, "gap": 2},
            "bin_merge_thr06_s4": {"threshold": 0.6, "gap": 4},
        }.items():
            np.testing.assert_array_equal(binarise(chances, **options), arrays[name].astype(bool), err_msg=name)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("ticks", [1, 2, 31, 33, 128, 257])
def test_a_perfect_copy(definition, ticks) -> None:
    rolls = music(batch=1, ticks=ticks)
    assert chroma_similarity(rolls, rolls, definition, undefined="skip").values == pytest.approx(100)
    assert self_similarity_distance(rolls, rolls, definition).values == 0
    assert note_density_distance(rolls, rolls, definition).values == 0
    groove = grooving_similarity(rolls, rolls, definition)
    assert groove.values == pytest.approx(groove.units / 20 if definition == "2024" else 100)


def test_half_bars_without_onsets_are_reported() -> None:
    rolls = music(batch=1, ticks=128)
    rolls[:, 32:96] = False
    released, later = chroma_similarity(rolls, rolls, "2024"), chroma_similarity(rolls, rolls, "2025")
    assert released.units == 4
    assert released.undefined.tolist() == later.undefined.tolist() == [2]
    assert released.values == pytest.approx(50)  # as published: two of the four count as 0
    assert later.values == pytest.approx(100)
    assert later.undefined_share == 0.5


def test_onsets_on_one_side_only_score_zero() -> None:
    rolls = music(batch=1, ticks=64)
    half = rolls.copy()
    half[:, 32:] = False
    score = chroma_similarity(half, rolls, "2025")
    assert score.undefined.tolist() == [0]
    assert score.values == pytest.approx(50)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_silence(definition) -> None:
    rolls, silence = music(), np.zeros((2, 128, 1, 128), dtype=bool)
    assert (chroma_similarity(silence, rolls, definition).values == 0).all()
    assert (self_similarity_distance(silence, rolls, definition).values > 0).all()
    if definition != "2024":
        np.testing.assert_allclose(note_density_distance(silence, rolls, definition).values, 100)
        assert np.isnan(note_density_distance(rolls, silence, definition).values).all()
        assert np.isnan(note_density_distance(rolls, silence, definition).mean)
    both = chroma_similarity(silence, silence, "2025")
    assert np.isnan(both.values).all()
    assert both.undefined.tolist() == [4, 4]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_an_octave_changes_cells_but_no_chroma(definition) -> None:
    rolls = music()
    higher = np.roll(rolls, 12, axis=-1)
    np.testing.assert_allclose(chroma_similarity(higher, rolls, definition).values, 100)
    np.testing.assert_allclose(self_similarity_distance(higher, rolls, definition).values, 0, atol=1e-12)
    assert (mean_squared_error(higher, rolls) > 0).all()


def test_music_a_bar_late() -> None:
    bar = music(batch=1, ticks=64)
    rolls = np.concatenate([bar] * 4, axis=1)  # the same bar four times: late by a bar, only the first is missing
    late = np.concatenate([np.zeros_like(bar), rolls[:, :-64]], axis=1)
    assert chroma_similarity(late, rolls).values == pytest.approx(75)
    assert note_density_distance(late, rolls).values == pytest.approx(25)
    assert mean_squared_error(late, rolls) == pytest.approx(bar.mean() / 4)


def test_doubled_notes_cost_no_density_of_2025_but_of_2024() -> None:
    rolls = music()
    doubled = rolls | np.roll(rolls, 48, axis=-1)  # four octaves up, where nothing else is
    assert (note_density_distance(doubled, rolls, "2025").values == 0).all()
    np.testing.assert_allclose(note_density_distance(rolls, doubled, "2025").values, 50)  # not symmetric
    assert (note_density_distance(doubled, rolls, "2024").values > 0).all()
    np.testing.assert_allclose(chroma_similarity(doubled, rolls).values, 100)


@given(seed=st.integers(0, 1000), batch=st.integers(1, 5), definition=st.sampled_from(DEFINITIONS))
def test_a_sample_scores_the_same_in_any_batch(seed, batch, definition) -> None:
    prediction, target = music(batch, 70, 2, seed), music(batch, 70, 2, seed + 1)
    for metric in METRICS:
        together = metric(prediction, target, definition)
        apart = [metric(prediction[i : i + 1], target[i : i + 1], definition).values[0] for i in range(batch)]
        np.testing.assert_array_equal(together.values, apart)


@given(seed=st.integers(0, 1000), definition=st.sampled_from(DEFINITIONS))
def test_the_order_of_the_tracks_is_nothing(seed, definition) -> None:
    prediction, target = music(2, 64, 3, seed), music(2, 64, 3, seed + 1)
    order = np.random.default_rng(seed).permutation(3)
    for metric in METRICS:
        one = metric(prediction, target, definition).values
        np.testing.assert_allclose(metric(prediction[:, :, order], target[:, :, order], definition).values, one)


@given(seed=st.integers(0, 1000), definition=st.sampled_from(DEFINITIONS), factor=st.sampled_from([2, 4]))
def test_a_finer_grid_changes_nothing(seed, definition, factor) -> None:
    """The same music at 4 and at 8 or 16 ticks a quarter: units last as long, not as many ticks."""
    prediction, target = music(1, 40, 2, seed, grid=1), music(1, 40, 2, seed + 1, grid=1)
    for metric in METRICS:
        coarse = metric(prediction, target, definition, ticks_per_quarter=4)
        fine = metric(
            *(rolls.repeat(factor, axis=1) for rolls in (prediction, target)), definition, ticks_per_quarter=4 * factor
        )
        np.testing.assert_allclose(fine.values, coarse.values, atol=1e-12, err_msg=metric.__name__)


def test_units_that_are_no_whole_number_of_ticks() -> None:
    """At 12 ticks a quarter a 32nd is a tick and a half."""
    rolls = music(2, 48)
    assert self_similarity_distance(rolls, rolls, "2024", ticks_per_quarter=12).units == 32
    assert chroma_similarity(rolls, rolls, ticks_per_quarter=12).units == 2


def test_a_long_piece_is_compared_in_parts_of_its_matrix() -> None:
    prediction, target = music(1, 1200), music(1, 1200, seed=1)

    def matrix(rolls: np.ndarray) -> np.ndarray:
        folded = np.stack([rolls[0, :, 0, pitch::12].sum(-1) for pitch in range(12)], axis=-1)
        units = folded.reshape(600, 2, 12).sum(1).astype(float)
        units /= np.maximum(np.linalg.norm(units, axis=-1, keepdims=True), 1e-8)
        return units @ units.T

    expected = 100 * np.abs(matrix(prediction) - matrix(target)).mean()
    assert self_similarity_distance(prediction, target, "2024").values == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_what_cannot_be_scored_raises(metric) -> None:
    rolls = music()
    with pytest.raises(ValueError, match="same shape"):
        metric(rolls, rolls[:1])
    with pytest.raises(ValueError, match="batch axis"):
        metric(rolls[0, :, 0], rolls[0, :, 0])
    with pytest.raises(ValueError, match="2024, 2025, 2026"):
        metric(rolls, rolls, "2023")
    with pytest.raises(ValueError, match="at least 1"):
        metric(rolls, rolls, ticks_per_quarter=0)
    with pytest.raises(ValueError, match="at least one sample"):
        metric(rolls[:0], rolls[:0])
    with pytest.raises(ValueError, match="not finite"):
        metric(np.full(rolls.shape, np.nan), rolls)
    with pytest.raises(TypeError, match="bool or of numbers"):
        metric(rolls.astype(str), rolls)


def test_an_unknown_rule_for_undefined_units_raises() -> None:
    with pytest.raises(ValueError, match='"zero" or "skip"'):
        chroma_similarity(music(), music(), undefined="drop")


def test_the_most_probable_rows() -> None:
    chances = np.array([[[0.1, 0.9, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    assert top_rows(chances, 2).tolist() == [[[False, True, True, False], [True, True, False, False]]]
    assert not top_rows(chances, 0).any()
    assert binarise(chances, top=1, gap=3).sum() == 2


@given(seed=st.integers(0, 1000), gap=st.integers(0, 6))
def test_gaps_are_filled_between_notes_only(seed, gap) -> None:
    rolls = np.random.default_rng(seed).random((2, 30, 3)) < 0.2
    expected = rolls.copy()
    for sample in range(2):
        for row in range(3):
            on = np.flatnonzero(rolls[sample, :, row])
            for first, second in itertools.pairwise(on):
                if second - first - 1 <= gap:
                    expected[sample, first:second, row] = True
    np.testing.assert_array_equal(fill_gaps(rolls, gap), expected)


def test_bad_rules_of_binarisation_raise() -> None:
    chances = np.zeros((1, 4, 3))
    with pytest.raises(ValueError, match="either"):
        binarise(chances)
    with pytest.raises(ValueError, match="either"):
        binarise(chances, threshold=0.5, top=2)
    with pytest.raises(ValueError, match="0 to 3"):
        binarise(chances, top=4)
    with pytest.raises(ValueError, match="at least 0"):
        binarise(chances, threshold=0.5, gap=-1)
    with pytest.raises(TypeError, match="binarise first"):
        fill_gaps(chances, 2)
