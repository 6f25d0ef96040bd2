"""Relative channels by loops over pairs, from the words of the documentation, float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PLACES = torch.tensor([[10.0, 179.9], [10.0, -179.9], [11.0, 178.0], [9.5, 179.0], [10.0, 179.9]], dtype=torch.float64)
PROFILES = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 2], [0, 0, 0]], dtype=torch.float64)


def events(index: Tensor) -> dict[str, Tensor]:
    """What happened at these integers: times rise with them, everything else repeats."""
    if index.is_floating_point():
        return {"index": index}
    return {
        "index": index,
        "time": index.double() * 0.75 + (index % 4).double() * 0.25,
        "place": PLACES[index % 5],
        "profile": PROFILES[index % 4],
        "mark": index % 5 // 2,
        "real": (index % 4 != 1).long(),
    }


def kilometres(a: Tensor, b: Tensor) -> float:
    """Haversine."""
    (p, s), (r, t) = (torch.deg2rad(x).tolist() for x in (a, b))
    chord = math.sin((p - r) / 2) ** 2 + math.cos(p) * math.cos(r) * math.sin((s - t) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(chord))


def difference(feature: str, q: dict[str, Tensor], k: dict[str, Tensor], i: int, j: int) -> float:
    if feature == "place":
        return kilometres(q["place"][i], k["place"][j])
    if feature == "profile":
        a, b = q["profile"][i], k["profile"][j]
        return 1 - float(a @ b / (a.norm() * b.norm())) if bool(a.any() and b.any()) else 1.0
    if feature == "mark":
        return float(q["mark"][i] == k["mark"][j])
    if feature == "key":
        return float(k["index"][j])
    return float(k[feature][j] - q[feature][i])


def functions(c: dict[str, Any], x: float, unit: float = 1.0) -> list[float]:
    """phi_r(x), from the words of the documentation."""
    kind, signed = c.get("encoder", "buckets"), c.get("signed", c["feature"] == "index")
    clip, size = c.get("clip", 1), abs(x)
    unit = c.get("unit", 1.0) if isinstance(c.get("unit", 1.0), float | int) else unit
    if kind in ("sinusoid", "decay"):
        scales = c["scales"]
        if kind == "decay":
            return [math.exp(-size / s) for s in scales]
        x = x if signed else size
        return [f(2 * math.pi * x / s) for f in (math.sin, math.cos) for s in scales]
    if kind == "linear" or c.get("learned") or c.get("unit") == "learned":
        at = x / unit + clip if signed else (size - c.get("start", 0.0)) / unit
        rows = 2 * clip + 1 if signed else clip + 1
        at = min(max(at, 0.0), rows - 1)
        return [max(0.0, 1 - abs(at - r)) for r in range(rows)]
    if "edges" in c:
        clip, bucket = len(c["edges"]), sum(size >= e for e in c["edges"])
    elif kind == "log":
        bucket = min(clip, math.floor(math.log(max(size / unit, 1)) / c.get("step", 0.301)))
    else:
        bucket = min(clip, math.floor(size / unit))
    row = clip + (bucket if x >= 0 else -bucket) if signed else bucket
    return [float(r == row) for r in range(2 * clip + 1 if signed else clip + 1)]


def phi(c: dict[str, Any], q: dict[str, Tensor], k: dict[str, Tensor], unit: float = 1.0) -> Tensor:
    """(n_q, n_k, rows), pair by pair."""
    n_q, n_k = len(q["index"]), len(k["index"])
    rows = [[functions(c, difference(c["feature"], q, k, i, j), unit) for j in range(n_k)] for i in range(n_q)]
    found = torch.tensor(rows, dtype=torch.float64)
    if "where" in c:
        found = found * ((q[c["where"]] != 0).unsqueeze(1) & (k[c["where"]] != 0)).unsqueeze(-1)
    return found


def brute_score(encoding: Any, options: list[dict[str, Any]], q: Tensor, k: Tensor, at_q: Any, at_k: Any) -> Tensor:
    total = torch.zeros(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=torch.float64)
    factor = q.shape[-1] ** -0.5 if encoding.scale is None else encoding.scale
    gates: Any = 1.0
    for channel, c in zip(encoding.channels, options):
        if c.get("encoder") == "rotary":
            angle = [[2 * math.pi * difference(c["feature"], at_q, at_k, i, j) / torch.tensor(c["scales"]).double()
                      for j in range(k.shape[2])] for i in range(q.shape[2])]  # fmt: skip
            turn = torch.stack([torch.stack(row) for row in angle])
            for p in range(len(c["scales"])):
                a, b, x, y = q[..., 2 * p], q[..., 2 * p + 1], k[..., 2 * p], k[..., 2 * p + 1]
                a, b, x, y = a[..., None], b[..., None], x[:, :, None], y[:, :, None]
                cos, sin = turn[..., p].cos(), turn[..., p].sin()
                total = total + factor * (a * (x * cos - y * sin - x) + b * (x * sin + y * cos - y))
            continue
        weights = phi(c, at_q, at_k)
        if channel.keys is not None:
            keys = weights @ channel.keys
            if keys.shape[-1] != q.shape[-1]:
                keys = keys.unflatten(-1, (q.shape[1], -1)).permute(2, 0, 1, 3)
            total = total + factor * torch.einsum(
                "bhid,...ijd->bhij" if keys.dim() == 3 else "bhid,hijd->bhij", q, keys
            )
        if channel.bias is not None:
            total = total + torch.einsum("hr,ijr->hij", channel.bias, weights)
        if channel.gate is not None:
            live = weights.abs().sum(-1) > 0 if "where" in c else torch.ones(weights.shape[:2], dtype=torch.bool)
            gates = gates * torch.where(live, torch.einsum("hr,ijr->hij", channel.gate, weights), 1.0)
    return total + (gates - 1) * factor * (q @ k.mT)


def brute_values(encoding: Any, options: list[dict[str, Any]], p: Tensor, at_q: Any, at_k: Any) -> Tensor | float:
    total: Any = 0.0
    for channel, c in zip(encoding.channels, options):
        if channel.values is None:
            continue
        values = phi(c, at_q, at_k) @ channel.values
        if encoding.dim != 8:
            values = values.unflatten(-1, (p.shape[1], -1)).permute(2, 0, 1, 3)
            total = total + torch.einsum("bhij,hijd->bhid", p, values)
        else:
            total = total + torch.einsum("bhij,ijd->bhid", p, values)
    return total
