"""What the world does to relative channels and HSTU's bias: clocks, units, ties, edges, the globe, the future, size."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.pairs.encoders import Buckets, Edges, LogBuckets
from relpos.encodings.pairs.features import FEATURES
from relpos.positions import EARTH_RADIUS_KM, Places, Times, query_times
from relpos.tasks.events import Sequences
from tests.core.naive import gradients
from tests.core.test_memory import Largest
from tests.encodings.channels_oracle import events

RelativeChannels: Any = rp.encodings.RelativeChannels


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges wherever keys are in order, as if these few were many."""
    monkeypatch.setattr("relpos.encodings.pairs.steps.KEYS", 0)


ENCODERS: dict[str, dict[str, Any]] = {
    "buckets": {"unit": 0.5, "clip": 6},
    "edges": {"encoder": "buckets", "edges": (0.4, 2.0, 7.0)},
    "log": {"encoder": "log", "unit": 0.5, "step": 0.5, "clip": 8},
    "linear": {"encoder": "linear", "unit": 2.0, "clip": 3},
    "sinusoid": {"encoder": "sinusoid", "scales": (3.0, 11.0)},
    "decay": {"encoder": "decay", "scales": (1.0, 20.0)},
    "rotary": {"encoder": "rotary", "scales": (3.0, 8.0, 50.0)},
}
each = pytest.mark.parametrize("kind", ENCODERS)


def of_time(kind: str, inject: Any = ("key", "value", "bias", "gate"), by: float = 1.0) -> dict[str, Any]:
    """Options of a channel of time whose lengths are all ``by`` times as long."""
    given_ = {"feature": "time", **ENCODERS[kind]}
    for name in ("edges", "scales"):
        if name in given_:
            given_[name] = tuple(by * x for x in given_[name])
    if "unit" in given_:
        given_["unit"] *= by
    return given_ if kind == "rotary" else given_ | {"inject": inject}


