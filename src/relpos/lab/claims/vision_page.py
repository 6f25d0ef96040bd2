"""The page of the claim about vision: tables and pictures from the numbers alone."""

from __future__ import annotations

from typing import Any


def body(found: Any, asked: Any, kept: Any, s: Any, method: str) -> str:
    """The page below the verdict."""
    return f"## How it was done\n\n{method}"


def pictures(found: Any) -> dict[str, bytes]:
    """Name -> PNG."""
    return {}
