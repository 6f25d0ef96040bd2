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
STRIDE = 2**32
"""The number of what is derived from a module is the module's own and some strides."""


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

    def derived(self, strides: int) -> nn.Module:
        """What has the number of this module and so many strides."""
        raise NotImplementedError


def number_of(module: nn.Module) -> int:
    """Its `handle`. RuntimeError where it was made inside of the program that is being compiled."""
    number: int | None = getattr(module, "handle", None)
    if number is None:
        raise RuntimeError(
            f"{type(module).__name__} is made inside of the function that is compiled, which cannot hold it: make it "
            "once, outside, and pass the object (in place of a name, too)"
        )
    return number


def handled(number: int, kind: type[M]) -> M:
    """The module of this kind whose `handle` this is."""
    strides, own = divmod(number, STRIDE)
    found: Any = _LIVE.get(own)
    if found is None:
        raise RuntimeError(
            f"this program computes with module {number} of the process that made it, which is gone; make the program "
            "again"
        )
    found = found.derived(strides) if strides else found
    assert isinstance(found, kind)
    return found
