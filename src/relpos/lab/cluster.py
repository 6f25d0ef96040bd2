"""The runs of a comparison spread over a Ray cluster: an executor beside the processes of `jobs`.

A job is trained in a folder of the machine that has room for it. Its checkpoints come back here as it goes, and only
this process writes to the run directory: so the machines need no file system in common, and a job whose machine is lost
goes on elsewhere from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relpos.lab.assess import RECORD
from relpos.lab.checkpoint import write_atomic
from relpos.lab.environment import PACKAGES, cores
from relpos.lab.errors import LabError
from relpos.lab.jobs import Board, Crew, Job, perform, threads
from relpos.lab.settings import Settings
from relpos.lab.train import CHECKPOINT

ANSWER = 5.0  # seconds in which a head node takes a connection; Ray itself asks on for a minute
ATTEMPTS = 4  # times that a job is begun before the losses of its machines are no accident
NEWS_EVERY = 0.3  # seconds
GRACE = 60.0  # seconds in which stopped jobs send their last checkpoint

Finished = Callable[[Job, dict[str, Any] | None], str]
Files = dict[str, bytes]


def place(on: str) -> str | None:
    """The address in "ray" or "ray:ADDRESS", None for none. LabError for anything else."""
    kind, _, address = on.partition(":")
    if kind != "ray":
        raise LabError(f"--on is ray, ray:auto, ray:HOST:PORT or ray://HOST:PORT, got {on!r}")
    return f"ray:{address}" if address.startswith("//") else address or None


def knock(address: str | None) -> None:
    """OSError where HOST:PORT takes no connection; other addresses are left to Ray."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


@contextlib.contextmanager
def cluster(on: str, settings: Settings) -> Iterator[Cluster]:
    """Connects to the cluster that `on` names: a local one of this machine's cores where it names none and none is
    running. It is left again at the end."""
    address = place(on)
    try:
        import ray
    except ImportError as error:
        raise LabError('--on ray needs Ray: pip install "relpos[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        local = address is None and "RAY_ADDRESS" not in os.environ
        more: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False} if local else {"address": address}
        try:
            knock(address)
            ray.init(log_to_driver=False, logging_level="error", **more)
        except (OSError, RuntimeError, ValueError) as error:
            raise LabError(
                f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')}: {error}; start one with "
                "`ray start --head`, or leave the address out to use this machine alone"
            ) from error
    try:
        yield Cluster.of(settings)
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """slots: models trained at once; gpus: of each."""

    slots: int
    gpus: int

    @classmethod
    def of(cls, settings: Settings) -> Cluster:
        import ray

        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        return cls(gpus, 1) if gpus else cls(max(1, int(there.get("CPU", 1)) // settings.threads), 0)

    def perform(
        self, task: Any, settings: Settings, jobs: Sequence[Job], crew: Crew, board: Board, finished: Finished
    ) -> None:
        """Perform every job, at most crew.workers at a time; `finished` is called here after each."""
        with _Driver(self, task, settings, crew, board, finished) as driver:
            driver.work_off(jobs)


@dataclass
class _Driver:
    """This process's side of it."""

    cluster: Cluster
    task: Any
    settings: Settings
    crew: Crew
    board: Board
    finished: Finished
    running: dict[Any, Job] = field(default_factory=dict)  # by what Ray calls its result
    begun: dict[Path, int] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)  # the attempt at a job whose news counts, by its folder

    def __enter__(self) -> _Driver:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(mailbox()).remote()
        self.given = ray.put((self.task, self.settings))
        options = {"num_cpus": self.settings.threads, "num_gpus": self.cluster.gpus, "max_retries": 0}
        self.remote = ray.remote(**options)(serve)
        return self

    def __exit__(self, *_: object) -> None:
        """Stops what still runs, and takes the checkpoints that come of it."""
        import ray

        for reference in self.running:
            ray.cancel(reference)
        until = time.monotonic() + GRACE
        while self.running and time.monotonic() < until:
            ready, _left = ray.wait(list(self.running), timeout=NEWS_EVERY)
            for reference in ready:
                job = self.running.pop(reference)
                with contextlib.suppress(ray.exceptions.RayError):
                    _kind, _record, files = ray.get(reference)
                    self.close(job, files)
        with contextlib.suppress(ray.exceptions.RayError):
            self.hear()
        ray.kill(self.mailbox)

    def work_off(self, jobs: Sequence[Job]) -> None:
        import ray

        waiting = list(jobs)
        by_folder = {str(job.folder): job for job in jobs}
        while waiting or self.running:
            while waiting and len(self.running) < max(1, min(self.crew.workers, self.cluster.slots)):
                self.begin(waiting.pop(0))
            ready, _left = ray.wait(list(self.running), timeout=NEWS_EVERY)
            self.hear(by_folder)
            for reference in ready:
                job = self.running.pop(reference)
                record = self.taken(job, reference)
                if record is LOST:
                    waiting.insert(0, job)
                else:
                    self.board.finish(job, self.finished(job, record))

    def begin(self, job: Job) -> None:
        self.begun[job.folder] = self.begun.get(job.folder, 0) + 1
        attempt = self.open[str(job.folder)] = self.begun[job.folder]
        files, crew = collected(job.folder), self.crew
        reference = self.remote.remote(
            self.given, job, attempt, files, self.mailbox, crew.modules, crew.save_every, versions()
        )
        self.running[reference] = job

    def close(self, job: Job, files: Files) -> None:
        """The files that a job ends with: what its attempts sent before may still be under way, and is out of date."""
        self.open.pop(str(job.folder), None)
        store(job.folder, files)

    def hear(self, by_folder: dict[str, Job] | None = None) -> None:
        """What the jobs have sent: progress for the board, checkpoints for the disk."""
        import ray

        for folder, attempt, kind, what in ray.get(self.mailbox.take.remote()):
            if self.open.get(folder) != attempt:
                continue
            if kind == "files":
                store(Path(folder), what)
            elif by_folder is not None:
                self.board.update(by_folder[folder], *what)

    def taken(self, job: Job, reference: Any) -> Any:
        """The record of a job that has ended; LOST where its machine or process is gone and it may begin again."""
        import ray

        try:
            kind, record, files = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"{job.title} failed:\n{error}") from error
        except ray.exceptions.RayError as error:
            return self.again(job, str(error).strip().splitlines()[0])
        if kind == "error":
            raise record
        self.close(job, files)
        return self.again(job, "it was told to stop") if kind == "stopped" else record

    def again(self, job: Job, why: str) -> object:
        if self.begun[job.folder] >= ATTEMPTS:
            raise LabError(
                f"{job.title} was lost {ATTEMPTS} times, the last time: {why}; run the same command again to go on "
                "from its last checkpoint, with --workers 1 if it is for want of memory"
            )
        self.board.say(f"{job.title}: the worker was lost ({why}); it goes on elsewhere")
        return LOST


