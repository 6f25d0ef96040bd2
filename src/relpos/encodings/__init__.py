"""All encodings, by class. Each class is loaded at its first use, so that importing the library stays quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relpos.encodings import registry as _registry

if TYPE_CHECKING:
    from relpos.encodings.base import Absolute as Absolute
    from relpos.encodings.base import Bias as Bias
    from relpos.encodings.base import ContentBias as ContentBias
    from relpos.encodings.base import Encoding as Encoding
    from relpos.encodings.base import RowBias as RowBias
    from relpos.encodings.base import Transform as Transform

_FORMS = ("Absolute", "Bias", "ContentBias", "Encoding", "RowBias", "Transform")


def __getattr__(name: str) -> Any:
    if name in _FORMS:
        from relpos.encodings import base

        return getattr(base, name)
    for _, found in _registry.each():
        if found.path.endswith(f":{name}") or (found.cls is not None and found.cls.__name__ == name):
            return found.load()
    raise AttributeError(f"module 'relpos.encodings' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted({*_FORMS, *(found.path.split(":")[-1] for _, found in _registry.each() if found.path)})
