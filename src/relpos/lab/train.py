"""Training one model, so that stopping and going on changes nothing in the result.

Everything a step depends on is either a pure function of (settings, seed, step) or in the checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from relpos.lab.checkpoint import write_atomic
from relpos.lab.progress import Notice, Reporter
from relpos.lab.ready import Ready, ready
from relpos.lab.recipe import Recipe, batches
from relpos.lab.settings import Settings
from relpos.lab.several import CURRENT, Team, one_line, together
from relpos.tasks.base import amount, pace

CHECKPOINT = "checkpoint.safetensors"
SAVE_EVERY = 20.0  # seconds between checkpoints
UNTIMED = 5  # first steps of a process, spent on warming caches: left out of the speed


def learning_rate(step: int, steps: int, peak: float, warmup: float, first: float = 0.0, last: float = 0.1) -> float:
    """Linear warm-up over the first share `warmup` of the steps, then a cosine.

    first, last: shares of the peak at which the warm-up starts and the cosine ends.
    """
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return first * peak + (1 - first) * (peak * (step + 1) / ramp)
    done = (step - ramp) / max(1, steps - ramp)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))


@contextmanager
def stop_requests(echo: float = 0.0) -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM so that the loop can stop between two steps; a second one stops at once.

    echo: seconds within which another one is the same again, as torchrun passes on what its processes hear themselves.
    """
    received: list[int] = []
    first = [0.0]

    def note(number: int, frame: FrameType | None) -> None:
        if received and time.monotonic() - first[0] >= echo:
            raise KeyboardInterrupt
        first[0] = first[0] or time.monotonic()
        received.append(number)

    try:
        heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, note) for number in heard}
    except ValueError:  # not in the main thread, where signals do not arrive
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ctrl-C is left to others for a while; it is heard as ever outside the main thread, where it does not arrive."""
    try:
        before = signal.signal(signal.SIGINT, lambda *_: None)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Trained:
    """A model at the end of its training; `diverged` is the step at which the loss stopped being a number."""

    model: nn.Module
    diverged: int | None


class Log:
    """metrics.jsonl, a line a step; on resume it is cut back to the checkpoint's step."""

    def __init__(self, path: Path, keep_up_to: int) -> None:
        kept = [json.dumps(line) for line in read_log(path) if line["step"] <= keep_up_to]
        write_atomic(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by `close`)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line torn by a kill is dropped."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not {"step", "loss"} <= line.keys():
            break
        lines.append(line)
    return lines


def build(task: Any, settings: Settings, encoding: str) -> nn.Module:
    """The fresh network of one contestant."""
    name, options = settings.network(encoding)
    model: nn.Module = task.model(name, **options)
    return model


@dataclass(frozen=True)
class Training:
    """One model to be trained. encoding: a label of the settings; folder: where its checkpoint and its log lie."""

    task: Any
    settings: Settings
    encoding: str
    seed: int
    rate: float
    steps: int
    folder: Path


def train_model(training: Training, progress: Notice, save_every: float = SAVE_EVERY) -> Trained:
    """Train one model, from its checkpoint where there is one; a finished one is loaded and returned.

    Ctrl-C saves a checkpoint between two steps and raises KeyboardInterrupt.
    save_every: seconds between checkpoints (has no influence on the weights).
    Where the settings have a recipe for several devices, a process of its own trains on each; under torchrun its
    processes do, of which the first calls this and the others `follow`.
    """
    recipe = Recipe.of(training.settings.recipe)
    recipe.check(training.settings.batch)
    if CURRENT:
        CURRENT[0].say((training, save_every))
        return _train(CURRENT[0].fabric, training, progress, save_every)
    if recipe.count() == 1:
        return _train(recipe.fabric(), training, progress, save_every)
    with (
        ignored_interrupts(),
        one_line(recipe.count()),
    ):  # the processes hear Ctrl-C themselves, and save before they end
        # Bound and not passed on: Lightning goes through what it passes, and stops at a frozen record.
        work = functools.partial(_train_one_of_several, training=training, save_every=save_every)
        outcome = recipe.fabric().launch(work)
    if outcome == "stopped":
        raise KeyboardInterrupt
    return _train(replace(recipe, devices=1).fabric(), training, progress, save_every)


def follow(team: Team) -> None:
    """What the processes beside the first one do: they train along until they are dismissed."""
    while (order := team.say()) is not None:
        training, save_every = order
        torch.set_num_threads(training.settings.threads)
        with contextlib.suppress(KeyboardInterrupt):  # the first process says what comes of it
            _train(team.fabric, training, lambda *_: None, save_every)


def _train_one_of_several(device: Fabric, training: Training, save_every: float) -> str:
    """A process of several; the first tells of its progress by lines."""
    torch.set_num_threads(training.settings.threads)
    reporter = Reporter(quiet=not device.is_global_zero)
    try:
        with reporter.step(f"training on {device.world_size} devices") as step:
            _train(device, training, step, save_every)
    except KeyboardInterrupt:
        return "stopped"
    return "done"


