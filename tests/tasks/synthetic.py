"""Invented four-part pieces and tiny models for the tests of the chorales."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.music.piece import SILENT, Piece

_CENTRES = (69, 63, 58, 50)


def piece(seed: int, ticks: int = 160, shift: int = 0, title: str = "", name: str = "") -> Piece:
    """Random walks in four voices, with rests and repeated notes; equal seeds are one tune."""
    draw = np.random.default_rng(seed)
    pitch = np.full((ticks, 4), SILENT, dtype=np.int16)
    onset = np.zeros((ticks, 4), dtype=bool)
    for voice, centre in enumerate(_CENTRES):
        tick, note = 0, centre
        while tick < ticks:
            length = int(draw.choice([2, 4, 4, 8]))
            note = int(np.clip(note + draw.integers(-3, 4), centre - 5, centre + 5))
            if draw.random() > 0.05 or tick == 0 or tick + length >= ticks:
                pitch[tick : tick + length, voice] = note + shift
                onset[tick, voice] = True
            tick += length
    at = np.arange(ticks)
    return Piece(
        name=name or f"tune{seed}",
        number=str(seed),
        riemenschneider=seed,
        title=title,
        sharps=0,
        pitch=pitch,
        onset=onset,
        fermata=onset & (at % 32 == 28)[:, None],
        beat=(at % 16).astype(np.int16),
        bar=(at // 16).astype(np.int16),
        meter=np.tile(np.array([4, 4], dtype=np.int16), (ticks, 1)),
    )


def pieces(count: int = 30) -> list[Piece]:
    return [piece(seed, ticks=129 + 17 * (seed % 9)) for seed in range(count)]


def same(a: Piece, b: Piece) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in Piece.__dataclass_fields__)


class Table(nn.Module):
    """Logits that depend on the last token alone; remembers the shapes that it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        return self.logits[tokens]

    def generate(
        self,
        prompt: Tensor,
        steps: int,
        temperature: float = 1.0,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        for _ in range(steps):
            probability = (self.logits[prompt[:, -1]] / temperature).softmax(-1)
            prompt = torch.cat([prompt, torch.multinomial(probability, 1, generator=generator)], dim=1)
        return prompt
