"""Finding weights by the names that released code gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def find(arrays: Mapping[str, Any], *names: str) -> Tensor | None:
    """The array of the first of these names, as a tensor; None where there is none.

    A name may stand behind a module path ("layers.0.attn." + name) or behind a prefix that ends in "sd_". ValueError
    where that leaves more than one array.
    """
    for name in names:
        if name in arrays:
            return torch.as_tensor(arrays[name])
        found = [key for key in arrays if key.endswith(("." + name, "sd_" + name))]
        if len(found) > 1:
            raise ValueError(f"{name!r} could be any of {', '.join(found)}; pass the arrays of one layer")
        if found:
            return torch.as_tensor(arrays[found[0]])
    return None


def need(arrays: Mapping[str, Any], *names: str) -> Tensor:
    """As `find`; ValueError where there is none."""
    found = find(arrays, *names)
    if found is None:
        raise ValueError(f"no array is called {' or '.join(names)}; there are {', '.join(arrays) or 'none'}")
    return found
