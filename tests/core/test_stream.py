"""Decoding with a cache equals the rows of the parallel causal call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import State, States
from relpos.positions import Positions
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, inputs


def make(form: str, heads: int = 4, dim: int = 4) -> Any:
    torch.manual_seed(2)
    made = {
        "none": lambda: None,
        "bias": lambda: ToyBias(heads),
        "row": lambda: ToyRow(heads),
        "content": lambda: ToyContent(heads, dim),
        "turn": lambda: ToyTurn(dim),
    }[form]()
    return None if made is None else made.double()


FORMS = ["none", "bias", "row", "content", "turn"]
CHUNKS = {"tokens": [1] * 11, "prefill": [8, 1, 1, 1], "chunks": [3, 0, 5, 2, 1], "all": [11]}


def decode(stream: rp.Stream, tensors: tuple[Tensor, ...], chunks: list[int], **by_token: Tensor) -> Tensor:
    """All outputs; what is in by_token (batch or nothing, n) is handed over chunk by chunk."""
    out, at = [], 0
    for size in chunks:
        part = [x[:, :, at : at + size] for x in tensors]
        options = {name: x[..., at : at + size] for name, x in by_token.items()}
        out.append(stream.step(*part, **options))
        at += size
    assert stream.length == at
    return torch.cat(out, 2)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("chunks", list(CHUNKS))
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_parallel_result(form: str, chunks: str, gradient: bool) -> None:
    encoding = make(form)
    tensors = inputs(2, 4, 11, kv_heads=2)
    with torch.set_grad_enabled(gradient):
        for window in (None, 3):
            want = rp.attention(*tensors, encoding, causal=True, window=window)
            got = decode(rp.Stream(encoding, window=window), tensors, CHUNKS[chunks])
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["dense", "tiled", "generic"])
@pytest.mark.parametrize("form", FORMS)
def test_every_kernel(form: str, kernel: str) -> None:
    tensors = inputs(1, 4, 9)
    want = rp.attention(*tensors, make(form), causal=True, scale=0.3)
    got = decode(rp.Stream(make(form), kernel=kernel, scale=0.3), tensors, [2, 1, 6])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("leaf", ["q", "k", "v", "table"])
def test_gradients_through_the_cache(leaf: str) -> None:
    """Also where only some of the inputs require one: the cache must not be overwritten under a saved graph."""
    encoding = make("bias").requires_grad_(leaf == "table")
    tensors = dict(zip("qkv", inputs(2, 4, 7), strict=True))
    target = encoding.table if leaf == "table" else tensors[leaf].requires_grad_()
    q, k, v = tensors.values()
    want = torch.autograd.grad(rp.attention(q, k, v, encoding, causal=True).square().sum(), target)[0]
    got = torch.autograd.grad(decode(rp.Stream(encoding), (q, k, v), [1, 1, 2, 3]).square().sum(), target)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_gradient_mode_may_change_on_the_way() -> None:
    q, k, v = inputs(1, 4, 8, grad=True)
    want = rp.attention(q, k, v, make("bias"), causal=True)
    stream, out = rp.Stream(make("bias")), []
    for i in range(8):
        with torch.set_grad_enabled(i in (2, 3, 6)):
            out.append(stream.step(*(x[:, :, i : i + 1] for x in (q, k, v))))
    torch.testing.assert_close(torch.cat(out, 2), want, rtol=0, atol=1e-12)


def test_a_thousand_steps() -> None:
    """1024 steps in float64 within 1e-10 of the parallel result."""
    encoding = make("bias", 2)
    tensors = inputs(1, 2, 1024)
    with torch.no_grad():
        want = rp.attention(*tensors, encoding, causal=True, kernel="hankel")
        got = decode(rp.Stream(encoding), tensors, [1] * 1024)
    assert (got - want).abs().max() < 1e-10


def test_the_callers_tensors_may_be_reused() -> None:
    """The cache keeps values, not references: one buffer may carry every step's inputs."""
    tensors = inputs(1, 4, 6)
    want = rp.attention(*tensors, make("bias"), causal=True)
    for gradient in (False, True):
        stream, out = rp.Stream(make("bias")), []
        q, k, v = (torch.empty(1, 4, 1, 4, dtype=torch.float64) for _ in range(3))
        with torch.set_grad_enabled(gradient):
            for i in range(6):
                for held, x in zip((q, k, v), tensors, strict=True):
                    held.copy_(x[:, :, i : i + 1])
                out.append(stream.step(q, k, v).detach().clone())
        torch.testing.assert_close(torch.cat(out, 2), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["none", "bias", "turn"])
