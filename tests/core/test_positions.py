"""Positions: exact lags with one sign, units, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import relpos as rp
from relpos.positions import EARTH_RADIUS_KM, Grid, Index, Labels, Places, Position, Profiles, Times, as_positions

CPU = torch.device("cpu")


def test_a_lag_is_key_minus_query() -> None:
    assert Index(torch.tensor([3])).lag(Index(torch.tensor([10]))).tolist() == [[7]]
    assert Times([3.0]).lag(Times([10.5])).tolist() == [[7.5]]
    assert Grid([[1, 5]]).lag(Grid([[3, 4]])).tolist() == [[[[2, -1]]]]


@given(st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=5), st.lists(st.integers(-(2**61), 2**61)))
def test_index_lags_are_exact(query: list[int], key: list[int]) -> None:
    lag = Index(torch.tensor(query)).lag(Index(torch.tensor(key, dtype=torch.int64)))
    assert lag.dtype == torch.int64 and lag.tolist() == [[k - q for k in key] for q in query]


def test_shapes() -> None:
    assert Index(torch.zeros(2, 3, dtype=torch.int64)).lag(Index.arange(5)).shape == (2, 3, 5)
    assert Grid(torch.zeros(3, 2, dtype=torch.int64)).lag(Grid.of(4, 5)).shape == (1, 3, 20, 2)
    assert Places(torch.zeros(2, 3, 2)).lag(Places(torch.zeros(4, 2))).shape == (2, 3, 4)
    assert Profiles(torch.zeros(3, 6)).lag(Profiles(torch.zeros(2, 4, 6))).shape == (2, 3, 4)
    assert Labels(torch.zeros(3, dtype=torch.int64)).lag(Labels([1, 0])).tolist() == [[False, True]] * 3
    assert len(Grid.of(4, 5)) == 20 and len(Index.arange(0)) == 0


def test_grid_is_row_major_and_knows_its_shape() -> None:
    grid = Grid.of(2, 3)
    assert grid.values[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid.shape() == (2, 3) and Grid(grid.values + 7).shape() == (2, 3)
    assert Grid.of(5).shape() == (5,) and Grid.of(2, 1, 3).shape() == (2, 1, 3)
    assert Grid(grid.values[:, :5]).shape() is None
    assert Grid(grid.values[:, [1, 0, 2, 3, 4, 5]]).shape() is None
    assert Grid(grid.values.flip(-1)).shape() is None
    assert Grid(grid.values.repeat(2, 1, 1)).shape() is None


def test_run_start() -> None:
    assert Index.arange(4, 9).run_start().item() == 9  # type: ignore[union-attr]
    assert Index(torch.tensor([[3, 4], [9, 10]])).run_start().tolist() == [3, 9]  # type: ignore[union-attr]
    assert Index(torch.tensor([[3, 4], [9, 11]])).run_start() is None
    assert Index(torch.tensor([2, 1, 0])).run_start() is None
    assert Index(torch.tensor([5])).run_start().item() == 5  # type: ignore[union-attr]


def test_times_survive_an_epoch() -> None:
    """Milliseconds since 1970 need 41 bits and more: float32 would round them to whole minutes."""
    start = 1.7e9
    times = Times(torch.tensor([start, start + 0.001, start + 0.25], dtype=torch.float64))
    assert torch.allclose(times.lag(times)[0], torch.tensor([0.0, 0.001, 0.25]).double(), atol=1e-6)
    assert torch.allclose(times.since(times.values[0]), torch.tensor([0.0, 0.001, 0.25]).double(), atol=1e-6)
    assert Times(torch.tensor([1, 2])).values.dtype == torch.float64


def test_places_against_known_distances() -> None:
    """Great circles: a quarter of the equator, pole to pole, the antipode, and metres between neighbours."""
    here = Places([[0.0, 0.0]])
    quarter = EARTH_RADIUS_KM * math.pi / 2
    there = Places([[0.0, 90.0], [90.0, 13.0], [0.0, 180.0], [0.0, 0.0], [0.0, 360.0]])
    want = torch.tensor([[quarter, quarter, 2 * quarter, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(here.lag(there)[0], want, rtol=0, atol=1e-6)
    near = Places([[52.0, 13.0], [52.0 + 1e-7, 13.0]])
    assert near.lag(near)[0, 0, 1].item() == pytest.approx(EARTH_RADIUS_KM * math.radians(1e-7), rel=1e-5)
    paris, london = Places([[48.8566, 2.3522]]), Places([[51.5074, -0.1278]])
    assert paris.lag(london).item() == pytest.approx(343.6, abs=0.5)
    assert london.lag(paris).item() == paris.lag(london).item()


def test_profiles() -> None:
    p = Profiles(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]]))
    want = torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(p.lag(p)[0, 0], want, rtol=0, atol=1e-12)


def test_positions_carry_no_gradient_and_narrow() -> None:
    times = Times(torch.tensor([0.0, 1.0, 2.0], requires_grad=True))
    assert not times.values.requires_grad
    assert times.narrow(1, 3).values.tolist() == [1.0, 2.0]
    assert Grid.of(2, 2).narrow(1, 3).values.tolist() == [[[0, 1], [1, 0]]]
    assert not Index.arange(3).batched and Index(torch.zeros(2, 3, dtype=torch.int64)).batched
    assert not Grid.of(2, 2).batched


def test_what_a_caller_may_pass() -> None:
    def kind(value: Any, n: int = 3) -> type:
        return type(as_positions(value, n, 0, "q_pos", CPU))

    assert kind(None) is Index and kind([0, 1, 2]) is Index and kind(torch.tensor([0.0, 1, 2])) is Times
    assert kind(torch.zeros(3, 2, dtype=torch.int64)) is Grid and kind(torch.zeros(2, 3, dtype=torch.int64)) is Index
    assert kind(torch.zeros(2, 3, 2, dtype=torch.int64)) is Grid and kind(Times([0.0, 1, 2])) is Times
    named = as_positions(
        {"index": [0, 1, 2], "time": [0, 1, 2], "place": torch.zeros(3, 2), "chord": [1, 1, 2], "mark": [0, 0, 1]},
        3, 0, "q_pos", CPU,
    )  # fmt: skip
    assert isinstance(named, dict)
    assert [type(p) for p in named.values()] == [Index, Times, Places, Labels, Labels]
    assert as_positions(None, 3, 4, "q_pos", CPU).values.tolist() == [4, 5, 6]  # type: ignore[union-attr]


REFUSED: list[tuple[Any, str]] = [
    (lambda: Index(torch.tensor([0.0])), "integers"),
    (lambda: Index(torch.zeros(1, 2, 3, dtype=torch.int64)), "shape"),
    (lambda: Index(torch.tensor(3)), "shape"),
    (lambda: Index(torch.tensor([True])), "integers"),
    (lambda: Index.arange(-1), "at least 0"),
    (lambda: Index("abc"), "tensor or numbers"),  # type: ignore[arg-type]
    (lambda: Grid(torch.zeros(3, 4, dtype=torch.int64)), "axes"),
    (lambda: Grid(torch.zeros(3, dtype=torch.int64)), "shape"),
    (lambda: Grid(torch.zeros(3, 2)), "integers"),
    (lambda: Grid.of(3, 0), "side"),
    (lambda: Grid.of(), "axes"),
    (lambda: Grid.of(1, 1, 1, 1), "axes"),
    (lambda: Times([0.0, 2.0, 1.0]), "first drop is at token 2"),
    (lambda: Times([[0.0, 1.0], [1.0, 0.0]]), "must not decrease"),
    (lambda: Times([0.0, float("nan")]), "NaN"),
    (lambda: Times([0.0, float("inf")]), "NaN or infinity"),
    (lambda: Times(torch.tensor([1j])), "real"),
    (lambda: Places([[91.0, 0.0]]), "latitude"),
    (lambda: Places([[0.0, 361.0]]), "longitude"),
    (lambda: Places([[0.0, float("nan")]]), "NaN"),
    (lambda: Places([[0.0, 1.0, 2.0]]), "axes"),
    (lambda: Labels([0.5]), "integers"),
    (lambda: Profiles([[float("nan")]]), "NaN"),
    (lambda: Index.arange(2).lag(Times([0.0, 1.0])), "one kind"),
    (lambda: as_positions([0, 1], 3, 0, "k_pos", CPU), "k_pos holds 2 positions"),
    (lambda: as_positions({"time": [0.0]}, 3, 0, "k_pos", CPU), "time"),
    (lambda: as_positions(torch.zeros(2, 3, dtype=torch.int64), 3, 0, "k_pos", CPU, 4), "batch of 4"),
    (lambda: as_positions(torch.tensor([[0.0, 1], [0, 1]]), 2, 0, "k_pos", CPU, 1), "batch of 1"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_the_base_has_no_values_of_its_own() -> None:
    with pytest.raises(NotImplementedError):
        Position(torch.zeros(3))


def test_cells_of_a_square_number_are_not_mistaken_for_rows() -> None:
    """Two cells of two axes have the shape of two rows of two integers; an encoding of grids knows which is meant."""
    torch.manual_seed(0)
    swin = rp.encodings.SwinBias(2, (2, 2))
    q, k, v = (torch.randn(2, 2, 2, 4) for _ in range(3))
    cells = torch.tensor([[0, 0], [1, 1]])
    raw = rp.attention(q, k, v, swin, q_pos=cells, k_pos=cells)
    assert torch.equal(raw, rp.attention(q, k, v, swin, q_pos=Grid(cells), k_pos=Grid(cells)))


def test_the_channel_called_index_orders_tokens_of_named_positions() -> None:
    q, k, v = (torch.randn(1, 2, 4, 4) for _ in range(3))
    later = torch.tensor([3, 2, 1, 0])
    named = {"index": later, "time": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    nope = rp.encodings.NoPE()
    out = rp.attention(q, k, v, nope, q_pos=named, k_pos=named, causal=True)
    torch.testing.assert_close(out, rp.attention(q, k, v, q_order=later, k_order=later, causal=True))
