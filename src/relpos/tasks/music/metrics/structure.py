"""CS, SSMD, GS and NDD: the four metrics of structure-informed music, which carry one name and three definitions.

    "2024"  what the code released with "Structure-informed Positional Encoding for Music Generation" computes
    "2025"  the text of "F-StrIPE"
    "2026"  the text of "Of All StrIPEs"

Figures of different definitions must not stand in one column: SSMD of 2026 is half that of 2025, GS of 2024 is no per
cent at all. Units of time are parts of a quarter and follow ``ticks_per_quarter``; the papers have 16. A last unit that
is cut short counts as one. All need rolls that are binarised (see `binarise`), and all but SSMD look at onsets, so that
one cell in five hundred flipped costs a perfect copy a third of its CS.

The released code differs from its own text: its SSMD raises for 64 samples and fewer; here any batch is taken, and
its values are the released ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relpos.tasks.music.metrics.rolls import Score, as_pair, chroma, onsets, samples, unit_starts, unit_sums

DEFINITIONS = ("2024", "2025", "2026")
_BLOCK = 256  # rows of a self-similarity matrix held at a time: a long piece needs memory linear in its length
_BINS = 20
_CELLS = 4  # ticks of a 16th on the papers' grid, the unit in which the densities of 2024 are counted


def chroma_similarity(
    prediction: np.ndarray,
    target: np.ndarray,
    definition: str = "2025",
    ticks_per_quarter: int = 16,
    undefined: str | None = None,
) -> Score:
    """CS, higher is better, 0 to 100: cosine of the onset chroma of prediction and target, mean over half bars of 4/4.

    2024 keeps the tracks apart (a chroma a track), 2025 and 2026 add them up. A unit in which only one roll has onsets
    scores 0. One in which neither has is undefined: ``undefined="zero"`` counts it as 0, as the released code does (so
    that identical rolls score below 100), "skip" leaves it out of the mean; the default is "zero" for 2024 and "skip"
    for the others.
    2026 scales the cosine to -100..100, which changes nothing, as chroma are not negative.
    """
    apart = _definition(definition) == "2024"
    skip = _undefined(undefined, "zero" if apart else "skip")

    def score(first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> tuple[float, int]:
        one, other = (_chroma(onsets(roll), starts, apart) for roll in (first, second))
        lengths = np.linalg.norm(one, axis=-1), np.linalg.norm(other, axis=-1)
        cosine = (one * other).sum(-1) / (np.maximum(lengths[0], 1e-6) * np.maximum(lengths[1], 1e-6))
        empty = (lengths[0] == 0) & (lengths[1] == 0)
        counted = cosine[~empty] if skip else cosine
        return (100.0 * float(counted.mean()) if counted.size else np.nan), int(empty.sum())

    return _over_samples(prediction, target, ticks_per_quarter, 1, 2, score)


def self_similarity_distance(
    prediction: np.ndarray, target: np.ndarray, definition: str = "2025", ticks_per_quarter: int = 16
) -> Score:
    """SSMD, lower is better: mean absolute difference of the two self-similarity matrices.

    2024: matrices of the chroma that **sounds** in 32nd notes (the released function's name says half beat), x 100.
    2025: of onset chroma in half bars, x 100. 2026: the same, a difference of 0..2 scaled to 0..100, so half of 2025.
    The figures printed in 2025 and 2026 are those of the 2024 code, not of their text.

    A unit without notes has no direction; it is at similarity 0 to all, itself too, in all definitions. That is why
    silence scores better than most music: 25 where the target shifted by a beat has 35.
    """
    sounding = _definition(definition) == "2024"
    scale = 50.0 if definition == "2026" else 100.0

    def score(first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> tuple[float, int]:
        one, other = (_directions(_chroma(roll if sounding else onsets(roll), starts)) for roll in (first, second))
        total = 0.0
        for row in range(0, len(starts), _BLOCK):
            rows = slice(row, row + _BLOCK)
            total += float(np.abs(one[rows] @ one.T - other[rows] @ other.T).sum())
        empty = ~one.any(-1) & ~other.any(-1)
        return scale * total / len(starts) ** 2, int(empty.sum())

    return _over_samples(prediction, target, ticks_per_quarter, 8 if sounding else 1, 1 if sounding else 2, score)


def grooving_similarity(
    prediction: np.ndarray, target: np.ndarray, definition: str = "2025", ticks_per_quarter: int = 16
) -> Score:
    """GS, higher is better.

    2024: onsets counted in 16ths, scaled to length 1 over the sample, drawn as histograms of 20 bins over the range
    that the two have together; mean over the bins of the smaller count. No per cent: the ceiling is the number of
    16ths / 20, and when the onsets fall plays no part.
    2025 and 2026: per cent of quarters in which both have an onset or neither has. (The text of 2026 speaks of the XOR,
    higher being better: as written that is the share of mismatches; 100 minus it must be meant.)
    """
    counts = _definition(definition) == "2024"

    def score(first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> tuple[float, int]:
        one, other = (unit_sums(onsets(roll), starts).sum((1, 2)) for roll in (first, second))
        empty = int(((one == 0) & (other == 0)).sum())
        return (_histogram_overlap(one, other) if counts else 100.0 * float(((one > 0) == (other > 0)).mean())), empty

    return _over_samples(prediction, target, ticks_per_quarter, 4 if counts else 1, 1, score)


def note_density_distance(
    prediction: np.ndarray, target: np.ndarray, definition: str = "2025", ticks_per_quarter: int = 16
) -> Score:
    """NDD, lower is better, over 16ths.

    2024: mean absolute difference of the cells that are on, in ticks of 1/16 quarter whatever the grid is.
    2025 and 2026: how many of the target's pitches are missing, in per cent of their **number** (the prediction may
    have others; superfluous ones cost nothing), mean over the 16ths in which the target has any; NaN for a silent
    target.
    """
    cells = _definition(definition) == "2024"
    scale = _CELLS / max(ticks_per_quarter / 4, 1)

    def score(first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> tuple[float, int]:
        one, other = unit_sums(first, starts), unit_sums(second, starts)
        empty = int((~one.any((1, 2)) & ~other.any((1, 2))).sum())
        if cells:
            return scale * float(np.abs(one.sum((1, 2)) - other.sum((1, 2))).mean()), empty
        has, wanted = (one > 0).sum((1, 2)), (other > 0).sum((1, 2))
        missing = np.maximum(wanted - has, 0)[wanted > 0] / wanted[wanted > 0]
        return (100.0 * float(missing.mean()) if missing.size else np.nan), empty

    return _over_samples(prediction, target, ticks_per_quarter, 4, 1, score)


def mean_squared_error(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(batch,) mean squared difference of the cells; of binarised rolls the share of cells that are wrong."""
    errors = []
    for first, second in samples(prediction, target):
        wrong = first ^ second if first.dtype == second.dtype == bool else (first * 1.0 - second * 1.0) ** 2
        errors.append(float(wrong.mean()))
    return np.array(errors)


