"""Linear recurrences over events, O(n) work in O(sqrt n) steps of Python, and a minimiser with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Parameters (p,) to the value to be made small and its gradient (p,)."""


def scan(decay: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """x_i = decay_i x_{i-1} + inputs_i with x_{-1} = 0. decay: (n,); inputs and result: (n, width).

    Blocks run side by side and are joined afterwards: products of decays only, so that nothing can overflow.
    """
    n, width = inputs.shape
    if n == 0:
        return np.zeros((0, width))
    length = max(1, math.isqrt(n))
    blocks = -(-n // length)
    a = np.zeros((blocks * length,))
    a[:n] = decay
    x = np.zeros((blocks * length, width))
    x[:n] = inputs
    a, x = a.reshape(blocks, length, 1), x.reshape(blocks, length, width)
    product = a.copy()
    for step in range(1, length):
        x[:, step] += a[:, step] * x[:, step - 1]
        product[:, step] *= product[:, step - 1]
    carry = np.zeros((blocks, width))
    for block in range(1, blocks):
        carry[block] = x[block - 1, -1] + product[block - 1, -1] * carry[block - 1]
    x += product * carry[:, None]
    return x.reshape(-1, width)[:n]


def running(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Running sums that begin anew in every sequence. values: (n, ..); offsets: (count + 1,)."""
    total = np.cumsum(values, axis=0)
    before = np.concatenate([np.zeros((1, *values.shape[1:])), total])[offsets[:-1]]
    return total - np.repeat(before, np.diff(offsets), axis=0)


def summed(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of each sequence, 0 for an empty one. values: (n, ..) to (count, ..)."""
    total = np.zeros((len(offsets) - 1, *values.shape[1:]))
    filled = np.diff(offsets) > 0
    if filled.any():
        total[filled] = np.add.reduceat(values, offsets[:-1][filled], axis=0)
    return total


def minimise(objective: Objective, start: np.ndarray, steps: int = 200) -> np.ndarray:
    """The parameters near ``start`` at which the objective is smallest: L-BFGS in float64 with a strong-Wolfe search.

    ValueError where the objective is not finite at the start.
    """
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        value, gradient = objective(parameters.detach().numpy().copy())
        parameters.grad = torch.from_numpy(np.ascontiguousarray(gradient))
        return torch.tensor(value, dtype=torch.float64)

    first, _ = objective(np.asarray(start, dtype=np.float64))
    if not math.isfinite(first):
        raise ValueError("the likelihood is not finite where the fit begins; are there gaps of 0 or rates of 0?")
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach().numpy().copy()