def test_left_padding(form: str) -> None:
    encoding = make(form)
    tensors = inputs(2, 4, 9)
    mask = torch.arange(9)[None] >= torch.tensor([[0], [4]])
    want = rp.attention(*tensors, encoding, causal=True, key_mask=mask)
    for chunks in ([1] * 9, [6, 1, 1, 1], [2, 7]):
        got = decode(rp.Stream(encoding), tensors, chunks, key_mask=mask)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert not got[1, :, :4].any()
    prompt_only = rp.Stream(encoding)
    first = prompt_only.step(*(x[:, :, :6] for x in tensors), key_mask=mask[:, :6])
    rest = [prompt_only.step(*(x[:, :, i : i + 1] for x in tensors)) for i in range(6, 9)]  # the new tokens are real
    torch.testing.assert_close(torch.cat([first, *rest], 2), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["bias", "turn"])
@pytest.mark.parametrize("batched", [False, True])
def test_positions(form: str, batched: bool) -> None:
    """Times, and integers of each row's own, as left-padded prompts have."""
    encoding = make(form)
    tensors = inputs(2, 4, 8)
    times = torch.tensor([[0.0, 0.5, 1.5, 1.5, 4.0, 4.5, 9.0, 10.0], [3.0, 3.5, 3.5, 4.0, 4.0, 5.0, 5.5, 80.0]])
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4]])
    for positions in (times, index):
        pos = positions if batched else positions[0]
        want = rp.attention(*tensors, encoding, q_pos=pos, k_pos=pos, causal=True)
        for chunks in ([1] * 8, [3, 5]):
            got = decode(rp.Stream(encoding), tensors, chunks, position=pos)
            # repeated integers see each other in parallel, and cannot in a stream: only the other row compares
            rows = slice(0, 1) if positions is index and batched else slice(0, 2)
            torch.testing.assert_close(got[rows], want[rows], rtol=0, atol=1e-12)


