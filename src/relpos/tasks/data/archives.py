"""Package files are opened with the standard library alone: nothing in them is installed, imported or run.

Members are read into memory one at a time and never written to disk under their own names, so a path that climbs out
of its folder has nothing to climb out of; such members are refused all the same, since an honest package has none.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

LARGEST_MEMBER = 1 << 30
_AR_MAGIC = b"!<arch>\n"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)

Member = tuple[str, bytes]


def members(path: Path, wanted: Callable[[str], bool], largest: int = LARGEST_MEMBER) -> Iterator[Member]:
    """(name, bytes) of every regular file in a wheel, zip, tar.* or deb whose name is wanted, in archive order.

    Names are relative with forward slashes, without a leading "./". ValueError where the archive is damaged, is of
    another kind, holds a name that leaves its folder, or a wanted member of more than ``largest`` bytes.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_AR_MAGIC))
            file.seek(0)
            if start == _AR_MAGIC:
                with _deb_data(path, file) as data:
                    yield from _tar(data, wanted, largest)
            elif start.startswith(b"PK"):
                yield from _zip(file, wanted, largest)
            else:
                yield from _tar(file, wanted, largest)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own trouble, not the archive's
        raise ValueError(f"{path} is damaged or not a zip, tar or deb: {error}; delete it and fetch again") from error


def read(path: Path, names: Callable[[str], bool] | str) -> bytes:
    """The bytes of the one member wanted. ValueError where there is none."""
    wanted = names if callable(names) else names.__eq__
    for _, data in members(path, wanted):
        return data
    raise ValueError(f"{path} has no member {names if isinstance(names, str) else 'of the kind asked for'}")


def safe_name(name: str) -> str:
    """The name as a relative path. ValueError where it is absolute or has a ".." in it."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0].startswith("/") or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the archive holds the unsafe name {name!r}: it is not the package it should be")
    return "/".join(parts)


def _small(name: str, size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"{name} takes {size:,} bytes unpacked, more than the {largest:,} allowed")


def _zip(file: IO[bytes], wanted: Callable[[str], bool], largest: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = safe_name(info.filename)
            if wanted(name):
                _small(name, info.file_size, largest)
                yield name, archive.read(info)


def _tar(file: IO[bytes], wanted: Callable[[str], bool], largest: int) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for info in archive:
            if not info.isreg():  # folders; links and devices are no data
                continue
            name = safe_name(info.name)
            if wanted(name):
                _small(name, info.size, largest)
                content = archive.extractfile(info)
                assert content is not None
                yield name, content.read()


@contextmanager
def _deb_data(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The data.tar.* of a deb: an ar archive, 60 bytes of header a member, members padded to even lengths."""
    file.seek(len(_AR_MAGIC))
    while header := file.read(60):
        if len(header) < 60 or header[58:] != b"`\n":
            break
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                with _zstd(path, file, size) as data:
                    yield data
            else:
                yield cast("IO[bytes]", _Part(file, size))
            return
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError(f"{path} is damaged: it has no data.tar member; delete it and fetch again")


class _Part(io.RawIOBase):
    """The next ``size`` bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(chunk)
        return chunk


@contextmanager
def _zstd(path: Path, file: IO[bytes], size: int) -> Iterator[IO[bytes]]:
    """Zstandard came to the standard library with Python 3.14; before that the command zstd unpacks."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        command = shutil.which("zstd")
        if command is None:
            raise ValueError(
                f"{path.name} is packed with Zstandard: install the command zstd, or use Python 3.14"
            ) from None
        with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as plain:
            shutil.copyfileobj(_Part(file, size), packed)
            packed.seek(0)
            if subprocess.run([command, "-dcq"], stdin=packed, stdout=plain, check=False).returncode:
                raise ValueError(f"{path} is damaged: zstd cannot unpack it; delete it and fetch again") from None
            plain.seek(0)
            yield plain
    else:
        with zstd.open(_Part(file, size)) as plain:
            yield plain
