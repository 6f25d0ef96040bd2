"""The numbers of a finished run, gathered from its directory: what every report, table and figure is made from."""

from __future__ import annotations

import io
import statistics
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relpos.lab.assess import finished, read_record
from relpos.lab.checkpoint import read_json
from relpos.lab.errors import RunDirectoryError
from relpos.lab.run import Run
from relpos.lab.train import read_log
from relpos.tasks import Metric
from relpos.tasks.base import Measure

REMEASURE = "delete the evaluation.json beside it and run the command that made the run again, to measure it anew"


@dataclass(frozen=True)
class Value:
    """One metric of one contestant at one length: mean over the seeds, spread, each seed's; or why there is none."""

    mean: float | None
    spread: float | None
    seeds: tuple[float, ...]
    refused: str | None = None


@dataclass(frozen=True)
class Row:
    """One contestant: everything the table and the figures show of it; ``values[metric name][length]``."""

    encoding: str
    rate: float
    values: dict[str, dict[int, Value]]
    parameters: int
    own_parameters: int
    speed: float | None
    peak_bytes: int
    costs: dict[str, float]
    records: tuple[dict[str, Any], ...]
    logs: tuple[list[dict[str, Any]], ...]

    @property
    def diverged(self) -> bool:
        """True where the training of any seed ended in a loss that is no number."""
        return any(record["diverged"] is not None for record in self.records)


@dataclass(frozen=True)
class Results:
    """A run as numbers.

    lengths: ascending, the training length among them. metrics: the task's own, then the loss; a report opens with the
    first. baselines: ``[name][metric name][length]``, where there is a value; bounds: those that are limits. costs:
    what else a contestant's row has.
    measure, pace: how lengths are spoken of, and what the speed counts.
    """

    run: Run
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    lengths: tuple[int, ...]
    baselines: dict[str, dict[str, dict[int, float]]]
    rates: dict[str, Any]
    environment: dict[str, Any]
    train_length: int
    measure: Measure
    pace: str
    costs: tuple[Metric, ...]
    bounds: tuple[str, ...] = ()

    @property
    def opening(self) -> int:
        """The length that a report opens with: the longest; the training length where there are shorter ones too."""
        return self.lengths[-1] if self.lengths[0] == self.train_length else self.train_length

    @property
    def loss(self) -> Metric:
        """The loss as a metric."""
        return self.metrics[-1]

    def ranked(self, metric: Metric, length: int) -> list[Row]:
        """Rows with a value at this length, best first."""
        known = [(row.values[metric.name][length].mean, row) for row in self.rows]
        pairs = [(metric.gain(mean, 0.0), row) for mean, row in known if mean is not None]
        return [row for _, row in sorted(pairs, key=lambda pair: pair[0], reverse=True)]

    def tied(self, metric: Metric, length: int) -> list[Row]:
        """The best row and all whose distance to it is within the two spreads together."""
        ranked = self.ranked(metric, length)
        values = [row.values[metric.name][length] for row in ranked]
        return [row for row, value in zip(ranked, values, strict=True) if _within(metric, values[0], value)]

    def best_baseline(self, metric: Metric, length: int) -> tuple[str, float] | None:
        """The strongest trivial predictor; limits are none."""
        every = {name: values.get(metric.name, {}) for name, values in self.baselines.items()}
        named = [(n, values[length]) for n, values in every.items() if length in values and n not in self.bounds]
        return max(named, key=lambda pair: metric.gain(pair[1], 0.0)) if named else None

    def bound(self, metric: Metric, length: int) -> tuple[str, float] | None:
        """The first of the limits that has a value here."""
        found = ((name, self.baselines.get(name, {}).get(metric.name, {}).get(length)) for name in self.bounds)
        return next(((name, value) for name, value in found if value is not None), None)


def shown(metrics: Iterable[Metric], unit: str) -> tuple[Metric, ...]:
    """What is shown of every model: a task's metrics, then the loss in its unit."""
    return (*metrics, Metric("loss", "loss", higher_is_better=False, unit=unit))


def _within(metric: Metric, best: Value, other: Value) -> bool:
    assert best.mean is not None and other.mean is not None
    return metric.gain(best.mean, other.mean) <= (best.spread or 0.0) + (other.spread or 0.0)


def spread(values: list[float]) -> float | None:
    """Half the range of two values, the sample standard deviation of more, None of one."""
    if len(values) < 2:
        return None
    return (max(values) - min(values)) / 2 if len(values) == 2 else statistics.stdev(values)


def spread_name(seeds: int) -> str:
    """What `spread` is called in a report."""
    if seeds < 2:
        return "one seed, so no spread is known"
    return "± half the range of two seeds" if seeds == 2 else f"± standard deviation of {seeds} seeds"


def collect(run: Run) -> Results:
    """Read a run; RunDirectoryError names the models that are not finished, or the record that is broken."""
    settings = run.settings
    pairs = [(encoding, seed) for encoding in settings.encodings for seed in settings.seeds]
    missing = [f"{e} seed {s}" for e, s in pairs if not finished(run.model(e, s))]
    if missing:
        raise RunDirectoryError(
            f"{run.path} is not finished: {', '.join(missing)} missing; run the command that began it again: "
            f"{run.config.get('command') or 'relpos compare'}"
        )
    try:
        return _collect(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"a record in {run.path} is broken or of another version ({type(error).__name__}: {error}); "
            "delete the evaluation.json that was changed and run the command again, or use --fresh"
        ) from error


