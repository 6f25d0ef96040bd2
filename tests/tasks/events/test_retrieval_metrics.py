"""Rank metrics against reference values and hand-made cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.events.metrics.retrieval import evaluate

GOLDEN = Path(__file__).parents[2] / "golden" / "ctes_retrieval.npz"
NAMES = {"recall": "recall", "precision": "precision", "ap_over_min_R_K": "ap", "ap_over_hits": "ap_over_hits"}
NAMES |= {"ndcg": "ndcg", "rr": "rr", "hit": "hit"}


def test_agree_with_the_reference() -> None:
    golden = np.load(GOLDEN)
    for column, k in enumerate(golden["metric_K"]):
        found = evaluate(golden["scores"], golden["relevance"], int(k))
        for index, name in enumerate(golden["metric_names"]):
            assert np.allclose(getattr(found, NAMES[name]), golden["metrics"][:, column, index], atol=1e-12), name
    original = evaluate(golden["scores"], golden["relevance"], 10).ap_over_hits
    assert np.allclose(original, golden["neuroseqret_ap10_original"], atol=1e-12)


def test_by_hand() -> None:
    # relevant at ranks 1 and 3 of 4
    found = evaluate(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[1, 0, 1, 0]]))
    assert found.ap[0] == pytest.approx((1 + 2 / 3) / 2)
    assert found.ndcg[0] == pytest.approx((1 + 0.5) / (1 + 1 / np.log2(3)))
    assert found.rr[0] == 1 and found.precision[0] == 0.5 and found.recall[0] == 1
    # a cut-off of 2 loses the second: the two denominators part
    cut = evaluate(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[1, 0, 1, 0]]), 2)
    assert cut.ap[0] == 0.5 and cut.ap_over_hits[0] == 1


def test_a_query_without_a_relevant_candidate_scores_0_and_counts() -> None:
    found = evaluate(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([[0, 0], [1, 0]]), 5)
    assert [found.mean(name) for name in ("ap", "ap_over_hits", "ndcg", "rr", "recall", "hit")] == [0.5] * 6


def test_a_cut_off_beyond_the_candidates() -> None:
    found = evaluate(np.array([[2.0, 1.0]]), np.array([[1, 1]]), 10)
    assert found.ap[0] == found.ndcg[0] == found.recall[0] == 1
    assert found.precision[0] == 0.2


def test_ties() -> None:
    scores, relevance = np.zeros((1, 4)), np.array([[1, 0, 0, 1]])
    assert evaluate(scores, relevance).rr[0] == 1  # in the order given
    assert evaluate(scores, relevance, ties="worst").rr[0] == pytest.approx(1 / 3)
    assert evaluate(scores, relevance[:, ::-1], ties="worst").rr[0] == pytest.approx(1 / 3)


def test_invalid_candidates_are_not_ranked() -> None:
    valid = np.array([[False, True, True]])
    found = evaluate(np.array([[9.0, 1.0, 2.0]]), np.array([[1, 1, 0]]), valid=valid)
    assert found.rr[0] == 0.5 and found.ap[0] == 0.5  # the asker neither leads nor counts as relevant


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="1 scores are NaN"):
        evaluate(np.array([[np.nan, 1.0]]), np.array([[1, 0]]))
    with pytest.raises(ValueError, match="of one shape"):
        evaluate(np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="cut-off"):
        evaluate(np.zeros((1, 2)), np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="ties"):
        evaluate(np.zeros((1, 2)), np.zeros((1, 2)), ties="best")


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 14))
def test_laws(seed: int, candidates: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, relevance = rng.normal(size=(4, candidates)), rng.integers(0, 2, (4, candidates))
    found = evaluate(scores, relevance, k)
    assert (found.ap <= found.ap_over_hits + 1e-12).all()  # the released denominator only inflates
    shuffled = rng.permutation(candidates)
    again = evaluate(np.exp(scores[:, shuffled]), relevance[:, shuffled], k)
    ideal = evaluate(relevance.astype(float), relevance, k)
    for name in vars(found):
        assert np.allclose(getattr(found, name), getattr(again, name))  # order and scale of the input mean nothing
        assert (getattr(found, name) <= getattr(ideal, name) + 1e-12).all()
