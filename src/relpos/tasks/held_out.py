"""What a task takes of `relpos.tasks.data`: a set of the right kind, and its sides for training and judging."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.data.sets import Card, DataSet

SHARE = 0.1
SEED = 0


Kind = TypeVar("Kind", bound=DataSet)


def load(kind: type[Kind], name: str, path: str | None, progress: Progress | None) -> Kind:
    """The set of that name. ValueError, as `relpos.tasks.data.load`, and where it is of another kind."""
    from relpos.tasks import data

    found = data.load(name, path=path, progress=progress)
    if not isinstance(found, kind):
        raise ValueError(f"the data set {name!r} is of the kind {found.shape_name}, this task takes {kind.shape_name}")
    return found


def sides(data: DataSet) -> dict[str, np.ndarray]:
    """Indices of "train", "validation" and "test" of a `relpos.tasks.data` set that has examples.

    Where it has no validation side, a tenth of its training side, drawn with a fixed seed, becomes one.
    """
    train, test = data.rows("train"), data.rows("test")
    if "validation" in data.split:
        return {"train": train, "validation": data.rows("validation"), "test": test}
    order = np.random.default_rng(SEED).permutation(len(train))
    held = max(1, round(SHARE * len(train)))
    return {"train": np.sort(train[order[held:]]), "validation": np.sort(train[order[:held]]), "test": test}


def origin(card: Card) -> str:
    """One sentence on where the data comes from."""
    packages = ", ".join(f"{each['package']} {each['version']} ({each['client']})" for each in card.packages)
    parts = (f"{card.name}: {card.title}", card.origin, packages and f"out of {packages}", card.licence)
    return "; ".join(part for part in parts if part)
