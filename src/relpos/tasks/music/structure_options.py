"""What an encoding of structural labels wants to know of levels, filled in from what a task has."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from relpos.encodings import levels as levels_of_papers
from relpos.encodings.registry import entry
from relpos.tasks.lengths import length_options

PAPERS = ("melody", "chord", "section")  # the levels that the published encodings read
BASES = {**levels_of_papers.BASES, "beat": 8353.0, "bar": 13577.0, "phrase": 12899.0}
"""Of the sines of each level, all different, so that equal numbers of two levels do not look alike: the published ones,
and three of our own."""


def structure_options(
    encoding: object, levels: Mapping[str, int], train_length: int, longest: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of an encoding: those that were given, and where it goes by name those that the task knows.

    levels   how many labels each level may have, by name
    given    options of the user; "levels" may be names, as a list or joined by +

    An encoding that takes several levels gets those of its own default that the task has, or all of the task's; with
    them come the sizes of its tables, or the bases of its sines. One that would read the order of the tokens where
    nothing is said gets the labels instead. ValueError for a level that the task has not.
    """
    if not isinstance(encoding, str):
        return dict(given)
    options = {**length_options(encoding, train_length, longest), **given}
    wanted = inspect.signature(entry(encoding).load()).parameters
    if "levels" in wanted and not isinstance(given.get("levels"), Mapping):
        names = _names(given.get("levels"), _default(wanted["levels"].default, levels), levels)
        numbers = levels if given.get("kind") == "learned" else BASES
        options["levels"] = {name: numbers[name] for name in names} if "kind" in wanted else list(names)
    elif "level" in wanted and (wanted["level"].default == "index" or "level" in given):
        options["level"] = given.get("level") or list(_default(PAPERS, levels))
    return options


def _names(given: Any, default: Iterable[str], levels: Mapping[str, int]) -> list[str]:
    names = list(default) if given is None else given.split("+") if isinstance(given, str) else list(given)
    unknown = sorted(set(names) - set(levels))
    if unknown:
        raise ValueError(f"this task has the levels {', '.join(levels)}; got {', '.join(unknown)}")
    return names


def _default(wished: Iterable[str], levels: Mapping[str, int]) -> Iterable[str]:
    return [name for name in wished if name in levels] or levels
