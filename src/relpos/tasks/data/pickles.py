"""Pickles that may hold numpy arrays, data frames and plain values, and nothing that runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# An array is rebuilt from these alone. Numpy moved its module `core` to `_core`, and files are older than that.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_ERRORS = (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError)
_AGAIN = "Do not open it in another way; get the data again"


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
    except _ERRORS as error:
        raise ValueError(f"{path} is refused: {error}. {_AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a dict of arrays")
    return value


def frame(content: bytes, name: str = "the pickle") -> dict[str, np.ndarray]:
    """The columns, by name, of a data frame that pandas 1.5 to 2.3 pickled; pandas is not needed.

    Columns of text are object arrays of str, with None or NaN where a value is missing. The row index is left out.
    ValueError where the content is anything else than one data frame of arrays: no code in it runs.
    """
    try:
        value = _Frames(io.BytesIO(content)).load()
        if not isinstance(value, _Frame):
            raise ValueError(f"it holds a {type(value).__name__}, not a data frame")
        return value.columns()
    except _ERRORS as error:
        raise ValueError(f"{name} is refused: {error}. {_AGAIN}") from error


class _Frame:
    """Stands for pandas' DataFrame: keeps the state, and reads the columns out of it."""

    state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not isinstance(state.get("_mgr"), _Blocks):
            raise ValueError("the data frame is of an unknown version")
        self.state = state

    def columns(self) -> dict[str, np.ndarray]:
        blocks, axes = self.state["_mgr"].parts
        names = np.asarray(axes[0])
        found: dict[str, np.ndarray] = {}
        for values, places in blocks:
            places = np.arange(len(names))[places]
            if values.ndim != 2 or len(places) != len(values):
                raise ValueError("a block of the data frame does not fit its columns")
            found |= {str(names[place]): values[row] for row, place in enumerate(places)}
        return {str(name): found[str(name)] for name in names}


class _Blocks:
    """Stands for pandas' BlockManager, made from its blocks and its axes (columns, rows)."""

    def __init__(self, blocks: Any, axes: Any) -> None:
        self.parts = (blocks, axes)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("the data frame is of an unknown version")


def _block(values: Any, places: Any, axes: Any = 2) -> tuple[np.ndarray, Any]:
    if not isinstance(values, np.ndarray) or not isinstance(places, np.ndarray | slice):
        raise ValueError(f"a column is a {type(values).__name__}; only plain arrays are read")
    return values, places


def _index(kind: Any, state: dict[str, Any]) -> Any:
    """The values of an Index, or None for a numbered one."""
    return state.get("data")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    if np.dtype(dtype).hasobject:
        raise ValueError("an array of objects comes as raw bytes")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


class _Frames(_Restricted):
    """Names of pandas stand for the inert pieces above; nothing of pandas is imported."""

    stands = {
        ("pandas.core.frame", "DataFrame"): _Frame,
        ("pandas.core.internals.managers", "BlockManager"): _Blocks,
        ("pandas._libs.internals", "_unpickle_block"): _block,
        ("pandas.core.indexes.base", "_new_Index"): _index,
        ("pandas.core.indexes.base", "Index"): None,
        ("pandas.core.indexes.range", "RangeIndex"): None,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("builtins", "slice"): slice,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.stands:
            return self.stands[module, name]
        return super().find_class(module, name)


def saved(path: Path) -> dict[str, Any]:
    """The dict that torch.save wrote, where it holds no tensor: numbers, text, lists, dicts and arrays.

    Read from the zip of today, and from the older form, a row of pickles. ValueError for anything else: no code runs.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(each for each in archive.namelist() if each.endswith("/data.pkl"))
                value = _Restricted(io.BytesIO(archive.read(name))).load()
        else:
            with open(path, "rb") as file:
                for _ in range(4):  # a magic number, a version, what system it was, the object
                    value = _Restricted(file).load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (*_ERRORS, StopIteration, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is refused: {error}. {_AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a dict")
    return value
