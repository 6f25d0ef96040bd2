"""Numbers for modules: what a compiled program holds in the place of an object whose code it calls."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, TypeVar

from torch import nn

from relpos.positions import is_traced

_LIVE: weakref.WeakValueDictionary[int, Numbered] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
M = TypeVar("M", bound=nn.Module)


class Numbered(nn.Module):
    """A module with a number, `handle`, which is its own in this process and lives as long as it does."""

    handle: int

    def __init__(self) -> None:
        super().__init__()
        self._number()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number()  # a copy is another object

    def _number(self) -> None:
        if is_traced():
            return  # what a program makes for itself while it is followed lives in its graph
        self.handle = next(_NUMBERS)
        _LIVE[self.handle] = self


def handled(number: int, kind: type[M]) -> M:
    """The module of this kind whose `handle` this is."""
    found = _LIVE.get(number)
    if found is None:
        raise RuntimeError(
            f"this program computes with module {number} of the process that made it, which is gone; make the program "
            "again"
        )
    assert isinstance(found, kind)
    return found
