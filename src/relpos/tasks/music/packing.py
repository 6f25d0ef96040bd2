"""Songs as arrays laid end to end, for one npz file of the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from relpos.tasks.music.song import Level, Song


def pack(songs: Sequence[Song]) -> dict[str, np.ndarray]:
    """Arrays that hold the songs; `unpack` is the inverse. Names that many levels share are kept once."""
    names: dict[tuple[str, ...], int] = {}
    facts: list[dict[str, Any]] = []
    values: dict[str, list[np.ndarray]] = {}
    for song in songs:
        levels = {}
        for key, level in song.levels.items():
            known = names.setdefault(level.names, len(names))
            levels[key] = [known, level.source, level.from_target]
            values.setdefault(key, []).append(level.values)
        plain = ("name", "ticks", "ticks_per_quarter", "tracks", "tempos", "meters", "programs", "drums", "group")
        facts.append({key: getattr(song, key) for key in plain} | {"notes": len(song.notes), "levels": levels})
    arrays = {f"level {key}": _small(np.concatenate(parts)) for key, parts in values.items()}
    notes = [song.notes for song in songs] or [np.zeros((0, 5), dtype=np.int64)]
    arrays["notes"] = _small(np.concatenate(notes))
    arrays["facts"] = np.array(json.dumps({"songs": facts, "names": list(names)}))
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> list[Song]:
    """The songs that `pack` stored."""
    told = json.loads(str(arrays["facts"]))
    names = [tuple(each) for each in told["names"]]
    notes = arrays["notes"].astype(np.int64)
    values = {key.removeprefix("level "): arrays[key].astype(np.int64) for key in arrays if key.startswith("level ")}
    at, places, songs = 0, dict.fromkeys(values, 0), []
    for facts in told["songs"]:
        levels = {}
        for key, (known, source, from_target) in facts.pop("levels").items():
            part = values[key][places[key] : places[key] + facts["ticks"]]
            levels[key] = Level(part, names[known], source, from_target)
            places[key] += facts["ticks"]
        count = facts.pop("notes")
        plain = {key: _tuples(value) for key, value in facts.items()}
        songs.append(Song(notes=notes[at : at + count], levels=levels, **plain))
        at += count
    return songs


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _small(array: np.ndarray) -> np.ndarray:
    """The same integers in the least type that holds them all."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return array.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
