"""Claims of papers put to the test, each with one command: `relpos claim run NAME`.

A claim is one module with the attributes of `frame.Claim`; its line here makes it known to the command.
"""

from __future__ import annotations

import importlib
from typing import cast

from relpos.lab.claims.frame import Claim, Finding, Order, prove
from relpos.lab.errors import unknown

__all__ = ["Claim", "Finding", "Order", "get", "names", "prove"]

_CLAIMS: dict[str, str] = {
    "stability": "relpos.lab.claims.stability",
    "conversion": "relpos.lab.claims.conversion",
    "extrapolation": "relpos.lab.claims.extrapolation",
    "music": "relpos.lab.claims.music",
    "vision": "relpos.lab.claims.vision",
}


def names() -> list[str]:
    """Names of the claims, in the order in which they are listed."""
    return list(_CLAIMS)


def get(name: str) -> Claim:
    """The claim of that name, imported now. LabError for an unknown one, with the nearest."""
    if name not in _CLAIMS:
        raise unknown("claim", name, _CLAIMS)
    return cast(Claim, importlib.import_module(_CLAIMS[name]))
