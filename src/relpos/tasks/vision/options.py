"""What the options of the vision tasks may be: they come from a command line, where anything can be written."""

from __future__ import annotations

from collections.abc import Sequence

from relpos.encodings.base import positive


def numbers(name: str, given: Sequence[int]) -> list[int]:
    """Positive integers. ValueError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"{name} is a list of positive integers, such as [500,2000], got {given!r}")
    return [positive(f"each of {name}", each) for each in given]


def pair(name: str, given: Sequence[int]) -> tuple[int, int]:
    """A number for validation and one for test, both positive."""
    both = numbers(name, given)
    if len(both) != 2:
        raise ValueError(f"{name} holds two numbers, of validation and of test, such as [500,2000], got {given!r}")
    return both[0], both[1]


def span(name: str, given: Sequence[float]) -> tuple[float, float]:
    """Two numbers above 0, rising."""
    listed = isinstance(given, Sequence) and all(isinstance(each, int | float) for each in given)
    if not listed or len(given) != 2 or not 0 < given[0] <= given[1]:
        raise ValueError(f"{name} is a least and a largest, such as [0.08,1.0], got {given!r}")
    return float(given[0]), float(given[1])
