"""What the scripts here share: turns in one process, the highest resident size of a fresh one, and the machine."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def turns(works: Mapping[str, Work], rounds: int, once: tuple[str, ...] = (), few: int = 2) -> dict[str, list[float]]:
    """Seconds of each work, in turns that begin one further every round; after one call of each to warm up. Those named
    in `once` are not warmed up and take part in the first `few` rounds only."""
    names, found = list(works), {name: [] for name in works}
    for name in names:
        if name not in once:
            works[name]()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if name in once and turn >= few:
                continue
            begin = time.perf_counter()
            works[name]()
            found[name].append(time.perf_counter() - begin)
    return found


def ratio(times: list[float], base: list[float]) -> float:
    """The median over the rounds of one time over the other of the same round."""
    return statistics.median(a / b for a, b in zip(times, base, strict=False))


def peak(work: Work, calls: int = 3) -> float:
    """MiB that the process held at most during some calls, over what it held before."""
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.0005):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(calls):
        work()
    done.set()
    watcher.join()
    return max(highest - before, 0) / 2**20


def tensors(work: Work) -> float:
    """MiB of the tensors that a call held at once at most, from torch's allocation records."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        work()
    found = [each for each in records.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = highest = 0
    for each in sorted(found, key=lambda event: event.start_ns()):
        held += each.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def fresh(script: str, *arguments: str) -> float:
    """The number that a script prints, run in a process of its own."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine() -> str:
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
