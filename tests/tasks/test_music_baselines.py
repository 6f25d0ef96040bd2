"""The baselines: odds as counted, on made-up music and, where it is at hand, on POP909; and the table they stand in."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks.music.baselines import (
    BASELINES,
    ChordBlock,
    ChordTable,
    CopyBar,
    Marginal,
    Persistence,
    Silence,
    Window,
    fitted,
)
from relpos.tasks.music.metrics import (
    BETTER,
    chroma_similarity,
    cross_entropy,
    evaluate,
    grooving_similarity,
    note_density_distance,
    self_similarity_distance,
    warnings,
)

CHORDS = np.zeros((3, 12), dtype=bool)
CHORDS[1, [0, 4, 7]] = CHORDS[2, [2, 7, 11]] = True  # no chord, C, G
ROOTS = np.array([-1, 0, 7])


def window(target: np.ndarray, labels: np.ndarray | None = None, **options) -> Window:
    levels = {} if labels is None else {"chord": labels}
    return Window(np.zeros_like(target), target, levels, ticks_per_bar=8, ticks_per_beat=4, **options)


def song(seed: int, ticks: int = 32) -> Window:
    """A held note that sometimes moves, with the label of the chord that it belongs to."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, ticks // 4).repeat(4)
    target = np.zeros((ticks, 128), dtype=bool)
    target[np.arange(ticks), 60 + 7 * (labels == 2)] = labels > 0
    return window(target, labels, chords=CHORDS, roots=ROOTS)


def test_the_marginal_counts() -> None:
    target = np.zeros((4, 128), dtype=bool)
    target[:3, 60] = True
    chances = Marginal().fit([window(target), window(target)]).probabilities(window(target[:2]))
    assert chances.shape == (2, 128)
    np.testing.assert_allclose(chances[:, 60], 6.5 / 9)
    np.testing.assert_allclose(chances[:, 61], 0.5 / 9)


def test_persistence_counts_switches_and_repeats() -> None:
    target = np.zeros((6, 128), dtype=bool)
    target[[1, 2, 4], 60] = True  # after off: on, on; after on: on, off, off
    piece = window(target)
    model = Persistence().fit([piece])
    chances = model.probabilities(piece)[:, 60]
    rise, stay = 2.5 / 3, 1.5 / 4
    np.testing.assert_allclose(chances, [3.5 / 7, rise, stay, stay, rise, stay])
    np.testing.assert_array_equal(model.roll(piece)[1:], target[:-1])
    assert not model.roll(piece)[0].any()


def test_persistence_of_next_ticks_knows_the_tick_before_the_first() -> None:
    roll = np.random.default_rng(0).random((9, 128)) < 0.3
    piece = Window(roll[:-1], roll[1:], before=roll[:1])
    np.testing.assert_array_equal(Persistence().fit([piece]).roll(piece), roll[:-1])


def test_copying_a_bar() -> None:
    bar = np.random.default_rng(0).random((8, 128)) < 0.3
    piece = window(np.concatenate([bar] * 4))
    model = CopyBar().fit([piece])
    np.testing.assert_array_equal(model.roll(piece)[8:], piece.target[8:])
    assert not model.roll(piece)[:8].any()
    chances = model.probabilities(piece)
    assert ((chances > 0) & (chances < 1)).all()
    assert cross_entropy(chances[8:], piece.target[8:]) < cross_entropy(chances[:8], piece.target[:8]) / 3
    np.testing.assert_allclose(chances[:8], Marginal().fit([piece]).probabilities(piece)[:8])


def test_the_chord_block() -> None:
    labels = np.array([1] * 6 + [2] * 4 + [0] * 2)
    piece = window(np.zeros((12, 256), dtype=bool), labels, chords=CHORDS, roots=ROOTS)
    roll = ChordBlock().roll(piece)
    assert not roll[:, :128].any()  # of two tracks the last one plays
    struck = [np.flatnonzero(tick[128:]).tolist() for tick in roll]
    tonic, dominant = [36, 48, 52, 55], [43, 50, 55, 59]
    assert struck == [tonic] * 3 + [[]] + [tonic] * 3 + [[]] + [dominant] * 3 + [[]]
    later = window(piece.target, labels, chords=CHORDS, phase=2)
    assert ChordBlock(lowest=60, every=2).roll(later).any(1).tolist() == [True] * 5 + [False] + [True] * 6
    assert np.flatnonzero(ChordBlock(lowest=53).roll(window(piece.target, labels, chords=CHORDS))[0]).tolist() == [
        128 + pitch for pitch in (55, 60, 64)
    ]