def test_named_positions() -> None:
    class Ages(ToyBias):
        """Reads the channel "time" of named positions."""

        takes = (dict,)

        def prepare(
            self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
        ) -> States:
            assert isinstance(q_pos, dict) and isinstance(k_pos, dict)
            return {
                "q_pos": State(q_pos["time"].values, "query"),
                "k_pos": State(k_pos["time"].values, "key"),
                "whole.table": State(self.table, "whole"),
                "whole.slope": State(self.slope, "whole"),
            }

        def bias(self, q_pos: Positions, k_pos: Positions) -> Tensor:
            assert isinstance(q_pos, dict) and isinstance(k_pos, dict)
            return super(ToyBias, self).pairs(q_pos["time"].values, k_pos["time"].values)

    encoding = Ages(4).double()
    tensors = inputs(1, 4, 6)
    times = torch.tensor([0.0, 1.0, 1.5, 7.0, 8.0, 8.5])
    names = {"time": times, "part": torch.tensor([0, 0, 1, 1, 0, 2])}
    want = rp.attention(*tensors, encoding, q_pos=names, k_pos=names, causal=True)
    plain = make("bias")
    plain.load_state_dict(encoding.state_dict())
    torch.testing.assert_close(
        want, rp.attention(*tensors, plain, q_pos=times, k_pos=times, causal=True), rtol=0, atol=1e-12
    )
    stream, out = rp.Stream(encoding), []
    for a, b in ((0, 1), (1, 4), (4, 6)):
        at = {name: x[a:b] for name, x in names.items()}
        out.append(stream.step(*(x[:, :, a:b] for x in tensors), position=at))
    torch.testing.assert_close(torch.cat(out, 2), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_reorder(form: str, padded: bool, given: bool) -> None:
    """Rows change places, tokens do not; a beam may grow out of one row."""
    for rows in ([1, 0], [1, 1], [0], [0, 0, 1]):
        tensors = inputs(2, 4, 7)
        mask = torch.tensor([[True] * 7, [False, False, True, True, True, True, True]])
        pos = torch.arange(7) + torch.tensor([[0], [0]])
        picked = torch.tensor(rows)
        after = [torch.cat([x[picked, :, :4], x[:1, :, 4:].expand(len(rows), -1, -1, -1)], 2) for x in tensors]
        options: dict[str, Any] = {"key_mask": mask[picked]} if padded else {}
        want = rp.attention(*after, make(form), causal=True, **options)
        stream = rp.Stream(make(form))
        first = {"key_mask": mask[:, :4]} if padded else {}
        stream.step(*(x[:, :, :4] for x in tensors), **first, **({"position": pos[:, :4]} if given else {}))
        stream.reorder(picked)
        last = {"position": pos[picked][:, 4:]} if given else {}
        got = stream.step(*(x[:, :, 4:] for x in after), **last)
        torch.testing.assert_close(got, want[:, :, 4:], rtol=0, atol=1e-12)


def test_a_beam_from_one_row() -> None:
    q, k, v = inputs(1, 4, 5)
    want = rp.attention(q, k, v, make("bias"), causal=True)
    stream = rp.Stream(make("bias"))
    stream.step(q[:, :, :4], k[:, :, :4], v[:, :, :4])
    stream.reorder(torch.tensor([0, 0, 0]))
    got = stream.step(*(x[:, :, 4:].expand(3, -1, -1, -1) for x in (q, k, v)))
    torch.testing.assert_close(got, want[:, :, 4:].expand(3, -1, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_reset(form: str) -> None:
    stream = rp.Stream(make(form))
    decode(stream, inputs(3, 4, 5, seed=9), [2, 3])
    stream.reset()
    assert stream.length == 0
    tensors = inputs(1, 4, 6)
    got = decode(stream, tensors, [4, 2])
    torch.testing.assert_close(got, rp.attention(*tensors, make(form), causal=True), rtol=0, atol=1e-12)


def test_wrong_shapes_leave_the_stream_as_it_was() -> None:
    tensors = inputs(2, 4, 6)
    want = rp.attention(*tensors, make("bias"), causal=True)
    for gradient in (False, True):
        stream = rp.Stream(make("bias"))
        with torch.set_grad_enabled(gradient):
            stream.step(*(x[:, :, :4] for x in tensors))
            q, k, v = (x[:, :, 4:5] for x in tensors)
            wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
                ((q[:1], k[:1], v[:1]), {}),
                ((q, k[:, :2], v[:, :2]), {}),
                ((q[..., :3], k[..., :3], v), {}),
                ((q.float(), k.float(), v.float()), {}),
                ((q, k[:, :, :0], v), {}),
                ((q[0], k[0], v[0]), {}),
                ((q, k, v), {"position": torch.arange(2)}),
                ((q, k, v), {"position": torch.tensor([[4], [4], [4]])}),
                ((q, k, v), {"position": torch.tensor([4.0])}),
                ((q, k, v), {"key_mask": torch.ones(2, 2, dtype=torch.bool)}),
                ((q, k, v), {"key_mask": torch.ones(2, 1)}),
                ((q, 1, v), {}),
            ]
            for args, options in wrong:
                with pytest.raises((ValueError, TypeError)) as error:
                    stream.step(*args, **options)
                assert len(str(error.value)) > 30, error.value
                assert stream.length == 4
            got = decode_rest(stream, tensors, 4)
        torch.testing.assert_close(got, want[:, :, 4:], rtol=0, atol=1e-12)


def decode_rest(stream: rp.Stream, tensors: tuple[Tensor, ...], start: int) -> Tensor:
    return torch.cat(
        [stream.step(*(x[:, :, i : i + 1] for x in tensors)) for i in range(start, tensors[0].shape[2])], 2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types(dtype: torch.dtype) -> None:
    tensors = inputs(1, 4, 9, dtype=dtype)
    encoding = make("bias").float()
    got = decode(rp.Stream(encoding), tensors, [4, 1, 1, 3])
    want = rp.attention(*(x.double() for x in tensors), make("bias"), causal=True)
    assert got.dtype == dtype and (got.double() - want).abs().max() < 4 * torch.finfo(dtype).eps * want.abs().max()


def test_codes_are_made_once() -> None:
    """What a transform fixes for a whole sequence is fixed at the first step and survives a reset."""

    class Centred(ToyTurn):
        def make_codes(self, q_pos: Any, k_pos: Any, generator: Any = None) -> float:
            return float(k_pos.values.double().mean())

        def encode_q(self, q: Tensor, q_pos: Any, scale: float = 1.0, codes: Any = None) -> Tensor:
            return q + codes

        encode_k = encode_q

    encoding = Centred(4).double()
    tensors = inputs(1, 4, 6)
    stream = rp.Stream(encoding, codes=2.5)
    torch.testing.assert_close(
        decode(stream, tensors, [1] * 6),
        rp.attention(*tensors, encoding, causal=True, codes=2.5),
        rtol=0,
        atol=1e-12,
    )
    own = rp.Stream(encoding)
    decode(own, tensors, [5, 1])
    assert own.codes == 2.0
    own.reset()
    assert own.codes == 2.0
