"""Files that a run has made, as a page holds them: pictures, texts, music."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from relpos.lab import plots
from relpos.lab.errors import RunDirectoryError
from relpos.lab.results import REMEASURE, Results

SVG = "image/svg+xml"
KINDS = {
    ".png": "image/png",
    ".svg": SVG,
    ".mid": "audio/midi",
    ".midi": "audio/midi",
    ".txt": "text/plain",
}
NOTES = 4000  # of one piece that the page can play; more would make it heavy


def pictures(results: Results) -> list[dict[str, Any]]:
    """What the task has drawn of each contestant's first model; [] where it leaves that to the pictures by lag."""
    groups = [
        {
            "name": row.encoding,
            "colour": plots.look(index)["color"],
            "items": [
                artifact(results.run.model(row.encoding, row.records[0]["seed"]), each)
                for each in row.records[0].get("pictures", ())
            ],
        }
        for index, row in enumerate(results.rows)
    ]
    return groups if any(group["items"] for group in groups) else []


def samples(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(files equal for all encodings, such as the real continuation, shown once; files of each encoding)."""
    loaded = []
    for row in results.rows:
        folder = results.run.model(row.encoding, row.records[0]["seed"])
        loaded.append([artifact(folder, each) for each in row.records[0]["samples"]])
    digests = [{item["digest"] for item in items} for items in loaded]
    common = set.intersection(*digests) if len(digests) > 1 else set()
    shared = [item for item in loaded[0] if item["digest"] in common]
    groups = [
        {
            "name": row.encoding,
            "colour": plots.look(index)["color"],
            "items": [item for item in items if item["digest"] not in common],
            "refused": row.records[0]["samples_refused"],
        }
        for index, (row, items) in enumerate(zip(results.rows, loaded, strict=True))
    ]
    return shared, groups


def artifact(folder: Path, entry: dict[str, str]) -> dict[str, Any]:
    path = folder / entry["path"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror}); {REMEASURE}") from error
    kind = KINDS.get(path.suffix.lower(), "application/octet-stream")
    text = data.decode(errors="replace") if entry["kind"] == "text" else ""
    return {
        "title": entry["title"],
        "kind": entry["kind"],
        "uri": plots.data_uri(data, kind),
        "file": f"{folder.name}-{path.name}",
        "text": text,
        "notes": notes(data) if entry["kind"] == "midi" else [],
        "digest": hashlib.sha256(data).hexdigest(),
    }


def notes(midi: bytes) -> list[list[float]]:
    """[start, length, pitch, loudness, track] of every note of a MIDI file, times in seconds; [] where it cannot be
    read or symusic is not installed, since a page without sound is better than none."""
    try:
        from symusic import Score
    except ImportError:
        return []
    try:
        score = Score.from_midi(midi).to("second")
    except Exception:  # symusic raises what its C++ does
        return []
    found = [
        [round(note.start, 3), round(note.duration, 3), note.pitch, round(note.velocity / 127, 2), index]
        for index, track in enumerate(score.tracks)
        if not track.is_drum
        for note in track.notes
    ]
    return sorted(found)[:NOTES]
