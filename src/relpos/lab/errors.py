"""Errors a user of the command can act on; the command prints them in one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(ValueError):
    """Says what was got, what is allowed and what to do."""


class RunDirectoryError(LabError):
    """A run directory that is not ours, is broken, belongs to other settings or is in use."""


class DiskFullError(LabError):
    """No room for a checkpoint; the previous one is still whole."""


def unknown(kind: str, name: str, known: Iterable[str]) -> LabError:
    """The error for an unknown name: suggests the nearest, then lists all."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return LabError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