def drawn(encoding: Any) -> Any:
    """With all tables drawn, so that each of them counts."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return encoding


def qkv(n: int, heads: int = 2, dtype: torch.dtype = torch.float64, batch: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(batch, heads, n, 8, generator=g, dtype=torch.float64).to(dtype) for _ in range(3)]


def some_times(n: int = 30) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.rand(n, generator=g, dtype=torch.float64) ** 3 * 4).cumsum(0)


def run(encoding: Any, x: list[Tensor], at: Any, **options: Any) -> Tensor:
    return rp.attention(*x, encoding, q_pos=at, k_pos=at, **{"causal": True} | options)


# ---- clocks and units


@each
@pytest.mark.parametrize("unit", [60.0, 3600.0, 86400.0, 1e-9])
def test_seconds_hours_and_days_are_the_same(kind: str, unit: float) -> None:
    """Where units, edges and periods are given in the unit of the times; and not where they are not."""
    times, x = some_times(), qkv(30)
    encodings = [drawn(RelativeChannels(8, [of_time(kind, by=by)], 2).double()) for by in (1.0, unit)]
    near = run(encodings[0], x, {"time": times})
    torch.testing.assert_close(run(encodings[1], x, {"time": times * unit}), near, rtol=0, atol=1e-9)
    assert (run(encodings[0], x, {"time": times * unit}) - near).abs().max() > 1e-3


@each
@pytest.mark.parametrize("origin", [1e4, 1e6, 1.6e9])
def test_a_shift_changes_nothing_wherever_time_enters(kind: str, origin: float) -> None:
    """float32 networks, whole numbers of 2^-7 s, so that the shift itself rounds nothing."""
    times, x = (some_times() * 128).round() / 128, qkv(30, dtype=torch.float32)
    encoding = drawn(RelativeChannels(8, [of_time(kind)], 2))
    near, far = (run(encoding, x, {"time": t}) for t in (times, times + origin))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_a_shift_changes_nothing_in_hstu() -> None:
    times, x = (some_times(40) * 128 * 30).round() / 128, qkv(40, dtype=torch.float32)
    encoding = drawn(rp.encodings.HSTUBias(2, 5, 30))
    near, far = (
        rp.pointwise_attention(*x, encoding, q_pos=at, k_pos=at, causal=True)
        for at in ({"index": torch.arange(40), "time": t} for t in (times, times + 1.6e9))
    )
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@each
def test_nanoseconds_since_1970_lose_their_origin_as_integers(kind: str) -> None:
    """1.6e18 is beyond 2^53: as float64 these times would be the same, or 256 apart."""
    since = np.array([0, 3, 3, 17, 40, 41], dtype=np.int64)
    views = [Sequences.of([since + origin], unit="nanoseconds").padded() for origin in (0, 1_600_000_000_000_000_001)]
    encoding, x = drawn(RelativeChannels(8, [of_time(kind)], 2).double()), qkv(6)
    near, far = (run(encoding, x, {"time": view["time"]}) for view in views)
    assert torch.equal(near, far)


def test_unix_times_in_a_short_type_are_warned_of() -> None:
    for times, spacing in (
        (torch.tensor([1.6e9, 1.6e9 + 300]), "128"),
        (torch.tensor([0.0, 70000.0], dtype=torch.bfloat16), "512"),
    ):
        with pytest.warns(UserWarning, match=f"are rounded to multiples of {spacing}: give float64"):
            Times(times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Times(torch.tensor([0.0, 2.0**24 - 1]))
        Times(torch.tensor([0.0, 1.6e9], dtype=torch.float64))
        Times(torch.tensor([0, 1_600_000_000]))
        Times([1.6e9, 1.6e9 + 1])
        Times(torch.zeros(0))


# ---- ties, enormous gaps, edges


@each
@pytest.mark.parametrize("times", [[0.0] * 5, [0, 0, 1e9, 1e9, 1e18], [0, 1e-300, 1e-12, 1.0, 1e30]])
def test_ties_and_enormous_gaps_everywhere(kind: str, times: list[float]) -> None:
    """Finite outputs and gradients to everything, learned units included."""
    option = of_time(kind) | ({"learned": True} if kind in ("linear", "sinusoid", "decay", "rotary") else {})
    encoding = drawn(RelativeChannels(8, [option], 2))
    leaves = [x.requires_grad_() for x in qkv(5, dtype=torch.float32)]
    at = {"time": torch.tensor(times, dtype=torch.float64)}
    for kernel in ("dense", "tiled"):
        out = run(encoding, leaves, at, kernel=kernel)
        assert all(torch.isfinite(x).all() for x in (out, *gradients(out, [*leaves, *encoding.parameters()])))


def test_ties_and_enormous_gaps_in_hstu() -> None:
    encoding = drawn(rp.encodings.HSTUBias(2, 3, 20))
    leaves = [x.requires_grad_() for x in qkv(5, dtype=torch.float32)]
    for times in ([0.0] * 5, [0, 0, 1e9, 1e9, 1e18]):
        at = {"index": torch.arange(5), "time": torch.tensor(times, dtype=torch.float64)}
        out = rp.pointwise_attention(*leaves, encoding, q_pos=at, k_pos=at, causal=True)
        assert all(torch.isfinite(x).all() for x in (out, *gradients(out, [*leaves, *encoding.parameters()])))


def codes(encoder: Any, numbers: list[float]) -> list[int]:
    found: list[int] = encoder.code(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return found


def test_a_number_on_an_edge_is_above_it() -> None:
    """Clipped at both ends, with halves of their own for what was before and what comes after, where told apart."""
    below = math.nextafter(0.5, 0)
    assert codes(Buckets(3, 0.5), [0, below, 0.5, 0.99, 1, 1.5, 9, math.inf]) == [0, 0, 1, 1, 2, 3, 3, 3]
    assert codes(Buckets(2, 0.5), [-below, -0.5, -9]) == [0, 1, 2]
    assert codes(Buckets(2, 0.5, signed=True), [-9, -1, -0.5, -below, 0, below, 0.5, 9]) == [0, 0, 1, 2, 2, 2, 3, 4]
    assert codes(Edges((0.5, 2.0)), [0, below, 0.5, math.nextafter(2, 0), 2, -2, 9]) == [0, 0, 1, 1, 2, 2, 2]
    assert codes(Edges((0.5, 2.0), signed=True), [-2, -0.5, 0, 0.5, 2]) == [0, 1, 2, 3, 4]
    assert codes(LogBuckets(4, 2.0, math.log(2)), [0, 1, 2, 3.99, 4, 8.01, 16.01, 1e300]) == [0, 0, 0, 0, 1, 2, 3, 4]
    assert codes(LogBuckets(2, 1.0, 1.0, signed=True), [-9, -3, -1, 0, 1, 3, 9]) == [0, 1, 2, 2, 2, 3, 4]
    for unit in (60.0, 3600.0, 86400.0, 0.25):
        assert codes(Buckets(500, unit), [n * unit for n in range(500)]) == list(range(500))


def test_lags_beyond_32_bits_and_unix_seconds_keep_their_bucket() -> None:
    far = torch.tensor([0, 2**31, 2**31 + 3, 2**40])
    assert Buckets(5).code(far - far[1]).tolist() == [5, 0, 3, 5]
    times = Times(torch.tensor([-(2**31), 0, 2**31 - 1], dtype=torch.int32))
    assert times.lag(times)[0].tolist() == [0.0, 2.0**31, 2.0**32 - 1]
    at = {"index": torch.tensor([0, 2**33, 2**33 + 1])}
    encoding = drawn(RelativeChannels(8, [{"feature": "index", "clip": 2}]).double())
    near = run(encoding, qkv(3), {"index": torch.tensor([0, 3, 4])})
    torch.testing.assert_close(run(encoding, qkv(3), at), near, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_parameters_move_no_bucket(dtype: torch.dtype) -> None:
    """Seconds of years, in buckets of a minute: one table entry a pair, which must be the one of float64."""
    times = torch.arange(40, dtype=torch.float64) * 61 + 1.6e9
    encoding = RelativeChannels(8, [{"feature": "time", "unit": 60.0, "clip": 50, "inject": "bias"}], 2).to(dtype)
    with torch.no_grad():
        encoding.channels[0].bias.copy_(torch.arange(51) % 7)
    q, k, v = (torch.zeros(1, 2, 40, 8, dtype=dtype), torch.zeros(1, 2, 40, 8, dtype=dtype), torch.eye(40))
    row = (torch.arange(51) % 7)[((times[:, None] - times).abs() // 60).long()]
    want = row.double().masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    got = run(encoding, [q, k, v.to(dtype).expand(1, 2, 40, 40)], {"time": times})
    torch.testing.assert_close(got[0, 0].double(), want, rtol=2e-2, atol=2e-3)


# ---- the globe


def kilometres(a: tuple[float, float], b: tuple[float, float]) -> list[float]:
    """As a position has it, and as the channel has it; both ways round."""
    here, there = Places([list(a)]), Places([list(b)])
    place = FEATURES["place"]
    found = [here.lag(there), there.lag(here), place.between(place.read(here), place.read(there))]
    return [x.item() for x in (*found, place.between(place.read(there), place.read(here)))]


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ((10.0, 179.9), (10.0, -179.9), 21.901155),  # across the date line
        ((10.0, 180.0), (10.0, -180.0), 0.0),
        ((45.0, 267.0), (45.0, -93.0), 0.0),
        ((90.0, 0.0), (90.0, 123.0), 0.0),  # one pole, whatever its longitude
        ((90.0, 10.0), (-90.0, 77.0), math.pi * EARTH_RADIUS_KM),
        ((0.0, 0.0), (0.0, 180.0), math.pi * EARTH_RADIUS_KM),
        ((37.0, -20.0), (-37.0, 160.0), math.pi * EARTH_RADIUS_KM),
        ((89.9999, 0.0), (89.9999, 180.0), 2 * EARTH_RADIUS_KM * math.radians(0.0001)),
        ((45.0, -93.0), (45.0, -93.0), 0.0),
    ],
)
def test_distances_that_go_wrong_elsewhere(a: tuple[float, float], b: tuple[float, float], want: float) -> None:
    for got in kilometres(a, b):
        assert got == pytest.approx(want, rel=2e-6, abs=1e-8)
    assert a != b or not any(kilometres(a, b))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=2, max_size=6), st.floats(0, 180))
def test_distances_are_symmetric_and_turn_with_the_globe(points: list[tuple[float, float]], turn: float) -> None:
    """Also in the bias that is made of them: but for pairs within rounding of an edge, there are no edges here."""
    at = torch.tensor(points, dtype=torch.float64)
    turned = torch.stack([at[:, 0], at[:, 1] + turn], -1)
    place = FEATURES["place"]
    here, there = (place.between(read, read)[0] for read in (place.read(Places(x)) for x in (at, turned)))
    assert torch.equal(here, here.T)
    torch.testing.assert_close(there, here, rtol=1e-7, atol=2e-4)  # antipodes are known to some decimetres
    encoding = drawn(RelativeChannels(8, [{"feature": "place", "encoder": "decay", "scales": (500.0, 9000.0),
                                           "inject": "bias"}], 2).double())  # fmt: skip
    x = qkv(len(points))
    near, far = (run(encoding, x, {"place": p}, causal=False) for p in (at, turned))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_latitude_and_longitude_the_wrong_way_round() -> None:
    encoding = RelativeChannels(8, [{"feature": "place", "clip": 3}])
    for place, complaint in (([-93.3, 44.9], "in that order"), ([math.nan, 44.9], "NaN"), ([10.0, 361.0], "longitude")):
        with pytest.raises(ValueError, match=complaint):
            run(encoding, qkv(1, dtype=torch.float32), {"place": torch.tensor([place])})


# ---- attention: what is off is off, what is permuted is permuted, sizes down to nothing

ALL = [of_time(kind, ("key", "value", "bias")) for kind in ENCODERS] + [
    {"feature": "index", "clip": 3},
    {"feature": "place", "unit": 40.0, "clip": 4, "inject": ("key", "value", "bias")},
    {"feature": "profile", "unit": 0.25, "clip": 4},
    {"feature": "mark", "inject": ("key", "gate"), "where": "real"},
    {"feature": "key", "clip": 5},
]


@pytest.mark.parametrize("kernel", ["dense", "generic"])
def test_channels_that_are_off_are_plain_attention_bit_for_bit(kernel: str) -> None:
    x, at = qkv(40, batch=2), events(torch.arange(40))
    encoding = RelativeChannels(8, [c for c in ALL if c.get("encoder") != "rotary"], 2).double()
    with torch.no_grad():
        for name, parameter in encoding.named_parameters():
            parameter.fill_(1.0 if name.endswith("gate") else 0.0)
    zero = RelativeChannels(8, [{"feature": "index", "clip": 0, "inject": "bias"}], 2).double()
    plain = rp.attention(*x, causal=True, kernel="dense") if kernel == "dense" else run(zero, x, at, kernel=kernel)
    assert torch.equal(run(encoding, x, at, kernel=kernel), plain)


def test_keys_alone_and_values_alone() -> None:
    """Either is the whole with the other table at zero, and they do different things."""
    x, at = qkv(12), events(torch.arange(12))
    both = drawn(RelativeChannels(8, [of_time("buckets", ("key", "value"))]).double())
    found = []
    for on, off in (("key", "values"), ("value", "keys")):
        alone = RelativeChannels(8, [of_time("buckets", on)]).double()
        alone.load_state_dict({n: p for n, p in both.state_dict().items() if not n.endswith(off)})
        zeroed = RelativeChannels(8, [of_time("buckets", ("key", "value"))]).double()
        zeroed.load_state_dict({n: p * (not n.endswith(off)) for n, p in both.state_dict().items()})
        found.append(run(alone, x, at))
        torch.testing.assert_close(found[-1], run(zeroed, x, at), rtol=0, atol=1e-12)
    whole = run(both, x, at)
    assert min((a - b).abs().max() for a, b in ((whole, found[0]), (whole, found[1]), tuple(found))) > 1e-3


def test_the_order_of_channels_and_of_heads_is_nobodys_business() -> None:
    x, at = qkv(12, heads=3), events(torch.arange(12))
    one = drawn(RelativeChannels(8, ALL, 3).double())
    other = RelativeChannels(8, ALL[::-1], 3).double()
    for mine, theirs in zip(one.channels, reversed(other.channels)):
        theirs.load_state_dict(mine.state_dict())
    torch.testing.assert_close(run(other, x, at), run(one, x, at), rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 1])
    turned = RelativeChannels(8, ALL, 3).double()
    turned.load_state_dict({n: p[order] if n.endswith((".bias", ".gate")) else p for n, p in one.state_dict().items()})
    got = run(turned, [t[:, order] for t in x], at)
    torch.testing.assert_close(got, run(one, x, at)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["auto", "dense", "tiled"])
def test_nothing_and_one(kernel: str) -> None:
    encoding = drawn(RelativeChannels(8, ALL, 2).double())
    alone = {name: p[:0] for name, p in events(torch.arange(3)).items()}
    for n_q, n_k in ((0, 0), (0, 3), (1, 0), (1, 1)):
        at_q, at_k = (events(torch.arange(n)) if n else alone for n in (n_q, n_k))
        x = [t.requires_grad_() for t in (qkv(n_q)[0], *qkv(n_k)[1:])]
        out = rp.attention(*x, encoding, q_pos=at_q, k_pos=at_k, kernel=kernel)
        assert out.shape == (1, 2, n_q, 8) and torch.isfinite(out).all() and (n_k > 0 or not out.any())
        assert all(torch.isfinite(g).all() for g in gradients(out, x))


# ---- the future, and the time of a query


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_where_later_events_are_moves_no_bit(kernel: str) -> None:
    """Not only what they hold: their times, places, profiles and marks."""
    encoding, x, at = drawn(RelativeChannels(8, ALL, 2).double()), qkv(12), events(torch.arange(12))
    before = run(encoding, x, at, kernel=kernel)
    for cut in (1, 6, 11):
        other = {name: p.clone() for name, p in at.items()}
        other["time"][cut:] = other["time"][cut:] * 5 + 1e9
        other["place"][cut:] = torch.tensor([-80.0, 5.0]).double()
        other["profile"][cut:] = -1e9
        other["mark"][cut:], other["real"][cut:] = 77, 1
        after = run(encoding, x, other, kernel=kernel)
        assert torch.equal(after[:, :, :cut], before[:, :, :cut]) and not torch.equal(
            after[:, :, cut:], before[:, :, cut:]
        )


def test_each_query_time_knows_what_it_says() -> None:
    """event: nothing that comes; request: the time of the next event and nothing after; grid: what has happened."""
    encoding = drawn(RelativeChannels(8, [of_time("log"), {"feature": "index", "clip": 3}], 2).double())
    x, index, times = qkv(8), torch.arange(8), some_times(8)
    moved = torch.cat([times[:5], times[5:] + 3e4])  # events 5, 6, 7 come later

    def by(mode: str, times: Tensor) -> Tensor:
        at = {"index": index, "time": times}
        return rp.attention(*x, encoding, q_pos=at | {"time": query_times(times, mode)}, k_pos=at, causal=True)

    assert torch.equal(by("event", times)[:, :, :5], by("event", moved)[:, :, :5])
    assert torch.equal(by("request", times)[:, :, :4], by("request", moved)[:, :, :4])
    assert not torch.equal(by("request", times)[:, :, 4], by("request", moved)[:, :, 4])
    grid = torch.tensor([-1.0, float(times[2]), float(times[4]) + 1e-9])
    order = torch.searchsorted(times, grid, right=True) - 1
    q_pos = {"index": order, "time": query_times(times, "grid", grid=grid)}
    q = qkv(3)[0]
    sides = [
        rp.attention(q, *x[1:], encoding, q_pos=q_pos, k_pos={"index": index, "time": t}, q_order=order,
                     k_order=index, causal=True)
        for t in (times, moved)
    ]  # fmt: skip
    assert torch.equal(*sides) and not sides[0][:, :, 0].any() and sides[0][:, :, 1:].any()


def test_a_layer_decodes_by_the_clock_of_its_requests() -> None:
    """One event at a time with the time of its request, and in chunks, as all at once."""
    torch.manual_seed(0)
    options = [of_time("buckets"), of_time("log", ("key", "value")), of_time("rotary")]
    layer = rp.SelfAttention(16, 2, drawn(RelativeChannels(8, options, 2)), causal=True).double()
    times = some_times(10).expand(2, -1) + torch.tensor([[0.0], [1.6e9]])
    asked, x = query_times(times, "request", last=times[:, -1] + 2).values, torch.randn(2, 10, 16, dtype=torch.float64)
    whole = layer(x, q_pos={"time": asked}, k_pos={"time": times})
    for sizes in ([1] * 10, [3, 1, 6]):
        stream, rows, start = layer.stream(), [], 0
        for size in sizes:
            part = slice(start, start + size)
            q_pos, k_pos = ({"time": t[:, part]} for t in (asked, times))
            rows.append(layer(x[:, part], q_pos=q_pos, k_pos=k_pos, stream=stream))
            start += size
        torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-10)


# ---- size, short types, other ways to run


@pytest.mark.parametrize("kind", ["sinusoid", "linear", "rotary", "edges"])
def test_memory_at_1024(kind: str) -> None:
    """Keys and values, forward and backward: no tensor of half the size of one head's scores a sequence, let alone
    (batch, n, n, dim); from 512 to 1024 tokens the largest does not more than double."""

    def largest(n: int) -> Largest:
        q, k, v = (torch.randn(2, 2, n, 16, requires_grad=True) for _ in range(3))
        at = {"time": torch.arange(n).double().sqrt()}
        with Largest() as seen:
            run(encoding, [q, k, v], at, kernel="tiled").sum().backward()
        return seen

    encoding = RelativeChannels(16, [of_time(kind, ("key", "value"))], 2)
    small, large = largest(512), largest(1024)
    assert large.bytes <= 2.1 * small.bytes, (small.operation, large.operation)
    assert large.bytes < 2 * 2 * 1024 * 1024 * 16 * 4 / 8, large.operation


def test_autocast_has_no_say_in_channels() -> None:
    """Exactly none in attention; a layer in bfloat16 is within 1e-2, with Unix times."""
    encoding, at = drawn(RelativeChannels(8, ALL, 2)), events(torch.arange(300))
    at["time"] = at["time"] + 1.6e9
    x = qkv(300, dtype=torch.float32)
    layer, tokens = rp.SelfAttention(16, 2, encoding, causal=True), torch.randn(1, 300, 16)
    want, outside = run(encoding, x, at), layer(tokens, q_pos=at)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(encoding, x, at), want)
        inside = layer(tokens, q_pos=at)
    assert inside.dtype == torch.bfloat16 and (inside.float() - outside).abs().max() < 2e-2


class Module(torch.nn.Module):
    def __init__(self, encoding: Any, pointwise: bool) -> None:
        super().__init__()
        self.encoding, self.pointwise = encoding, pointwise

    def forward(self, q: Tensor, k: Tensor, v: Tensor, at: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
        attend: Any = rp.pointwise_attention if self.pointwise else rp.attention
        out: Tensor = attend(q, k, v, self.encoding, q_pos=at, k_pos=at, causal=True, key_mask=mask)
        return out


SOME = [
    of_time("buckets"),
    of_time("rotary"),
    {"feature": "place", "clip": 2, "inject": "bias"},
    {"feature": "index", "clip": 2},
]
MADE: dict[str, Any] = {
    "channels": lambda: RelativeChannels(8, SOME, 2),
    "hstu": lambda: rp.encodings.HSTUBias(2, 5, 12),
    "hstu pointwise": lambda: rp.encodings.HSTUBias(2, 5, 12),
}


@pytest.mark.parametrize(("which", "n"), [("channels", 9), ("channels", 200), ("hstu", 9), ("hstu pointwise", 200)])
def test_exported(which: str, n: int) -> None:
    """A program made of one set of events serves others: nothing of their times or masks is baked in."""
    module, at = Module(drawn(MADE[which]().double()), which.endswith("pointwise")), events(torch.arange(n))
    mask = (torch.arange(n) < n - 2).unsqueeze(0)
    program = torch.export.export(module, (*qkv(n), at, mask), strict=False).module()
    for index, seen in ((torch.arange(n), mask), (torch.arange(n) * 3 + 1, mask), (torch.arange(n), mask | True)):
        want = module(*qkv(n), events(index), seen)
        torch.testing.assert_close(program(*qkv(n), events(index), seen), want, rtol=0, atol=1e-12)
