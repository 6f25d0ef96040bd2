"""The released files of Long Range Arena, for users who have them (Tay et al. 2021, google-research)."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.data.sets import Blob, Card, DocumentPairs, Images, Texts
from relpos.tasks.data.splits import rows

_LISTOPS = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
_PAIRS = {"train": "new_aan_pairs.train.tsv", "validation": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
_LONGEST = 10_000  # bytes of a document that the reference pipeline reads
_HARD = "curv_contour_length_14"


def _files(path: Path, names: dict[str, str], inner: str) -> dict[str, Path]:
    for folder in (path, path / inner):
        if all((folder / name).is_file() for name in names.values()):
            return {side: folder / name for side, name in names.items()}
    raise ValueError(f"neither {path} nor {path / inner} holds {', '.join(names.values())}")


def listops(path: Path, card: Card) -> Texts:
    """Expressions as they are written in the files, labels 0 to 9."""
    texts: list[bytes] = []
    labels: list[int] = []
    counts = {}
    for side, file in _files(path, _LISTOPS, "listops-1000").items():
        before = len(texts)
        with open(file, encoding="utf-8", newline="") as lines:
            table = csv.reader(lines, delimiter="\t")
            if next(table, None) != ["Source", "Target"]:
                raise ValueError(f"{file} must begin with the header Source, Target with a tab between them")
            for row in table:
                if len(row) != 2 or row[1] not in tuple("0123456789"):
                    raise ValueError(f"{file}, line {table.line_num}: want an expression, a tab and a digit")
                texts.append(row[0].encode())
                labels.append(int(row[1]))
        counts[side] = len(texts) - before
    return Texts(card, rows(**counts), Blob.of(texts), np.array(labels, dtype=np.int64), tuple("0123456789"))


def retrieval(path: Path, card: Card, progress: Progress | None = None) -> DocumentPairs:
    """AAN pairs: label, id, id, text, text with tabs between, nothing quoted; the first 10,000 bytes of each text.

    Texts come back many times in the files and are kept once.
    """
    documents: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    labels: list[int] = []
    counts = {}
    for side, file in _files(path, _PAIRS, "tsv_data").items():
        before, size, done = len(pairs), file.stat().st_size, 0
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip(b"\r\n").split(b"\t")
                try:
                    label, _, _, first, second = fields
                    labels.append({0.0: 0, 1.0: 1}[float(label)])
                except (ValueError, KeyError):
                    raise ValueError(
                        f"{file}, line {number}: want 5 fields, label 0 or 1 first, got {len(fields)}: {line[:40]!r}"
                    ) from None
                one, two = (documents.setdefault(t[:_LONGEST], len(documents)) for t in (first, second))
                pairs.append((one, two))
                done += len(line)
                if progress is not None:
                    progress(done, size, f"reading {file.name}")
        counts[side] = len(pairs) - before
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return DocumentPairs(card, rows(**counts), Blob.of(list(documents)), table, np.array(labels, dtype=np.int64))


def pathfinder(path: Path, card: Card, progress: Progress | None = None) -> Images:
    """pathfinderN/curv_*/{imgs,metadata}; of pathfinderN the hard level is read. 80/10/10 by order of the batches.

    Metadata are text lines of 11 fields (0 and 1 the image, 3 the label) though they are called .npy in the release;
    the generator writes real .npy arrays. Both are read. Images of zero length, which the release has, are left out.
    """
    folder = path if (path / "metadata").is_dir() else path / _HARD
    files = sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise ValueError(f"{folder / 'metadata'} holds no N.npy: give a folder such as pathfinder32/{_HARD}")
    listed = [(folder / row[0] / row[1], row[3]) for file in files for row in _metadata(file)]
    found = [(image, label) for image, label in listed if image.stat().st_size]
    decode = _decoder()
    first = decode(found[0][0])
    pixels = np.empty((len(found), *first.shape), dtype=np.uint8)
    for index, (image, _) in enumerate(found):
        picture = decode(image)
        if picture.shape != first.shape:
            raise ValueError(f"{image} is {picture.shape}, the first image is {first.shape}: sizes must be equal")
        pixels[index] = picture
        if progress is not None:
            progress(index + 1, len(found), "reading images")
    labels = np.array([int(float(label)) for _, label in found], dtype=np.int64)
    tenth = len(found) // 10
    split = rows(train=len(found) - 2 * tenth, validation=tenth, test=tenth)
    return Images(card, split, pixels, labels, ("apart", "connected"))


def _metadata(file: Path) -> list[list[str]]:
    data = file.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        table: Any = np.load(file, allow_pickle=False)
        lines = [[_word(field) for field in row] for row in table.reshape(-1, table.shape[-1])]
    else:
        lines = [line.split() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) < 4 or not re.fullmatch(r"imgs/\d+", line[0]) or "/" in line[1] or line[3] not in _LABELS:
            raise ValueError(f"{file}, entry {number}: want imgs/BATCH NAME.png INDEX LABEL ..., got {line[:4]}")
    return lines


_LABELS = ("0", "1", "0.0", "1.0")


def _word(field: Any) -> str:
    return field.decode() if isinstance(field, bytes) else str(field)


def _decoder() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("PNG files are read with pillow: pip install 'relpos[lab]'", name="PIL") from error

    def decode(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))

    return decode
