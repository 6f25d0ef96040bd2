"""The network that composes: trained, kept in a folder, found again.

A folder holds `composer.json` (data, sizes, steps), `checkpoint.safetensors` and `metrics.jsonl`. Training goes on
where it was when the same command runs again.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from relpos.lab.checkpoint import load_checkpoint, read_json, write_json
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.lab.progress import Reporter, seconds_text
from relpos.lab.settings import Settings
from relpos.lab.train import CHECKPOINT, Training, build, train_model
from relpos.tasks import cache
from relpos.tasks.music.arrange import view
from relpos.tasks.music.composer import Composer, Size
from relpos.tasks.music.events import encode
from relpos.tasks.music.song import Song

FORMAT = "relpos-composer-1"
CONFIG = "composer.json"
ENCODING = "axial_rope"
DEFAULT_DATA = "chorales"
SMALL = Size()
LARGE = Size(dim=160, depth=4, heads=5, dropout=0.1)
DEFAULT_STEPS = 900  # about three minutes on two cores
RATE = 3e-3
SEED = 0


@dataclass(frozen=True)
class Loaded:
    """A network that can compose; about: what it is, in a sentence."""

    model: nn.Module
    size: Size
    about: str
    data: str


def default_folder() -> Path:
    """Where the default network is kept: in the cache folder."""
    return cache.folder() / "composer"


def default(reporter: Reporter) -> Loaded:
    """The default network, trained first where it is not there; says which it is."""
    folder = default_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _finished(folder):
            reporter.say(
                "There is no network yet: training the small default one on Bach's chorales, once, about three minutes "
                "on two cores (`relpos music train` makes a better one)."
            )
            train(folder, DEFAULT_DATA, SMALL, DEFAULT_STEPS, reporter, batch=8)
    return load(folder)


def load(folder: Path) -> Loaded:
    """A trained network. LabError where there is none, or its training was not finished."""
    config = _config(folder)
    if config is None:
        raise LabError(f"there is no network in {folder}: `relpos music train -o {folder}` makes one")
    size = Size(**config["size"])
    torch.manual_seed(SEED)
    model = Composer.network(size, ENCODING)
    state = load_checkpoint(folder / CHECKPOINT, model) if (folder / CHECKPOINT).exists() else {"step": 0}
    done, steps = int(state["step"]), int(config["steps"])
    if not done:
        raise LabError(f"the training of {folder} was stopped before its first checkpoint: start it again")
    count = sum(p.numel() for p in model.parameters())
    part = "" if done == steps else f" of {steps:,} (its training is not finished)"
    about = f"{folder.name}: {count:,} parameters, {done:,} steps{part} on {config['data']} ({config['songs']} songs)"
    return Loaded(model.eval(), size, about, str(config["data"]))


def train(
    folder: Path,
    data: str,
    size: Size,
    steps: int | None,
    reporter: Reporter,
    *,
    minutes: float | None = None,
    batch: int = 8,
    task: Composer | None = None,
) -> None:
    """Trains a network in ``folder``, or goes on with it; steps, or as many as fit into ``minutes``.

    task: of this data and size, where it has been made already; else the songs are read from ``data``.
    """
    config: dict[str, Any] | None = _config(folder)
    task = task or read(data, size, reporter)[0]
    with reporter.step("writing the songs as events") as step:
        task.prepare(step)
    names = hashlib.sha256("\n".join(song.name for song in task.songs).encode()).hexdigest()[:16]
    asked: dict[str, Any] = {"format": FORMAT, "data": data, "size": asdict(size), "batch": batch}
    asked |= {"songs": len(task.songs), "digest": names}
    if config is None:
        steps = steps or _fitting(task, batch, minutes or 25.0, reporter)
        config = asked | {"steps": steps, "minutes": minutes}
        write_json(folder / CONFIG, config)
    elif different := [f"{k} is {config.get(k)!r}, not {v!r}" for k, v in asked.items() if config.get(k) != v]:
        raise RunDirectoryError(f"{folder} holds another network ({different[0]}): choose another folder with -o")
    else:
        reporter.say(f"{folder} was begun with {config['steps']:,} steps: going on to the last of them")
    settings = _settings(batch, int(config["steps"]))
    with reporter.step(f"training {folder.name}") as step:
        trained = train_model(Training(task, settings, ENCODING, SEED, RATE, settings.steps, folder), step)
    if trained.diverged is not None:
        raise LabError(f"the training in {folder} diverged at step {trained.diverged}: delete it and use other data")


def read(data: str, size: Size, reporter: Reporter) -> tuple[Composer, list[Song]]:
    """The task of a data set by name or of a folder of MIDI files, and its songs in the task's order.

    Songs that cannot be written as events (too many ticks in a bar, nothing but drums) are left out, and named.
    """
    from relpos.tasks.music import sets

    with reporter.step(f"reading {data}") as step:
        try:
            found = sets.load(data, progress=step)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise LabError(str(error)) from error
    skipped, good = list(found.skipped), []
    for place, song in enumerate(found.songs):
        try:
            encode(view(song).song)
            good.append(place)
        except ValueError as error:
            skipped.append(f"{song.name}: {error}".replace(f"{song.name}: {song.name}", song.name, 1))
    for reason in skipped[:5]:
        reporter.say(f"left out: {reason}")
    if len(skipped) > 5:
        reporter.say(f"left out: {len(skipped) - 5} more")
    new = {old: place for place, old in enumerate(good)}
    split = {side: np.array([new[p] for p in members.tolist() if p in new]) for side, members in found.split.items()}
    songs = [found.songs[place] for place in good]
    try:
        return Composer(songs, size, found.source, split), songs
    except ValueError as error:
        raise LabError(str(error)) from error


def _settings(batch: int, steps: int) -> Settings:
    return Settings(
        task="composer", encodings=(ENCODING,), seeds=(SEED,), steps=steps, batch=batch, rates=(RATE,), validations=2
    )


def _fitting(task: Composer, batch: int, minutes: float, reporter: Reporter) -> int:
    """Steps that fit into that time, from the speed of a few of them."""
    model = build(task, _settings(batch, 1), ENCODING)
    for step in range(3):
        task.loss(model, task.batch(step, SEED, batch)).backward()
    begin = time.perf_counter()
    for step in range(5):
        task.loss(model, task.batch(step, SEED, batch)).backward()
    steps = max(10, int(minutes * 60 / (1.1 * (time.perf_counter() - begin) / 5)))
    reporter.say(f"{steps:,} steps fit into {seconds_text(minutes * 60)}")
    return steps


def _config(folder: Path) -> dict[str, Any] | None:
    if not (folder / CONFIG).exists():
        return None
    config: dict[str, Any] = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise RunDirectoryError(f"{folder} is not a network of this version ({FORMAT}): train it again elsewhere")
    return config


def _finished(folder: Path) -> bool:
    config = _config(folder)
    if config is None or not (folder / CHECKPOINT).exists():
        return False
    model = Composer.network(Size(**config["size"]), ENCODING)
    return bool(load_checkpoint(folder / CHECKPOINT, model)["step"] >= config["steps"])
