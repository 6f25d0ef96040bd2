"""What every integration asks first: which version is this, is the model as it came, what encoding is meant."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from relpos.encodings.base import Absolute, Bias, Encoding
from relpos.encodings.registry import fitted

Minor = tuple[int, int]
Given = str | Encoding | Callable[[], Encoding]
"""A name, an object, or a callable without arguments that makes one."""

KEPT = "_relpos_undo"
"""The attribute of a changed model that holds its `Undo`."""


class Lent(Bias):
    """Mixin, left of a bias with a table: the table stays a parameter of the module that lends it, `owner`.

    A subclass says where it is there, and calls `borrow` in place of the constructor of the bias, which would draw one.
    """

    owner: tuple[Any]  # in a tuple: a submodule would appear in the model's state

    def borrow(self, owner: nn.Module) -> None:
        Encoding.__init__(self)
        self.owner = (owner,)
        self._parameters["table"] = None  # another one takes this place for a while, in `torch.func.functional_call`

    def lent(self) -> Tensor:
        """The table, as the bias would hold it."""
        raise NotImplementedError

    @property
    def table(self) -> Tensor:
        own = self._parameters["table"]
        return self.lent() if own is None else own

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The lent table is what gradients are to reach."""
        yield "table", self.table  # type: ignore[misc]


def check_version(package: str, extra: str, tested: tuple[Minor, Minor], untested: bool = False) -> None:
    """ImportError without the package; RuntimeError outside of the minor versions `tested`, first and last.

    untested: any version will do.
    """
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{package} is not installed: pip install 'relpos[{extra}]'") from None
    minor = tuple(int(part) for part in version.split(".")[:2])
    if not untested and not tested[0] <= minor <= tested[1]:
        low, high = (".".join(map(str, each)) for each in tested)
        raise RuntimeError(
            f"relpos was tested with {package} {low} to {high}, not with {version}; install one of those, or try it "
            "with untested=True and compare outputs"
        )


def check_unchanged(model: nn.Module, package: str) -> None:
    """TypeError for what is no module, ValueError where an integration changed it or a part of it before."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model of {package} is needed, got {type(model).__name__}")
    if any(KEPT in vars(part) for part in model.modules()):
        raise ValueError("relpos is in this model already; restore(model) takes it out")


def encoding_of(given: Given, known: Mapping[str, Any], options: Mapping[str, Any]) -> Encoding:
    """The encoding that is meant; a name is built with what its class takes of `known`, and with the options.

    ValueError or TypeError for anything else, and for an encoding that acts in no attention layer.
    """
    if isinstance(given, str):
        made: Any = fitted(given, known, options)
    elif options:
        raise ValueError(f"options go with an encoding given by name, got {', '.join(options)}")
    else:
        made = given() if callable(given) and not isinstance(given, Encoding) else given
    if not isinstance(made, Encoding):
        raise TypeError(f"encoding is a name, an Encoding or a callable that makes one, got {type(made).__name__}")
    if isinstance(made, Absolute):
        raise ValueError(f"{type(made).__name__} is added to the input; take a term of the scores, or a transform")
    return made
