"""Toy songs: what they promise of themselves, and that the optimum is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.music import toy

KINDS = st.sampled_from(toy.KINDS)


@given(KINDS, st.integers(0, 99), st.integers(1, 5), st.sampled_from(["AABA", "A", "ABCA"]), st.booleans())
def test_notes_labels_and_tokens_tell_one_story(kind: str, seed: int, bars: int, form: str, fixed: bool) -> None:
    if len(form) * bars < 2:
        return
    made = toy.make(2, seed, kind, form, bars, lag=1, fixed=fixed)
    for song, tokens, labels in zip(made.songs, made.tokens, made.labels, strict=True):
        assert song.ticks == 16 * len(tokens) == 16 * len(form) * bars == 16 * len(labels)
        assert tokens.dtype == np.int64 and 0 <= tokens.min() <= tokens.max() < made.patterns
        assert 0 <= labels.min() <= labels.max() < made.letters
        np.testing.assert_array_equal(np.diff(song.levels["section"].values[::16]), np.diff(labels))
        for bar, token in enumerate(tokens.tolist()):
            notes, chord = toy.pattern(token)
            assert set(song.levels["chord"].values[16 * bar : 16 * bar + 16]) == {chord}
            here = song.notes[song.notes[:, 0] // 16 == bar] - np.array([16 * bar, 0, 0, 0, 0])
            assert sorted(map(tuple, here.tolist())) == sorted(notes)


def test_equal_seeds_equal_songs_and_other_seeds_others() -> None:
    first, again, other = (toy.make(3, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.notes, b.notes) for a, b in zip(first.songs, again.songs, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first.tokens, other.tokens, strict=True))
    assert len({song.name for song in toy.make(12).songs}) == 12


def test_patterns_differ_and_their_melody_is_of_the_chord() -> None:
    from relpos.tasks.music.chords import TABLE

    bars = [toy.pattern(number) for number in range(toy.MOST)]
    assert len({tuple(sorted(notes)) for notes, _ in bars}) == toy.MOST
    for notes, chord in bars:
        assert all(TABLE[chord, pitch % 12] for _, _, pitch, track, _ in notes if track == 0)
        assert sum(length for _, length, _, track, _ in notes if track == 0) == 16


def test_label_decides_and_nothing_else_does() -> None:
    made = toy.make(400, kind="label", bars=8, letters=4)
    assert made.optimum == 0 and made.blind == pytest.approx(math.log(4))
    tokens, labels = np.stack(made.tokens), np.stack(made.labels)
    assert all(len(set(tokens[labels == letter])) == 1 for letter in range(4))
    other = toy.make(9, seed=1, kind="label", bars=8, letters=4)  # what one set taught holds in another
    assert {(l, t) for l, t in zip(labels.flat, tokens.flat)} == set(
        zip(np.concatenate(other.labels).tolist(), np.concatenate(other.tokens).tolist())
    )
    for lag in (1, 2, 4, 8):  # chance: a quarter
        assert abs((tokens[:, lag:] == tokens[:, :-lag]).mean() - 0.25) < 0.02


def test_label_table_of_each_song_costs_what_is_said() -> None:
    made = toy.make(300, kind="label", bars=8, letters=3, patterns=5, fixed=False)
    for tokens, labels, loss in zip(made.tokens, made.labels, made.optimal, strict=True):
        assert len(set(zip(tokens.tolist(), labels.tolist(), strict=True))) == len(set(labels.tolist()))
        first = np.unique(labels, return_index=True)[1]
        assert sorted(loss[first]) == pytest.approx(sorted(math.log(5 - k) for k in range(len(first))))
        assert np.delete(loss, first).sum() == 0
    # The mean loss of the predictor that knows no labels is what its own chances make of such songs.
    simulated = []
    for tokens in made.tokens:
        seen: set[int] = set()
        for token in tokens.tolist():
            simulated.append(1 / 3 if token in seen else (3 - len(seen)) / 3 / (5 - len(seen)))
            seen.add(token)
    assert -np.log(simulated).sum() == pytest.approx(sum(each.sum() for each in made.without))


@pytest.mark.parametrize("fresh", [0.0, 0.3, 1.0])
def test_lag_decides_and_the_labels_do_not(fresh: float) -> None:
    made = toy.make(300, kind="lag", bars=8, lag=6, fresh=fresh, patterns=5)
    tokens, labels = np.stack(made.tokens), np.stack(made.labels)
    chance = (tokens[:, 6:] == tokens[:, :-6]).mean()
    assert abs(chance - (1 - fresh + fresh / 5)) < 0.02
    within = np.stack(made.optimal)[:, 6:].mean()
    share = 1 - fresh + fresh / 5
    entropy = -share * math.log(share) - (fresh * 0.8 and fresh * 0.8 * math.log(fresh / 5))
    assert within == pytest.approx(entropy, abs=0.03)
    same = tokens[labels == 0]
    assert np.bincount(same, minlength=5).max() / len(same) < 0.25  # a label says nothing of the pattern


def test_section_returns_note_for_note() -> None:
    made = toy.make(5, form="AABA", bars=4)
    for tokens, loss in zip(made.tokens, made.optimal, strict=True):
        a, b, c, d = tokens.reshape(4, 4)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, d)
        assert (loss.reshape(4, 4) > 0).all(axis=1).tolist() == [True, False, True, False] and c.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rondo"}, "unknown kind"),
        ({"count": 0}, "at least 1 song"),
        ({"patterns": 193}, "at most 192 patterns"),
        ({"form": "A4B4"}, "form must be letters"),
        ({"kind": "label", "letters": 9}, "letters 1 to that"),
        ({"kind": "lag", "lag": 16}, "lag must be 1 to 15"),
        ({"kind": "lag", "fresh": 1.5}, "fresh 0 to 1"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy.make(**options)  # type: ignore[arg-type]
