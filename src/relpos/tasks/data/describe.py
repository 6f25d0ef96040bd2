"""What a data set holds, in numbers: the counts of its card, and the balance of its classes."""

from __future__ import annotations

import numpy as np

from relpos.tasks.data.sets import Blob, Corpus, DataSet, DocumentPairs, Events, Images, Parallel, Texts


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
    if isinstance(data, Events):
        return _events(data) | sides
    raise TypeError(f"no counts for a {type(data).__name__}")


def _events(data: Events) -> dict[str, object]:
    sequences = data.sequences
    sizes, gaps = sequences.lengths, sequences.gaps()
    gaps = gaps[~np.isnan(gaps)]
    found: dict[str, object] = {"sequences": len(sizes), "events": int(sizes.sum()), "unit": data.unit[0]}
    if len(sizes):
        found |= {"shortest": int(sizes.min()), "median": int(np.median(sizes)), "longest": int(sizes.max())}
    if len(gaps):
        found |= {"median gap": float(f"{np.median(gaps):.4g}"), "gaps of 0": f"{100 * float((gaps == 0).mean()):.3g}%"}
    if data.marks is not None:
        found["marks"] = sequences.mark_count
    if data.places is not None:
        found["places"] = len(np.unique(data.places, axis=0))
    if data.profiles is not None:
        found["profiles"] = ", ".join(data.profile_names[:20]) or data.profiles.shape[1]
    return found


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
    if not isinstance(data, Texts | Images | DocumentPairs | Events) or data.labels is None:
        return {}
    labels = data.labels
    classes = ("unlinked", "linked") if isinstance(data, DocumentPairs) else data.classes
    return {
        name: {side: int((labels[rows] == label).sum()) for side, rows in data.split.items()}
        for label, name in enumerate(classes)
    }
