"""Learned codes and the indices that search them; FAISS is held to the numpy definition where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from relpos.tasks.events.retrieval import codes as learned
from relpos.tasks.events.retrieval import index as indices
from relpos.tasks.events.retrieval.codes import Codes, buckets
from relpos.tasks.events.retrieval.index import Index, hamming

GOLDEN = Path(__file__).parents[2] / "golden" / "ctes_retrieval.npz"


def test_losses_and_buckets_agree_with_the_reference() -> None:
    golden = np.load(GOLDEN)
    h = torch.from_numpy(golden["hash_tanh"])
    assert float(learned.imbalance(h)) == pytest.approx(float(golden["hash_balance"]), abs=1e-12)
    assert float(learned.fence(h)) == pytest.approx(float(golden["hash_fence"]), abs=1e-12)
    assert float(learned.correlation(h)) == pytest.approx(float(golden["hash_decorrelation"]), abs=1e-12)
    assert (buckets(h, golden["hash_bit_subset"]) == golden["hash_bucket"]).all()


def _clusters(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors around 20 centres, all in one cone."""
    rng = np.random.default_rng(seed)
    vectors = 2.0 + rng.normal(size=(20, width))[rng.integers(20, size=count)] + 0.3 * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_fitting_improves_what_it_is_for() -> None:
    x = torch.from_numpy(_clusters(600))
    plain, fitted = Codes(16, 32, seed=1), Codes(16, 32, seed=1).fit(x, steps=300)
    for place, loss in enumerate((learned.imbalance, learned.fence, learned.correlation)):
        alone = Codes(16, 32, seed=1).fit(x, steps=60, weights=tuple(float(place == k) for k in range(3)), keep=0.0)
        one, two = ((f(x).sign() if loss is not learned.fence else f(x)).detach() for f in (plain, alone))
        assert loss(two) < 0.8 * loss(one), loss.__name__
    near = (x @ x.T).topk(11, dim=1).indices[:, 1:].numpy()

    def kept(model: Codes) -> float:
        found = Index(model.codes(x), backend="numpy").search(model.codes(x), 31).rows[:, 1:]
        return float(np.mean([len(set(a) & set(b)) for a, b in zip(near, found)]) / 10)

    assert kept(fitted) > kept(plain) + 0.1  # neighbours of vectors are neighbours of codes
    assert (fitted.codes(x) == Codes(16, 32, seed=1).fit(x, steps=300).codes(x)).all()


def test_codes_are_signs_as_bytes() -> None:
    model = Codes(4, 16)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert (np.unpackbits(model.codes(x), axis=1) == (model(x) > 0).numpy()).all()


def _drawn(count: int = 700, queries: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = rng.integers(256, size=(count, 4), dtype=np.uint8)
    flips = np.packbits(rng.random((queries, 32)) < 0.1, axis=1)
    return codes, codes[:queries] ^ flips


def test_hamming_counts_differing_bits() -> None:
    codes, queries = _drawn()
    bits = np.unpackbits(codes, axis=1).astype(int)
    asked = np.unpackbits(queries, axis=1).astype(int)
    assert (hamming(queries, codes) == np.abs(asked[:, None] - bits[None]).sum(-1)).all()


def test_a_scan_is_exact_and_looks_at_everything() -> None:
    codes, queries = _drawn()
    found = Index(codes, backend="numpy").search(queries, 5)
    whole = hamming(queries, codes)
    assert (found.rows == np.argsort(whole, axis=1, kind="stable")[:, :5]).all()
    assert (found.distances == np.sort(whole, axis=1)[:, :5]).all()
    assert found.looked == len(codes)


@pytest.mark.parametrize("flips", [0, 1])
def test_tables_look_only_where_some_bits_agree(flips: int) -> None:
    codes, queries = _drawn()
    index = Index(codes, "tables", tables=3, bits=8, flips=flips, seed=5, backend="numpy")
    differ = np.unpackbits(queries[0] ^ codes, axis=1, bitorder="little")
    agree = [differ[:, index.order[8 * t : 8 * t + 8]].sum(1) <= flips for t in range(3)]
    assert (index.candidates(queries[0]) == np.flatnonzero(np.any(agree, axis=0))).all()
    found = index.search(queries, 5)
    assert found.looked < len(codes) / (10 if flips == 0 else 4)
    assert set(found.rows[0]) - {-1} <= set(index.candidates(queries[0]))
    for row, query in enumerate(queries):
        real = found.rows[row] >= 0
        assert (found.distances[row][real] == hamming(query[None], codes[found.rows[row][real]])[0]).all()


def test_fewer_found_than_asked_for() -> None:
    found = Index(np.array([[0], [255]], dtype=np.uint8), "tables", tables=1, bits=8, backend="numpy").search(
        np.array([[0]], dtype=np.uint8), 3
    )
    assert found.rows.tolist() == [[0, -1, -1]] and found.distances.tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("options", [{}, {"kind": "tables", "tables": 3, "bits": 8, "flips": 1, "seed": 5}])
def test_faiss_equals_the_definition(options: dict) -> None:
    pytest.importorskip("faiss", reason="the numpy definition is tested above; FAISS is an extra")
    codes, queries = _drawn()
    one, two = (Index(codes, **options, backend=b).search(queries, 7) for b in ("numpy", "faiss"))
    assert (one.distances == two.distances).all()
    assert one.looked == two.looked
    real = two.rows >= 0
    assert (np.take_along_axis(hamming(queries, codes), np.maximum(two.rows, 0), 1) == two.distances)[real].all()


def test_what_is_missing_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, queries = _drawn()
    monkeypatch.setattr(indices, "faiss", lambda: None)
    assert Index(codes).backend == "numpy"
    with pytest.raises(ModuleNotFoundError, match=r"relpos\[retrieval\]"):
        Index(codes, backend="faiss")
    with pytest.raises(ValueError, match="do not fit a code of 32 bits"):
        Index(codes, "tables", tables=5, bits=8)
    with pytest.raises(ValueError, match="uint8"):
        Index(codes.astype(np.int64))
    with pytest.raises(ValueError, match="queries 3"):
        Index(codes).search(queries[:, :3], 2)
    with pytest.raises(ValueError, match="multiple of 8"):
        Codes(4, 12)
    with pytest.raises(ValueError, match=r"\(count, 4\)"):
        Codes(4, 8).codes(np.zeros((2, 5)))