def test_the_table_of_chords() -> None:
    pieces = [song(seed) for seed in range(20)]
    table, marginal = ChordTable().fit(pieces), Marginal().fit(pieces)
    unseen = song(99)
    assert cross_entropy(table.probabilities(unseen), unseen.target) < 0.5 * cross_entropy(
        marginal.probabilities(unseen), unseen.target
    )
    strange = window(unseen.target, np.full(32, 77))
    np.testing.assert_allclose(table.probabilities(strange), marginal.probabilities(strange))


def test_all_that_the_windows_allow_are_fitted_in_one_pass() -> None:
    pieces = [song(seed) for seed in range(5)]
    assert list(fitted(iter(pieces))) == list(BASELINES)
    assert list(fitted([window(pieces[0].target)])) == ["silence", "marginal", "persistence", "copy-a-bar"]
    assert list(fitted(pieces, ["marginal"])) == ["marginal"]
    for name, model in fitted(iter(pieces)).items():
        again = BASELINES[name]().fit(pieces[:1]).fit(pieces)  # fitting starts anew
        np.testing.assert_array_equal(model.probabilities(pieces[0]), again.probabilities(pieces[0]))


def test_what_a_baseline_lacks_is_said() -> None:
    bare = window(np.zeros((4, 128), dtype=bool))
    for model in (Marginal(), Persistence(), CopyBar()):
        with pytest.raises(ValueError, match="fit it on windows first"):
            model.probabilities(bare)
    for kind in (ChordTable, ChordBlock):
        with pytest.raises(ValueError, match="level 'chord'"):
            kind().fit([bare]).probabilities(bare)
    with pytest.raises(ValueError, match="which pitches"):
        ChordBlock().roll(window(bare.target, np.zeros(4, dtype=int)))
    with pytest.raises(ValueError, match="chords for 3"):
        ChordBlock().roll(window(bare.target, np.full(4, 3), chords=CHORDS))
    with pytest.raises(ValueError, match="128 pitches a track"):
        ChordBlock().roll(window(bare.target[:, :88], np.zeros(4, dtype=int), chords=CHORDS))
    with pytest.raises(ValueError, match="128 target rows, it has 256"):
        Marginal().fit([bare, window(np.zeros((4, 256), dtype=bool))])
    with pytest.raises(ValueError, match="too short"):
        Window(bare.target, bare.target, ticks_per_beat=0)
    with pytest.raises(ValueError, match="no baseline 'oracle'"):
        fitted([bare], ["oracle"])
    with pytest.raises(ValueError, match="no windows"):
        fitted([])
    with pytest.raises(ValueError, match="of bool"):
        window(np.zeros((4, 128)))
    with pytest.raises(ValueError, match="must be the same"):
        Window(bare.target[:2], bare.target)
    with pytest.raises(ValueError, match="labels for 4 ticks"):
        window(bare.target, np.zeros(3, dtype=int))


