"""Changing a module of a living model, and changing it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from relpos.encodings.base import Encoding
from relpos.positions import is_traced

E = TypeVar("E", bound=Encoding)


class _Missing:
    """The class itself stands for an attribute that was not there: a copy of a model copies its undo, and not this."""


@dataclass
class Undo:
    """What a model's modules and configs were like before: attributes set through here are put back by `restore`."""

    steps: list[tuple[Any, str, Any]] = field(default_factory=list)
    added: list[tuple[nn.Module, str]] = field(default_factory=list)

    def set(self, target: Any, name: str, value: Any) -> None:
        """target.name = value, remembered. Parameters and buffers are never touched."""
        self.steps.append((target, name, vars(target).get(name, _Missing)))
        target.__dict__[name] = value

    def method(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """This instance's method; `function` takes the module first. A copy of the model has it for the copy."""
        self.set(module, name, MethodType(function, module))

    def submodule(self, module: nn.Module, name: str, part: nn.Module | None) -> None:
        """A part that the model did not have, with parameters that are trained and saved."""
        self.added.append((module, name))
        setattr(module, name, part)

    def restore(self) -> None:
        for target, name, value in reversed(self.steps):
            if value is _Missing:
                target.__dict__.pop(name, None)
            else:
                target.__dict__[name] = value
        self.steps.clear()
        for module, name in self.added:
            delattr(module, name)
        self.added.clear()


@contextmanager
def given(rule: E, **tensors: Any) -> Iterator[E]:
    """The encoding with tensors of this call: a view, for other threads may use the rule meanwhile. A program that is
    being followed has one thread, cannot make a module, and calls an encoding's code by the number of the rule."""
    if is_traced():
        for name, value in tensors.items():
            setattr(rule, name, value)
        yield rule
        for name in tensors:
            setattr(rule, name, None)
        return
    view: E = type(rule).__new__(type(rule))
    nn.Module.__init__(view)
    view.__dict__.update({name: value for name, value in vars(rule).items() if not name.startswith("_")} | tensors)
    yield view
