"""Where and with what a run was made: git, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch", "numpy", "lightning", "safetensors", "music21", "symusic", "matplotlib", "pillow", "sacrebleu",
    "sentencepiece",
)  # fmt: skip


def git_state(folder: Path) -> dict[str, object]:
    """Commit and whether tracked files differ from it; None where the source is not a git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def processor() -> str:
    """The processor's marketing name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(threads: int) -> int:
    """How many models to train at once: one for each `threads` cores, one on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, cores() // threads)


def environment() -> dict[str, object]:
    """The record stored as environment.json."""
    import torch

    versions: dict[str, str] = {}
    for name in ("relpos", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "git": git_state(Path(__file__).parent),
        "python": sys.version.split()[0],
        "versions": versions,
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
