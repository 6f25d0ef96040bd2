"""What an encoding does to a lag, measured from outside: the change of an attention logit against the lag.

A Bias states it itself (`lags`). For every other form the logit is read back through `rp.attention`: one query, one
random unit vector as the content of every position, and one-hot values, so the output is the row of probabilities;
its logarithm is the logit up to a constant, which is fixed by calling the change at lag 0 zero. Averaged over draws of
the content. Nothing here knows an encoding by name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos import attention
from relpos.encodings.base import Absolute, Bias, Encoding
from relpos.positions import Grid, Index, Times, as_positions


@dataclass(frozen=True)
class LagPicture:
    """mean and spread (standard deviation over the content): (heads, lags) in nats; NaN where it cannot attend."""

    lags: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    exact: bool  # True: the bias itself; False: the mean change over random content, zero at lag 0


def lag_picture(
    encoding: Encoding, heads: int, dim: int, reach: int, *, causal: bool = False, draws: int = 64, seed: int = 0
) -> LagPicture:
    """The picture for lags -reach..reach, or -reach..0 when causal.

    dim: width of a head; the input of an Absolute encoding is heads*dim wide. Where the encoding refuses the reach
    (a table that ends), half of it is tried, and so on; the last refusal (ValueError) passes through.
    """
    quiet = copy.deepcopy(encoding).eval().cpu().double()
    causal = causal or quiet.causal_only
    while True:
        try:
            with torch.no_grad():
                return _picture(quiet, heads, dim, reach, causal, draws, seed)
        except ValueError:
            if reach < 2:
                raise
            reach //= 2


def _picture(encoding: Encoding, heads: int, dim: int, reach: int, causal: bool, draws: int, seed: int) -> LagPicture:
    lags = np.arange(-reach, 1 if causal else reach + 1)
    if isinstance(encoding, Bias) and _takes(encoding, Index):
        table = encoding.lags(1, len(lags), reach).double().numpy()
        table = np.where(np.isfinite(table), table, np.nan)
        return LagPicture(lags, table, np.zeros_like(table), exact=True)
    change = _probe(encoding, heads, dim, reach, causal, draws, seed)
    return LagPicture(lags, change.mean(0).numpy(), change.std(0).numpy(), exact=False)


def _takes(encoding: Encoding, kind: type) -> bool:
    return any(isinstance(allowed, type) and issubclass(kind, allowed) for allowed in encoding.takes)


def line_of_positions(encoding: Encoding, count: int) -> Tensor:
    """0..count-1 as the kind of position that the encoding takes; on a grid, along its last axis."""
    steps = torch.arange(count)
    if _takes(encoding, Index):
        return steps
    if _takes(encoding, Times):
        return steps.double()
    if _takes(encoding, Grid):
        return torch.stack([torch.zeros_like(steps), steps], -1)
    if _takes(encoding, Mapping):
        raise TypeError(
            f"{type(encoding).__name__} takes named positions, labels or times, and what it does depends on these "
            "and not on a lag alone, so there is no picture by lag"
        )
    allowed = ", ".join(kind.__name__ for kind in encoding.takes)
    raise TypeError(f"{type(encoding).__name__} takes {allowed} positions, for which there is no picture by lag")


def _probe(encoding: Encoding, heads: int, dim: int, reach: int, causal: bool, draws: int, seed: int) -> Tensor:
    """(draws, heads, lags): the change of the logit, from the encoding's public form alone."""
    generator = torch.Generator().manual_seed(seed)
    count = reach + 1 if causal else 2 * reach + 1
    positions = line_of_positions(encoding, count)
    if isinstance(encoding, Absolute):  # it changes the input, so the input is what is drawn
        unit = _unit(draws, 1, heads * dim, generator).expand(-1, count, -1)
        x = encoding.add(unit, as_positions(positions, count, 0, "positions", torch.device("cpu")))
        x = x.unflatten(-1, (heads, dim)).transpose(1, 2)
        logits = (x[:, :, reach : reach + 1] @ x.transpose(-1, -2)).squeeze(2)
        return logits - logits[..., reach : reach + 1]
    content = _unit(draws, 1, heads * dim, generator).expand(-1, count, -1)
    unit = _unit(draws, heads, dim, generator)[:, :, None]
    keys = unit.expand(-1, -1, count, -1)
    options: dict[str, Any] = {"q_pos": positions[reach : reach + 1], "k_pos": positions, "causal": causal}
    if getattr(encoding, "needs_content", False):
        options["content"] = content
    logits = _logits(encoding, unit, keys, options)
    return logits - logits[..., reach : reach + 1]


def _unit(draws: int, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    return nn.functional.normalize(torch.randn(draws, rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def _logits(encoding: Encoding, q: Tensor, k: Tensor, options: dict[str, Any]) -> Tensor:
    """(draws, heads, keys): logarithm of the attention probabilities, which are logits up to a constant a row.

    Values are one-hot, as many at a time as a head is wide, because an encoding may add to values of that width only;
    what it adds is the output for zero values, and is taken off.
    """
    zero = torch.zeros_like(k)
    added = attention(q, k, zero, encoding, scale=1.0, **options)
    rows = []
    for start in range(0, k.shape[2], k.shape[3]):
        values = zero.clone()
        index = torch.arange(start, min(start + k.shape[3], k.shape[2]))
        values[:, :, index, index - start] = 1.0
        rows.append((attention(q, k, values, encoding, scale=1.0, **options) - added)[:, :, 0, : len(index)])
    return torch.cat(rows, -1).clamp_min(1e-300).log()
