"""Relative channels beyond the inherited case: golden arrays, time, configurations, layers, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relpos as rp
from relpos.encodings.pairs import lookup, steps
from relpos.encodings.pairs.cuts import bounds_of
from relpos.encodings.pairs.encoders import Buckets, Edges, Linear, LogBuckets
from relpos.encodings.pairs.features import FEATURES, personal_unit
from relpos.positions import Index, Places, Profiles, Times
from tests.core.naive import agree, gradients
from tests.core.test_memory import Largest
from tests.encodings.channels_oracle import brute_score, difference, events
from tests.encodings.tiles import check_tiles

GOLDEN = Path(__file__).parent.parent / "golden"
RelativeChannels: Any = rp.encodings.RelativeChannels


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges wherever keys are in order, as if these few were many."""
    monkeypatch.setattr("relpos.encodings.pairs.steps.KEYS", 0)


# ---- golden arrays


def test_tisasrec() -> None:
    """The released class, in float64: row 0 has no padding; in row 1 padded keys are hidden, as they should be."""
    a = {name: torch.from_numpy(x) for name, x in np.load(GOLDEN / "ctes_relattn_tisasrec.npz").items() if x.shape}
    span = a["rel_key"].shape[0] - 1
    made = RelativeChannels.tisasrec(8, span, 6, unit=1)
    names = [{"feature": "time", "clip": span, "name": "rel"}, {"feature": "key", "clip": 5, "name": "pos"}]
    read = RelativeChannels.from_reference({f"layer.{name}": x for name, x in a.items()}, names)
    made.double().load_state_dict(read.state_dict())
    q, k, v = (
        (a[x] @ a[f"w{side}"].T + a[f"b{side}"]).view(2, 6, 2, 4).transpose(1, 2)
        for side, x in (("q", "x_q"), ("k", "x_k"), ("v", "x_k"))
    )
    positions = {"index": torch.arange(6), "time": a["times"]}
    for kernel in ("dense", "tiled"):
        out = rp.attention(
            q, k, v, made, q_pos=positions, k_pos=positions, causal=True, key_mask=~a["pad_mask"], kernel=kernel
        )
        out = out.transpose(1, 2).flatten(2)
        torch.testing.assert_close(out, a["out_keymasked"], rtol=0, atol=1e-10)
        torch.testing.assert_close(out[0], a["out_original"][0], rtol=0, atol=1e-10)
    wide = {name: x.float() for name, x in (("q", q), ("k", k), ("v", v))}
    out = rp.attention(**wide, encoding=made.float(), q_pos=positions, k_pos=positions, causal=True)
    assert (out[0].transpose(0, 1).flatten(1) - a["out_original"][0]).abs().max() < 2e-5


def test_distances() -> None:
    a = np.load(GOLDEN / "ctes_distance.npz")
    places = FEATURES["place"].read(Places(a["lat_lon"]))
    got = FEATURES["place"].between(places, places)[0]
    want = torch.from_numpy(a["haversine_km_R6371_0088_mp40"])
    near = want < 20000  # antipodes cannot be told to 1e-12 in float64, whatever the formula
    torch.testing.assert_close(got[near], want[near], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got, want, rtol=2e-8, atol=0)
    assert not got.diagonal().any()


