"""ListOps of the Long Range Arena: nested operations on digits, 501 to 1,999 tokens long, whose value is the label.

A node at depth d < max_depth is an operation with probability 1/4, else a digit; at max_depth it is a digit. An
operation takes 2..max_args arguments and is MIN, MAX, MED (median, an even count takes the mean of the middle two,
fraction cut off) or SM (sum modulo 10), all uniform. A tree is accepted where min_length < length < max_length; a digit
has length 1, an operation 2 plus its arguments. Equal trees are kept once.

The released generator draws trees one by one from an unseeded stream; here a block of trees is drawn level by level
from a seeded one, which gives the same distribution and not the same trees.

Source: Tay et al. 2021, "Long Range Arena", 2.2.1; google-research/long-range-arena, data/listops.py. Its token ids
are in arbitrary order; here they are 0 padding, 1..10 the digits 0..9, 11..14 the operations, 15 the closing bracket
(written ``]`` or ``X``), 16 unknown (never made).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from relpos.tasks import cache
from relpos.tasks.base import Progress
from relpos.tasks.long_range.operations import (
    CLOSE,
    FIRST_DIGIT,
    FIRST_OPERATION,
    OPERATIONS,
    evaluate,
    tokenise,
)

SPLITS = ("train", "validation", "test")
RELEASED = (96_000, 2_000, 2_000)
"""Expressions in train, validation and test of the released task."""
SHARD = 5_000
"""Expressions in a cache file; also the unit of the random streams, so another value gives other expressions."""

_BLOCK = 2048  # trees drawn at once: large enough for numpy to be busy, about 0.25 M nodes
_PATIENCE = 2_000_000  # trees without a new expression after which the rules are taken to be hopeless


@dataclass(frozen=True)
class Rules:
    """Limits of the trees; the defaults are those of the released task. ValueError where no tree can satisfy them."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 2 or self.max_args < 2:
            raise ValueError(f"max_depth and max_args must be at least 2, got {self.max_depth} and {self.max_args}")
        if self.min_length < 1 or self.max_length < self.min_length + 4:
            raise ValueError(
                f"lengths strictly between min_length {self.min_length} and max_length {self.max_length} are accepted: "
                "min_length must be at least 1 and max_length at least min_length + 4"
            )
        if self.min_length + 1 > (longest := self._longest()):
            raise ValueError(f"no tree is longer than {longest} tokens at this max_depth: lower min_length")

    def _longest(self) -> int:
        length = 1
        for _ in range(self.max_depth - 1):
            length = 2 + self.max_args * length
        return length


@dataclass(frozen=True, eq=False)
class Expressions:
    """Token ids of many expressions end to end: expression i is ``tokens[offsets[i]:offsets[i + 1]]``.

    tokens uint8 (total,), offsets int64 (count + 1,), labels uint8 (count,) in 0..9; drawn: how many trees were drawn
    for them, 0 where they were read from a file.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    drawn: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of one expression, uint8 (length,)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expression {index} of {len(self)}")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each expression, int64 (count,)."""
        return np.diff(self.offsets)

    def padded(self, indices: Sequence[int] | np.ndarray, length: int = 2000) -> np.ndarray:
        """Token ids (len(indices), length), cut to ``length`` and filled up with 0."""
        out = np.zeros((len(indices), length), dtype=np.uint8)
        for row, index in zip(out, indices):
            expression = self[int(index)][:length]
            row[: len(expression)] = expression
        return out

    def part(self, start: int, stop: int) -> Expressions:
        """Expressions start..stop-1, sharing memory with the whole."""
        first, last = self.offsets[start], self.offsets[stop]
        return Expressions(self.tokens[first:last], self.offsets[start : stop + 1] - first, self.labels[start:stop])


@dataclass
class _Level:
    """The nodes of all trees of a block at one depth; the children of a node are consecutive in the next level."""

    tokens: np.ndarray  # (nodes,) id of the digit, or of the operation that opens
    is_operation: np.ndarray  # (nodes,) bool
    arguments: np.ndarray  # (operations,) how many children each has
    root: np.ndarray  # (nodes,) the tree each belongs to

    @property
    def parent(self) -> np.ndarray:
        """For every child, the node it belongs to."""
        return np.repeat(np.flatnonzero(self.is_operation), self.arguments)

    @property
    def first(self) -> np.ndarray:
        """For every operation, its first child."""
        return np.cumsum(self.arguments) - self.arguments

    def keep(self, nodes: np.ndarray) -> _Level:
        arguments = self.arguments[nodes[self.is_operation]]
        return _Level(self.tokens[nodes], self.is_operation[nodes], arguments, self.root[nodes])


