"""What an encoding wants to know of lengths, filled in from what a task trains and evaluates at."""

from __future__ import annotations

import inspect

from relpos.encodings.registry import entry


def length_options(encoding: object, train_length: int, longest: int) -> dict[str, int]:
    """Options of an encoding given by name: {} for any other.

    Tables of lags end at the longest lag of training (a longer table has entries that never learn), tables of
    positions at the longest evaluation.
    """
    if not isinstance(encoding, str):
        return {}
    found = entry(encoding)
    wanted = inspect.signature(found.load()).parameters
    last_lag = max(1, train_length - 1)
    usual = found.defaults.get("max_lag", getattr(wanted.get("max_lag"), "default", None))
    offered = {
        "max_lag": min(usual, last_lag) if isinstance(usual, int) else last_lag,
        "train_length": train_length,
        "max_length": longest,
    }
    return {key: value for key, value in offered.items() if key in wanted}
