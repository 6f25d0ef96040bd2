"""Kernelised attention by the literal algorithm of its paper: every feature of every column in one FFT."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.kernels.spectrum import fast_length
from relpos.lab.bench.ours import random_features
from relpos.lab.bench.problem import Prepared, Problem


def make(problem: Problem) -> Prepared:
    """The free table of the other contestants, with autograd's backward pass."""
    features, table = random_features(problem), problem.table().to(problem.kind)
    table.requires_grad_(problem.backward)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        phi_q, phi_k = (features(torch.nn.functional.normalize(x, dim=-1)) for x in (q, k))
        return literal(phi_q, phi_k, v, table, problem.causal)

    return Prepared(attend, (table,) if problem.backward else ())


def literal(phi_q: Tensor, phi_k: Tensor, v: Tensor, table: Tensor, causal: bool) -> Tensor:
    """out_i = phi(q_i) . sum_j c_{j-i} phi(k_j) v_j / phi(q_i) . sum_j c_{j-i} phi(k_j), c = exp(table - its maximum).

    phi_q, phi_k (batch, heads, n, m); v (batch, heads, n, dim); table (heads, 2 n - 1), index lag + n - 1.
    Stores n x m (dim + 1) products, their spectra and the sums of all of them. Its errors are absolute, in proportion
    to the largest weight, and causal sums leak: see kernels/linear/split.py, which does not.

    Source: Luo et al. 2021, Algorithm 1, eq. 11-13, with a column of ones for the denominator, real transforms, and an
    exponential that cannot overflow.
    """
    n = v.shape[2]
    seen = table[:, :n] if causal else table
    weight = (seen - seen.amax(-1, keepdim=True)).exp()
    length = fast_length(2 * n - 1)
    kernel = weight.new_zeros(len(table), length)  # by i - j, which is minus the lag, modulo the length
    kernel[:, :n] = weight[:, :n].flip(-1)
    if not causal and n > 1:
        kernel[:, 1 - n :] = weight[:, n:].flip(-1)
    columns = torch.cat([v, v.new_ones(*v.shape[:3], 1)], -1)
    products = (phi_k.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)  # (batch, heads, n, m (dim + 1))
    spectra = torch.fft.rfft(products, length, dim=-2) * torch.fft.rfft(kernel).unsqueeze(-1)
    summed = torch.fft.irfft(spectra, length, dim=-2)[:, :, :n].unflatten(-1, (-1, columns.shape[-1]))
    total = (phi_q.unsqueeze(-2) @ summed).squeeze(-2)
    return total[..., :-1] / total[..., -1:]


def holds(problem: Problem) -> float:
    """Bytes at its peak: the products, two complex spectra and the padded inverse; backward as much again."""
    size = 8 if problem.dtype == "float64" else 4
    numbers = problem.batch * problem.heads * problem.n * problem.features * (problem.dim + 1)
    return 7.0 * size * numbers * (2 if problem.backward else 1)
