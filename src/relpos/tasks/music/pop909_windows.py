"""The windows of POP909 that were published with structurePE, from the one packed file ``pop909_512_compact.npz``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LENGTH = 513
HOP = 449
ROWS = 384  # melody, bridge and piano times 128 pitches


@dataclass(frozen=True)
class Windows:
    """Windows of 513 ticks at 16 a quarter; the rolls stay packed until they are asked for.

    song, part: (windows,); chord, melody, section: (windows, 513) int16; tempo: (windows,), classes 0 to 3;
    split: songs in "train", "validation" and "test"; chord_table: (395, 13).
    """

    song: np.ndarray
    part: np.ndarray
    chord: np.ndarray
    melody: np.ndarray
    section: np.ndarray
    tempo: np.ndarray
    split: dict[str, np.ndarray]
    chord_table: np.ndarray
    packed_rolls: np.ndarray
    packed_onsets: np.ndarray

    def __len__(self) -> int:
        return len(self.song)

    def of(self, side: str) -> np.ndarray:
        """Numbers of the windows on one side of the split."""
        if side not in self.split:
            raise ValueError(f"unknown split {side!r}: choose one of {', '.join(self.split)}")
        return np.flatnonzero(np.isin(self.song, self.split[side]))

    def roll(self, index: int | np.ndarray) -> np.ndarray:
        """What sounds in one or several windows, bool (.., 513, 3, 128)."""
        return _unpacked(self.packed_rolls[index])

    def onsets(self, index: int | np.ndarray) -> np.ndarray:
        """What begins, as `roll`."""
        return _unpacked(self.packed_onsets[index])


def _unpacked(bits: np.ndarray) -> np.ndarray:
    cells = np.unpackbits(bits, axis=-1)[..., : ROWS * LENGTH].astype(bool)
    return np.moveaxis(cells.reshape(*bits.shape[:-1], 3, 128, LENGTH), -1, -3)


def read(path: str | Path) -> Windows:
    """The windows of the file, or of the file of that name in a folder; about half a GB, most of it packed rolls.

    ValueError where it is another file.
    """
    path = Path(path)
    path = path / "pop909_512_compact.npz" if path.is_dir() else path
    with np.load(path, allow_pickle=False) as file:
        needed = {"rolls", "onsets", "chord", "melody", "section", "tempo", "song_part", "chord_db"}
        absent = sorted((needed | {"train_idx", "val_idx", "test_idx"}) - set(file.files))
        if absent:
            raise ValueError(f"{path} is not the file of POP909 windows: it lacks {', '.join(absent)}")
        part = file["song_part"]
        return Windows(
            song=part[:, 0],
            part=part[:, 1],
            chord=file["chord"],
            melody=file["melody"],
            section=file["section"],
            tempo=file["tempo"],
            split={"train": file["train_idx"], "validation": file["val_idx"], "test": file["test_idx"]},
            chord_table=file["chord_db"].astype(np.int64),
            packed_rolls=file["rolls"],
            packed_onsets=file["onsets"],
        )
