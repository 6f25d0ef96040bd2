"""The structure-informed encodings by brute force, float64, pair by pair, from their formulas; and the golden files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden"
Named = dict[str, Tensor]
Vector = Callable[[int, int, int], Tensor | None]
CLOCK = {"chord": 9919.0, "section": 24149.0}


def golden(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / name) as arrays:
        return {key: arrays[key] for key in arrays.files}


def labels(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(arrays[name]) for name in ("melody", "chord", "section", "tempo")}


def phi(value: float, base: float, dim: int) -> Tensor:
    out = torch.zeros(dim, dtype=torch.float64)
    for c in range(dim):
        angle = torch.tensor(value * base ** (-2 * ((c + 1) // 2) / dim), dtype=torch.float64)
        out[c] = angle.cos() if c % 2 else angle.sin()
    return out


def of_head(p: Tensor, heads: int) -> Tensor:
    """(model_dim,) to (heads, dim): channel c belongs to head c mod heads."""
    return torch.stack([p[h::heads] for h in range(heads)])


def linear(layer: Any, x: Tensor) -> Tensor:
    out: Tensor = layer.weight.double() @ x + layer.bias.double()
    return out


def added(encoding: Any, q: Tensor, q_labels: Tensor, k_labels: Tensor, vector: Vector) -> Tensor:
    """(batch, heads, n_q, n_k) of vectors p(t, s, row) after the map; None where there is none."""
    rows = max(len(q), len(q_labels))
    out = torch.zeros(rows, encoding.heads, q_labels.shape[1], k_labels.shape[1], dtype=torch.float64)
    q = q.detach().double().expand(rows, -1, -1, -1)
    for b in range(rows):
        for t in range(out.shape[2]):
            for s in range(out.shape[3]):
                inner = vector(b, t, s)
                inner = torch.zeros(encoding.model_dim, dtype=torch.float64) if inner is None else inner
                p = of_head(linear(encoding.map, inner), encoding.heads)
                out[b, :, t, s] = (q[b, :, t] * p).sum(-1) / q.shape[-1] ** 0.5
    return out


def two(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x[None]


def of_difference(encoding: Any, part: Any, number: float, mine: Tensor, other: Tensor) -> Vector:
    def vector(b: int, t: int, s: int) -> Tensor:
        difference = int(mine[b % len(mine), t] - other[b % len(other), s])
        if encoding.kind == "learned":
            reach = int(number)
            return linear(part, part.table[min(max(difference, -reach), reach) + reach].double())
        return linear(part, phi(difference, number, encoding.model_dim))

    return vector


@torch.no_grad()
def srpe(encoding: Any, q: Tensor, q_pos: Mapping[str, Tensor], k_pos: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(())
    for (name, number), part in zip(encoding.levels.items(), encoding.parts):
        mine, other = two(q_pos[name]), two(k_pos[name])
        total = total + added(encoding, q, mine, other, of_difference(encoding, part, number, mine, other))
    return total


def tau(labels: list[int], early: bool = False) -> list[int]:
    """Ticks since the segment began; early: a segment begins one tick before its first label."""
    starts = [t - early for t in range(1, len(labels)) if labels[t] != labels[t - 1]]
    return [t - max([0, *(s for s in starts if s <= t)]) for t in range(len(labels))]


def of_clock(clock: Any, base: float, mine: Tensor, other: Tensor, taus: Any, q0: int, k0: int, lag: bool) -> Vector:
    """z(tau_t - tau_s) with lag, else z(tau_t), where labels agree; taus by row of the whole sequence."""

    def vector(b: int, t: int, s: int) -> Tensor | None:
        if mine[b % len(mine), t] != other[b % len(other), s]:
            return None
        of = taus[b % len(taus)]
        return linear(clock, phi(of[q0 + t] - (of[k0 + s] if lag else 0), base, clock.in_features))

    return vector


@torch.no_grad()
def nsrpe(encoding: Any, q: Tensor, whole: Mapping[str, Tensor], q0: int, k0: int, n_q: int, n_k: int) -> Tensor:
    """For queries q0.. and keys k0.. of the sequence whose labels are `whole`."""
    q_pos = {name: two(x)[:, q0 : q0 + n_q] for name, x in whole.items()}
    k_pos = {name: two(x)[:, k0 : k0 + n_k] for name, x in whole.items()}
    total = srpe(encoding, q, q_pos, k_pos)
    for name, clock in zip(encoding.timed, encoding.clocks):
        taus = [tau(row, encoding.as_released) for row in two(whole[name]).tolist()]
        mine, other = q_pos[name], k_pos[name]
        for lag in (True, encoding.as_released and name == "chord"):
            vector = of_clock(clock, CLOCK[name], mine, other, taus, q0, k0, lag)
            total = total + added(encoding, q, mine, other, vector)
    return total


def few(index: Tensor) -> Named:
    """Few labels, in runs; the last axis is the sequence. Floats pass, to be refused."""
    if index.is_floating_point():
        return {"chord": index, "section": index}
    return {"chord": (index // 2).remainder(3) * 3 - 2, "section": (index // 5).remainder(3)}


def inputs(n: int, heads: int = 2, dim: int = 4, batch: int = 1, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(batch, heads, n, dim, generator=g, dtype=torch.float64).to(dtype) for _ in range(3)]


def song(n: int, seed: int = 0, rows: tuple[int, ...] = ()) -> Named:
    g = torch.Generator().manual_seed(seed)
    named = {}
    for name, low, high, run in (("melody", 42, 98, 2), ("chord", 0, 395, 4), ("section", 0, 10, 11)):
        few = torch.randint(low, high, (*rows, n // run + 1), generator=g)
        named[name] = few.repeat_interleave(run, -1)[..., :n]
    return named
