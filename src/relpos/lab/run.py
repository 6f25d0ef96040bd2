"""A run directory: who owns it, what it holds, and whether it may be gone on with.

config.json       settings, steps they came to, the task's unit and metrics, its data   (written once, first)
environment.json  git state, versions, machine
rates.json        the learning rate of each encoding and how it was chosen
baselines.json    losses and metrics of trivial predictors, on what the models are scored on
<label>-seed<k>/  metrics.jsonl, checkpoint.safetensors, evaluation.json, lags.npz, samples/
report.html, table.csv, table.md
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any, TextIO

from relpos.lab.checkpoint import read_json, write_json
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.lab.labels import slug
from relpos.lab.settings import MACHINERY, Settings

FORMAT = "relpos-run-2"
LOCK = ".relpos-run.lock"


class Run:
    """One open run directory; `create` makes or resumes it for writing, `read` opens a stored one for a report."""

    def __init__(self, path: Path, config: dict[str, Any], lock: TextIO | None = None) -> None:
        self.path = path
        self.config = config
        self.settings = Settings.from_dict(config["settings"])
        self._lock = lock

    @property
    def steps(self) -> int:
        """Training steps of every model of this run."""
        return int(self.config["steps"])

    def model(self, encoding: str, seed: int) -> Path:
        """The folder of one trained model."""
        return self.path / f"{slug(encoding)}-seed{seed}"

    def close(self) -> None:
        """Let another process work on this directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def read(cls, path: Path) -> Run:
        """A stored run; RunDirectoryError when there is none or it is not ours."""
        if not path.is_dir():
            raise RunDirectoryError(f"there is no run directory {path}; `relpos compare` makes one")
        return cls(path, _checked_config(path))

    @classmethod
    def stored_steps(cls, path: Path) -> int | None:
        """The steps a stored run settled on, or None where there is no run yet."""
        return int(_checked_config(path)["steps"]) if (path / "config.json").exists() else None

    @classmethod
    def create(cls, path: Path, settings: Settings, steps: int, data: dict[str, Any], **more: object) -> Run:
        """Make the directory, or resume it when it holds a run with the same settings and data.

        Whatever differs is named. The caller has claimed the directory with `claim`.
        """
        config = {"format": FORMAT, "settings": settings.as_dict(), "steps": steps, "data": data, **more}
        if (path / "config.json").exists():
            stored = _checked_config(path)
            differences = _differences(_decisive(stored["settings"]), _decisive(config["settings"]), "")
            differences += _differences(stored["data"], _plain(data), "data: ")
            if differences:
                raise RunDirectoryError(
                    f"{path} holds a run with other settings: {'; '.join(differences)}. "
                    "Give the same settings to resume it, another --name to keep it, or --fresh to replace it"
                )
            return cls(path, {**stored, "settings": _plain(config["settings"])})
        write_json(path / "config.json", config)
        return cls(path, _plain(config))


def claim(path: Path, fresh: bool = False) -> TextIO:
    """Lock the directory for this process (released when it ends, however it ends), making it where needed.

    RunDirectoryError when it is a file, holds somebody else's files, or another process is at work in it.
    fresh=True empties it first, but only if it is a run directory of ours.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; choose another --name or --out")
    ours = (path / LOCK).exists()
    if path.exists() and not ours and any(path.iterdir()):
        raise RunDirectoryError(
            f"{path} exists and is not a run directory of relpos; choose another --name or --out (nothing was changed)"
        )
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  (stays open as long as the lock is held)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RunDirectoryError(
            f"another process is working on {path}; wait for it, or choose another --name"
        ) from None
    if fresh:
        for entry in path.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    _remove_leftovers(path)
    return lock


def _remove_leftovers(path: Path) -> None:
    """Temporary files of writes that a kill cut short."""
    for part in path.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _checked_config(path: Path) -> dict[str, Any]:
    """The stored config.json; says what is wrong with a foreign or broken one."""
    file = path / "config.json"
    if not file.exists():
        raise RunDirectoryError(f"{path} has no config.json, so it is not a finished or resumable run of relpos")
    config = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise RunDirectoryError(
            f"{file} is not of this version of relpos ({FORMAT}); choose another --name, or --fresh to replace the run"
        )
    missing = sorted({"settings", "steps", "data"} - set(config))
    if missing:
        raise RunDirectoryError(f"{file} lacks {', '.join(missing)}; use --fresh to start the run anew")
    try:
        Settings.from_dict(config["settings"])
    except (LabError, TypeError) as error:
        raise RunDirectoryError(f"{file} holds settings that cannot be used: {error}; use --fresh") from error
    return config


def _decisive(settings: Any) -> dict[str, Any]:
    """The settings without what only says where a training runs: a run goes on with other devices."""
    recipe = {key: value for key, value in settings.get("recipe", {}).items() if key not in MACHINERY}
    return {**settings, "recipe": recipe}


def _plain(value: Any) -> Any:
    """As it will look after a trip through JSON, so that stored and new compare equal."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _differences(stored: Any, asked: Any, prefix: str) -> list[str]:
    asked = _plain(asked)
    names = list(dict.fromkeys([*stored, *asked]))
    return [
        f"{prefix}{name} is {stored.get(name)!r} there, {asked.get(name)!r} here"
        for name in names
        if stored.get(name) != asked.get(name)
    ]