# ---- two ways to the same numbers


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_edges_and_lookups_agree(data: Any) -> None:
    """A bucket is the same range of keys by bisection and pair by pair, on an edge and among ties."""
    clip = data.draw(st.integers(1, 6))
    signed = data.draw(st.booleans())
    unit = data.draw(st.sampled_from([0.1, 0.5, 1.0, 3.0]))
    encoder = data.draw(
        st.sampled_from(
            [Buckets(clip, unit, signed), LogBuckets(clip, unit, 0.301, signed), Edges([0.1, 0.3, 2.0], signed)]
        )
    )
    numbers = st.lists(st.sampled_from([0.1 * i for i in range(40)]), min_size=1, max_size=9)
    k = torch.tensor([sorted(data.draw(numbers))], dtype=torch.float64)
    q = torch.tensor([data.draw(numbers)], dtype=torch.float64)
    x = k.unsqueeze(-2) - q.unsqueeze(-1)
    bounds = torch.tensor([bounds_of(lambda x: encoder.size(x, None), encoder.reach)], dtype=torch.float64)
    code, edges = encoder.code(x), steps.edges_of(encoder.step, q, k, bounds)
    table = torch.randn(1, 2, q.shape[1], encoder.rows, dtype=torch.float64)
    local = steps.local(edges, 0, k.shape[1])
    by_steps = steps.spread([encoder.by_step(table)], [local], k.shape[1])
    torch.testing.assert_close(by_steps, lookup.spread(table, code), rtol=0, atol=1e-12)
    pairs = torch.randn(1, 2, *x.shape[1:], dtype=torch.float64)
    sums = encoder.by_row(steps.collect(pairs, [local])[0])
    torch.testing.assert_close(sums, lookup.collect(pairs, code, encoder.rows), rtol=0, atol=1e-12)
    torch.testing.assert_close(lookup.totals(pairs, code, encoder.rows), sums.sum((0, 2)), rtol=0, atol=1e-12)


MIXED = [
    {"feature": "time", "unit": 0.5, "clip": 4},
    {"feature": "index", "clip": 2, "inject": ("key", "bias")},
    {"feature": "place", "edges": (20.0, 150.0), "inject": "value"},
    {"feature": "place", "unit": 50.0, "clip": 4, "inject": "bias"},
    {"feature": "mark", "inject": ("key", "value"), "where": "real"},
    {"feature": "profile", "encoder": "linear", "unit": "learned", "clip": 2, "inject": ("key", "value", "gate")},
    {"feature": "key", "clip": 3, "inject": ("key", "value")},
]


@pytest.mark.parametrize("order", ["rising", "shuffled"])
def test_tiles(order: str) -> None:
    """Every tile is its part of the whole, with the gradient that autograd finds; also for keys in no order, which have
    no edges."""
    torch.manual_seed(3)
    options = [c for c in MIXED if c["feature"] != "time"] if order == "shuffled" else MIXED
    encoding = RelativeChannels(8, options, 3).double()
    for n_q, n_k in ((6, 9), (1, 5)):
        q, k = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (n_q, n_k))
        index = torch.arange(n_k) if order == "rising" else torch.randperm(n_k)
        at = [{n: p for n, p in events(index).items() if n in encoding.reads()} for index in (index[-n_q:], index)]
        named = [rp.positions.as_positions(p, n, 0, "pos", q.device) for p, n in zip(at, (n_q, n_k))]
        states = encoding.prepare(q, k, *named)
        assert any(name.endswith(".edges") for name in states) is (order == "rising")
        term = brute_score(encoding, [c | {"unit": 1.0} if c.get("unit") == "learned" else c for c in options],
                           q, k, events(index[-n_q:]), events(index))  # fmt: skip
        check_tiles(encoding, q, k, states, term)


def test_one_sequence_is_its_row_of_a_batch() -> None:
    torch.manual_seed(0)
    encoding = RelativeChannels(8, MIXED, 2).double()
    q, k, v = (torch.randn(3, 2, 12, 8, dtype=torch.float64) for _ in range(3))
    rows = [events(torch.arange(12) * step + 1) for step in (1, 3, 2)]
    at = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    whole = rp.attention(q, k, v, encoding, q_pos=at, k_pos=at, causal=True, kernel="tiled")
    for b, row in enumerate(rows):
        part = [x[b : b + 1] for x in (q, k, v)]
        alone = rp.attention(*part, encoding, q_pos=row, k_pos=row, causal=True, kernel="dense")
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=0, atol=1e-12)


# ---- time


