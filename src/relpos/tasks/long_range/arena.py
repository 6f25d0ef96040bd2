"""What the Long Range Arena published: its networks' sizes and its table, for the released data only.

Tay et al. 2021, "Long Range Arena: a benchmark for efficient Transformers", ICLR, and the README of
google-research/long-range-arena, which gives later numbers than the paper. The sizes are those of its configs. Its
optimizer is Adam with rates of its own; here the laboratory's AdamW with warm-up and a cosine is used, so a row of this
library beside a published one compares networks, not recipes to the last digit.
"""

from __future__ import annotations

from typing import Any

_MODELS = ("Transformer", "Local attention", "Linear Transformer", "Performer", "BigBird")
_PERCENT = {
    "listops": (36.37, 15.82, 16.13, 18.01, 36.05),
    "text": (64.27, 52.98, 65.90, 65.40, 64.02),
    "retrieval": (57.46, 53.39, 53.09, 53.82, 59.29),
    "image": (42.44, 41.46, 42.34, 42.77, 40.83),
    "pathfinder": (71.40, 66.63, 75.30, 77.05, 74.87),
}


def published(task: str) -> dict[str, dict[str, float]]:
    """Test accuracies of the published table, as baselines; the paper gives no losses. {} for a task not in it."""
    return {
        f"LRA: {model}": {"accuracy": percent / 100}
        for model, percent in zip(_MODELS, _PERCENT.get(task, ()), strict=False)
    }


def preset(batch: int, steps: int, rate: float, model: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Settings of a run of that size, one seed; hours on a GPU."""
    fixed = {"seeds": (0,), "rates": (rate,), "sweep_steps": 0, "budget": None, "weight_decay": 0.1, "validations": 10}
    return {**fixed, "batch": batch, "steps": steps, "model": model, **others}
