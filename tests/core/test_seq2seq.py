"""The encoder-decoder: what it computes, that caches, masks and padding change nothing, and that beams search."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.models import Seq2Seq
from relpos.models.search import beam
from relpos.models.seq2seq import Decoding
from tests.core.naive import ToyBias
from tests.core.test_self_attention import Ramp

VOCABULARY, START, END = 13, 1, 2
ENCODINGS = [None, "learned_bias", "rope", "t5", "alibi", ToyBias(3), Ramp()]


def model(encoding: Any = "learned_bias", **options: Any) -> Seq2Seq:
    torch.manual_seed(0)
    m = Seq2Seq(VOCABULARY, 12, 2, 3, encoding, **options).double()
    for p in m.parameters():  # larger than at init, so that the encoding and the order of tokens matter
        if p.dim() > 1:
            nn.init.normal_(p, std=0.4)
    return m.eval()


def tokens(n: int, batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(seed + 100 * n))


def sources(m: int = 7) -> tuple[Tensor, Tensor]:
    ids = tokens(m)
    mask = torch.arange(m) < torch.tensor([[m], [m - 3], [1]])
    return ids.masked_fill(~mask, 0), mask


def test_equals_the_definition() -> None:
    m, (source, mask), target = model("learned_bias", decoder_depth=1), sources(), tokens(5)

    def norm(x: Tensor) -> Tensor:  # the norms are at their initial 1 and 0
        return nn.functional.layer_norm(x, (12,))

    def mlp(block: Any, x: Tensor) -> Tensor:
        return block.mlp[2](nn.functional.gelu(block.mlp[0](x)))

    x = m.embedding.weight[source] * 12**0.5
    for block in m.encoder:
        x = x + block.attention(norm(x), key_mask=mask)
        x = x + mlp(block, norm(x))
    memory, block = norm(x), m.decoder[0]
    y = m.embedding.weight[target] * 12**0.5
    y = y + block.attention(norm(y))
    heads = [block.cross.q(norm(y)), block.cross.k(memory), block.cross.v(memory)]
    q, k, v = (h.unflatten(-1, (3, 4)).transpose(1, 2) for h in heads)
    seen = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
    y = y + block.cross.out(seen.transpose(1, 2).flatten(2))
    y = norm(y + mlp(block, norm(y))) @ m.embedding.weight.T
    torch.testing.assert_close(m(source, target, mask), y, rtol=0, atol=1e-11)
    assert [b.attention.causal for b in (*m.encoder, *m.decoder)] == [False, False, True]


@pytest.mark.parametrize("encoding", [*ENCODINGS, "sinusoidal"])
def test_padding_is_never_read_and_the_future_is_not_seen(encoding: Any) -> None:
    m, (source, mask), target = model(encoding), sources(), tokens(6)
    out = m(source, target, mask)
    other = source.masked_fill(~mask, 5)
    assert torch.equal(m(other, target, mask), out)
    torch.testing.assert_close(m(source[1:2, :4], target[1:2], None), out[1:2], rtol=0, atol=1e-11)
    changed = target.clone()
    changed[:, 4] = START
    after = m(source, changed, mask)
    torch.testing.assert_close(after[:, :4], out[:, :4], rtol=0, atol=1e-12)
    assert (after[:, 4:] - out[:, 4:]).abs().amax(-1).min() > 1e-6
    swapped = source.clone()
    swapped[0, 0] = 3 + (source[0, 0] - 2) % 10
    assert (m(swapped, target, mask)[0] - out[0]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("encoding", [*ENCODINGS, "sinusoidal"])
def test_greedy_decoding_with_caches_is_the_argmax_of_the_whole(encoding: Any) -> None:
    m, (source, mask) = model(encoding), sources()
    got = m.translate(source, mask, start=START, end=END, steps=11)
    target = torch.full((3, 1), START)
    for _ in range(got.shape[1]):
        target = torch.cat([target, m(source, target, mask)[:, -1].argmax(-1, keepdim=True)], 1)
    want = target[:, 1:]
    ended = (want == END).cumsum(1) - (want == END).long() > 0
    assert torch.equal(got, want.masked_fill(ended, END))


@pytest.mark.parametrize(
    ("encoding", "options"),
    [(encoding, {}) for encoding in [*ENCODINGS, "sinusoidal"]]
    + [("learned_bias", {"normalize": True}), ("t5", {"normalize": True, "temperature": 0.3})]
    + [("learned_bias", {"mixer": "kernelized", "feature_count": 5}), ("sinusoidal", {"mixer": "kernelized"})],
)
@torch.no_grad()
def test_cached_steps_equal_the_whole_also_when_rows_are_reordered(encoding: Any, options: dict[str, Any]) -> None:
    m, (source, mask), target = model(encoding, **options), sources(), tokens(8)
    decoding, whole = Decoding(m, source, mask), m(source, target, mask)
    for t in range(4):
        torch.testing.assert_close(decoding.step(target[:, t : t + 1]), whole[:, t], rtol=0, atol=1e-11)
    rows = torch.tensor([2, 0, 0, 1])
    decoding.reorder(rows)
    for t in range(4, 8):
        torch.testing.assert_close(decoding.step(target[rows, t : t + 1]), whole[rows, t], rtol=0, atol=1e-11)


@pytest.mark.parametrize("encoding", [None, "learned_bias", "rope", "sinusoidal"])
@torch.no_grad()
def test_beams(encoding: Any) -> None:
    """One beam is greedy; more are never worse by their own measure, and as good as every answer when all are kept."""
    m, (source, mask) = model(encoding), sources(5)
    one = m.translate(source, mask, start=START, end=END, steps=6, beams=1)
    first = torch.full((3, 1), START)
    assert torch.equal(beam(Decoding(m, source, mask), first, END, 6, 1, 1.0), one)
    small = Seq2Seq(4, 12, 1, 3, encoding).double().eval()
    nn.init.normal_(small.embedding.weight, std=1.0)
    s, penalty = torch.tensor([[3, 1], [0, 3]]), 1.4
    best = small.translate(s, start=1, end=2, steps=3, beams=64, length_penalty=penalty)
    for row in range(2):
        scores = {}
        for answer in itertools.product(range(4), repeat=3):
            cut = answer[: answer.index(2) + 1] if 2 in answer else answer
            log_p = small(s[row : row + 1], torch.tensor([[1, *cut[:-1]]])).log_softmax(-1)[0]
            scores[cut] = float(sum(log_p[i, t] for i, t in enumerate(cut))) / len(cut) ** penalty
        want = max(scores, key=scores.__getitem__)
        assert tuple(best[row, : len(want)].tolist()) == want


def test_encodings_are_built_for_their_side_and_shared_as_asked() -> None:
    own, one = model("t5"), model("learned_bias", share=True)
    assert [name for name, _ in own.encodings()] == ["encoder, all layers", "decoder, all layers"]
    assert [e.causal for _, e in own.encodings()] == [False, True]
    assert [name for name, _ in one.encodings()] == ["encoder, all layers", "decoder, all layers"]
    assert len(list(model("learned_bias").encodings())) == 4
    assert [name for name, _ in model("sinusoidal").encodings()] == ["input"]


def test_it_learns_to_reverse() -> None:
    """Gradients reach every parameter, and a few steps lower the loss."""
    torch.manual_seed(1)
    m = Seq2Seq(VOCABULARY, 24, 1, 2, "learned_bias", dropout=0.1)
    optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
    source = tokens(4, 32)
    target = torch.cat([torch.full((32, 1), START), source.flip(1)], 1)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(m(source, target[:, :-1]).transpose(1, 2), target[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in m.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_bad_input() -> None:
    m = model()
    with pytest.raises(ValueError, match="heads divides dim"):
        Seq2Seq(VOCABULARY, 10, 1, 3)
    with pytest.raises(ValueError, match="target is an integer tensor"):
        m(tokens(3), tokens(3).double())
    with pytest.raises(ValueError, match="beams"):
        m.translate(tokens(3), start=START, end=END, steps=3, beams=0)
    with pytest.raises(TypeError, match="boolean"):
        m(tokens(3), tokens(3), torch.ones(3, 3))
    assert rp.models.Seq2Seq is Seq2Seq
    m.train()
    m.translate(tokens(3), start=START, end=END, steps=2)
    assert m.training


@pytest.mark.parametrize("encoding", ["learned_bias", None, "alibi"])
@torch.no_grad()
def test_beams_in_kernelised_attention(encoding: Any) -> None:
    m, (source, mask) = model(encoding, mixer="kernelized", feature_count=4), sources(5)
    one = m.translate(source, mask, start=START, end=END, steps=6)
    first = torch.full((3, 1), START)
    assert torch.equal(beam(Decoding(m, source, mask), first, END, 6, 1, 1.0), one)
    m.translate(source, mask, start=START, end=END, steps=6, beams=3)
