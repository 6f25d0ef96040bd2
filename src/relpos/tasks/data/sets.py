"""What a data set is once it is read: a few packed arrays, a split and a card; six shapes cover every job here.

Bytes are kept end to end in one uint8 array with offsets, never as a list of strings: item ``i`` is a view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    from relpos.tasks.events.sequences import Sequences

Arrays = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Card:
    """Where a data set came from and what is in it; every value can be written as JSON.

    packages: one mapping a package, with client, package, version, file, sha256 and whether that was the expected one;
    counts: numbers by name; made: UTC time of reading.
    """

    name: str
    title: str
    about: str = ""
    licence: str = ""
    origin: str = ""
    packages: tuple[Mapping[str, str], ...] = ()
    counts: Mapping[str, object] = field(default_factory=dict)
    split: str = ""
    made: str = ""

    def json(self) -> dict[str, Any]:
        """The card as plain dicts and lists."""
        return dataclasses.asdict(self) | {"packages": [dict(each) for each in self.packages]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Card:
        """The inverse of `json`."""
        return cls(**{**values, "packages": tuple(values["packages"])})


@dataclass(frozen=True)
class Blob:
    """Byte strings of unequal length end to end. data: (total,) uint8; offsets: (count + 1,) int64, from 0 to total."""

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, items: Sequence[bytes]) -> Blob:
        """Packs the items in their order."""
        offsets = np.zeros(len(items) + 1, dtype=np.int64)
        np.cumsum([len(item) for item in items], out=offsets[1:])
        return cls(np.frombuffer(b"".join(items), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Item ``index`` as a view, (length,) uint8."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(count,) int64, in bytes."""
        return np.diff(self.offsets)

    def text(self, index: int) -> str:
        """Item ``index`` read as UTF-8, bytes that are not UTF-8 replaced."""
        return self[index].tobytes().decode("utf-8", "replace")


@dataclass(frozen=True)
class DataSet:
    """What all shapes share; ``split`` maps "train", "validation", "test" (those that exist) to int64 indices."""

    card: Card
    split: dict[str, np.ndarray]

    shape_name: ClassVar[str] = ""

    def arrays(self) -> Arrays:
        """Everything but the card as plain arrays; `from_arrays` is the inverse."""
        packed: Arrays = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "card" or value is None:
                continue
            if item.name == "split":
                packed |= {f"split.{side}": rows for side, rows in value.items()}
            elif isinstance(value, Blob):
                packed |= {f"{item.name}.data": value.data, f"{item.name}.offsets": value.offsets}
            elif isinstance(value, tuple):
                words = Blob.of([word.encode() for word in value])
                packed |= {f"{item.name}.words": words.data, f"{item.name}.word_offsets": words.offsets}
            else:
                packed[item.name] = value
        return packed

    @classmethod
    def from_arrays(cls, card: Card, arrays: Arrays) -> Self:
        """The set whose `arrays` these are. KeyError where one is missing."""
        values: dict[str, Any] = {"card": card, "split": {}}
        for key, array in arrays.items():
            name, _, part = key.partition(".")
            if name == "split":
                values["split"][part] = array
            elif part == "data":
                values[name] = Blob(array, arrays[f"{name}.offsets"])
            elif part == "words":
                words = Blob(array, arrays[f"{name}.word_offsets"])
                values[name] = tuple(words.text(index) for index in range(len(words)))
            elif not part:
                values[name] = array
        return cls(**values)

    def rows(self, side: str) -> np.ndarray:
        """Indices of one side of the split. ValueError names the sides that exist."""
        if side not in self.split:
            raise ValueError(f"{self.card.name} has no {side!r} split; it has {', '.join(self.split)}")
        return self.split[side]


