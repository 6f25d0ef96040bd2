"""What a model costs: parameters, and the peak of live tensor memory in one training step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding


def encodings_of(model: nn.Module) -> list[tuple[str, Encoding]]:
    """The (name, encoding) pairs a model declares, or those among its parts; each shared encoding once."""
    listed = getattr(model, "encodings", None)
    among = ((name, part) for name, part in model.named_modules() if isinstance(part, Encoding))
    pairs: Iterable[tuple[str, Encoding]] = listed() if callable(listed) else among
    seen: dict[int, tuple[str, Encoding]] = {}
    for name, encoding in pairs:
        if encoding is not None:
            seen.setdefault(id(encoding), (name, encoding))
    return list(seen.values())


def parameters(model: nn.Module) -> tuple[int, int]:
    """(of the whole model, of its encodings alone), shared tensors counted once."""
    own = {id(p): p for _, encoding in encodings_of(model) for p in encoding.parameters()}
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in own.values())


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only: never on vectors, nor on an encoding's tables and frequencies.

    A decayed table is pulled towards "no encoding", which would favour encodings without parameters.
    """
    spared = {id(p) for _, encoding in encodings_of(model) for p in encoding.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in spared]
    chosen = {id(p) for p in decayed}
    free = [p for p in trainable if id(p) not in chosen]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": decay}]
    return [*groups, {"params": free, "weight_decay": 0.0}] if free else groups


def peak_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of tensors alive at the worst moment of one forward and backward, over what was alive before it.

    From torch's own allocation records, so it is the same on every machine and does not see the interpreter, the
    data or earlier models of this process (the resident size of the process does). Gradients count, weights and
    optimizer state do not.
    """
    model.zero_grad(set_to_none=True)
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss().backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with _silent_errors(), torch.profiler.profile(activities=activities, profile_memory=True) as record:
            loss().backward()
        live = peak = 0
        for event in sorted(_allocations(record), key=lambda pair: pair[0]):
            live += event[1]
            peak = max(peak, live)
    model.zero_grad(set_to_none=True)
    return peak


@contextmanager
def _silent_errors() -> Iterator[None]:
    """Drops what native code writes to the error stream: the profiler announces its start there, at every log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _allocations(record: torch.profiler.profile) -> list[tuple[int, int]]:
    """(time in ns, bytes; negative when freed) of every allocation the profiler saw."""
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events: list[Any] = record.profiler.kineto_results.events()
    return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
