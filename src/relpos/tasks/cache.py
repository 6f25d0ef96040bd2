"""Prepared data is kept in one folder as npz files that are either whole or not there.

The folder is ``$RELPOS_CACHE``, else ``~/.cache/relpos``. A file carries a header that says what made it; a file that
is damaged, or whose header is not the expected one, is made again with a notice.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from filelock import FileLock

Arrays = dict[str, np.ndarray]
_HEADER = "header"


def folder() -> Path:
    """The cache folder; it need not exist yet."""
    return Path(os.environ.get("RELPOS_CACHE") or Path.home() / ".cache" / "relpos").expanduser()


def write(path: Path, header: Mapping[str, str], arrays: Arrays) -> None:
    """Writes header and arrays to ``path`` at one stroke: another process sees the old file or the whole new one.

    OSError where the disk is full or the folder not writable; the old file is then untouched.
    """
    if _HEADER in arrays:
        raise ValueError(f"an array must not be called {_HEADER!r}: rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{_HEADER: np.array(json.dumps(dict(header)))}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path, header: Mapping[str, str]) -> Arrays:
    """The arrays in ``path``. FileNotFoundError; ValueError where it is damaged or made by something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        found = json.loads(str(arrays.pop(_HEADER)))
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    wrong = [f"{key} is {found.get(key)!r}, not {value!r}" for key, value in header.items() if found.get(key) != value]
    if wrong:
        raise ValueError("; ".join(wrong))
    return arrays


def cached(name: str, header: Mapping[str, str], build: Callable[[], Arrays], once: bool = False) -> Arrays:
    """The arrays of the cache file ``name``.npz, built and kept first where it is missing, damaged or foreign.

    once: of several processes that miss the file at the same time one builds it and the others wait; for builds that
    download. An empty file ``name``.lock then stays behind, which means nothing: the system itself lets go of a lock
    whose holder died.
    """
    path = folder() / f"{name}.npz"
    arrays = _usable(path, header, notice=True)
    if arrays is not None:
        return arrays
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")) if once else nullcontext():
        arrays = _usable(path, header, notice=False) if once else None  # another process may have made it meanwhile
        if arrays is None:
            arrays = build()
            write(path, header, arrays)
    return arrays


def _usable(path: Path, header: Mapping[str, str], notice: bool) -> Arrays | None:
    try:
        return read(path, header)
    except FileNotFoundError:
        return None
    except ValueError as error:
        if notice:
            warnings.warn(f"making {path} again: {error}", stacklevel=3)
        return None
