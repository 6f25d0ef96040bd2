"""What is measured on a trained model, stored beside its checkpoint; `evaluation.json` comes last and seals it."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from relpos.lab.checkpoint import read_json, write_atomic, write_json
from relpos.lab.lags import lag_picture
from relpos.lab.measure import encodings_of, parameters, peak_bytes
from relpos.lab.progress import Notice
from relpos.lab.settings import Settings
from relpos.lab.train import Trained, evaluating, read_log
from relpos.tasks import Artifact, Evaluation
from relpos.tasks.base import lengths, pace

RECORD = "evaluation.json"
LARGEST_BATCH = 64  # weighed of a training by a recipe, whose batch may be more than one device holds
FARTHEST_LAG = 512  # of the pictures: longer ones take long to probe and show no more


def finished(folder: Path) -> bool:
    """True when the model in this folder has been trained, evaluated and sampled."""
    return (folder / RECORD).exists()


def read_record(folder: Path) -> dict[str, Any]:
    """The stored evaluation of a finished model."""
    record: dict[str, Any] = read_json(folder / RECORD)
    return record


def assess(
    task: Any,
    settings: Settings,
    trained: Trained,
    encoding: str,
    seed: int,
    rate: float,
    folder: Path,
    progress: Notice,
) -> dict[str, Any]:
    """Evaluate at every length, sample, draw, weigh; write it all and return the record."""
    model = trained.model
    total, own = parameters(model)
    log = read_log(folder / "metrics.jsonl")
    size = min(settings.batch, LARGEST_BATCH) if settings.recipe else settings.batch
    batch = move_data_to_device(task.batch(0, seed, size), next(model.parameters()).device)
    record: dict[str, Any] = {
        "encoding": encoding,
        "seed": seed,
        "rate": rate,
        "diverged": trained.diverged,
        "parameters": {"total": total, "encoding": own},
        "peak_bytes": peak_bytes(model, lambda: task.loss(model, batch)),
        f"{pace(task)}_per_second": _speed(log, pace(task)),
        "lengths": {},
        "samples": [],
        "samples_refused": None,
        "lags": [],
    }
    if getattr(task, "costs", ()):
        with evaluating(model):
            record["costs"] = {name: float(value) for name, value in task.cost(model).items()}
    if trained.diverged is None:
        with evaluating(model):
            record["lengths"] = _lengths(task, model, progress)
            if seed == settings.seeds[0]:  # the reports show one seed's
                record["samples"], record["samples_refused"] = _samples(task, model, folder, seed)
            if hasattr(task, "pictures"):
                record["pictures"] = _pictures(task, model, folder)
            else:
                record["lags"] = _store_lags(task, model, folder)
    write_json(folder / RECORD, record)
    return record


def _speed(log: list[dict[str, Any]], pace: str) -> float | None:
    """Training tokens (or what else the pace counts) a second at the median step, warming-up steps left out."""
    timed = [line[pace] / line["seconds"] for line in log if line.get("seconds")]
    return statistics.median(timed) if timed else None


def _lengths(task: Any, model: nn.Module, progress: Notice) -> dict[str, Any]:
    """Test results by length. An encoding that refuses a length it was not built for is quoted, not fatal."""
    results: dict[str, Any] = {}
    for length in lengths(task):
        try:
            result = task.evaluate(model, "test", length, progress=progress)
        except ValueError as error:
            if length == task.train_length:
                raise
            results[str(length)] = {"refused": f"cannot: {error}"}
            continue
        results[str(length)] = _cell(task, result)
    return results


def _cell(task: Any, result: Evaluation) -> dict[str, Any]:
    """One evaluation as JSON; a model whose loss is not a number has no results, only that."""
    declared = {metric.name for metric in task.metrics}
    if declared != set(result.metrics):
        raise RuntimeError(
            f"the task {task.name} declares the metrics {sorted(declared)} and has evaluated {sorted(result.metrics)}; "
            "make Task.metrics and Evaluation.metrics agree"
        )
    values = {"loss": result.loss, **result.metrics}
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        return {"refused": f"diverged: {', '.join(broken)}"}
    curve = None if result.by_position is None else np.asarray(result.by_position, dtype=np.float64)
    return {
        "values": {name: float(value) for name, value in values.items()},
        "count": int(result.count),
        "by_position": None if curve is None else [round(float(x), 5) if np.isfinite(x) else None for x in curve],
    }


def _samples(task: Any, model: nn.Module, folder: Path, seed: int) -> tuple[list[dict[str, str]], str | None]:
    """The task's artifacts with paths relative to the model's folder, or why the model cannot make them."""
    directory = folder / "samples"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        artifacts = task.sample(model, directory, seed)
    except ValueError as error:
        return [], str(error)
    return _listed(artifacts, folder), None


def _pictures(task: Any, model: nn.Module, folder: Path) -> list[dict[str, str]]:
    directory = folder / "pictures"
    directory.mkdir(parents=True, exist_ok=True)
    return _listed(task.pictures(model, directory), folder)


def _listed(artifacts: Iterable[Artifact], folder: Path) -> list[dict[str, str]]:
    return [
        {"kind": each.kind, "title": each.title, "path": str(Path(each.path).relative_to(folder))} for each in artifacts
    ]


def _layer(model: nn.Module) -> tuple[int, int, bool]:
    """(heads, width of a head, causal) of the first attention layer that says how many heads it has."""
    layer = next((part for part in model.modules() if isinstance(getattr(part, "heads", None), int)), model)
    heads = int(getattr(layer, "heads", 1))
    width = getattr(layer, "dim", getattr(model, "dim", heads))
    return heads, int(width) // heads, bool(getattr(layer, "causal", True))


def _store_lags(task: Any, model: nn.Module, folder: Path) -> list[dict[str, object]]:
    """Lag pictures of every encoding in the model into lags.npz; an encoding that cannot be drawn says why."""
    arrays: dict[str, np.ndarray] = {}
    listed: list[dict[str, object]] = []
    heads, dim, causal = _layer(model)
    reach = min(task.train_length, FARTHEST_LAG)
    for index, (name, encoding) in enumerate(encodings_of(model)):
        try:
            picture = lag_picture(encoding, heads, dim, reach, causal=causal)
        except (ValueError, TypeError) as error:
            listed.append({"name": name, "refused": str(error)})
            continue
        for part in ("lags", "mean", "spread"):
            arrays[f"{index}.{part}"] = getattr(picture, part)
        listed.append({"name": name, "index": index, "exact": picture.exact})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(folder / "lags.npz", buffer.getvalue())
    return listed