def _collect(run: Run) -> Results:
    settings = run.settings
    stored = read_json(run.path / "baselines.json")
    baselines = stored["values"]
    by_name: dict[str, dict[str, dict[int, float]]] = {}
    for length, rows in baselines.items():
        for name, values in rows.items():
            for metric, value in values.items():
                by_name.setdefault(name, {}).setdefault(metric, {})[int(length)] = value
    lengths = tuple(sorted(int(length) for length in baselines))
    metrics = shown((Metric(**each) for each in run.config["metrics"]), run.config["unit"])
    costs = tuple(Metric(**each) for each in run.config.get("costs", ()))
    pace = run.config.get("pace", "tokens")
    return Results(
        run=run,
        rows=tuple(_row(run, encoding, metrics, lengths, costs, pace) for encoding in settings.encodings),
        metrics=metrics,
        lengths=lengths,
        baselines=by_name,
        rates=read_json(run.path / "rates.json"),
        environment=read_json(run.path / "environment.json"),
        train_length=stored["train_length"],
        measure=Measure(**run.config.get("measure", {})),
        pace=pace,
        costs=costs,
        bounds=tuple(run.config.get("bounds", ())),
    )


def _row(
    run: Run,
    encoding: str,
    metrics: tuple[Metric, ...],
    lengths: tuple[int, ...],
    costs: tuple[Metric, ...],
    pace: str,
) -> Row:
    folders = [run.model(encoding, seed) for seed in run.settings.seeds]
    records = tuple(read_record(folder) for folder in folders)
    speeds = [speed for record in records if (speed := record[f"{pace}_per_second"])]
    return Row(
        encoding=encoding,
        rate=records[0]["rate"],
        values={metric.name: {length: _value(records, metric, length) for length in lengths} for metric in metrics},
        parameters=records[0]["parameters"]["total"],
        own_parameters=records[0]["parameters"]["encoding"],
        speed=statistics.median(speeds) if speeds else None,
        peak_bytes=max(record["peak_bytes"] for record in records),
        costs={cost.name: statistics.median(record["costs"][cost.name] for record in records) for cost in costs},
        records=records,
        logs=tuple(read_log(folder / "metrics.jsonl") for folder in folders),
    )


def _value(records: tuple[dict[str, Any], ...], metric: Metric, length: int) -> Value:
    """One seed that diverged or was refused spoils the cell: a mean over the lucky ones would flatter."""
    for record in records:
        if record["diverged"] is not None:
            return Value(None, None, (), f"seed {record['seed']} diverged at step {record['diverged']}")
        if "refused" in record["lengths"][str(length)]:
            return Value(None, None, (), record["lengths"][str(length)]["refused"])
    values = [record["lengths"][str(length)]["values"][metric.name] for record in records]
    return Value(statistics.fmean(values), spread(values), tuple(values))


def position_curve(row: Row) -> np.ndarray | None:
    """Loss by position at the longest length that the row has, mean over the seeds; None where there is none."""
    usable = [length for length, value in row.values["loss"].items() if value.mean is not None]
    if not usable:
        return None
    curves = [record["lengths"][str(max(usable))]["by_position"] for record in row.records]
    if None in curves:
        return None
    values = np.array(curves, dtype=np.float64)
    # Where a position is never asked, as at the start of a sequence, there is no mean, and it stays NaN.
    known = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), known, out=np.full(values.shape[1], np.nan), where=known > 0)


@dataclass(frozen=True)
class Learned:
    """What one encoding of a trained model does to lags: values (heads, lags) in nats, and what they are."""

    name: str
    lags: np.ndarray
    values: np.ndarray
    meaning: str


def learned_lags(results: Results, row: Row) -> list[Learned]:
    """The pictures of each encoding in the first seed's model.

    Where the content decides the sign of the change, its mean says little: then the standard deviation over content,
    which is how strongly this lag can be told from others, takes its place.
    """
    folder = results.run.model(row.encoding, row.records[0]["seed"])
    drawn = [entry for entry in row.records[0]["lags"] if "index" in entry]
    if not drawn:
        return []
    try:
        with np.load(io.BytesIO((folder / "lags.npz").read_bytes())) as arrays:
            parts = [{part: arrays[f"{e['index']}.{part}"] for part in ("lags", "mean", "spread")} for e in drawn]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunDirectoryError(f"{folder / 'lags.npz'} is missing or broken ({error}); {REMEASURE}") from error
    signless = all(np.nanmax(p["spread"]) > 3 * np.nanmax(np.abs(p["mean"])) for p in parts)
    meaning = "" if all(entry["exact"] for entry in drawn) else "mean over random content, zero at lag 0"
    if signless:
        meaning = "standard deviation over random content, zero at lag 0 (the content decides the sign)"
    chosen = "spread" if signless else "mean"
    return [Learned(e["name"], p["lags"], p[chosen], meaning) for e, p in zip(drawn, parts, strict=True)]
