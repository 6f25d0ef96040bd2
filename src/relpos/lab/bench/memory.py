"""Peak memory of one call, in a process that does nothing else."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from relpos.lab.bench.contestants import CONTESTANTS, reason
from relpos.lab.bench.problem import Problem, Refused, call, lag_index
from relpos.lab.bench.timing import SHARE, free_memory

WARM = 320  # tokens of the call that loads libraries and starts threads before the measurement; too many for "dense"


def measure(name: str, problem: Problem) -> dict[str, Any]:
    """Bytes at the peak of one call over what the process held when its inputs were ready: outputs, gradients and
    everything in between; or why it was skipped.

    On Linux the kernel's high-water mark of the resident size is reset before the call; elsewhere, where the mark of
    the whole life of the process has to do, the number is an upper bound of what the call added to earlier peaks and is
    marked as such. On CUDA it is what the allocator handed out.
    """
    contestant = CONTESTANTS[name]
    need, free = contestant.needs(problem), free_memory(problem.device)
    if free is not None and need > SHARE * free:
        return {"skipped": f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"}
    try:
        _once(name, Problem(**{**problem.as_dict(), "n": min(WARM, problem.n)}))
        lag_index.cache_clear()
        inputs = problem.inputs()
        work = call(contestant.prepare(problem), inputs)
        assert inputs.tensors
        gc.collect()
        peak, way = _peak(work, problem.device)
    except Refused as refusal:
        return {"skipped": str(refusal)}
    except Exception as error:
        return {"skipped": reason(error)}
    return {"skipped": None, "peak": peak, "share": peak / problem.scores, "way": way}


def _once(name: str, problem: Problem) -> None:
    call(CONTESTANTS[name].prepare(problem), problem.inputs())()


def _peak(work: Any, device: str) -> tuple[float, str]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - held), "max_memory_allocated"
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        resident, mark = _status("VmRSS"), _status("VmHWM")
        if mark - resident < 4 * 2**20:  # the reset took effect
            work()
            return _status("VmHWM") - resident, "VmHWM"
    before = _lifetime()
    work()
    return _lifetime() - before, "ru_maxrss"


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024.0 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _lifetime() -> float:
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak
