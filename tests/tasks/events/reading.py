"""What several tests of readers share."""

from __future__ import annotations

from typing import Any

from relpos.tasks.data.sets import Card, Events

CARD = Card("made", "made by hand")


def by_id(read: Events) -> dict[str, tuple[list[float], list[Any]]]:
    """id -> times and names of marks (or their numbers)."""
    named = {}
    for one in read.sequences:
        kinds = [one.mark_names[mark] if one.mark_names else int(mark) for mark in one.kinds]
        named[one.ids[0]] = (one.times.tolist(), kinds)
    return named