@pytest.mark.parametrize("origin", [1e4, 1e6, 1.6e9])
def test_a_shift_of_the_clock_changes_nothing(origin: float) -> None:
    """In float32, with Unix times: the origin is lost in float64."""
    torch.manual_seed(0)
    options = [
        {"feature": "time", "unit": 0.5, "clip": 6},
        {"feature": "time", "encoder": "log", "clip": 8, "inject": "bias"},
        {"feature": "time", "encoder": "rotary", "shortest": 1.0, "longest": 50.0},
        {"feature": "time", "encoder": "sinusoid", "longest": 100.0, "inject": "bias"},
        {"feature": "time", "encoder": "decay", "longest": 100.0, "inject": "bias"},
    ]
    encoding = RelativeChannels(8, options, 2)
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    times = (torch.rand(30, dtype=torch.float64) * 2**10).round().cumsum(0) / 2**7
    near, far = (rp.attention(q, k, v, encoding, q_pos={"time": t}, k_pos={"time": t}) for t in (times, times + origin))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_a_rotation_by_unix_times_is_exact() -> None:
    """In float64 an angle at 1.6e9 s would be off by 1e-6 without an origin of its own."""
    torch.manual_seed(0)
    encoding = RelativeChannels(8, [{"feature": "time", "encoder": "rotary", "scales": (1.3, 7.0)}]).double()
    x = [torch.randn(1, 2, 30, 8, dtype=torch.float64) for _ in range(3)]
    times = torch.arange(30).double() / 4
    near, far = (rp.attention(*x, encoding, q_pos={"time": t}, k_pos={"time": t}) for t in (times, times + 1.6e9))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["buckets", "log", "linear", "sinusoid", "decay", "rotary"])
def test_ties_and_enormous_gaps(kind: str) -> None:
    torch.manual_seed(0)
    rotary = kind == "rotary"
    c: dict[str, Any] = {
        "feature": "time",
        "encoder": kind,
        "clip": 4,
        "inject": "rotation" if rotary else ("key", "bias"),
    }
    encoding = RelativeChannels(8, [c], 2)
    leaves = [torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3)]
    for times in ([0, 0, 0, 0, 0], [0, 0, 1e9, 1e9, 1e12]):
        at = {"time": torch.tensor(times, dtype=torch.float64)}
        out = rp.attention(*leaves, encoding, q_pos=at, k_pos=at)
        assert all(torch.isfinite(x).all() for x in (out, *gradients(out, [*leaves, *encoding.parameters()])))


def test_a_personal_unit() -> None:
    """The smallest gap above zero of each sequence: as times divided by it, with unit 1."""
    torch.manual_seed(0)
    times = torch.tensor([[0.0, 0, 3, 3.75, 9], [5, 5, 5, 5, 5], [1, 2, 4, 8, 16]], dtype=torch.float64)
    assert personal_unit(times).flatten().tolist() == [0.75, 1.0, 1.0]
    assert personal_unit(times[0]).tolist() == [0.75] and personal_unit(times[:, :1]).shape == (3, 1)
    own = RelativeChannels.tisasrec(4, 8, 5).double()
    stated = RelativeChannels.tisasrec(4, 8, 5, unit=1).double()
    stated.load_state_dict(own.state_dict())
    x = [torch.randn(3, 2, 5, 4, dtype=torch.float64) for _ in range(3)]
    index = torch.arange(5)
    at, scaled = ({"index": index, "time": t} for t in (times, times / personal_unit(times)))
    got = rp.attention(*x, own, q_pos=at, k_pos=at, causal=True)
    torch.testing.assert_close(got, rp.attention(*x, stated, q_pos=scaled, k_pos=scaled, causal=True))
    assert not torch.allclose(got, rp.attention(*x, stated, q_pos=at, k_pos=at, causal=True))


# ---- configurations