def test_cross_entropy_in_nats() -> None:
    assert cross_entropy(np.array([0.5, 0.25]), np.array([True, False])) == pytest.approx(
        -(np.log(0.5) + np.log(0.75)) / 2
    )
    assert cross_entropy(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert cross_entropy(np.array([0.0]), np.array([True])) == np.inf
    with pytest.raises(ValueError, match="sigmoid"):
        cross_entropy(np.array([1.5]), np.array([True]))
    with pytest.raises(ValueError, match="same shape"):
        cross_entropy(np.zeros(2), np.zeros(3))


def test_the_table_of_metrics() -> None:
    pieces = [song(seed) for seed in range(6)]
    target = np.stack([piece.target for piece in pieces])
    models = fitted(pieces)
    rolls = {name: np.stack([model.roll(piece) for piece in pieces]) for name, model in models.items()}
    chances = {name: np.stack([model.probabilities(piece) for piece in pieces]) for name, model in models.items()}
    rows = evaluate(rolls | {"copy": target}, target, chances, ticks_per_quarter=4)
    assert set(rows) == {*rolls, "copy"}
    best = rows["copy"]
    assert (best["cs"], best["gs"], best["f1"], best["density"]) == pytest.approx((100, 100, 1, 1))
    assert (best["ssmd"], best["ndd"], best["mse"]) == (0, 0, 0)
    assert "bce" not in best
    assert best["in_scale"] == best["in_scale_target"] == 1
    assert rows["silence"]["bce"] == np.inf
    assert rows["silence"]["density"] == 0
    for metric, sign in BETTER.items():
        if metric != "bce":
            assert all(sign * best[metric] >= sign * row[metric] - 1e-9 for row in rows.values()), metric
    released = evaluate({"silence": rolls["silence"]}, target, ticks_per_quarter=4, definition="2024")
    assert released["silence"]["ndd"] != rows["silence"]["ndd"]
    with pytest.raises(TypeError, match="'soft' must be binarised"):
        evaluate({"soft": target * 0.5}, target)


def test_models_that_do_not_beat_the_baselines_are_named() -> None:
    baselines = {"silence": {"ssmd": 20.0, "f1": np.nan}, "persistence": {"ssmd": 10.0, "f1": 0.5}}
    models = {
        "good": {"ssmd": 5.0, "f1": 0.6, "density": 0.9},
        "thin": {"ssmd": 15.0, "f1": 0.5, "density": 0.2},
    }
    said = warnings(models, baselines)
    assert len(said) == 3
    assert said[0].startswith("thin does not beat persistence on f1: 0.5, persistence has 0.5")
    assert said[1].startswith("thin does not beat persistence on ssmd: 15, persistence has 10")
    assert "0.20 of the target's cells" in said[2]


POP909 = Path(os.environ.get("RELPOS_POP909") or Path(__file__).resolve().parents[3] / "shared" / "data" / "pop909")


class Pop909:
    """The published windows of 512 ticks: melody, bridge and piano at 16 ticks a quarter, with chord labels."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.rolls, self.chord = arrays["rolls"], arrays["chord"].astype(np.int64)
            self.chords, self.roots = arrays["chord_db"][:, 1:] > 0, arrays["chord_db"][:, 0].astype(np.int64) - 1
            song = arrays["song_part"][:, 0]
            self.parts = {
                part: np.flatnonzero(np.isin(song, arrays[f"{part}_idx"])) for part in ("train", "val", "test")
            }

    def windows(self, chosen: np.ndarray, task: str) -> Iterator[Window]:
        for index in chosen:
            roll = np.unpackbits(self.rolls[index])[: 384 * 513].reshape(384, 513).T.astype(bool)
            at = slice(0, 512) if task == "accompaniment" else slice(1, 513)
            levels = {"chord": self.chord[index, at]}
            labels = {"levels": levels, "chords": self.chords, "roots": self.roots}
            if task == "accompaniment":
                yield Window(roll[:-1, :256], roll[:-1, 256:], **labels)
            else:
                yield Window(roll[:-1], roll[1:], before=roll[:1], **labels)


@pytest.fixture(scope="module")
def pop909() -> Pop909:
    path = POP909 / "pop909_512_compact.npz"
    if not path.is_file():
        pytest.skip(f"needs POP909 at {path}; RELPOS_POP909 names its directory")
    return Pop909(path)


@pytest.mark.slow(8)
def test_rules_score_as_known_on_pop909(pop909) -> None:
    """On the 960 test windows; the chord block is far above every published model in CS, GS and NDD."""
    windows = list(pop909.windows(pop909.parts["test"], "accompaniment"))
    target = np.stack([piece.target for piece in windows])
    silence, block = (np.stack([kind().roll(piece) for piece in windows]) for kind in (Silence, ChordBlock))
    assert self_similarity_distance(silence, target, "2024").mean == pytest.approx(30.85, abs=0.005)
    assert grooving_similarity(silence, target).mean == pytest.approx(5.17, abs=0.005)
    assert chroma_similarity(block, target, undefined="zero").mean == pytest.approx(74.65, abs=0.005)
    assert self_similarity_distance(block, target, "2024").mean == pytest.approx(29.39, abs=0.005)
    assert grooving_similarity(block, target).mean == pytest.approx(95.08, abs=0.006)
    assert note_density_distance(block, target).mean == pytest.approx(4.18, abs=0.005)


@pytest.mark.slow(8)
@pytest.mark.parametrize(
    ("task", "kind", "expected", "within"),
    [
        ("accompaniment", Marginal, (0.0735, 0.0736), 6e-5),
        ("accompaniment", ChordTable, (0.0495, 0.0485), 5e-4),  # known with less smoothing than here
        ("next-step", Marginal, (0.0404, 0.0408), 6e-5),
        ("next-step", Persistence, (0.0082, 0.0084), 6e-5),
    ],
)
def test_cross_entropies_are_as_known_on_pop909(pop909, task, kind, expected, within) -> None:
    """Fitted on 2,500 training windows, for all windows of the other two parts."""
    train = pop909.parts["train"]
    spread = train[np.linspace(0, len(train) - 1, 2500).astype(int)]
    model = kind().fit(pop909.windows(spread, task))
    for part, value in zip(("val", "test"), expected, strict=True):
        held = pop909.windows(pop909.parts[part], task)
        nats = np.mean([cross_entropy(model.probabilities(piece), piece.target) for piece in held])
        assert nats == pytest.approx(value, abs=within)