@dataclass(frozen=True)
class Corpus(DataSet):
    """One long sequence for language modelling.

    tokens: (total,) uint8 bytes, or uint16/uint32 word ids where ``vocabulary`` is a tuple of words; split: side ->
    [start, stop] of a stretch of ``tokens``.
    """

    tokens: np.ndarray
    vocabulary: tuple[str, ...] | None = None

    shape_name: ClassVar[str] = "corpus"

    def part(self, side: str) -> np.ndarray:
        """The tokens of one side, a view."""
        start, stop = self.rows(side)
        return self.tokens[start:stop]

    @property
    def symbols(self) -> np.ndarray:
        """The distinct tokens in rising order: 27 of them in text8."""
        size = int(self.tokens.max(initial=0)) + 1
        return np.flatnonzero(np.bincount(self.tokens, minlength=size))


@dataclass(frozen=True)
class Texts(DataSet):
    """Labelled documents. labels: (count,) int64, -1 where there is none; classes: the names of the labels."""

    documents: Blob
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    shape_name: ClassVar[str] = "texts"


@dataclass(frozen=True)
class DocumentPairs(DataSet):
    """Pairs of documents that belong together (label 1) or do not (label 0); split: indices of pairs.

    pairs: (count, 2) int64, indices of ``documents``; labels: (count,) int64; names: of the documents.
    """

    documents: Blob
    pairs: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()

    shape_name: ClassVar[str] = "document pairs"


@dataclass(frozen=True)
class Parallel(DataSet):
    """Sentence ``i`` of ``source`` says what sentence ``i`` of ``target`` says. UTF-8, no line ends.

    names: where a pair stands, such as a verse's slot; empty where unknown.
    """

    source: Blob
    target: Blob
    names: tuple[str, ...] = ()

    shape_name: ClassVar[str] = "parallel"


@dataclass(frozen=True)
class Images(DataSet):
    """pixels: (count, height, width) uint8 grey or (count, height, width, 3) uint8 colour; labels: (count,) int64."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    shape_name: ClassVar[str] = "images"


@dataclass(frozen=True)
class Events(DataSet):
    """Sequences of events in continuous time, as arrays; `sequences` makes the object that models take.

    Fields are those of `relpos.tasks.events.Sequences`. labels: (count,) int64, the class of each sequence, -1 where
    there is none, with ``classes`` as their names; profile_names: of the columns of ``profiles``; unit, mark_count and
    windowed: of one entry; split: indices of sequences.
    """

    times: np.ndarray
    offsets: np.ndarray
    start: np.ndarray
    end: np.ndarray
    marks: np.ndarray | None = None
    places: np.ndarray | None = None
    profiles: np.ndarray | None = None
    labels: np.ndarray | None = None
    mark_count: np.ndarray | None = None
    windowed: np.ndarray | None = None
    ids: tuple[str, ...] = ()
    mark_names: tuple[str, ...] = ()
    profile_names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    unit: tuple[str, ...] = ("seconds",)

    shape_name: ClassVar[str] = "events"

    @property
    def sequences(self) -> Sequences:
        """All sequences; ``sequences.select(rows("train"))`` are those of a side."""
        from relpos.tasks.events.sequences import Sequences

        top = int(self.marks.max(initial=0)) + 1 if self.marks is not None else 1
        count = top if self.mark_count is None else int(self.mark_count[0])
        return Sequences(
            *(self.times, self.offsets, self.start, self.end, self.marks, self.places, self.profiles),
            *(self.ids, self.mark_names, len(self.mark_names) or count, self.unit[0]),
            windowed=self.windowed is None or bool(self.windowed[0]),
        )

    @classmethod
    def of(cls, card: Card, split: dict[str, np.ndarray], sequences: Sequences, **more: Any) -> Events:
        """From checked sequences. more: labels, classes, profile_names."""
        names = ("times", "offsets", "start", "end", "marks", "places", "profiles", "ids", "mark_names")
        values = {name: getattr(sequences, name) for name in names}
        flags: dict[str, Any] = {
            "windowed": np.array([sequences.windowed]),
            "mark_count": np.array([sequences.mark_count]),
        }
        return cls(card, split, **values, **flags, unit=(sequences.unit,), **more)


SHAPES: dict[str, type[DataSet]] = {
    each.shape_name: each for each in (Corpus, Texts, DocumentPairs, Parallel, Images, Events)
}
