"""Evaluation of next-token prediction on the same tokens at every context length.

A window holds the longest context and the token after it. For a shorter context it is cut into parts, each read
without what came before and scored on its tokens and the one that follows it: every length scores the same tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from relpos.tasks.base import Progress

_TOKENS_A_BATCH = 16_384


def cut(windows: np.ndarray, length: int, step: int = 1) -> np.ndarray:
    """(windows, longest + 1) to (parts, length + 1). ValueError where ``length`` is no multiple of ``step`` or does
    not divide the longest, so that other tokens would be scored."""
    longest = windows.shape[1] - 1
    if length < step or length % step or longest % length:
        multiple = f"be a multiple of {step} that divides" if step > 1 else "divide"
        raise ValueError(
            f"length must {multiple} {longest}, so that every length is scored on the same tokens; got {length}"
        )
    parts = [windows[:, i : i + length + 1] for i in range(0, longest, length)]
    return np.concatenate(parts, axis=1).reshape(-1, length + 1)


@torch.inference_mode()
def losses(
    model: nn.Module,
    parts: np.ndarray,
    ignored: int | None = None,
    progress: Progress | None = None,
    text: str = "",
) -> tuple[float, np.ndarray, int]:
    """Mean loss in nats a token, the means by position (length,) and the tokens scored; the model's mode is kept.

    ignored: a token that is never scored; a position without scored tokens has the mean NaN.
    """
    rows_of = torch.from_numpy(parts)
    length = parts.shape[1] - 1
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    total, count = np.zeros(length), np.zeros(length, dtype=np.int64)
    size = max(1, _TOKENS_A_BATCH // length)
    training = model.training
    model.eval()
    try:
        for first in range(0, len(rows_of), size):
            rows = rows_of[first : first + size].to(device)
            logits = model(rows[:, :-1]).float()
            nats = nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").cpu().numpy()
            scored = np.ones(nats.shape, bool) if ignored is None else (rows[:, 1:] != ignored).cpu().numpy()
            total += np.where(scored, nats.astype(np.float64), 0).sum(0)
            count += scored.sum(0)
            if progress is not None:
                progress(min(first + size, len(rows_of)), len(rows_of), text)
    finally:
        model.train(training)
    by_position = np.divide(total, count, out=np.full(length, math.nan), where=count > 0)
    return float(total.sum() / count.sum()), by_position, int(count.sum())
