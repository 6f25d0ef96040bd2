"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from relpos.lab.environment import environment

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16")


def machine() -> dict[str, Any]:
    """The record of every run, and what matters for speed: instruction sets, memory, libraries, load."""
    return {
        **environment(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": _flags(),
        "memory": _memory(),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "load": load(),
    }


def load() -> float | None:
    """Processes that wanted a core during the last minute: above the number of threads, the machine was shared."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _flags() -> list[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            words = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    except OSError:
        return [platform.machine()]
    return [flag for flag in FLAGS if flag in words]


def _memory() -> float | None:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None
