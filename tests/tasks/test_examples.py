"""Packed examples, token runs and the cheap predictors, on data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from relpos.tasks.examples import Examples, grams
from relpos.tasks.predictors import Bag, Linear, Overlap, Prior, score


def packed() -> Examples:
    return Examples.of([np.array([1, 2, 3]), np.array([], int), np.array([4]), np.array([5, 6])], [0, 1, 1, 0])


def test_padding_cuts_and_fills() -> None:
    found = packed().padded(np.array([0, 3, 1]), limit=2, shift=10)
    np.testing.assert_array_equal(found[:, 0], [[11, 12], [15, 16], [0, 0]])
    assert packed().padded(np.array([2]), 5, 0).shape == (1, 1, 1)
    np.testing.assert_array_equal(packed().lengths, [3, 0, 1, 2])


def test_pairs_share_their_sequences() -> None:
    whole = packed()
    pairs = Examples(whole.tokens, whole.offsets, np.array([1, 0]), np.array([[0, 2], [3, 0]]))
    np.testing.assert_array_equal(
        pairs.padded(np.array([1, 0]), 9, 0), [[[5, 6, 0], [1, 2, 3]], [[1, 2, 3], [4, 0, 0]]]
    )
    assert pairs.towers == 2 and pairs.take(np.array([1])).labels.tolist() == [0]


def test_rows_are_not_copied() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    made = Examples.of_rows(rows, np.array([0, 1, 0]))
    assert np.shares_memory(made.tokens, rows)
    np.testing.assert_array_equal(made.padded(np.arange(3), 4, 0)[:, 0], rows)


@pytest.mark.parametrize(
    ("offsets", "labels", "members", "message"),
    [
        ([0, 2], [0], [[0]], "rise from 0"),
        ([0, 4, 3], [0], [[0]], "rise from 0"),
        ([1, 3], [0], [[0]], "rise from 0"),
        ([0, 3], [0, 1], [[0]], "a row a label"),
        ([0, 3], [0], [[1]], "name sequences 0 to 0"),
        ([0, 3], [0], [[-1]], "name sequences 0 to 0"),
    ],
)
def test_wrong_packing_is_refused(offsets: list[int], labels: list[int], members: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Examples(np.arange(3), np.array(offsets), np.array(labels), members)  # type: ignore[arg-type]


def test_runs_are_exact_where_they_fit_and_hashed_where_not() -> None:
    row = np.array([2, 0, 1, 2, 0], dtype=np.uint8)
    np.testing.assert_array_equal(grams(row, 2, 3, 9), [6, 1, 5, 6])
    assert grams(row, 6, 3, 10**6).tolist() == []
    hashed = grams(row, 3, 256, 1 << 10)
    assert hashed.max() < 1 << 10 and len(set(hashed.tolist())) == 3
    text = np.frombuffer(b"abcde-abcde", np.uint8)
    same = grams(text, 5, 256, 1 << 16)
    assert same[0] == same[6]


def test_score_counts_right_answers_and_shares_ties() -> None:
    p = np.log([[0.5, 0.25, 0.25], [0.4, 0.4, 0.2]])
    found = score(p, np.array([0, 1]))
    assert found["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.4)) / 2)
    assert found["accuracy"] == pytest.approx(0.75)


def test_prior_is_the_smoothed_share() -> None:
    rows = Prior(np.array([2, 2, 0]), 3).log_probabilities(packed(), 9)
    np.testing.assert_allclose(np.exp(rows), np.tile([2 / 6, 1 / 6, 3 / 6], (4, 1)))
    np.testing.assert_allclose(np.exp(Prior(np.array([2]), 3, count=False).log_probabilities(packed(), 9)), 1 / 3)


def coins(count: int, seed: int, places: int = 1) -> Examples:
    """Label 1 has twice the share of token 1; the first token is the label but for one in five."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    rows = []
    for label in labels:
        body = (draw.random(places) < (1 + label) / 3).astype(np.uint8)
        rows.append(np.concatenate([[label if draw.random() < 0.8 else 1 - label], body]).astype(np.uint8))
    return Examples.of(rows, labels.tolist())


def test_bag_of_the_first_token_is_bayes_rule() -> None:
    splits = {"train": coins(4000, 0), "validation": coins(1000, 1)}
    bag = Bag(splits, classes=2, vocabulary=2, limit=9, read=1)
    p = np.exp(bag.log_probabilities(coins(6, 2), 9))
    first = [coins(6, 2).sequence(i)[0] for i in range(6)]
    np.testing.assert_allclose(p[np.arange(6), first], 0.8, atol=0.03)
    test = coins(4000, 3)
    assert score(bag.log_probabilities(test, 9), test.labels)["accuracy"] == pytest.approx(0.8, abs=0.03)


def test_bag_reads_no_more_than_it_may() -> None:
    splits = {"train": coins(500, 0, places=40), "validation": coins(200, 1, places=40)}
    bag = Bag(splits, 2, 2, limit=41)
    whole, part = coins(50, 2, places=40), coins(50, 2, places=40)
    cut = Examples.of([part.sequence(i, 11) for i in range(50)], part.labels.tolist())
    np.testing.assert_allclose(bag.log_probabilities(whole, 11), bag.log_probabilities(cut, 41))
    test = coins(500, 3, places=40)
    full = score(bag.log_probabilities(test, 41), test.labels)
    assert full["accuracy"] > 0.95 and full["loss"] < 0.2


def test_linear_finds_a_plane() -> None:
    draw = np.random.default_rng(0)

    def made(count: int) -> Examples:
        rows = draw.integers(0, 256, (count, 6)).astype(np.uint8)
        return Examples.of_rows(rows, (rows[:, 2].astype(int) > rows[:, 4]).astype(np.int64))

    splits = {"train": made(1500), "validation": made(300)}
    test = made(500)
    assert score(Linear(splits, 2, 6).log_probabilities(test, 6), test.labels)["accuracy"] > 0.95


def test_overlap_finds_pairs_that_share_a_rare_run() -> None:
    draw = np.random.default_rng(0)

    def made(count: int) -> Examples:
        sequences, labels = [], draw.integers(0, 2, count)
        for label in labels:
            shared = draw.integers(97, 123, 12)
            for _ in range(2):
                body = draw.integers(97, 123, 40)
                sequences.append(np.concatenate([body, shared if label else draw.integers(97, 123, 12)]))
        whole = Examples.of(sequences, [0] * len(sequences))
        return Examples(whole.tokens, whole.offsets, labels, np.arange(2 * count).reshape(-1, 2))

    splits = {"train": made(300), "validation": made(50)}
    overlap, test = Overlap(splits, 2, 256, limit=60, size=4, bins=4), made(200)
    assert score(overlap.log_probabilities(test, 60), test.labels)["accuracy"] > 0.95
    assert score(overlap.log_probabilities(test, 40), test.labels)["accuracy"] < 0.65  # the shared part is cut off
