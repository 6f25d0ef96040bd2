"""What the trivial predictors of four-part tokens look at.

Each entry of ``CONTEXTS`` maps tokens (rows, n), beginning with the soprano, to the contexts of the targets
tokens[:, 1:], one integer array (rows, n - 1) a level, -1 where a context lies before the row; only what a model sees
in the same row is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relpos.tasks.music.piece import VOICES
from relpos.tasks.music.roll import HOLD, VOCABULARY

_VOICES = len(VOICES)
_AGES = 16
Contexts = list[np.ndarray]


def _unigram(tokens: np.ndarray) -> Contexts:
    return [np.zeros_like(tokens[:, 1:])]


def _previous(tokens: np.ndarray) -> Contexts:
    return [*_unigram(tokens), _back(tokens, _VOICES)]


def _bigram(tokens: np.ndarray) -> Contexts:
    return [*_unigram(tokens), _back(tokens, 1)]


def _voice(tokens: np.ndarray) -> Contexts:
    voice = _voice_of(tokens)
    own = _join(voice, _back(tokens, _VOICES))
    return [voice, own, _join(own, _back(tokens, 1))]


def _event(tokens: np.ndarray) -> Contexts:
    voice = _voice_of(tokens)
    note, age = _last_note(tokens)
    timed = np.where(age < 0, -1, voice * _AGES + age)
    sounding = _join(timed, note)
    return [voice, timed, sounding, _join(sounding, _back(tokens, 1))]


CONTEXTS: dict[str, tuple[Callable[[np.ndarray], Contexts], tuple[int, ...]]] = {
    "unigram": (_unigram, (1,)),
    "previous token": (_previous, (1, VOCABULARY)),
    "bigram": (_bigram, (1, VOCABULARY)),
    "voice trigram": (_voice, (_VOICES, _VOICES * VOCABULARY, _VOICES * VOCABULARY**2)),
    "last note": (
        _event,
        (_VOICES, _VOICES * _AGES, _VOICES * _AGES * VOCABULARY, _VOICES * _AGES * VOCABULARY**2),
    ),
}

MEANING = {
    "uniform": "all tokens alike",
    "unigram": "token frequencies",
    "previous token": "given the same voice's previous token (four back)",
    "bigram": "given the token just before",
    "voice trigram": "given the voice, its previous token and the token just before",
    "last note": "given the voice, its last note, how long that has lasted, and the token just before",
}


def _voice_of(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(1, tokens.shape[1]) % _VOICES, (len(tokens), tokens.shape[1] - 1))


def _back(tokens: np.ndarray, steps: int) -> np.ndarray:
    """The token ``steps`` before each target."""
    out = np.full((len(tokens), tokens.shape[1] - 1), -1, dtype=np.int64)
    out[:, steps - 1 :] = tokens[:, : tokens.shape[1] - steps]
    return out


def _join(context: np.ndarray, token: np.ndarray) -> np.ndarray:
    return np.where((context < 0) | (token < 0), -1, context * VOCABULARY + token)


def _last_note(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The own voice's last token other than HOLD before each target, and the ticks since it, less one, at most 15."""
    rows, n = tokens.shape
    place = np.arange(n)
    note, age = np.full((rows, n - 1), -1, dtype=np.int64), np.full((rows, n - 1), -1, dtype=np.int64)
    for voice in range(_VOICES):
        own = tokens[:, voice::_VOICES]
        ticks = np.arange(own.shape[1])
        start = np.maximum.accumulate(np.where(own != HOLD, ticks, -1), axis=1)
        targets = place[voice::_VOICES][1:]
        before = start[:, : len(targets)]
        last = np.take_along_axis(own, np.maximum(before, 0), axis=1)
        note[:, targets - 1] = np.where(before < 0, -1, last)
        age[:, targets - 1] = np.where(before < 0, -1, np.minimum(ticks[: len(targets)] - before, _AGES - 1))
    return note, age
