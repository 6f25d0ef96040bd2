"""What a data set holds, in numbers: the counts of its card, and the balance of its classes."""

from __future__ import annotations

import numpy as np

from relpos.tasks.data.sets import Blob, Corpus, DataSet, DocumentPairs, Images, Parallel, Texts


def counts(data: DataSet) -> dict[str, object]:
    """Numbers by name, as values that JSON can hold."""
    if isinstance(data, Corpus):
        sides: dict[str, object] = {side: int(stop - start) for side, (start, stop) in data.split.items()}
        found: dict[str, object] = {"tokens": len(data.tokens), "symbols": len(data.symbols)}
        if data.vocabulary is not None:
            found["vocabulary"] = len(data.vocabulary)
        return found | sides
    sides = {side: len(rows) for side, rows in data.split.items()}
    if isinstance(data, Texts):
        return {"documents": len(data.documents), "classes": len(data.classes), **lengths(data.documents), **sides}
    if isinstance(data, DocumentPairs):
        linked = int((data.labels == 1).sum())
        found = {"documents": len(data.documents), "pairs": len(data.pairs), "of label 1": linked}
        return found | lengths(data.documents) | sides
    if isinstance(data, Parallel):
        one, two = ({f"{which} {key}": value for key, value in lengths(blob).items()} for which, blob in _named(data))
        return {"pairs": len(data.source), **one, **two, **sides}
    if isinstance(data, Images):
        shape = "x".join(map(str, data.pixels.shape[1:]))
        return {"images": len(data.pixels), "size": shape, "classes": len(data.classes), **sides}
    raise TypeError(f"no counts for a {type(data).__name__}")


def _named(data: Parallel) -> tuple[tuple[str, Blob], tuple[str, Blob]]:
    return ("source", data.source), ("target", data.target)


def lengths(blob: Blob) -> dict[str, object]:
    """Total, shortest, median and longest length in bytes."""
    sizes = blob.lengths
    if not len(sizes):
        return {"bytes": 0}
    return {
        "bytes": int(sizes.sum()),
        "shortest": int(sizes.min()),
        "median": int(np.median(sizes)),
        "longest": int(sizes.max()),
    }


def balance(data: DataSet) -> dict[str, dict[str, int]]:
    """Class -> side -> count; empty where there are no labels."""
    if not isinstance(data, Texts | Images | DocumentPairs):
        return {}
    classes = ("unlinked", "linked") if isinstance(data, DocumentPairs) else data.classes
    return {
        name: {side: int((data.labels[rows] == label).sum()) for side, rows in data.split.items()}
        for label, name in enumerate(classes)
    }
