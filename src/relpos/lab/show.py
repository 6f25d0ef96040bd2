"""Pictures and words about one encoding: the work behind `relpos show` and `relpos explain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from relpos import explain
from relpos.encodings.base import Absolute, Encoding
from relpos.encodings.registry import entry, fitted, signature_of
from relpos.lab import plots
from relpos.lab.errors import LabError
from relpos.lab.lags import lag_picture, line_of_positions
from relpos.lab.results import collect, learned_lags
from relpos.lab.run import Run


def build(name: str, heads: int, dim: int, causal: bool, length: int, options: dict[str, object]) -> Encoding:
    """An encoding fitted to a layer of these sizes; LabError says which options it lacks or does not take."""
    layer = {"heads": heads, "dim": dim, "model_dim": heads * dim, "causal": causal}
    wanted = signature_of(entry(name).load()).parameters
    known = {"max_lag": length, "max_length": 2 * length + 1, "window": (length + 1, length + 1)}
    lengths = {key: value for key, value in known.items() if key in wanted}
    try:
        return fitted(name, layer, {**lengths, **options})
    except (TypeError, ValueError):  # not every method takes every length: its own defaults then
        try:
            return fitted(name, layer, options)
        except (TypeError, ValueError) as error:
            raise LabError(f"{error} (give what is missing as --option key=value)") from error


def initial_picture(
    name: str, heads: int, dim: int, reach: int, causal: bool, seed: int, options: dict[str, object]
) -> bytes:
    """PNG of a freshly initialised encoding."""
    torch.manual_seed(seed)
    encoding = build(name, heads, dim, causal, reach, options)
    try:
        picture = lag_picture(encoding, heads, dim, reach, causal=causal, seed=seed)
    except (ValueError, TypeError) as error:
        raise LabError(f"{name} cannot be drawn: {error}") from error
    note = "the bias itself" if picture.exact else "mean and standard deviation over random unit content, zero at lag 0"
    return plots.png(plots.lag_lines(f"{name}, as initialised", picture.lags, picture.mean, picture.spread, note))


def learned_picture(path: Path, name: str) -> bytes:
    """PNG of an encoding as a run has learned it, all layers."""
    results = collect(Run.read(path))
    rows = [row for row in results.rows if row.encoding == name]
    if not rows:
        raise LabError(f"{path} has no {name}; it has {', '.join(row.encoding for row in results.rows)}")
    pictures = learned_lags(results, rows[0])
    if not pictures:
        raise LabError(f"{path} holds no lag picture of {name}")
    figure = plots.lag_heatmap(pictures)
    if figure is not None:
        return plots.png(figure)
    flat = pictures[0]
    return plots.png(
        plots.lag_lines(name, flat.lags, flat.values, np.zeros_like(flat.values), "leaves every lag alone")
    )


def explanation(
    name: str, n: int, queries: int, causal: bool, heads: int, dim: int, kernel: str, options: dict[str, object]
) -> str:
    """Which kernel would serve and why."""
    encoding = build(name, heads, dim, causal or queries < n, n, options)
    if isinstance(encoding, Absolute):
        return f"{name} is added to the input of the network; attention itself runs as without an encoding"
    q = torch.zeros(1, heads, queries, dim)
    k = torch.zeros(1, heads, n, dim)
    more = {"content": torch.zeros(1, n, heads * dim)} if getattr(encoding, "needs_content", False) else {}
    try:
        positions = line_of_positions(encoding, n)
        places = {"q_pos": positions[n - queries :], "k_pos": positions}
        return str(explain(q, k, k, encoding, causal=causal, kernel=kernel, **places, **more))
    except (ValueError, TypeError) as error:
        raise LabError(str(error)) from error
