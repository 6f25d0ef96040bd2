"""The options of a bench; those here are of `relpos bench attention`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from relpos.lab.environment import cores
from relpos.lab.errors import LabError

LISTS = {
    "lengths": "lengths that are timed",
    "memory_lengths": "lengths of the memory part",
    "features": "numbers of features whose memory is measured, the first one in all other parts",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Settings:
    """What is measured and how often."""

    bench: ClassVar[str] = "attention"
    about: ClassVar[str] = "Time and peak memory of attention with encodings, interleaved with what it competes with."
    small: ClassVar[dict[str, Any]] = {
        "lengths": (32, 64), "memory_lengths": (64,), "heads": 2, "dim": 8, "rounds": 2, "sample": 0.0, "patience": 0.0,
        "decode_steps": 16, "limit": 60.0,
    }  # what --quick sets  # fmt: skip
    lists: ClassVar[tuple[str, ...]] = ("lengths", "memory_lengths")
    parts: ClassVar[tuple[tuple[str, str], ...]] = ()  # what more may be left out, and what it is

    lengths: tuple[int, ...] = (2048, 4096, 8192)
    memory_lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    heads: int = 8
    dim: int = 64
    threads: int = 0  # 0: all cores that this process may use
    rounds: int = 5
    dtype: str = "float32"
    device: str = "cpu"
    only: tuple[str, ...] | None = None
    forward: bool = True
    backward: bool = True
    causal: bool = True
    full: bool = True
    memory: bool = True
    decode: bool = True
    decode_steps: int = 1024
    quick: bool = False
    limit: float = 600.0  # seconds that one process of its own may take
    sample: float = 0.2  # seconds that one sample lasts at least: short calls are repeated
    patience: float = 40.0  # seconds of one problem that short calls may fill with more rounds than asked for
    out: Path = Path("runs")
    name: str | None = None
    markdown: Path | None = None
    rewrite: Path | None = None

    def __post_init__(self) -> None:
        for word in self.lists:
            if not getattr(self, word) or min(getattr(self, word)) < 2:
                raise LabError(f"{word.replace('_', ' ')} are integers >= 2, got {getattr(self, word)}")
        for word, least in (("heads", 1), ("dim", 2), ("rounds", 1), ("threads", 0), ("decode_steps", 2)):
            if getattr(self, word) < least:
                raise LabError(f"{word} is at least {least}, got {getattr(self, word)}")
        if self.dtype not in DTYPES:
            raise LabError(f"dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not self.threads:
            object.__setattr__(self, "threads", cores())
        if not (self.forward or self.backward) or not (self.causal or self.full):
            raise LabError("nothing is left to measure: leave out at most one of each pair of --no-... options")

    def as_dict(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @classmethod
    def of(cls, **options: Any) -> Self:
        """From options by name; --quick shrinks what is not named. LabError for an unknown name."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise LabError(f"bench {cls.bench} has no option {name!r}; it has {', '.join(sorted(known))}")
        options = {key: value for key, value in options.items() if value is not None}
        for key in (*cls.lists, "only"):
            if isinstance(options.get(key), list):
                options[key] = tuple(options[key])
        if options.get("quick"):
            options = {**cls.small, **options}
        return cls(**options)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes integers with commas between them, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse(arguments: Sequence[str], kind: type[Settings] = Settings) -> dict[str, Any]:
    """Options from the words of a command line; what was not typed is absent."""
    parser = argparse.ArgumentParser(
        prog=f"relpos bench {kind.bench}",
        description=kind.about,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument

    def default(name: str) -> str:
        value = getattr(kind, name)
        return f"({','.join(map(str, value)) if isinstance(value, tuple) else format(value, 'g')})"

    for name in kind.lists:
        add(f"--{name.replace('_', '-')}", type=_integers, metavar="N,..", help=f"{LISTS[name]} {default(name)}")
    for name, what in (
        ("heads", "heads"), ("dim", "width of a head"), ("rounds", "rounds at least; those marked slow take 3"),
        ("decode-steps", "tokens that are decoded"),
    ):  # fmt: skip
        add(f"--{name}", type=int, help=f"{what} {default(name.replace('-', '_'))}")
    add("--threads", type=int, help="threads (all cores)")
    add("--dtype", choices=DTYPES, help="of q, k and v (float32)")
    add("--device", help="cpu or cuda (cpu)")
    add("--only", type=_names, metavar="NAME,..", help="contestants; the one that keeps the pace always takes part")
    for name, what in (
        ("forward", "the forward pass alone"), ("backward", "forward and backward"), ("causal", "causal attention"),
        ("full", "attention to all keys"), ("memory", "the memory part"), ("decode", "the decoding part"),
        *kind.parts,
    ):  # fmt: skip
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{what} (yes)")
    add("--quick", action="store_true", help="tiny sizes, a few seconds: shows that everything runs, measures nothing")
    for name, what in (
        ("sample", "seconds a sample lasts at least: short calls are repeated"),
        ("patience", "seconds that more rounds may fill where calls are short"),
        ("limit", "seconds that one process of its own may take"),
    ):
        add(f"--{name}", type=float, help=f"{what} {default(name)}")
    add("--out", type=Path, help="folder that holds the run directories (runs)")
    add("--name", help="name of the run directory (the bench and the time)")
    add(
        "--markdown",
        type=Path,
        help=f"also write the tables and figures as a page, such as docs/results/{kind.bench}.md",
    )
    add("--rewrite", type=Path, metavar="RUN", help="measure nothing: write the files of a finished run again")
    return vars(parser.parse_args(arguments))
