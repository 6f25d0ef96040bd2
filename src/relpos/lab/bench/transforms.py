"""The floor of a free table: nothing but its Fourier transforms, in buffers that fit the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relpos.kernels.spectrum import ELEMENTS, Scratch, fast_length, spread
from relpos.lab.bench.problem import Prepared, Problem, Refused

LEAST = 8  # rows in one call at least: each call plans its transform anew
_scratch = Scratch()


def make(problem: Problem) -> Prepared:
    """One transform of every feature times every column and one back; with the backward pass three times as many."""
    if problem.causal:
        raise Refused("is stated for attention to all keys: causal sums are cut into rectangles of many lengths")
    length = fast_length(2 * problem.n - 1)
    rows = problem.batch * problem.heads * problem.features * (problem.dim + 1)
    together = max(LEAST, ELEMENTS // length)
    parts = [min(together, rows - first) for first in range(0, rows, together)]

    def there_and_back(count: int) -> None:
        real = _scratch.take("real", (count, length), problem.kind, torch.device(problem.device))
        complex_ = torch.complex128 if problem.kind == torch.float64 else torch.complex64
        spectra = _scratch.take("spectra", (count, length // 2 + 1), complex_, real.device)
        torch.fft.rfft(real.zero_(), out=spectra)
        torch.fft.irfft(spectra, length, out=real)

    return Prepared(lambda q, k, v: _Transforms.apply(q, k, v, lambda: spread(there_and_back, parts)))


class _Transforms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, work: Any) -> Tensor:
        ctx.work = work
        ctx.save_for_backward(q, k)
        work()
        return v.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.work()
        ctx.work()
        q, k = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), grad, None