LOST = object()


def mailbox() -> type:
    """Where jobs leave news for the process that began them. Made here and not at the top, so that Ray sends it whole
    and its process need not import relpos and torch."""

    class Mailbox:
        def __init__(self) -> None:
            self.news: list[tuple[str, int, str, Any]] = []

        def put(self, folder: str, attempt: int, kind: str, what: Any) -> None:
            self.news.append((folder, attempt, kind, what))

        def take(self) -> list[tuple[str, int, str, Any]]:
            taken, self.news = self.news, []
            return taken

    return Mailbox


def versions() -> dict[str, str]:
    """What must be the same on every machine, for models to be comparable."""
    from importlib import metadata

    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("relpos", *(name for name in PACKAGES if name in ("torch", "numpy"))):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def collected(folder: Path) -> Files:
    """Every file of a folder, by its path in it."""
    if not folder.exists():
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def store(folder: Path, files: Files) -> None:
    """Writes the files of a job, its record last: where that is, all is."""
    for name in sorted(files, key=lambda name: name == RECORD):
        write_atomic(folder / name, files[name])


def serve(
    given: tuple[Any, Settings],
    job: Job,
    attempt: int,
    files: Files,
    mailbox: Any,
    modules: tuple[str, ...],
    save_every: float,
    expected: dict[str, str],
) -> tuple[str, Any, Files]:
    """One job on the machine that Ray has chosen: how it ended ("done", "stopped", "error"), its record or what went
    wrong, and the files of its folder."""
    import importlib

    task, settings = given
    if (here := versions()) != expected:
        told = ", ".join(f"{name} {here.get(name)} (there {expected.get(name)})" for name in {**here, **expected})
        return "error", LabError(f"{platform.node()} has other versions than where the comparison runs: {told}"), {}
    with _found_here():
        for module in modules:
            importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="relpos-") as scratch, threads(settings.threads):
        folder = Path(scratch) / job.folder.name
        store(folder, files)
        tell = _teller(mailbox, str(job.folder), attempt, folder)
        try:
            record = perform(task, settings, replace(job, folder=folder), save_every, tell)
            return "done", record, collected(folder)
        except KeyboardInterrupt:
            return "stopped", None, collected(folder)
        except LabError as error:
            return "error", error, {}
        except Exception:
            return "error", RuntimeError(f"{job.title} failed:\n{traceback.format_exc()}"), {}


@contextlib.contextmanager
def _found_here() -> Iterator[None]:
    """Modules in the working directory can be imported, as by `relpos --import`."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _teller(mailbox: Any, name: str, attempt: int, folder: Path) -> Callable[[float, float, str], None]:
    """Sends progress now and then, and every new checkpoint with the log beside it: training waits until that is away,
    so that what a lost machine had saved is not lost with it."""
    import ray

    told, sent = [0.0], [_stamp(folder)]

    def tell(done: float, total: float, text: str = "") -> None:
        if (now := _stamp(folder)) != sent[0]:
            sent[0] = now
            ray.get(mailbox.put.remote(name, attempt, "files", collected(folder)))
        if time.monotonic() - told[0] > NEWS_EVERY:
            told[0] = time.monotonic()
            mailbox.put.remote(name, attempt, "progress", (done / total, text))

    return tell


def _stamp(folder: Path) -> int:
    file = folder / CHECKPOINT
    return file.stat().st_mtime_ns if file.exists() else 0