def test_stan() -> None:
    """The published formula with its vectors, by loops; as released: no 1/sqrt(dim), padded keys in the denominator."""
    g = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, 2, 4, generator=g, dtype=torch.float64)  # rows: place, time; width 4
    x = [torch.randn(1, 1, 5, 8, generator=g, dtype=torch.float64) for _ in range(3)]
    at = events(torch.arange(5)) | {"real": torch.tensor([1, 1, 1, 1, 0])}
    bounds = [(0.0, 400.0), (0.0, 10.0)]
    delta = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            for c, name in enumerate(("place", "time")):
                d, (sl, su) = abs(difference(name, at, at, i, j)), bounds[c]
                delta[i, j] += ((low[c] * (su - d) + high[c] * (d - sl)) / (su - sl)).sum()
    for released in (False, True):
        encoding = RelativeChannels.stan(1, place=bounds[0], time=bounds[1], as_released=released).double()
        with torch.no_grad():
            for c, channel in enumerate(encoding.channels):
                channel.bias.copy_(torch.stack([low[c].sum(), high[c].sum()]).view(1, 2))
        q, k, v = x
        if released:
            real = at["real"].bool()
            both = (real.unsqueeze(1) & real).double()
            want = ((q @ k.mT + delta * both).softmax(-1) * both) @ v
            got = rp.attention(q, k, v * real.view(1, 1, 5, 1), encoding, q_pos=at, k_pos=at)
            got, want = got[:, :, :4], want[:, :, :4]
        else:
            want = (q @ k.mT / 8**0.5 + delta).softmax(-1) @ v
            got = rp.attention(q, k, v, encoding, q_pos=at, k_pos=at)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_revamp() -> None:
    """Separate tables for keys and values of every channel that is not left out."""
    encoding = RelativeChannels.revamp(8, index=3, time=(0.5, 6), place=(50.0, 5), profile=(0.25, 4), length=9)
    shapes = {c.name: (tuple(c.keys.shape), tuple(c.values.shape)) for c in encoding.channels}
    assert shapes == {"index": ((7, 8),) * 2, "time": ((7, 8),) * 2, "place": ((6, 8),) * 2, "profile": ((5, 8),) * 2,
                      "absolute": ((9, 8),) * 2}  # fmt: skip
    off = RelativeChannels.revamp(8, index=3, time=(0.5, 6), place=None, profile=None)
    assert [c.kind for c in off.channels] == ["index", "time"] and list(off.reads()) == ["index", "time"]
    arrays = {
        f"{c.name}_{what}": np.full((7, 8), n + 0.5) for n, c in enumerate(off.channels) for what in ("key", "value")
    }
    read = RelativeChannels.from_reference(arrays, [{"feature": "index", "clip": 3}, {"feature": "time", "clip": 6}])
    assert read.channels[1].values[0, 0].item() == 1.5 and read.channels[0].inject == ("key", "value")


def test_no_channels_to_speak_of() -> None:
    """Zero tables are plain attention, and a constant in a bias changes nothing under a softmax."""
    torch.manual_seed(0)
    encoding = RelativeChannels(8, MIXED, 2).double()
    x = [torch.randn(2, 2, 9, 8, dtype=torch.float64) for _ in range(3)]
    at = events(torch.arange(9))
    with torch.no_grad():
        for name, p in encoding.named_parameters():
            p.fill_(1.0 if name.endswith("gate") else 0.0)
    plain = rp.attention(*x)
    torch.testing.assert_close(rp.attention(*x, encoding, q_pos=at, k_pos=at), plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        encoding.channels[3].bias.fill_(3.0)
    torch.testing.assert_close(rp.attention(*x, encoding, q_pos=at, k_pos=at), plain, rtol=0, atol=1e-12)


# ---- layers


def test_a_layer_decodes_in_chunks() -> None:
    torch.manual_seed(0)
    encoding = RelativeChannels(8, MIXED, 2)
    layer = rp.SelfAttention(16, 2, encoding, causal=True).double()
    x, at = torch.randn(2, 12, 16, dtype=torch.float64), events(torch.arange(12))
    whole = layer(x, q_pos=at)
    stream, rows, start = layer.stream(), [], 0
    for size in (1, 4, 1, 6):
        part = slice(start, start + size)
        rows.append(layer(x[:, part], q_pos={name: p[part] for name, p in at.items()}, stream=stream))
        start += size
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-10)
    named = rp.SelfAttention(16, 2, "relative_channels", causal=True)  # by name: the index, as Shaw
    assert named(torch.randn(1, 5, 16)).shape == (1, 5, 16)


