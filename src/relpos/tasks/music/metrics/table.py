"""All metrics of a set of predictions against one target, as rows, and in words what a reader must not overlook."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from relpos.tasks.music.metrics import notes as note_metrics
from relpos.tasks.music.metrics import structure
from relpos.tasks.music.metrics.rolls import as_pair, as_rolls

BETTER = {
    "bce": -1,
    "cs": +1,
    "ssmd": -1,
    "gs": +1,
    "ndd": -1,
    "mse": -1,
    "onset_f1": +1,
    "precision": +1,
    "recall": +1,
    "f1": +1,
}
"""Which way each metric that ranks gets better: +1 higher, -1 lower. The others are to be near the target's."""

DENSE_ENOUGH = 0.5


def cross_entropy(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Nats a cell, mean over all cells; infinite where a cell that is on was held impossible. Any two equal shapes."""
    probabilities, target = np.asarray(probabilities, dtype=np.float64), np.asarray(target)
    if probabilities.shape != target.shape:
        raise ValueError(f"probabilities {probabilities.shape} and target {target.shape} must have the same shape")
    if target.size == 0:
        raise ValueError("there are no cells to score")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must be from 0 to 1; put logits through a sigmoid first")
    with np.errstate(divide="ignore"):
        nats = -np.log(np.where(target.astype(bool), probabilities, 1.0 - probabilities))
    return float(nats.mean()) + 0.0  # no -0.0


def evaluate(
    predictions: Mapping[str, np.ndarray],
    target: np.ndarray,
    probabilities: Mapping[str, np.ndarray] | None = None,
    ticks_per_quarter: int = 16,
    definition: str = "2024",
    tolerance: int = 0,
) -> dict[str, dict[str, float]]:
    """A row a prediction, {name: {metric: value}}, means over the batch; note metrics are pooled over its notes.

    predictions    bool rolls by name, each of the target's shape: (batch, ticks, tracks * 128) or (.., tracks, 128)
    probabilities  those of them that have any, for "bce"
    definition     whose CS, SSMD, GS and NDD (`structure`); tolerance: of the onsets, in ticks

    "cs_undefined" is the share of half bars in which neither roll has an onset; "density" and "onset_density" are
    prediction over target, near 1 in good music; "in_scale" is the share of notes in the target's scale and
    "in_scale_target" the target's own.
    """
    truth = as_rolls(target, "target") > 0
    wanted = [note_metrics.notes_of(sample) for sample in truth]
    rows = {}
    for name, prediction in predictions.items():
        roll = as_pair(prediction, target)[0]
        if roll.dtype != bool:
            raise TypeError(f"the prediction {name!r} must be binarised, got {np.asarray(prediction).dtype}")
        given = None if probabilities is None else probabilities.get(name)
        row = {} if given is None else {"bce": cross_entropy(np.reshape(given, truth.shape), truth)}
        rows[name] = (
            row | _structure_row(roll, truth, definition, ticks_per_quarter) | _note_row(roll, truth, wanted, tolerance)
        )
    return rows


def warnings(
    rows: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
    metrics: tuple[str, ...] = ("bce", "onset_f1", "f1", "cs", "ssmd", "gs", "ndd"),
) -> list[str]:
    """A sentence for each model and metric in which a baseline is as good or better, and for each that is too thin."""
    said = []
    for name, row in rows.items():
        for metric in metrics:
            sign, value = BETTER[metric], row.get(metric, np.nan)
            there = {other: held[metric] for other, held in baselines.items() if not np.isnan(held.get(metric, np.nan))}
            beaten_by = [other for other, held in there.items() if sign * held >= sign * value]
            if beaten_by:
                best = max(beaten_by, key=lambda other: sign * there[other])
                said.append(
                    f"{name} does not beat {', '.join(sorted(beaten_by))} on {metric}: {value:.4g}, "
                    f"{best} has {there[best]:.4g}"
                )
        density = row.get("density", np.nan)
        if density < DENSE_ENOUGH:
            said.append(f"{name} plays {density:.2f} of the target's cells: its scores are near those of silence")
    return said


def _structure_row(roll: np.ndarray, truth: np.ndarray, definition: str, ticks_per_quarter: int) -> dict[str, float]:
    likeness = structure.chroma_similarity(roll, truth, definition, ticks_per_quarter)
    return {
        "cs": likeness.mean,
        "cs_undefined": likeness.undefined_share,
        "ssmd": structure.self_similarity_distance(roll, truth, definition, ticks_per_quarter).mean,
        "gs": structure.grooving_similarity(roll, truth, definition, ticks_per_quarter).mean,
        "ndd": structure.note_density_distance(roll, truth, definition, ticks_per_quarter).mean,
        "mse": float(structure.mean_squared_error(roll, truth).mean()),
    }


def _note_row(roll: np.ndarray, truth: np.ndarray, wanted: list[np.ndarray], tolerance: int) -> dict[str, float]:
    played = [note_metrics.notes_of(sample) for sample in roll]
    pairs = list(zip(played, wanted, strict=True))
    empty = note_metrics.Matches(0, 0, 0)
    matches = sum((note_metrics.match_notes(one, other, tolerance) for one, other in pairs), empty)
    rhythm = sum((note_metrics.match_onsets(one, other, tolerance) for one, other in pairs), empty)
    return {
        "onset_f1": rhythm.f1,
        "precision": matches.precision,
        "recall": matches.recall,
        "f1": matches.f1,
        "density": _ratio(roll.sum(), truth.sum()),
        "onset_density": _ratio(matches.predicted, matches.target),
        "polyphony": _mean(note_metrics.polyphony(roll)),
        "polyphony_target": _mean(note_metrics.polyphony(truth)),
        "in_scale": _in_scale(played, wanted),
        "in_scale_target": _in_scale(wanted, wanted),
    }


def _in_scale(played: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Share of all notes that lie in the scale of their own target; samples without target notes are left out."""
    inside = total = 0.0
    for one, other in zip(played, wanted, strict=True):
        if len(one) and len(other):
            inside += note_metrics.scale_share(one, note_metrics.scale_of(other)) * len(one)
            total += len(one)
    return _ratio(inside, total)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    held = values[~np.isnan(values)]
    return float(held.mean()) if held.size else float("nan")
