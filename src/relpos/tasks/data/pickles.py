"""Pickles that may hold numpy arrays and plain values, and nothing that runs."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

# An array is rebuilt from these alone. Numpy moved its module `core` to `_core`, and files are older than that.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a file of arrays and labels never needs")
        return super().find_class(module, name)


def load(path: Path) -> dict[str, Any]:
    """The dict in a pickle of arrays, numbers, text, lists and dicts; strings of Python 2 are read as latin-1.

    ValueError where the file holds anything else: no code in it runs.
    """
    try:
        value = _Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is refused: {error}. Do not open it in another way; get the data again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a dict of arrays")
    return value
