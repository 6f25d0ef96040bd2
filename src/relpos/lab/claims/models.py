"""Language models that a claim compares: trained and measured as in a comparison, at learning rates of the claim's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relpos.lab.assess import finished, read_record
from relpos.lab.claims.frame import Order
from relpos.lab.jobs import Crew, Job, perform_all
from relpos.lab.labels import slug
from relpos.lab.preparation import prepare
from relpos.lab.settings import Settings
from relpos.lab.train import read_log
from relpos.tasks.language import BytesLM

CHUNK = 25
"""Steps over which a training loss is averaged before anything is said of it."""


@dataclass(frozen=True)
class Model:
    """One finished model: what was asked for, its folder, its evaluation and its log, a line a step."""

    label: str
    rate: float
    seed: int
    folder: Path
    record: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    def loss(self, length: int) -> float | None:
        """Test loss with that much context; None where it is not a number or the length was refused."""
        values = self.record["lengths"].get(str(length), {}).get("values")
        return None if values is None else float(values["loss"])

    @property
    def validation(self) -> float:
        """The last validation loss; infinite where there is none that is a number."""
        last = next((line["validation"] for line in reversed(self.log) if "validation" in line), None)
        return math.inf if last is None or self.record["diverged"] is not None else float(last)


def text_task(s: Mapping[str, Any]) -> BytesLM:
    """The text of a claim's settings: dataset, path, length, judged."""
    return BytesLM(s["dataset"], s["path"], s["length"], s["judged"])


def settings(labels: Iterable[str], s: Mapping[str, Any], **options: Any) -> Settings:
    """The lab's settings of a claim's models; options: of every network."""
    return Settings(
        task="bytes-lm", encodings=tuple(labels), seeds=tuple(s["seeds"]), steps=s["steps"], batch=s["batch"],
        rates=(s["rates"][0],), clip=s["clip"], preset="results",
        model={name: s[name] for name in ("dim", "depth", "heads")} | options,
    )  # fmt: skip


def train(order: Order, task: Any, lab: Settings) -> list[Model]:
    """Every label at every rate from every seed; those that are finished are read."""
    prepare(task, order.reporter)
    grid = [
        Job(f"{label}, rate {rate:g}, seed {seed}", label, seed, rate, lab.steps, _folder(order, label, rate, seed))
        for seed in lab.seeds
        for rate in order.settings["rates"]
        for label in lab.encodings
    ]
    missing = [job for job in grid if not finished(job.folder)]
    perform_all(task, lab, missing, order.reporter, Crew(order.workers, order.modules), lambda _, found: _say(found))
    return [
        Model(job.encoding, job.rate, job.seed, job.folder, read_record(job.folder), read_log(job.folder / _LOG))
        for job in grid
    ]


_LOG = "metrics.jsonl"


def _folder(order: Order, label: str, rate: float, seed: int) -> Path:
    return order.folder / "models" / slug(label) / f"rate{rate:g}-seed{seed}"


def _say(record: Mapping[str, Any] | None) -> str:
    if record is None or record["diverged"] is not None:
        return "diverged"
    first = next(iter(record["lengths"].values()))
    return f"{first['values']['loss']:.3f}" if "values" in first else str(first["refused"])


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value) of numbers, all of them finite."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, form: str = ".3f") -> str:
        return format(self.mean, form) + ("" if self.deviation is None else f" ± {self.deviation:{form}}")


def apart(higher: Spread, lower: Spread) -> bool:
    """Whether one mean is above the other by more than the deviations of both together."""
    return higher.mean - lower.mean > math.hypot(higher.deviation or 0.0, lower.deviation or 0.0)


def sizes(s: Mapping[str, Any]) -> str:
    """What was trained and on what, in a sentence."""
    judged = s["judged"] * s["length"] * max(BytesLM.multiples)
    return (
        f"{s['depth']} layers of width {s['dim']}, {s['heads']} heads, {s['steps']} steps of {s['batch']} x "
        f"{s['length']} bytes of {s['dataset']}, AdamW, warm-up over {Settings.warmup:.0%} of the steps and a cosine, "
        f"gradients clipped at norm {s['clip']:g}, seeds {', '.join(map(str, s['seeds']))}; tested on {judged:,} bytes "
        "(fewer where the text is shorter)"
    )
