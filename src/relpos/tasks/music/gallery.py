"""What a trained network makes of a real prompt, beside what the composer made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from relpos.tasks.base import Artifact
from relpos.tasks.music import midi, picture, roll
from relpos.tasks.music.piece import TICKS_PER_QUARTER, VOICES, Piece

if TYPE_CHECKING:
    from relpos.tasks.music.chorales import Chorales

_TEMPO = 80


def continuation(task: Chorales, model: Any, directory: Path, seed: int) -> list[Artifact]:
    """MIDI and picture of the model's continuation of the task's prompt, and of the original, equally long."""
    piece, prompt = task.prompt()
    prompt_ticks = len(prompt) // len(VOICES) - 1
    quarter = TICKS_PER_QUARTER * len(VOICES)
    steps = (task.train_length * max(task.multiples) - len(prompt)) // quarter * quarter
    pitch, onset = roll.decode(_generate(task, model, prompt, steps, seed))
    what = f"{piece.title or piece.name}" + (f", BWV {piece.number}" if piece.number else "")
    made = f"{what}: {prompt_ticks // TICKS_PER_QUARTER} quarters of Bach, then the network"
    files = _write(directory / "continuation", piece, pitch, onset, made, prompt_ticks)
    length = min(piece.ticks, len(pitch))
    real = piece.pitch[:length], piece.onset[:length]
    return files + _write(directory / "original", piece, *real, f"{what}: as Bach wrote it", prompt_ticks)


def _generate(task: Chorales, model: Any, prompt: np.ndarray, steps: int, seed: int) -> np.ndarray:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    device = torch.device("cpu") if parameter is None else parameter.device
    generator = torch.Generator(device=device).manual_seed(seed)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            tokens = model.generate(
                torch.from_numpy(prompt)[None].to(device),
                steps,
                temperature=task.settings.temperature,
                top_p=task.settings.top_p,
                generator=generator,
            )
    finally:
        model.train(training)
    return tokens[0].cpu().numpy()


def _write(
    stem: Path, piece: Piece, pitch: np.ndarray, onset: np.ndarray, title: str, prompt_ticks: int
) -> list[Artifact]:
    numerator, denominator = (int(x) for x in piece.meter[0])
    bar = numerator * 4 * TICKS_PER_QUARTER // denominator
    pickup = (bar - int(piece.beat[0])) % bar
    sound, image = stem.with_suffix(".mid"), stem.with_suffix(".png")
    midi.write(sound, pitch, onset, _TEMPO, (numerator, denominator), pickup)
    picture.piano_roll(image, pitch, onset, np.arange(pickup, len(pitch), bar), title, prompt_ticks)
    return [Artifact(sound, "midi", title), Artifact(image, "image", title)]
