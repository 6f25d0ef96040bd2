"""Time and peak memory of attention, measured against what it competes with and against what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def main_attention(arguments: Sequence[str] | None = None, **options: object) -> Path:
    """What `relpos bench attention` runs: arguments as typed, or options by name. Returns the run directory."""
    from relpos.lab.bench.attention import KIND, AttentionBench
    from relpos.lab.bench.command import main

    return main(KIND, AttentionBench, arguments, **options)


def main_linear(arguments: Sequence[str] | None = None, **options: object) -> Path:
    """What `relpos bench linear` runs: arguments as typed, or options by name. Returns the run directory."""
    from relpos.lab.bench.command import main
    from relpos.lab.bench.linear.command import KIND, LinearBench

    return main(KIND, LinearBench, arguments, **options)
