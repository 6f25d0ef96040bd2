"""Models to be trained, one after the other here or side by side in worker processes.

A small network gains little from a second thread, so two cores train two models at a time, one thread each.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from relpos.lab.assess import assess
from relpos.lab.errors import LabError
from relpos.lab.progress import Notice, Reporter, Step, seconds_text
from relpos.lab.settings import Settings
from relpos.lab.train import SAVE_EVERY, Training, train_model


@dataclass(frozen=True)
class Job:
    """One model to train in `folder`; measured too unless it is only a trial of a learning rate."""

    title: str
    encoding: str
    seed: int
    rate: float
    steps: int
    folder: Path
    measured: bool = True


Finished = Callable[[Job, dict[str, Any] | None], str]
"""Called after a job with its record, where it has one; returns what to say of it."""


class Executor(Protocol):
    """Performs jobs somewhere else than in processes of this machine."""

    def perform(
        self, task: Any, settings: Settings, jobs: Sequence[Job], crew: Crew, board: Board, finished: Finished
    ) -> None:
        """As `perform_all`, with a board on which its progress is shown."""
        ...


@dataclass(frozen=True)
class Crew:
    """How the work is spread: jobs at once, modules that workers import first, seconds between checkpoints, and who
    performs the jobs; None: processes of this machine."""

    workers: int = 1
    modules: tuple[str, ...] = ()
    save_every: float = SAVE_EVERY
    executor: Executor | None = None


def perform(task: Any, settings: Settings, job: Job, save_every: float, progress: Notice) -> dict[str, Any] | None:
    """Train, and measure where asked; progress runs from 0 to 1 over both."""
    training = 0.9 if job.measured else 1.0
    if not job.measured:
        settings = replace(settings, validations=1)  # a trial is judged by its last loss alone

    def train_progress(done: float, total: float, text: str = "") -> None:
        progress(training * done / total, 1.0, text)

    def measure_progress(done: float, total: float, text: str = "") -> None:
        progress(training, 1.0, f"evaluating, {text}")

    asked = Training(task, settings, job.encoding, job.seed, job.rate, job.steps, job.folder)
    trained = train_model(asked, train_progress, save_every)
    if not job.measured:
        return None
    return assess(task, settings, trained, job.encoding, job.seed, job.rate, job.folder, measure_progress)


def perform_all(
    task: Any,
    settings: Settings,
    jobs: Sequence[Job],
    reporter: Reporter,
    crew: Crew,
    finished: Finished,
) -> None:
    """Perform every job; `finished` is called here after each and returns what to say of it.

    Ctrl-C lets every running training save a checkpoint, then raises KeyboardInterrupt.
    """
    if not jobs:
        return
    with Board(reporter, len(jobs)) as board:
        if crew.executor is not None:
            crew.executor.perform(task, settings, jobs, crew, board, finished)
        elif min(crew.workers, len(jobs)) == 1:
            with threads(settings.threads):
                for job in jobs:
                    record = perform(task, settings, job, crew.save_every, board.notice(job))
                    board.finish(job, finished(job, record))
        else:
            _in_processes(task, settings, jobs, crew, board, finished)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads set to `count`, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Board:
    """The progress of all jobs: a bar for each running one and one for all, or lines."""

    def __init__(self, reporter: Reporter, count: int) -> None:
        self._reporter = reporter
        self._count = count
        self._done = 0
        self._shares: dict[Path, float] = {}
        self._steps: dict[Path, tuple[Step, contextlib.ExitStack]] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Board:
        self._stack = contextlib.ExitStack()
        self._overall = self._stack.enter_context(self._reporter.step("all together", lines=False))
        return self

    def __exit__(self, *_: object) -> None:
        for _step, bar in self._steps.values():
            bar.close()
        self._stack.close()

    def notice(self, job: Job) -> Notice:
        """The progress function of one job."""

        def tell(done: float, total: float, text: str = "") -> None:
            self.update(job, done / total, text)

        return tell

    def update(self, job: Job, share: float, text: str) -> None:
        if job.folder not in self._steps:
            bar = contextlib.ExitStack()
            self._steps[job.folder] = (bar.enter_context(self._reporter.step(job.title)), bar)
        self._steps[job.folder][0](share, 1.0, text)
        self._shares[job.folder] = share
        self._overall(self._done + sum(self._shares.values()), self._count)

    def say(self, text: str) -> None:
        """One line above the bars."""
        self._reporter.say(text)

    def finish(self, job: Job, text: str) -> None:
        if job.folder in self._steps:
            self._steps.pop(job.folder)[1].close()
        self._shares.pop(job.folder, None)
        self._done += 1
        worth = self._done + sum(self._shares.values())
        left = (time.monotonic() - self._began) / worth * (self._count - worth)
        self._overall(worth, self._count)
        self._reporter.say(f"[{self._done}/{self._count}] {job.title}: {text} ({seconds_text(left)} left)")


def _in_processes(
    task: Any,
    settings: Settings,
    jobs: Sequence[Job],
    crew: Crew,
    board: Board,
    finished: Finished,
) -> None:
    context = multiprocessing.get_context("spawn")
    waiting, news = context.Queue(), context.Queue()
    for job in jobs:
        waiting.put(job)
    count = min(crew.workers, len(jobs))
    for _ in range(count):
        waiting.put(None)
    arguments = (task, settings, crew, waiting, news)
    workers = [context.Process(target=_serve, args=arguments, daemon=True) for _ in range(count)]
    with _as_interrupt(signal.SIGTERM):
        try:
            with _ignored(signal.SIGINT):  # inherited: a worker must not die of the Ctrl-C while it starts
                for worker in workers:
                    worker.start()
            _listen(news, workers, len(jobs), board, finished)
        finally:
            _dismiss(workers)


def _listen(news: Any, workers: list[Any], count: int, board: Board, finished: Finished) -> None:
    """Follow the workers until all jobs are done; the first error among them is raised here."""
    while count:
        try:
            kind, job, what = news.get(timeout=1.0)
        except queue.Empty:
            lost = [worker.exitcode for worker in workers if worker.exitcode]
            if lost:
                raise LabError(
                    f"a worker process ended with status {lost[0]}, perhaps for want of memory; "
                    "run the same command again, with --workers 1 if it happens twice"
                ) from None
            continue
        if kind == "progress":
            board.update(job, *what)
        elif kind == "error":
            raise what
        else:
            board.finish(job, finished(job, what))
            count -= 1


def _dismiss(workers: list[Any]) -> None:
    """End what still runs; a training saves a checkpoint first."""
    try:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join(timeout=60)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()


def _serve(task: Any, settings: Settings, crew: Crew, waiting: Any, news: Any) -> None:
    """A worker's life: jobs until there are none. It dies with its parent, so nobody writes to the run unlocked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and sends SIGTERM
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(settings.threads)
    for module in crew.modules:
        importlib.import_module(module)
    while (job := waiting.get()) is not None:
        told = [0.0]

        def tell(done: float, total: float, text: str = "", job: Job = job, told: list[float] = told) -> None:
            if time.monotonic() - told[0] > 0.3:
                told[0] = time.monotonic()
                news.put(("progress", job, (done / total, text)))

        try:
            news.put(("done", job, perform(task, settings, job, crew.save_every, tell)))
        except KeyboardInterrupt:
            return
        except LabError as error:
            news.put(("error", job, error))
            return
        except Exception:
            news.put(("error", job, RuntimeError(f"{job.title} failed:\n{traceback.format_exc()}")))
            return


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _ignored(number: int) -> Iterator[None]:
    with _handled(number, signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _as_interrupt(number: int) -> Iterator[None]:
    with _handled(number, signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handled(number: int, handler: Any) -> Iterator[None]:
    """A signal handled so for a while; does nothing outside the main thread, where signals do not arrive."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