def _draw(rng: np.random.Generator, rules: Rules) -> list[_Level]:
    levels: list[_Level] = []
    root = np.arange(_BLOCK)
    for depth in range(1, rules.max_depth + 1):
        is_operation = rng.random(len(root)) <= (0.25 if depth < rules.max_depth else -1.0)
        tokens = FIRST_DIGIT + rng.integers(0, 10, len(root))
        operations = int(is_operation.sum())
        tokens[is_operation] = FIRST_OPERATION + rng.integers(0, len(OPERATIONS), operations)
        levels.append(_Level(tokens, is_operation, rng.integers(2, rules.max_args + 1, operations), root))
        if operations == 0:
            break
        root = root[levels[-1].parent]
    return levels


def _lengths(levels: list[_Level]) -> list[np.ndarray]:
    """Tokens under every node, level by level."""
    out = [np.ones(len(levels[-1].tokens), dtype=np.int64)]
    for level in reversed(levels[:-1]):
        lengths = np.ones(len(level.tokens), dtype=np.int64)
        lengths[level.is_operation] = 2 + np.add.reduceat(out[-1], level.first)
        out.append(lengths)
    return out[::-1]


def _accepted(levels: list[_Level], rules: Rules) -> list[_Level]:
    lengths = _lengths(levels)[0]
    good = (lengths > rules.min_length) & (lengths < rules.max_length)
    kept = [level.keep(good[level.root]) for level in levels]
    while len(kept) > 1 and len(kept[-1].tokens) == 0:
        kept.pop()
    return kept


def _values(levels: list[_Level]) -> np.ndarray:
    """Value of every tree."""
    values = levels[-1].tokens - FIRST_DIGIT
    for level in reversed(levels[:-1]):
        first, count = level.first, level.arguments
        owner = np.repeat(np.arange(len(first)), count)
        ordered = values[np.lexsort((values, owner))]
        results = np.stack(
            [
                ordered[first],
                ordered[first + count - 1],
                (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) // 2,
                np.add.reduceat(values, first) % 10,
            ]
        )
        values = level.tokens - FIRST_DIGIT
        operation = level.tokens[level.is_operation] - FIRST_OPERATION
        values[level.is_operation] = results[operation, np.arange(len(first))]
    return values


