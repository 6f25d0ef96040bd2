"""One set of named positions serves encodings of every sort: each reads what it can."""

from __future__ import annotations

import pytest
import torch

import relpos as rp
from relpos.models import FrameTransformer, Transformer

HEADS, DIM, N = 2, 8, 7


def named(n: int = N, start: int = 0) -> dict[str, object]:
    index = torch.arange(start, start + n)
    return {"index": index, "section": index // 3, "time": index.double() / 2}


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, HEADS, N, DIM, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("name", ["t5", "alibi", "shaw", "rope", "fire", "xpos"])
def test_an_encoding_of_integers_reads_the_index(name: str) -> None:
    torch.manual_seed(0)
    options = {"dim": DIM} if name in ("shaw", "rope", "xpos") else {"heads": HEADS}
    encoding = rp.encoding(name, **options).double()
    positions = named(start=5)
    want = rp.attention(*tensors(), encoding, q_pos=positions["index"], k_pos=positions["index"], causal=True)
    got = rp.attention(*tensors(), encoding, q_pos=positions, k_pos=positions, causal=True)
    assert torch.equal(got, want)


def test_an_encoding_of_times_reads_the_one_channel_that_it_takes() -> None:
    encoding = rp.encoding("time_rope", dim=DIM, shortest=1.0, longest=100.0).double()
    positions = named()
    want = rp.attention(*tensors(), encoding, q_pos=positions["time"], k_pos=positions["time"])
    assert torch.equal(rp.attention(*tensors(), encoding, q_pos=positions, k_pos=positions), want)


def test_where_no_channel_fits_the_error_says_what_does() -> None:
    encoding = rp.encodings.T5Bias(HEADS).double()
    only = {"section": torch.arange(N)}
    with pytest.raises(TypeError, match="T5Bias takes Index"):
        rp.attention(*tensors(), encoding, q_pos=only, k_pos=only)


def test_kernelised_attention_and_its_stream_select_too() -> None:
    encoding = rp.encodings.ALiBi(HEADS).double()
    phi = rp.features.PRF(DIM, 4).double()
    positions = named()
    got = rp.linear_attention(*tensors(), encoding, features=phi, q_pos=positions, k_pos=positions, causal=True)
    want = rp.linear_attention(*tensors(), encoding, features=phi, causal=True)
    assert torch.equal(got, want)
    stream = rp.KernelStream(encoding, features=phi)
    rows = [stream.step(*(x[:, :, i : i + 1] for x in tensors()), position=named(1, i)) for i in range(N)]
    torch.testing.assert_close(torch.cat(rows, 2), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoding", ["nope", "sinusoidal", "rope", "shaw", "t5"])
def test_networks_take_named_positions_and_decode_with_them(encoding: str) -> None:
    torch.manual_seed(0)
    model = Transformer(11, 16, 2, HEADS, encoding).double()
    tokens = torch.randint(0, 11, (2, N))
    whole = model(tokens, positions=named())
    torch.testing.assert_close(whole, model(tokens), rtol=0, atol=1e-12)
    streams = model.streams()
    rows = [model(tokens[:, i : i + 1], positions=named(1, i), streams=streams) for i in range(N)]
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-10)


def test_a_transformer_of_frames() -> None:
    torch.manual_seed(0)
    prior = torch.linspace(-3, 3, 5)
    model = FrameTransformer(6, 5, 16, 1, HEADS, "rope", prior=prior)
    frames = torch.rand(2, N, 6) < 0.5
    out = model(frames)
    assert out.shape == (2, N, 5)
    changed = frames.clone()
    changed[:, 4:] = ~changed[:, 4:]
    assert torch.equal(model(changed)[:, :4], out[:, :4])  # causal
    torch.testing.assert_close(model(torch.zeros(1, 3, 6)).mean((0, 1)), prior, atol=1.0, rtol=0)
    with pytest.raises(ValueError, match=r"frames have shape \(batch, n, 6\)"):
        model(torch.rand(2, N, 5))
    with pytest.raises(ValueError, match="prior"):
        FrameTransformer(6, 5, 16, 1, HEADS, prior=torch.zeros(6))
