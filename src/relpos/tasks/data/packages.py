"""Package files come through the ordinary clients pip, npm and apt-get; scripts in a package never run.

A file lies in the folder ``packages`` of the cache, whole or not at all, and may be put there by hand where a client is
missing. pip takes wheels only, since building an sdist would run its code; npm gets --ignore-scripts; apt-get only
downloads. A PyPI or npm version is pinned with its sha256. Debian's versions move, so a deb that differs is used,
and its card says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from relpos.tasks import cache
from relpos.tasks.base import Progress

STALL = 300.0  # seconds without a new byte after which a client is given up


class FetchError(RuntimeError):
    """A package could not be had: the client is missing or failed, or the file is not the expected one."""


@dataclass(frozen=True)
class Package:
    """One package file. version "" and a sha256 that only informs: Debian; pinned both: PyPI, npm. size: bytes."""

    client: str
    name: str
    version: str
    sha256: str
    size: int

    @property
    def pinned(self) -> bool:
        """Whether a file with another sha256 is refused."""
        return bool(self.version)

    @property
    def pattern(self) -> str:
        """Glob of the file name that the client gives it."""
        if self.client == "pip":
            return f"{self.name.replace('-', '_')}-{self.version}-*.whl"
        if self.client == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name}_*.deb"


@dataclass(frozen=True)
class Obtained:
    """A package file on this machine. expected: its sha256 is the recorded one."""

    package: Package
    path: Path
    version: str
    sha256: str
    expected: bool

    def record(self) -> dict[str, str]:
        """What the card of a data set says about it."""
        return {
            "client": self.package.client,
            "package": self.package.name,
            "version": self.version,
            "file": self.path.name,
            "sha256": self.sha256,
            "expected": "yes" if self.expected else "no: counts may differ from those of the version described",
        }


def folder() -> Path:
    """Where package files lie; they may be deleted at any time."""
    return cache.folder() / "packages"


def obtain(packages: Sequence[Package], progress: Progress | None = None) -> list[Obtained]:
    """The files of the packages, those that are missing downloaded first. FetchError; OSError for a full disk."""
    folder().mkdir(parents=True, exist_ok=True)
    for client in dict.fromkeys(package.client for package in packages):
        missing = [package for package in packages if package.client == client and _found(package) is None]
        if missing:
            _download(client, missing, progress)
    return [_checked(package) for package in packages]


def _found(package: Package) -> Path | None:
    files = sorted(folder().glob(package.pattern), key=lambda path: path.stat().st_mtime)
    return files[-1] if files else None


def _checked(package: Package) -> Obtained:
    path = _found(package)
    if path is None:
        raise FetchError(f"{package.client} ended well but left no file {package.pattern}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = digest == package.sha256
    if package.pinned and not expected:
        raise FetchError(
            f"{path} has the sha256 {digest}, not {package.sha256}: it is damaged or not what was described here. "
            "Delete it and fetch again; if it stays so, do not use it"
        )
    version = package.version or unquote(path.name.split("_")[1])
    return Obtained(package, path, version, digest, expected)


def _download(client: str, packages: Sequence[Package], progress: Progress | None) -> None:
    names = ", ".join(package.name for package in packages)
    if client not in _CLIENTS:
        raise ValueError(f"unknown client {client!r}; known: {', '.join(_CLIENTS)}")
    total = sum(package.size for package in packages)
    with tempfile.TemporaryDirectory(dir=folder(), prefix=".download-") as scratch:
        work = Path(scratch)
        files = work / "files"
        files.mkdir()
        text = f"downloading {names} ({total / 1e6:.0f} MB) with {client}"
        _CLIENTS[client](packages, files, lambda command: _run(command, work, files, total, text, progress))
        for package in packages:
            found = sorted(files.glob(package.pattern))
            if not found:
                raise FetchError(f"{client} ended well but brought no file {package.pattern} for {package.name}")
            os.replace(found[-1], folder() / found[-1].name)


Run = Callable[[list[str]], None]


def _pip(packages: Sequence[Package], files: Path, run: Run) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        start = [sys.executable, "-m", "pip"]
    else:
        start = [_program("pip", packages)]
    for package in packages:
        arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
        run([*start, *arguments, "-d", str(files), f"{package.name}=={package.version}"])


def _npm(packages: Sequence[Package], files: Path, run: Run) -> None:
    npm = _program("npm", packages)
    quiet = [
        "--ignore-scripts",
        "--no-update-notifier",
        "--no-audit",
        "--no-fund",
        "--cache",
        str(files.parent / "npm"),
    ]
    # In one go npm would keep its own copies of all; one by one there is at most one.
    for package in packages:
        run([npm, "pack", *quiet, "--pack-destination", str(files), f"{package.name}@{package.version}"])


def _apt(packages: Sequence[Package], files: Path, run: Run) -> None:
    apt = _program("apt-get", packages)
    names = [package.name for package in packages]
    try:
        run([apt, "download", *names])
        return
    except FetchError:
        pass  # often only because nobody ran `apt-get update` here; the second try needs no one to
    state = files.parent / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "archives" / "partial").mkdir(parents=True)
    private = [f"-oDir::State::Lists={state / 'lists'}", f"-oDir::Cache={state}", "-oAcquire::Languages=none"]
    run([apt, *private, "update"])
    try:
        run([apt, *private, "download", *names])
    except FetchError:
        # Without a network `update` ends well, with empty lists, and `download` then knows no such package. Only where
        # nothing was found does it matter whether all lists could be had: this one says why not.
        run([apt, *private, "-oAPT::Update::Error-Mode=any", "update"])
        raise


_CLIENTS: dict[str, Callable[[Sequence[Package], Path, Run], None]] = {"pip": _pip, "npm": _npm, "apt-get": _apt}


def available(client: str) -> bool:
    """Whether the client is on this machine; for pip also as a module of this Python."""
    if client == "pip":
        from importlib.util import find_spec

        return find_spec("pip") is not None or shutil.which("pip") is not None
    return shutil.which(client) is not None


def _program(name: str, packages: Sequence[Package]) -> str:
    found = shutil.which(name)
    if found is None:
        patterns = ", ".join(package.pattern for package in packages)
        raise FetchError(
            f"the package client {name} is not on this machine. Install it, or put these files into {folder()} "
            f"by hand: {patterns}"
        )
    return found


def _run(command: list[str], work: Path, files: Path, total: int, text: str, progress: Progress | None) -> None:
    """Runs a client in ``files``; what it has downloaded so far is what has appeared below ``work``."""
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"}
    log = work / "log"
    with open(log, "wb") as output:
        client = subprocess.Popen(
            command, cwd=files, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _watch(client, work, total, text, progress)
        except BaseException:
            client.kill()
            client.wait()
            raise
    if client.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise FetchError(f"`{' '.join(command)}` failed (exit status {client.returncode}): {' | '.join(lines[-4:])}")


def _watch(client: subprocess.Popen[bytes], work: Path, total: int, text: str, progress: Progress | None) -> None:
    size, changed = 0, time.monotonic()
    while True:
        try:
            client.wait(timeout=0.25)
            return
        except subprocess.TimeoutExpired:
            pass
        now, before, size = time.monotonic(), size, _size(work)
        if size != before:
            changed = now
        elif now - changed > STALL:
            raise FetchError(f"{client.args[0]!s} got nothing for {STALL:.0f} s; try again later")  # type: ignore[index]
        if progress is not None:
            progress(min(size, total), total, text)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
