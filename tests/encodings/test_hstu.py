from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.models.convert import convert
from relpos.positions import Times, query_times
from tests.core.naive import agree
from tests.encodings.case import EncodingCase

HSTUBias: Any = rp.encodings.HSTUBias


def events(index: Tensor) -> dict[str, Tensor]:
    if index.is_floating_point():
        return {"index": index}
    return {"index": index, "time": (index * 40 + index % 4 * 10).double()}


def brute_bias(encoding: Any, at_q: dict[str, Tensor], at_k: dict[str, Tensor]) -> Tensor:
    """(heads or 1, n_q, n_k), by the released formula: logarithm to base e, 0.301 a bucket."""
    found = torch.zeros(len(encoding.time), len(at_q["index"]), len(at_k["index"]), dtype=torch.float64)
    for i in range(found.shape[1]):
        for j in range(found.shape[2]):
            gap = abs(float(at_k["time"][j] - at_q["time"][i]))
            bucket = min(encoding.time_buckets, math.floor(math.log(max(gap, 1)) / 0.301))
            lag = int(at_k["index"][j] - at_q["index"][i])
            lag = min(max(lag, -encoding.max_lag), encoding.max_lag)
            found[:, i, j] = encoding.time[:, bucket] + encoding.position[:, lag + encoding.max_lag]
    return found


class TestHSTU(EncodingCase):
    name = "hstu"

    def make(self) -> Any:
        return HSTUBias(self.heads, 5, 12)

    def build(self) -> Any:
        encoding = super().build()
        with torch.no_grad():
            for parameter in encoding.parameters():
                parameter.normal_()
        return encoding

    def positions(self, index: Tensor) -> Any:
        return events(index)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return brute_bias(encoding, events(q_pos), events(k_pos)).detach().unsqueeze(0)


N = 8


def released() -> tuple[Any, dict[str, Tensor], list[Tensor], Tensor]:
    """One number for all heads, seconds as integers, the next event's time for every query."""
    g = torch.Generator().manual_seed(4)
    arrays = {"ts._ts_w": torch.randn(129, generator=g).double().numpy(), "pos_w": np.linspace(-1, 1, 2 * N - 1)}
    encoding = HSTUBias.from_reference(arrays, heads=2)
    times = torch.randint(0, 90000, (2, N), generator=g).sort(-1).values.double()
    asked = torch.cat([times[:, 1:], times[:, -1:]], 1)
    index = torch.arange(N)
    at = {"index": index, "time": times}
    want = torch.stack([brute_bias(encoding, {"index": index, "time": asked[b]}, {"index": index, "time": times[b]})
                        for b in range(2)])  # fmt: skip
    qkv = [torch.randn(2, 2, N, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    return encoding, at, qkv, want


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_the_released_layer(kernel: str) -> None:
    """silu(q k^T + bias) / N where a query sees a key, and each query at the time of its request."""
    encoding, at, (q, k, v), bias = released()
    lengths = torch.tensor([8, 6])
    mask = torch.arange(N) < lengths.unsqueeze(1)
    seen = torch.ones(N, N, dtype=torch.bool).tril() & mask[:, None, None]
    want = (torch.nn.functional.silu(q @ k.mT + bias) / N * seen) @ v
    q_pos = at | {"time": query_times(at["time"], "request")}
    got = rp.pointwise_attention(q, k, v, encoding, q_pos=q_pos, k_pos=at, causal=True, key_mask=mask, kernel=kernel)
    agree(got, want, [q, k, v, *encoding.parameters()])
    soft = rp.attention(q, k, v, encoding, q_pos=q_pos, k_pos=at, causal=True, key_mask=mask)
    want = (q @ k.mT / 2 + bias).masked_fill(~seen, -torch.inf).softmax(-1) @ v
    agree(soft, want, [q, k, v, *encoding.parameters()])


def test_a_layer_decodes_with_the_time_of_the_request() -> None:
    torch.manual_seed(0)
    encoding, at, _, _ = released()
    layer = rp.SelfAttention(8, 2, encoding, "pointwise", causal=True, length=N).double()
    x, asked = torch.randn(2, N, 8, dtype=torch.float64), query_times(at["time"], "request").values
    index = at["index"]
    whole = layer(x, q_pos={"index": index, "time": asked}, k_pos=at)
    assert not torch.allclose(whole, layer(x, q_pos=at), atol=1e-6)  # the event's own time says something else
    stream, rows, start = layer.stream(), [], 0
    for size in (1, 3, 4):
        part = slice(start, start + size)
        own, query = ({"index": index[part], "time": t[:, part]} for t in (at["time"], asked))
        rows.append(layer(x[:, part], q_pos=query, k_pos=own, stream=stream))
        start += size
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-12)


def test_a_network_decodes_with_the_time_of_the_request() -> None:
    torch.manual_seed(0)
    _, at, _, _ = released()
    model = rp.models.Transformer(11, 16, 2, 2, "hstu", mixer="pointwise", length=N).double()
    tokens, asked = torch.randint(0, 11, (2, N)), query_times(at["time"], "request").values
    index = at["index"]
    whole = model(tokens, positions={"index": index, "time": asked}, key_positions=at)
    streams, rows = model.streams(), []
    for i in range(N):
        own, query = ({"index": index[i : i + 1], "time": t[:, i : i + 1]} for t in (at["time"], asked))
        rows.append(model(tokens[:, i : i + 1], positions=query, key_positions=own, streams=streams))
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="weights without a softmax"):
        convert(model)


