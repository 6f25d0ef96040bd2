"""What an encoding of structural labels wants to know of levels, filled in from what a task has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from relpos.encodings.registry import entry
from relpos.tasks.lengths import length_options


def structure_options(
    encoding: object, levels: Mapping[str, int], train_length: int, longest: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of an encoding given by name: {} for any other.

    levels   how many labels each level may have, by name, in the order in which they matter. Levels that `given` names
             are kept, the others are all of these; one that takes a single level gets the first
    Lengths are those of `relpos.tasks.lengths`.
    """
    known: dict[str, Any] = dict(length_options(encoding, train_length, longest))
    if not isinstance(encoding, str):
        return known
    wanted = inspect.signature(entry(encoding).load()).parameters
    if "levels" in wanted:
        names = given.get("levels", list(levels))
        named = names if isinstance(names, Mapping) else {name: levels.get(name) for name in _listed(names)}
        unknown = sorted(set(named) - set(levels) - {"index", "time"})
        if unknown:
            raise ValueError(f"this task has the levels {', '.join(levels)}; got {', '.join(unknown)}")
        sized = given.get("kind") == "learned" and not isinstance(names, Mapping)
        known["levels"] = named if sized else list(named)
    elif "level" in wanted and "level" not in given:
        known["level"] = next(iter(levels))
    return known


def _listed(names: Any) -> list[str]:
    return names.split("+") if isinstance(names, str) else list(names)