def _over_samples(
    prediction: np.ndarray,
    target: np.ndarray,
    ticks_per_quarter: int,
    per_quarter: int,
    quarters: int,
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, int]],
) -> Score:
    pair = as_pair(prediction, target)
    starts = unit_starts(pair[0].shape[1], ticks_per_quarter, per_quarter, quarters)
    values, undefined = zip(*(score(first, second, starts) for first, second in zip(*pair, strict=True)), strict=True)
    return Score(np.array(values), np.array(undefined, dtype=np.int64), len(starts))


def _chroma(roll: np.ndarray, starts: np.ndarray, apart: bool = False) -> np.ndarray:
    """(units, 12), or (units, tracks * 12) with the tracks apart."""
    folded = chroma(unit_sums(roll, starts))
    return folded.reshape(len(folded), -1) if apart else folded.sum(1)


def _directions(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


def _histogram_overlap(one: np.ndarray, other: np.ndarray) -> float:
    one, other = (counts / max(float(np.linalg.norm(counts)), 1e-12) for counts in (one, other))
    bounds = float(min(one.min(), other.min())), float(max(one.max(), other.max()))
    drawn = [np.histogram(counts, _BINS, bounds)[0] for counts in (one, other)]
    return float(np.minimum(*drawn).mean())


def _definition(name: str) -> str:
    if name not in DEFINITIONS:
        raise ValueError(f"definition must be one of {', '.join(DEFINITIONS)} (the year of the paper), got {name!r}")
    return name


def _undefined(choice: str | None, default: str) -> bool:
    """Whether undefined units are left out."""
    choice = choice or default
    if choice not in ("zero", "skip"):
        raise ValueError(f'undefined must be "zero" or "skip", got {choice!r}')
    return choice == "skip"
