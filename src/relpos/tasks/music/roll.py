"""Four voices as one sequence: soprano, alto, tenor, bass of the first 16th note, then of the second, and so on.

One token a voice and tick. The vocabulary has 49 tokens:

    0 START       a whole tick of them (one a voice) stands before a piece
    1 HOLD        the voice's note goes on
    2 REST        the voice is silent
    3 .. 48       a note is struck, MIDI pitch 36 .. 81

Pitches are shared by the voices, so that a transposition is a shift of token numbers and a unison is one symbol;
which voice a token belongs to follows from its position modulo 4 alone, a thing that an encoding of positions has to
bring. HOLD in place of the repeated pitch keeps repeated notes apart from long ones and makes the pitch that sounds
a thing to be looked up at a distance that varies. START fills a tick so that voice = position mod 4 holds everywhere.
"""

from __future__ import annotations

import numpy as np

from relpos.tasks.music.piece import SILENT, VOICES, Piece

START, HOLD, REST, FIRST_PITCH = 0, 1, 2, 3
LOWEST, HIGHEST = 36, 81
VOCABULARY = FIRST_PITCH + HIGHEST - LOWEST + 1
RANGES = ((57, 81), (53, 74), (48, 69), (36, 64))
"""Lowest and highest pitch of each voice over the chorales of music21; transposition stays within them."""


def encode(piece: Piece) -> np.ndarray:
    """Tokens of a piece, (4 * (ticks + 1),) int64, beginning with a tick of START. ValueError for a pitch outside."""
    pitch, onset = piece.pitch, piece.onset
    sounding = pitch[pitch != SILENT]
    if sounding.size and not LOWEST <= sounding.min() <= sounding.max() <= HIGHEST:
        raise ValueError(
            f"{piece.name} has pitches {sounding.min()} to {sounding.max()}, the vocabulary has {LOWEST} to "
            f"{HIGHEST}: transpose it"
        )
    tokens = np.where(onset, pitch.astype(np.int64) - LOWEST + FIRST_PITCH, HOLD)
    tokens[pitch == SILENT] = REST
    return np.concatenate([np.full(len(VOICES), START), tokens.reshape(-1)])


def decode(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pitch and onset grids, each (ticks, 4), of any sequence of tokens that begins with the soprano.

    Every sequence means something, as a model may write what no score has: ticks of START in front are dropped, START
    elsewhere is a rest, HOLD with nothing to hold is a rest, an unfinished last tick is dropped.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and not 0 <= tokens.min() <= tokens.max() < VOCABULARY):
        raise ValueError(f"tokens must be one row of integers from 0 to {VOCABULARY - 1}, got shape {tokens.shape}")
    grid = tokens[: len(tokens) // len(VOICES) * len(VOICES)].reshape(-1, len(VOICES))
    while len(grid) and (grid[0] == START).all():
        grid = grid[1:]
    pitch = np.full(grid.shape, SILENT, dtype=np.int16)
    onset = grid >= FIRST_PITCH
    for tick, row in enumerate(grid):
        before = pitch[tick - 1] if tick else pitch[0]
        pitch[tick] = np.where(row >= FIRST_PITCH, row - FIRST_PITCH + LOWEST, np.where(row == HOLD, before, SILENT))
    return pitch, onset


def transpose(tokens: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """The tokens with every pitch moved by ``shift`` semitones (broadcast); the caller keeps within the vocabulary."""
    return np.where(tokens >= FIRST_PITCH, tokens + shift, tokens)


def shifts(piece: Piece, lowest: int = -5, highest: int = 6) -> list[int]:
    """Transpositions from ``lowest`` to ``highest`` semitones that keep each voice in its range; 0 is always one."""
    down, up = lowest, highest
    for voice, (bottom, top) in enumerate(RANGES):
        pitch = piece.pitch[:, voice]
        pitch = pitch[pitch != SILENT]
        if pitch.size:
            down, up = max(down, bottom - int(pitch.min())), min(up, top - int(pitch.max()))
    return list(range(min(down, 0), max(up, 0) + 1))