def test_padding_on_either_side_of_any_length() -> None:
    torch.manual_seed(0)
    encoding = RelativeChannels(8, MIXED, 2).double()
    x = [torch.randn(1, 2, 5, 8, dtype=torch.float64) for _ in range(3)]
    index = torch.arange(3, 8)
    want = rp.attention(*x, encoding, q_pos=events(index), k_pos=events(index), causal=True)
    for left, right in ((0, 3), (3, 0), (2, 70)):
        padded = [torch.nn.functional.pad(t, (0, 0, left, right), value=torch.nan) for t in x]
        at = events(torch.cat([index[:1].expand(left), index, index[-1:].expand(right)]))
        order = torch.arange(left + 5 + right)
        mask = ((order >= left) & (order < left + 5)).unsqueeze(0)
        out = rp.attention(
            *padded, encoding, q_pos=at, k_pos=at, key_mask=mask, causal=True, q_order=order, k_order=order
        )
        torch.testing.assert_close(out[:, :, left : left + 5], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inject", ["bias", ("key", "value")])
def test_nothing_quadratic_is_allocated(inject: Any) -> None:
    def largest(n: int) -> Largest:
        q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3))
        at = events(torch.arange(n))
        with Largest() as seen:
            rp.attention(q, k, v, encoding, q_pos=at, k_pos=at, causal=True).sum().backward()
        return seen

    options = [
        {"feature": "index", "clip": 8},
        {"feature": "time", "encoder": "log", "clip": 12},
        {"feature": "place", "unit": 30.0, "clip": 9},
        {"feature": "profile", "unit": 0.1, "clip": 10},
    ]
    encoding = RelativeChannels(8, [c | {"inject": inject} for c in options], 2)
    small, large = largest(1024), largest(2048)
    assert large.bytes < 2048 * 2048 * 4 and large.bytes <= 2.1 * small.bytes, (small.operation, large.operation)


# ---- bad input


@pytest.mark.parametrize(
    ("channels", "complaint"),
    [
        ([], "channels are one or more dicts"),
        ({"feature": "time"}, "channels are one or more dicts"),
        ([{"feature": "age", "clip": 3}], r"channel 0 .*feature is one of index, time, place"),
        (
            [{"feature": "time", "clip": 3}, {"feature": "time"}],
            r"channel 1 .*clip is an integer .*got None",
        ),
        ([{"feature": "time", "clip": 3, "encoder": "hash"}], "encoder is one of buckets, log"),
        ([{"feature": "time", "clip": 3, "inject": "query"}], "inject is one or several of key, value"),
        ([{"feature": "time", "clip": 3, "inject": "bias"}], "give heads="),
        ([{"feature": "time", "clip": 3, "unit": 0}], "unit is a positive finite number, got 0"),
        ([{"feature": "time", "encoder": "linear", "clip": 1, "start": np.nan}], "start is a finite number, got nan"),
        ([{"feature": "time", "encoder": "decay", "count": 0}], "count is an integer of at least 1, got 0"),
        ([{"feature": "time", "clip": 3, "where": 3}], "where, position and name are names, got 3"),
        (3, "channels are one or more dicts"),
        ([{"feature": "index", "clip": 3, "unit": "user"}], 'unit="user" is for'),
        ([{"feature": "place", "edges": (3.0, 1.0)}], "rising finite numbers"),
        ([{"feature": "place", "clip": 3, "signed": True}], "place has no sign"),
        ([{"feature": "place", "encoder": "rotary"}], "a rotation turns by a difference"),
        ([{"feature": "time", "encoder": "rotary", "inject": "bias"}], "go together and alone"),
        ([{"feature": "time", "encoder": "log", "clip": 3, "learned": True}], 'take encoder="linear"'),
        ([{"feature": "key", "clip": 3, "where": "real"}], "key's own place"),
        ([{"feature": "time", "clip": 3, "colour": 1}], r"channel 0 .*colour"),
    ],
)
def test_channels_that_make_no_sense(channels: Any, complaint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=complaint):
        RelativeChannels(8, channels)


