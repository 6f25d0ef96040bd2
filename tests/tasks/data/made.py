"""Package files made by hand: a wheel, an npm pack, a deb, a SWORD module, with as little in them as a reader needs."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from relpos.tasks.data.packages import Package

Files = Mapping[str, bytes]


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def wheel(path: Path, name: str, files: Files) -> Path:
    """A wheel that pip accepts."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    return zipped(path, {**files, **meta})


def tarred(files: Files, mode: str = "w:gz", links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(None, mode, buffer) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def npm(path: Path, files: Files) -> Path:
    path.write_bytes(tarred({f"package/{name}": data for name, data in files.items()}))
    return path


def deb(path: Path, files: Files, packed: str = "xz", links: Mapping[str, str] | None = None) -> Path:
    """An ar archive with an odd-sized control member, so that its padding matters."""
    plain = tarred({f"./{name}": data for name, data in files.items()}, "w", links)
    data = lzma.compress(plain) if packed == "xz" else gzip.compress(plain)
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{packed}": data}
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


def sword(kind: str, books: Mapping[str, Sequence[Sequence[str]]], folder: str) -> dict[str, bytes]:
    """{testament: blocks of slots}: the six files of a module; kind "b" is zText, "c" zCom4."""
    files: dict[str, bytes] = {}
    for testament, blocks in books.items():
        index, records, packed = b"", b"", b""
        for number, slots in enumerate(blocks):
            text = b""
            for slot in slots:
                data = slot.encode()
                records += struct.pack("<IIH" if kind == "b" else "<III", number, len(text), len(data))
                text += data
            block = zlib.compress(text)
            index += struct.pack("<III", len(packed), len(block), len(text))
            packed += block
        for part, data in zip("svz", (index, records, packed)):
            files[f"usr/share/sword/modules/{folder}/{testament}.{kind}z{part}"] = data
    return files


def idx(array: np.ndarray, zipped: bool = False) -> bytes:
    magic = {3: 2051, 1: 2049}[array.ndim]
    data = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    return gzip.compress(data) if zipped else data


def mnist(train: int, test: int, zipped: bool = False, dot: bool = False) -> dict[str, bytes]:
    """File name -> bytes; pixel values tell the index of their image, labels go 0 to 9 and again."""
    files = {}
    for side, count in (("train", train), ("t10k", test)):
        pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 3, 2))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count) % 10)):
            name = f"{side}-{kind}-ubyte".replace("-idx", ".idx") if dot else f"{side}-{kind}-ubyte"
            files[name + ".gz" * zipped] = idx(np.asarray(array), zipped)
    return files


def package(client: str, name: str, path: Path, version: str = "1.0") -> Package:
    """The record of a file that was made above."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(client, name, version, digest, path.stat().st_size)