def _train(device: Fabric, training: Training, progress: Notice, save_every: float) -> Trained:
    settings, steps = training.settings, training.steps
    recipe = Recipe.of(settings.recipe)
    torch.manual_seed(training.seed)
    checkpoint = training.folder / CHECKPOINT
    with together() if device.world_size > 1 else contextlib.nullcontext():
        network = build(training.task, settings, training.encoding)
        own = ready(device, network, recipe, training.rate, settings.weight_decay, checkpoint)
        state = own.state
        if device.is_global_zero:
            training.folder.mkdir(parents=True, exist_ok=True)
        if state["step"] < steps and state["diverged"] is None:
            log = Log(training.folder / "metrics.jsonl", state["step"]) if device.is_global_zero else None
            place = (device.global_rank, device.world_size)
            source = batches(training.task, training.seed, settings.batch, state["step"], steps, recipe.loaders, *place)

            def write(line: dict[str, Any]) -> None:
                if own.evaluates:
                    _validate(line, training, own.network, state["step"])
                if log is not None:
                    _note(log, line, training, state["step"], progress)

            def take() -> dict[str, Any]:
                if device.world_size > 1:  # a checkpoint holds one random state, not one a process: it is drawn anew
                    torch.manual_seed(hash((training.seed, state["step"], device.global_rank)) % 2**63)
                line = _step(own, training, next(source), state["step"])
                if own.average is not None and line["loss"] is not None:
                    own.average.update(own.network)
                return line

            try:
                _loop(device, state, steps, save_every, take, write, lambda: own.save(checkpoint))
            finally:
                if log is not None:
                    log.close()
        return Trained(own.finished(network if not own.sharded else build_again(training)), state["diverged"])


def build_again(training: Training) -> nn.Module:
    """A network of the same shape, without a trace in torch's random state."""
    with torch.random.fork_rng():
        return build(training.task, training.settings, training.encoding)


def _loop(
    device: Fabric,
    state: dict[str, Any],
    steps: int,
    save_every: float,
    take: Callable[[], dict[str, Any]],
    write: Callable[[dict[str, Any]], None],
    save: Callable[[], None],
) -> None:
    """Takes steps until the last, a loss that is no number, or Ctrl-C; saves now and then and at the end."""
    with stop_requests(10.0 if CURRENT else 0.0) as stops:
        saved, first = time.monotonic(), state["step"]
        while state["step"] < steps and state["diverged"] is None:
            line = take()
            _count(line, state, untimed=state["step"] - first < UNTIMED)
            write(line)
            stopped = _any(device, bool(stops))
            finished = state["step"] >= steps or state["diverged"] is not None
            if finished or stopped or time.monotonic() - saved >= save_every:
                save()
                saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt


def _validate(line: dict[str, Any], training: Training, network: nn.Module, step: int) -> None:
    """Adds the validation loss where it is due."""
    if _validates(step, training.steps, training.settings.validations) and line["loss"] is not None:
        line["validation"] = validation_loss(training.task, network)


def _note(log: Log, line: dict[str, Any], training: Training, step: int, progress: Notice) -> None:
    """One line of the log."""
    log.write(line)
    progress(step, training.steps, f"loss {line['loss']:.3f}" if line["loss"] is not None else "diverged")


def _any(device: Fabric, here: bool) -> bool:
    """True on every device where it is true on one: they must leave the loop at the same step."""
    if device.world_size == 1:
        return here
    return bool(device.all_reduce(torch.tensor(float(here), device=device.device), reduce_op="sum"))


def _backward(own: Ready, task: Any, batch: Any, parts: int) -> float:
    """Adds the gradients of a batch, in parts where asked, and returns its loss over all devices.

    Where the loss is no finite number there may be no gradients.
    """
    device, model = own.device, own.model
    if parts == 1 and device.world_size == 1:
        loss = task.loss(model, batch)
        value = float(loss.detach())
        if math.isfinite(value):
            device.backward(loss)
        return value
    whole = batch if isinstance(batch, tuple | list) else (batch,)
    pieces = list(zip(*(tensor.chunk(parts) for tensor in whole)))
    total, rows = torch.zeros((), device=device.device), float(len(whole[0]))
    if device.world_size > 1:  # gradients are averaged over devices, of which one may have a row more
        count = torch.tensor(rows, device=device.device)
        rows = float(device.all_reduce(count, reduce_op="sum")) / device.world_size
    for index, piece in enumerate(pieces):
        share = len(piece[0]) / rows
        with own.alone(index + 1 < len(pieces)):
            loss = share * task.loss(model, piece if isinstance(batch, tuple | list) else piece[0])
            device.backward(loss)
        total += loss.detach()
    return float(total if device.world_size == 1 else device.all_reduce(total, reduce_op="mean"))


def _step(own: Ready, training: Training, made: Any, step: int) -> dict[str, Any]:
    """One step of training and its line in the log; loss None means that it was not a finite number."""
    device, optimizer = own.device, own.optimizer
    task, settings, recipe = training.task, training.settings, Recipe.of(training.settings.recipe)
    batch = device.to_device(made)
    rate = learning_rate(step, training.steps, training.rate, settings.warmup, recipe.first, recipe.last)
    for group in optimizer.param_groups:
        group["lr"] = rate
    begin = time.perf_counter()
    value = _backward(own, task, batch, recipe.parts)
    if math.isfinite(value):
        own.clip(settings.clip)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - begin
    line = {"step": step + 1, "loss": value if math.isfinite(value) else None, "rate": rate}
    return {**line, "seconds": seconds, pace(task): device.world_size * amount(task, batch)}


def _count(line: dict[str, Any], state: dict[str, Any], untimed: bool) -> None:
    """Moves the state on by the step that the line tells of."""
    state["step"] += 1
    if line["loss"] is None:
        state["diverged"] = state["step"]
    if untimed:
        line["seconds"] = None


def _validates(step: int, steps: int, times: int) -> bool:
    """True at `times` evenly spaced steps, the last among them."""
    return step * times // steps > (step - 1) * times // steps


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode and torch's random state come back afterwards."""
    random = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
        torch.set_rng_state(random)


def validation_loss(task: Any, model: nn.Module) -> float | None:
    """Loss on the validation split at the training length; None when it is not a number."""
    with evaluating(model):
        loss = float(task.evaluate(model, "validation", task.train_length).loss)
    return loss if math.isfinite(loss) else None