def test_positions_that_are_missing_are_named() -> None:
    encoding = RelativeChannels(8, MIXED, 2)
    x = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    at = events(torch.arange(4))
    without = {name: p for name, p in at.items() if name != "place"}
    cases: list[tuple[Any, str]] = [
        (without, r"channel 2 \(place\) of RelativeChannels reads the position 'place', which is not given; there are"),
        ({name: p for name, p in at.items() if name != "real"}, r"channel 4 \(mark\) .*'real', which is not given"),
        (None, r"channel 0 \(time\) .*positions are named, q_pos=\{'time'"),
        (
            at | {"time": torch.tensor([0.0, 2, 1, 3])},
            "must not decrease .*first drop is at token 2",
        ),
        (at | {"place": torch.tensor([[91.0, 0]] * 4)}, "a latitude lies in -90..90"),
        (at | {"time": Index(torch.arange(4))}, r"channel 0 \(time\) .*as Times, got Index"),
    ]
    for given_, complaint in cases:
        with pytest.raises((ValueError, TypeError), match=complaint):
            rp.attention(*x, encoding, q_pos=given_, k_pos=given_)
    with pytest.raises(ValueError, match=r"dim is 8 \(one table for all heads\) or 16"):
        wrong = RelativeChannels(12, [{"feature": "mark"}])
        rp.attention(*x, wrong, q_pos={"mark": torch.arange(4)}, k_pos={"mark": torch.arange(4)})
    alone = RelativeChannels(8, [{"feature": "time", "clip": 3}])
    times = Times([0.0, 1, 2, 4])  # one channel needs no name
    named = {"time": times}
    assert torch.equal(
        rp.attention(*x, alone, q_pos=times, k_pos=times), rp.attention(*x, alone, q_pos=named, k_pos=named)
    )
    with pytest.raises(ValueError, match="vectors of width 8 to the values, v has width 5"):
        rp.attention(*x[:2], x[2][..., :5], alone, q_pos=times, k_pos=times)
    with pytest.raises(ValueError, match="12 periods turn 24 channels"):
        turning = RelativeChannels(24, [{"feature": "time", "encoder": "rotary"}])
        rp.attention(*x, turning, q_pos=times, k_pos=times)
    with pytest.raises(ValueError, match="every channel has arrays called after it"):
        RelativeChannels.from_reference({"age_key": np.zeros((2, 8))}, [{"feature": "time", "clip": 1}])


def test_learned_units_are_learned() -> None:
    """Their gradients are those of the definition."""
    torch.manual_seed(0)
    options = [{"feature": "time", "encoder": "decay", "scales": (1.0, 4.0), "learned": True, "inject": "bias"},
               {"feature": "time", "encoder": "rotary", "scales": (3.0, 8.0), "learned": True}]  # fmt: skip
    encoding = RelativeChannels(8, options, 2).double()
    with torch.no_grad():
        encoding.channels[0].bias.normal_()
    leaves = [torch.randn(1, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    at = events(torch.arange(6))
    got = rp.attention(*leaves, encoding, q_pos=at, k_pos=at, kernel="tiled")
    want = rp.attention(*leaves, encoding, q_pos=at, k_pos=at, kernel="dense")
    logs = [c.encoder.log_scales for c in encoding.channels]
    agree(got, want, [*leaves, *logs])
    assert all(g.any() for g in gradients(got, logs))


def test_linear_meets_its_rows() -> None:
    """At |x| = start + r unit stands row r."""
    line = Linear(3, 2.0, start=1.0)
    table = torch.tensor([5.0, 7.0, -1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 4)
    x = torch.tensor([[[0.0, 1, 3, -5, 7, 99, 4]]], dtype=torch.float64)
    assert line.spread(table, x, None).flatten().tolist() == [5, 5, 7, -1, 2, 2, 3]


def test_profiles_that_are_alike_share_a_bucket() -> None:
    """Whatever the order in which a kernel adds up: cosines of 1/2 lie on the edge of a bucket."""
    a = torch.tensor([[[1.0, 1, 0], [0, 1, 1], [3, 3, 0]]], dtype=torch.float64)
    read = FEATURES["profile"].read(Profiles(a))
    assert FEATURES["profile"].between(read, read)[0].tolist() == [[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]
