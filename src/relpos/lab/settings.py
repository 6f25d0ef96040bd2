"""What a comparison is asked to do: one frozen record, and the presets that fill it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from relpos.lab import labels
from relpos.lab.errors import LabError, unknown

MACHINERY = ("devices", "strategy", "loaders")  # of a recipe: where it runs, not what comes out; a run may change them


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run; a rerun with equal settings resumes, with others it is refused.

    encodings: labels, that is names with options of the network in brackets where a contestant has its own.
    model: options of every network, under those of the label. task_options: what the task is made with.
    rates: learning rates to choose from. With more than one, every encoding takes the same short sweep
    (`sweep_steps` steps each, first seed, judged on the validation split) before its real training.
    threads: of each training, which sums depend on; several models are trained side by side instead.
    budget: minutes for everything, or None; when given it may lower `steps`, alike for all encodings.
    recipe: what a long training on large data does otherwise than the usual small one; see `relpos.lab.recipe`.
    """

    task: str
    encodings: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 300
    batch: int = 16
    rates: tuple[float, ...] = (2e-3,)
    sweep_steps: int = 0
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0
    budget: float | None = None
    validations: int = 4
    threads: int = 1
    model: dict[str, object] = field(default_factory=dict)
    task_options: dict[str, object] = field(default_factory=dict)
    preset: str = "demo"
    recipe: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("encodings", "seeds", "rates"):
            values = getattr(self, name)
            if not values:
                raise LabError(f"{name} is empty; give at least one")
            if len(set(values)) != len(values):
                raise LabError(f"{name} lists something twice: {', '.join(map(str, values))}; give each once")
        contestants = [labels.read(label) for label in self.encodings]
        for index, one in enumerate(contestants):
            for other in contestants[:index]:
                if (one.encoding, one.options) == (other.encoding, other.options):
                    raise LabError(f"encodings lists one twice: {other.label} and {one.label}; give each once")
        for name in ("steps", "batch", "clip", "validations", "threads"):
            if getattr(self, name) <= 0:
                raise LabError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.budget is not None and self.budget <= 0:
            raise LabError(f"budget is {self.budget} minutes; it must be above 0")
        if any(rate <= 0 for rate in self.rates):
            raise LabError(f"rates are {self.rates}; learning rates must be above 0")
        if len(self.rates) > 1 and self.sweep_steps <= 0:
            raise LabError("several learning rates need sweep_steps above 0, so that one can be chosen")

    def network(self, label: str) -> tuple[str, dict[str, object]]:
        """The encoding of a contestant, and the options of its network: the run's with its own over them."""
        contestant = labels.read(label)
        return contestant.encoding, labels.merged(self.model, contestant.options)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types, in the order of the fields; an empty recipe is left out."""
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in stored.items() if name != "recipe" or value}

    @classmethod
    def from_dict(cls, stored: dict[str, object]) -> Settings:
        """The inverse of `as_dict`; unknown names are refused by name."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise LabError(f"unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})  # type: ignore[arg-type]


DEMO_ENCODINGS = ("nope", "sinusoidal", "rope", "alibi", "t5", "shaw")

# Sizes are for one thread a model. A task may have better ones, and presets of other names: its attribute `presets`.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "seeds": (0, 1),
        "steps": 2500,
        "batch": 8,
        "rates": (3e-3, 8e-3),
        "sweep_steps": 250,
        "budget": 9.0,
        "model": {"dim": 64, "depth": 2, "heads": 2},
    },
    "results": {
        "seeds": (0, 1, 2),
        "steps": 5000,
        "batch": 8,
        "rates": (3e-3, 8e-3),
        "sweep_steps": 500,
        "budget": None,
        "validations": 10,
        "model": {"dim": 64, "depth": 2, "heads": 2},
    },
}


def usual_preset(sizes: Mapping[str, Mapping[str, Any]]) -> str:
    """The preset where none is named: "demo", or the first of a task that has others but no "demo"."""
    return "demo" if "demo" in sizes or not sizes else next(iter(sizes))


def preset(
    name: str,
    task: str,
    encodings: tuple[str, ...] = DEMO_ENCODINGS,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Settings:
    """Settings of a named preset, with a task's own sizes over it and the given changes over both.

    A preset that only the task knows is filled up from "results".
    None among the changes means "as the preset has it"; `model` and `recipe` are merged key by key. Steps given without
    a budget are kept, whatever time they take; one rate given needs no sweep.
    """
    own = sizes or {}
    if name not in PRESETS and name not in own:
        raise unknown("preset", name, tuple(dict.fromkeys((*PRESETS, *own))))
    values: dict[str, Any] = {**PRESETS.get(name, PRESETS["results"]), **own.get(name, {})}
    values.pop("encodings", None)  # the contestants where none are named: the caller has settled them
    given = {key: value for key, value in changes.items() if value is not None}
    if "steps" in given and "budget" not in given:
        values["budget"] = None
    given["model"] = labels.merged(values["model"], given.get("model", {}))
    given["recipe"] = labels.merged(values.get("recipe", {}), given.get("recipe", {}))
    values |= given
    if len(values["rates"]) == 1:
        values["sweep_steps"] = 0
    return Settings(task=task, encodings=encodings, preset=name, **values)
