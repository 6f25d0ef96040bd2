"""What one bench says of itself to the parts that all benches share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relpos.lab.bench.settings import Settings
from relpos.lab.bench.tables import Table

Results = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A bench: its options, what it makes of its results, and the words of its page.

    format      marks the files that its --rewrite reads
    images      folder of the pictures, seen from the folder of a page whose name is {page}
    captions    of the pictures, by name
    method      paragraphs on how it was measured
    """

    settings: type[Settings]
    format: str
    title: str
    images: str
    captions: Mapping[str, str]
    goals: Callable[[Results], list[dict[str, Any]]]
    tables: Callable[[Results], list[Table]]
    pictures: Callable[[Results], dict[str, bytes]]
    introduction: Callable[[Results], str]
    method: Callable[[Results], list[str]]