def test_query_times() -> None:
    times = torch.tensor([[0.0, 2, 5, 5, 5], [1, 4, 6, 8, 9]], dtype=torch.float64)
    assert query_times(times).values is not None and torch.equal(query_times(times).values, times)
    following = query_times(times, "request").values
    assert following.tolist() == [[2, 5, 5, 5, 5], [4, 6, 8, 9, 9]]
    known = query_times(times, "request", last=torch.tensor([7.0, 11]), lengths=torch.tensor([3, 5])).values
    assert known.tolist() == [[2, 5, 7, 7, 7], [4, 6, 8, 9, 11]]
    assert query_times(times[1], "request", last=10).values.tolist() == [4, 6, 8, 9, 10]
    grid = query_times(times[1], "grid", grid=torch.tensor([0.5, 5.0]))
    assert isinstance(grid, Times) and grid.values.tolist() == [0.5, 5.0]
    for options, complaint in (
        ({"query_time": "next"}, "query_time is"),
        ({"query_time": "grid"}, "grid holds the times"),
        ({"last": 3.0}, "go with query_time"),
        ({"query_time": "request", "last": 3.0}, "at or after the last event"),
        ({"query_time": "request", "lengths": torch.tensor([0, 5])}, "lengths are 2 numbers"),
    ):
        with pytest.raises(ValueError, match=complaint):
            query_times(times, **options)


def test_a_grid_of_queries_sees_what_has_happened() -> None:
    torch.manual_seed(0)
    encoding = HSTUBias(2, 4, 12).double()
    times, grid = torch.tensor([1.0, 4, 6, 8]), torch.tensor([0.5, 4.0, 7.0])
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (3, 4, 4))
    order = torch.searchsorted(times, grid, right=True) - 1
    at_q = {"index": order, "time": query_times(times, "grid", grid=grid)}
    at_k = {"index": torch.arange(4), "time": times}
    options: dict[str, Any] = {"q_order": order, "k_order": torch.arange(4), "causal": True}
    out = rp.pointwise_attention(q, k, v, encoding, q_pos=at_q, k_pos=at_k, **options)
    assert not out[:, :, 0].any()  # nothing has happened yet
    k[:, :, 2:], v[:, :, 2:] = 9.0, 9.0
    again = rp.pointwise_attention(q, k, v, encoding, q_pos=at_q, k_pos=at_k, **options)
    assert torch.equal(again[:, :, :2], out[:, :, :2]) and not torch.equal(again[:, :, 2], out[:, :, 2])


def test_terms_and_bad_input() -> None:
    only = HSTUBias(2, 4, terms="time")
    assert only.position is None and only.time.shape == (2, 129) and list(only.reads()) == ["time"]
    assert HSTUBias(2, 4, shared=True).position.shape == (1, 9)
    for wrong in ((), ("time", "time"), ("place",)):
        with pytest.raises(ValueError, match="terms are one or both of position, time"):
            HSTUBias(2, 4, terms=wrong)
    with pytest.raises(ValueError, match="max_lag is a positive integer"):
        HSTUBias(2, 0)
    with pytest.raises(ValueError, match="no array is called pos_w or time_w"):
        HSTUBias.from_reference({"w": np.zeros(3)})
    for arrays in ({"pos_w": np.zeros(4)}, {"pos_w": np.zeros((3, 3))}, {"time_w": np.zeros((2, 5))}):
        with pytest.raises(ValueError, match=r"the numbers of the (position|time) have the shape"):
            HSTUBias.from_reference(arrays)
    x = [torch.randn(1, 2, 3, 4) for _ in range(3)]
    with pytest.raises(
        ValueError, match=r"channel 1 \(time\) of HSTUBias reads the position 'time', which is not given"
    ):
        rp.pointwise_attention(*x, HSTUBias(2, 4), q_pos={"index": torch.arange(3)}, k_pos={"index": torch.arange(3)})
