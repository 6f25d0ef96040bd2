"""Which kernel serves a call. `auto` names one, with the reason; a kernel that cannot serve refuses in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from relpos.kernels.call import Call, Refusal
from relpos.kernels.dense import dense

KERNELS: dict[str, Callable[[Call], Tensor]] = {"dense": dense}

SMALL = 2**16  # scores a head below which the dense formula is the fastest and its n x n is no larger than the tiles


def pick(call: Call, kernel: str = "auto") -> tuple[str, str]:
    """Name of the kernel and the reason for it."""
    if kernel != "auto":
        if kernel not in KERNELS:
            raise ValueError(f"kernel is auto or one of {', '.join(KERNELS)}, got {kernel!r}")
        return kernel, "asked for"
    return "dense", "the only kernel"


def run(call: Call, kernel: str = "auto") -> Tensor:
    name, _ = pick(call, kernel)
    return KERNELS[name](call)


def memory(call: Call, name: str) -> str:
    return ""


def notes(call: Call, name: str) -> Iterator[str]:
    yield from ()


__all__ = ["KERNELS", "SMALL", "Refusal", "memory", "notes", "pick", "run"]
