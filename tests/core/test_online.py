"""Online Toeplitz sums: equal to the dense definition at every length, in flat or n log^2 n cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relpos.encodings.base import Tail
from relpos.kernels import future
from relpos.kernels.online import CROSSOVER, BandSums, FreeSums, online_sums

HEADS, KV_HEADS, M, W = 4, 2, 3, 4
LONGEST = 1024
CHUNKS = {"tokens": [1], "mixed": [7, 1, 64, 0, 3, 200], "all": [LONGEST]}
LENGTHS = {"tokens": [400], "mixed": [257, 1000], "all": [1, 2, 3, 1000]}


def rows(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positive features, and values with a last column of ones."""
    g = torch.Generator().manual_seed(seed)
    fq, fk = (torch.rand(2, h, n, M, generator=g, dtype=torch.float64) + 0.1 for h in (HEADS, KV_HEADS))
    x = torch.randn(2, KV_HEADS, n, W, generator=g, dtype=torch.float64)
    x[..., -1] = 1
    return fq.to(dtype), fk.to(dtype), x.to(dtype)


def ratio(y: Tensor) -> Tensor:
    return y[..., :-1] / y[..., -1:]


def dense(fq: Tensor, fk: Tensor, x: Tensor, logs: Tensor) -> Tensor:
    """The definition, float64; logs (heads, n): the bias of the keys 0, 1, .. tokens back."""
    n = fq.shape[2]
    fq, fk, x = fq.double(), *(z.double().repeat_interleave(HEADS // KV_HEADS, 1) for z in (fk, x))
    back = torch.arange(n)[:, None] - torch.arange(n)
    bias = logs.double()[:, back.clamp(min=0)].masked_fill(back < 0, -math.inf)
    c = (bias - bias.amax(-1, keepdim=True)).exp()
    return ratio((fq @ fk.mT * c) @ x)


def decode(sums: BandSums | FreeSums, parts: tuple[Tensor, ...], chunks: list[int]) -> Tensor:
    out, at, n = [], 0, parts[0].shape[2]
    for turn in range(2 * n + 1):
        if at == n:
            break
        t = min(chunks[turn % len(chunks)], n - at)
        out.append(sums.step(*(z[:, :, at : at + t] for z in parts)))
        at += t
    assert sums.length == n
    return torch.cat(out, 2)


def biases() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    spikes = torch.zeros(HEADS, LONGEST, dtype=torch.float64)
    spikes[torch.arange(HEADS), torch.tensor([100, 200, 300, 511])] = 50
    back = torch.arange(LONGEST, dtype=torch.float64)
    return {
        "zero": torch.zeros(1, LONGEST),
        "normal": torch.randn(HEADS, LONGEST, generator=g, dtype=torch.float64),
        "wild": (torch.rand(HEADS, LONGEST, generator=g, dtype=torch.float64) - 0.5) * 100,
        "rising": 0.1 * back.expand(HEADS, -1),
        "falling": -2.0 * back.expand(HEADS, -1),
        "spikes": spikes,
    }


def free(logs: Tensor, **options: int) -> FreeSums:
    return FreeSums(lambda n: logs[:, :n], **{"block": 8, "crossover": 32, **options})


@pytest.mark.parametrize("chunks", list(CHUNKS))
@pytest.mark.parametrize("memory", [2**27, 2**15], ids=["whole", "slabs"])
@pytest.mark.parametrize("name", list(biases()))
def test_free_sums(name: str, memory: int, chunks: str) -> None:
    logs = biases()[name]
    with torch.no_grad():
        for n in LENGTHS[chunks]:
            parts, sums = rows(n), free(logs, memory=memory)
            got = ratio(decode(sums, parts, CHUNKS[chunks]))
            torch.testing.assert_close(got, dense(*parts, logs), rtol=0, atol=1e-11)
    assert sums.slab >= LONGEST if memory == 2**27 else sums.slab < 64  # both schedules were met


@pytest.mark.parametrize("name", list(biases()))
def test_free_sums_of_float32(name: str) -> None:
    logs = biases()[name]
    parts = rows(1000, torch.float32)
    with torch.no_grad():
        got = ratio(decode(free(logs), parts, CHUNKS["mixed"]))
    assert (got - dense(*parts, logs)).abs().max() < 2e-5


BANDS = [(0, 0.0), (0, 0.5), (1, 0.1), (5, 0.0), (100, 0.03)]


@pytest.mark.parametrize("chunks", list(CHUNKS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("reach, rate", BANDS)
def test_band_sums(reach: int, rate: float, dtype: torch.dtype, chunks: str) -> None:
    table = (torch.rand(HEADS, reach + 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5) * 100
    rates = torch.linspace(rate / 2, rate, HEADS, dtype=torch.float64)
    line = table[:, -1:] - rates[:, None] * torch.arange(1, LONGEST)
    tail = Tail(reach, torch.stack([rates, rates], -1))
    with torch.no_grad():
        for n in LENGTHS[chunks]:
            parts = rows(n, dtype)
            got = ratio(decode(BandSums(lambda k: table[:, :k], tail), parts, CHUNKS[chunks]))
            want = dense(*parts, torch.cat([table, line], -1))
            assert (got - want).abs().max() < (1e-11 if dtype == torch.float64 else 2e-5)


def test_a_band_keeps_as_much_at_any_length() -> None:
    sums = BandSums(lambda k: torch.zeros(1, k), Tail(20))
    seen, work = [], []
    with torch.no_grad():
        for turn in range(36):
            before = sums.work
            decode_from(sums, rows(84, seed=turn))
            work.append(sums.work - before)
            assert sums.state is not None
            seen.append((sums.state.shape, sums.rows.buffers[0].shape, sums.rows.buffers[1].shape))
    assert len(set(seen[2:])) == 1
    assert abs(sum(work[4:20]) / sum(work[20:36]) - 1) < 0.01


def decode_from(sums: BandSums | FreeSums, parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([sums.step(*(z[:, :, i : i + 1] for z in parts)) for i in range(parts[0].shape[2])], 2)


def test_free_sums_take_n_log2_n() -> None:
    """Multiply-adds are counted, not timed: doubling n doubles them, times the square of the logarithms' ratio."""
    logs, spent, n = torch.zeros(1, 2**13), {}, 0
    sums = free(logs, crossover=64, block=64)
    with torch.no_grad():
        for n in (2**k for k in range(9, 14)):
            t = n - sums.length
            sums.step(*rows(t))
            spent[n] = sums.work
    for n in list(spent)[1:]:
        grown = math.log2(n) / math.log2(n // 2)
        assert spent[n] / spent[n // 2] < 2 * grown**2 * 1.02
    columns = 2 * HEADS * M * W
    assert spent[2**13] < 4 * 2**13 * math.log2(2**13) ** 2 * columns
    direct = free(logs, crossover=2**20, block=64)
    with torch.no_grad():
        direct.step(*rows(2**12))
    assert direct.work > 2.0 * spent[2**12]


def test_memory_of_the_future_is_bounded() -> None:
    sums = free(torch.zeros(1, 2048), memory=2**16)
    with torch.no_grad():
        sums.step(*rows(1600))
    assert sums.future is not None and sums.future.numel() * sums.future.element_size() <= 2**16


def test_a_bias_that_refuses_lags_is_asked_for_those_it_has() -> None:
    logs, asked = torch.randn(HEADS, 300, dtype=torch.float64), []

    def strict(n: int) -> Tensor:
        asked.append(n)
        if n > 300:
            raise ValueError("no such lag")
        return logs[:, :n]

    parts = rows(301)
    sums = FreeSums(strict, block=8, crossover=32)
    with torch.no_grad():
        got = decode_from(sums, tuple(z[:, :, :300] for z in parts))
        torch.testing.assert_close(ratio(got), dense(*(z[:, :, :300] for z in parts), logs), rtol=0, atol=1e-11)
        assert len(asked) < 40
        with pytest.raises(ValueError, match="no such lag"):
            sums.step(*(z[:, :, 300:] for z in parts))
    assert sums.length == len(sums.rows) == 300


def test_hidden_rows_under_a_spike() -> None:
    """Where padding hides the keys of the large weights, the small ones must still be right."""
    logs = biases()["spikes"]
    fq, fk, x = rows(700)
    x[:, :, :250], fk[:, :, :250] = 0, 0
    sums = free(logs)
    sums.masked = True
    with torch.no_grad():
        got = ratio(decode(sums, (fq, fk, x), [50]))
    real = dense(*(z[:, :, 250:] for z in (fq, fk, x)), logs)
    torch.testing.assert_close(got[:, :, 250:], real, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["band", "free"])
def test_gradients_and_changes_of_mode(kind: str) -> None:
    table = torch.randn(HEADS, 101, dtype=torch.float64, requires_grad=True)

    def logs(n: int) -> Tensor:
        return table[:, torch.arange(n).clamp(max=100)]

    def make() -> BandSums | FreeSums:
        return BandSums(logs, Tail(100)) if kind == "band" else FreeSums(logs, block=8, crossover=32)

    parts = tuple(z.requires_grad_() for z in rows(260))
    wanted = dense(*parts, logs(260))
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    got = ratio(decode(make(), parts, [1, 60, 100]))
    leaves = [*parts, table]
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, wanted))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    sums, out = make(), []
    for i in range(0, 260, 20):
        with torch.set_grad_enabled(i % 3 == 1):
            out.append(sums.step(*(z[:, :, i : i + 20] for z in parts)).detach())
    torch.testing.assert_close(ratio(torch.cat(out, 2)), wanted.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["band", "free"])
def test_reorder(kind: str) -> None:
    def make() -> BandSums | FreeSums:
        return BandSums(lambda n: torch.zeros(1, n), Tail(9)) if kind == "band" else free(biases()["normal"])

    parts, order = rows(400), torch.tensor([1, 1, 0])
    whole, sums = make(), make()
    with torch.no_grad():
        want = ratio(whole.step(*(z[order] for z in parts)))[:, :, 300:]
        sums.step(*(z[:, :, :300] for z in parts))
        sums.reorder(order)
        got = ratio(sums.step(*(z[order, :, 300:] for z in parts)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_future_is_never_met() -> None:
    """Bit for bit: what comes later, were it NaN, changes nothing."""
    parts = rows(200)
    with torch.no_grad():
        for make in (lambda: free(biases()["normal"]), lambda: BandSums(lambda n: torch.zeros(1, n), Tail(9))):
            clean, poisoned = make(), make()
            want = clean.step(*parts)[:, :, :130]
            worse = [torch.cat([z[:, :, :130], torch.full_like(z[:, :, 130:], math.nan)], 2) for z in parts]
            torch.testing.assert_close(decode(poisoned, tuple(worse), [130, 70])[:, :, :130], want, rtol=0, atol=1e-13)


def test_staircase_is_the_definition() -> None:
    g = torch.Generator().manual_seed(4)
    z = torch.randn(2, 2, 1, 3, 1, 256, generator=g, dtype=torch.float64)
    c = torch.randn(2, 2, 1, 1, 256, generator=g, dtype=torch.float64)
    c[..., 200] = 1e40  # rows below 200 must not know
    got, _ = future.staircase(z, c)
    want = torch.stack(
        [sum((c[..., k] * z[..., r - k] for k in range(1, r + 1)), 0 * z[..., 0] * c[..., 0]) for r in range(200)], -1
    )
    want = want.expand(2, 2, 2, 3, 1, 200)
    torch.testing.assert_close(got[..., :200], want, rtol=0, atol=1e-10)


def test_the_object_decides_by_the_reach() -> None:
    zeros = lambda n: torch.zeros(1, n)  # noqa: E731
    assert isinstance(online_sums(zeros, Tail(128)), BandSums)
    assert isinstance(online_sums(zeros, Tail(CROSSOVER + 1)), FreeSums)
    assert isinstance(online_sums(zeros, None), FreeSums)
    with pytest.raises(ValueError, match="cannot be summed as it goes"):
        FreeSums(lambda n: 70.0 * torch.arange(n).view(1, -1)).step(*rows(10))
    with pytest.raises(ValueError, match="power of two"):
        FreeSums(zeros, block=12)
