"""The options of `relpos bench attention`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from relpos.lab.environment import cores
from relpos.lab.errors import LabError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Settings:
    """What is measured and how often."""

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
        for word in ("lengths", "memory_lengths"):
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
    def of(cls, **options: Any) -> Settings:
        """From options by name; --quick shrinks what is not named. LabError for an unknown name."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise LabError(f"bench attention has no option {name!r}; it has {', '.join(sorted(known))}")
        options = {key: value for key, value in options.items() if value is not None}
        for key in ("lengths", "memory_lengths", "only"):
            if isinstance(options.get(key), list):
                options[key] = tuple(options[key])
        if options.get("quick"):
            options = {**QUICK, **options}
        return cls(**options)


QUICK: dict[str, Any] = {
    "lengths": (32, 64), "memory_lengths": (64,), "heads": 2, "dim": 8, "rounds": 2, "sample": 0.0, "patience": 0.0,
    "decode_steps": 16, "limit": 60.0,
}  # fmt: skip


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes integers with commas between them, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Options from the words of a command line; what was not typed is absent."""
    parser = argparse.ArgumentParser(
        prog="relpos bench attention",
        description="Time and peak memory of attention with encodings, interleaved with what it competes with.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--lengths", type=_integers, metavar="N,N,..", help="lengths that are timed (2048,4096,8192)")
    add("--memory-lengths", type=_integers, metavar="N,..", help="lengths of the memory part (4096,..,32768)")
    add("--heads", type=int, help="heads (8)")
    add("--dim", type=int, help="width of a head (64)")
    add("--threads", type=int, help="threads (all cores)")
    add("--rounds", type=int, help="rounds at least; those marked slow take 3 (5)")
    add("--dtype", choices=DTYPES, help="of q, k and v (float32)")
    add("--device", help="cpu or cuda (cpu)")
    add("--only", type=_names, metavar="NAME,..", help="contestants; the floor always takes part")
    for name, what in (
        ("forward", "the forward pass alone"), ("backward", "forward and backward"), ("causal", "causal attention"),
        ("full", "attention to all keys"), ("memory", "the memory part"), ("decode", "the decoding part"),
    ):  # fmt: skip
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{what} (yes)")
    add("--decode-steps", type=int, help="tokens that are decoded (1024)")
    add("--quick", action="store_true", help="tiny sizes, a few seconds: shows that everything runs, measures nothing")
    add("--sample", type=float, help="seconds a sample lasts at least: short calls are repeated (0.2)")
    add("--patience", type=float, help="seconds that more rounds may fill where calls are short (40)")
    add("--limit", type=float, help="seconds that one process of its own may take (600)")
    add("--out", type=Path, help="folder that holds the run directories (runs)")
    add("--name", help="name of the run directory (bench-<time>)")
    add("--markdown", type=Path, help="also write the tables and figures as a page, such as docs/results/attention.md")
    add("--rewrite", type=Path, metavar="RUN", help="measure nothing: write the files of a finished run again")
    return vars(parser.parse_args(arguments))
