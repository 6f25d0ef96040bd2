"""A task small enough to train in a second: every token repeats the one three places before it, but for some noise.

Imported by name too (`relpos --import tests.lab.toy`), it registers itself and an encoding of its own, as a user's
module would.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import relpos as rp
from relpos import tasks
from relpos.encodings.base import Absolute, Bias, Encoding, Transform
from relpos.encodings.registry import fitted
from relpos.tasks import ACCURACY, Artifact, Evaluation, Metric

WORDS = 7


class Slope(Bias):
    """A slope a head, learned: the toy encoding from outside the package."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.slope = nn.Parameter(torch.linspace(0.1, 0.5, heads))

    def at(self, lag: Tensor) -> Tensor:
        return -self.slope.view(-1, *[1] * lag.dim()) * lag.abs()


class Turn(Transform):
    """A rotation of the first two channels by the position: the toy Transform."""

    def encode_q(self, q: Tensor, q_pos: Any, scale: float = 1.0, codes: Any = None) -> Tensor:
        angle = 0.3 * q_pos.values.to(q.dtype).reshape(-1)
        cos, sin = angle.cos(), angle.sin()
        first, second = q[..., 0], q[..., 1]
        turned = torch.stack([cos * first - sin * second, sin * first + cos * second], -1)
        return torch.cat([turned, q[..., 2:]], -1)

    def encode_k(self, k: Tensor, k_pos: Any, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self.encode_q(k, k_pos)


class Places(Absolute):
    """A learned vector a position that ends with its table: the toy Absolute."""

    def __init__(self, model_dim: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.1 * torch.randn(max_length, model_dim))

    def add(self, x: Tensor, pos: Any = None) -> Tensor:
        n = x.shape[-2]
        if n > len(self.table):
            raise ValueError(f"the table ends at {len(self.table)} positions, asked for {n}")
        return x + self.table[:n]


rp.register("toy_slope", Slope)
rp.register("toy_turn", Turn)
rp.register("toy_places", Places)


class Net(nn.Module):
    """One attention layer between an embedding and a projection."""

    def __init__(self, encoding: str, length: int, dim: int = 16, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dim, self.rate = heads, dim, dropout
        self.embed = nn.Embedding(WORDS, dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, WORDS)
        context = {"heads": heads, "dim": dim // heads, "model_dim": dim, "max_length": length, "max_lag": length}
        self.encoding = fitted(encoding, context)

    def encodings(self) -> list[tuple[str, Encoding]]:
        return [("layer 1", self.encoding)]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        absolute = isinstance(self.encoding, Absolute)
        x = self.encoding.add(x) if absolute else x
        q, k, v = self.project(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        y = rp.attention(q, k, v, None if absolute else self.encoding, causal=True).transpose(1, 2).flatten(2)
        result: Tensor = self.out(nn.functional.dropout(x + y, self.rate, self.training))
        return result


class Toy:
    """Echoes of three tokens ago."""

    name = "toy"
    title = "Echo: a made-up language"
    source = "made up on the spot; public domain"
    unit = "nats a token"
    metrics: tuple[Metric, ...] = ()
    train_length = 16
    multiples: tuple[int, ...] = (1, 2, 4)
    presets: ClassVar = {
        name: {"steps": 30, "rates": (0.01,), "model": {}, "budget": 1.0} for name in ("demo", "results")
    }

    def prepare(self, progress: Any = None) -> None:
        if progress is not None:
            progress(1, 1, "nothing to read")

    def describe(self) -> dict[str, object]:
        return {"words": WORDS, "splits": {"train": "endless", "validation": 8, "test": 8}}

    def model(self, encoding: str, **options: object) -> nn.Module:
        return Net(encoding, self.train_length, **options)  # type: ignore[arg-type]

    def _draw(self, seed: int, count: int, length: int) -> Tensor:
        generator = np.random.default_rng(seed)
        tokens = generator.integers(0, WORDS, (count, length))
        for i in range(3, length):
            echo = generator.random(count) < 0.8
            tokens[echo, i] = tokens[echo, i - 3]
        return torch.from_numpy(tokens)

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        if os.environ.get("TOY_KILL_AT") == str(step):
            os.kill(os.getpid(), 9)
        return self._draw(1000 * seed + step, size, self.train_length + 1)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Any = None) -> Evaluation:
        tokens = self._draw({"validation": -1, "test": -2}[split] % 2**32, 8, 4 * self.train_length + 1)
        windows = torch.cat([tokens[:, i : i + length + 1] for i in range(0, 4 * self.train_length, length)])
        with torch.no_grad():
            logits = model(windows[:, :-1])
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").double()
        return Evaluation(length, float(losses.mean()), losses.mean(0).numpy(), losses.numel())

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        return {"uniform": {"loss": float(np.log(WORDS))}, "previous token": {"loss": 1.9}}

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        tokens = model(self._draw(0, 1, self.train_length)).argmax(-1)[0]
        own, real = directory / "roll.png", directory / "real.png"
        own.write_bytes(bars(tokens.numpy()))
        real.write_bytes(bars(np.arange(self.train_length) % WORDS))
        midi = directory / "sample.mid"
        midi.write_bytes(_midi(tokens.tolist()))
        return [
            Artifact(own, "image", "what the model goes on with"),
            Artifact(midi, "midi", "continuation as MIDI"),
            Artifact(real, "image", "how it really goes on"),
        ]


class Judge(Net):
    """Net, read out at its last token as one of two classes; ``sign`` and ``encoding_options`` are there to be set."""

    def __init__(
        self, encoding: str, length: int, sign: float = 1.0, encoding_options: Any = None, **more: Any
    ) -> None:
        super().__init__(encoding, length, **more)
        self.sign, self.encoding_options = sign, encoding_options

    def forward(self, tokens: Tensor) -> Tensor:
        return self.sign * super().forward(tokens)[:, -1, :2]


class Signs(Toy):
    """Classification: was the last token even? One length, metrics of both directions, nothing to sample."""

    name = "toy-signs"
    title = "Signs: even [or] odd"
    unit = "nats an example"
    metrics: tuple[Metric, ...] = (ACCURACY, Metric("misses", "misses", higher_is_better=False, format=".1f"))
    multiples: tuple[int, ...] = (1,)

    def __init__(self, length: int = 16, path: str | None = None) -> None:
        self.train_length, self.path = length, path

    def model(self, encoding: str, **options: object) -> nn.Module:
        return Judge(encoding, self.train_length, **options)  # type: ignore[arg-type]

    def batch(self, step: int, seed: int, size: int) -> Any:
        tokens = self._draw(1000 * seed + step, size, self.train_length)
        return tokens, tokens[:, -1] % 2

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Any = None) -> Evaluation:
        tokens, labels = self.batch({"validation": 8, "test": 9}[split], 10**6, 40)
        logits = model(tokens)
        right = (logits.argmax(-1) == labels).double()
        loss = float(nn.functional.cross_entropy(logits, labels))
        metrics = {"accuracy": float(right.mean()), "misses": float((1 - right).sum())}
        return Evaluation(length, loss, None, len(labels), metrics)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        return {"always even": {"accuracy": 0.55, "misses": 18.0, "loss": math.inf}}

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        return []


def bars(values: np.ndarray) -> bytes:
    """A grey PNG with one bar a value, written by hand to stay quick."""
    image = np.full((WORDS * 8, len(values) * 16), 255, np.uint8)
    for i, value in enumerate(values):
        image[8 * int(value) : 8 * int(value) + 8, 16 * i : 16 * i + 15] = 60

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in image)
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


tasks.register("toy", "tests.lab.toy:Toy")
tasks.register("toy-signs", "tests.lab.toy:Signs")


def _midi(pitches: list[int]) -> bytes:
    """A file of one track, a note of half a beat a pitch, counted from middle C."""
    events = b"".join(bytes([0, 0x90, 60 + each, 80, 0x81, 0x70, 0x80, 60 + each, 0]) for each in pitches)
    track = events + bytes([0, 0xFF, 0x2F, 0])
    head = b"MThd" + (6).to_bytes(4) + (0).to_bytes(2) + (1).to_bytes(2) + (480).to_bytes(2)
    return head + b"MTrk" + len(track).to_bytes(4) + track