def _flatten(levels: list[_Level]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all trees end to end, and where each begins and the last ends."""
    lengths = _lengths(levels)
    offsets = np.concatenate([[0], np.cumsum(lengths[0])])
    out = np.empty(offsets[-1], dtype=np.uint8)
    start = offsets[:-1]
    for depth, level in enumerate(levels):
        out[start] = level.tokens
        out[(start + lengths[depth] - 1)[level.is_operation]] = CLOSE
        if depth + 1 < len(levels):
            before = np.cumsum(lengths[depth + 1]) - lengths[depth + 1]
            start = start[level.parent] + 1 + before - np.repeat(before[level.first], level.arguments)
    return out, offsets


def _block(rng: np.random.Generator, rules: Rules) -> Iterator[tuple[np.ndarray, int, int]]:
    """The accepted trees of a block of draws: tokens, value and which draw it was."""
    levels = _accepted(_draw(rng, rules), rules)
    if len(levels[0].tokens) == 0:
        return
    tokens, offsets = _flatten(levels)
    for index, value in enumerate(_values(levels)):
        yield tokens[offsets[index] : offsets[index + 1]], int(value), int(levels[0].root[index])


def _shard(rules: Rules, seed: int, index: int, count: int, seen: set[bytes]) -> Expressions:
    """``count`` new expressions of stream ``index``; a smaller count gives the first ones of a larger."""
    found: list[np.ndarray] = []
    labels: list[int] = []
    blocks = drawn = 0
    while len(found) < count:
        rng = np.random.default_rng([seed, index, blocks])
        for tokens, value, draw in _block(rng, rules):
            if len(found) < count and (digest := _digest(tokens)) not in seen:
                seen.add(digest)
                found.append(tokens)
                labels.append(value)
                drawn = blocks * _BLOCK + draw + 1
        blocks += 1
        if blocks * _BLOCK - drawn > _PATIENCE:
            raise ValueError(f"{_PATIENCE} trees gave no new expression within {rules}: widen the lengths")
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in found], dtype=np.int64)])
    return Expressions(np.concatenate(found), offsets, np.array(labels, dtype=np.uint8), drawn)


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


def _joined(parts: Sequence[Expressions]) -> Expressions:
    ends = np.cumsum([0] + [len(part.tokens) for part in parts])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends)]
    return Expressions(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([part.labels for part in parts]),
        sum(part.drawn for part in parts),
    )


def generate(
    count: int,
    seed: int = 0,
    rules: Rules = Rules(),
    *,
    kept: bool = False,
    progress: Progress | None = None,
) -> Expressions:
    """``count`` different expressions, a pure function of count, seed and rules; fewer are a prefix of more.

    kept: read what is in the cache folder and write what is not, in files of ``SHARD`` expressions, so that a run that
    was stopped goes on where it was. ValueError for a count below 1 or a negative seed.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed at least 0, got {count} and {seed}")
    seen: set[bytes] = set()
    parts: list[Expressions] = []
    for index, start in enumerate(range(0, count, SHARD)):
        if progress is not None:
            progress(start, count, "ListOps: drawing expressions")
        size = min(SHARD, count - start)
        part = _kept_shard(rules, seed, index, size, seen) if kept else _shard(rules, seed, index, size, seen)
        parts.append(part)
    if progress is not None:
        progress(count, count, "ListOps: drawing expressions")
    return _joined(parts)


def _kept_shard(rules: Rules, seed: int, index: int, count: int, seen: set[bytes]) -> Expressions:
    def build() -> cache.Arrays:
        made = _shard(rules, seed, index, count, seen)
        return {"tokens": made.tokens, "offsets": made.offsets, "labels": made.labels, "drawn": np.array(made.drawn)}

    header = {"data": "ListOps 1", "rules": str(asdict(rules)), "seed": str(seed), "shard": f"{index} of {SHARD}"}
    limits = "-".join(str(value) for value in asdict(rules).values())
    arrays = cache.cached(f"listops/{limits}-seed{seed}-{index:05d}-{count}", header, build)
    part = Expressions(arrays["tokens"], arrays["offsets"], arrays["labels"], int(arrays["drawn"]))
    seen.update(_digest(part[row]) for row in range(len(part)))
    return part


def load(
    count: tuple[int, int, int] = RELEASED, seed: int = 0, progress: Progress | None = None
) -> Mapping[str, Expressions]:
    """Train, validation and test expressions of the released rules, generated once and kept in the cache folder."""
    if len(count) != 3 or min(count) < 1:
        raise ValueError(f"count must be three positive numbers (train, validation, test), got {count!r}")
    whole = generate(sum(count), seed, kept=True, progress=progress)
    ends = np.cumsum([0, *count])
    return {name: whole.part(int(start), int(end)) for name, start, end in zip(SPLITS, ends[:-1], ends[1:])}


def read(folder: str | Path, progress: Progress | None = None) -> Mapping[str, Expressions]:
    """The expressions of the released files basic_train.tsv, basic_val.tsv, basic_test.tsv in ``folder``.

    FileNotFoundError; ValueError, with file and line, for an unknown symbol or a label that is no digit, and where one
    of the first hundred labels of a file is not the value of its expression.
    """
    names = dict(zip(SPLITS, ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")))
    out = {}
    for done, (split, name) in enumerate(names.items()):
        if progress is not None:
            progress(done, len(names), f"ListOps: reading {name}")
        out[split] = _read_file(Path(folder).expanduser() / name)
    if progress is not None:
        progress(len(names), len(names), "ListOps: read")
    return out


def _read_file(path: Path) -> Expressions:
    found: list[np.ndarray] = []
    labels: list[int] = []
    with path.open(encoding="ascii", newline="") as file:
        header = file.readline().rstrip("\r\n")
        if header != "Source\tTarget":
            raise ValueError(f"{path}: the first line must be 'Source<TAB>Target', got {header[:80]!r}")
        for number, line in enumerate(file, start=2):
            source, _, target = line.rstrip("\r\n").partition("\t")
            try:
                if not (len(target) == 1 and target.isascii() and target.isdigit()):
                    raise ValueError(f"the target must be one digit, got {target[:20]!r}")
                tokens = tokenise(source)
                if number < 102 and (value := evaluate(tokens)) != int(target):
                    raise ValueError(f"the target is {target}, but the expression's value is {value}")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            found.append(tokens)
            labels.append(int(target))
    if not found:
        raise ValueError(f"{path} holds no expressions")
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in found], dtype=np.int64)])
    return Expressions(np.concatenate(found), offsets, np.array(labels, dtype=np.uint8))
