"""The Transformer of the comparisons: what it computes, that its cache changes nothing, how encodings are shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from tests.core.naive import ToyBias
from tests.core.test_self_attention import Ramp

VOCABULARY = 11


def model(encoding: Any = "learned_bias", **options: Any) -> rp.models.Transformer:
    torch.manual_seed(0)
    m = rp.models.Transformer(VOCABULARY, 12, 2, 3, encoding, **options).double()
    for p in m.parameters():  # larger than at init, so that the encoding and the order of tokens matter
        if p.dim() > 1:
            nn.init.normal_(p, std=0.4)
    return m.eval()


def tokens(n: int = 9, batch: int = 2) -> Tensor:
    return torch.randint(VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(n))


def by_hand(m: rp.models.Transformer, ids: Tensor) -> Tensor:
    x = m.embedding.weight[ids]
    for block in m.blocks:
        x = x + block.attention(nn.functional.layer_norm(x, (12,)))  # the norms are at their initial 1 and 0
        hidden = nn.functional.gelu(block.mlp[0](nn.functional.layer_norm(x, (12,))))
        x = x + block.mlp[2](hidden)
    return nn.functional.layer_norm(x, (12,)) @ m.embedding.weight.T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("encoding", [None, "nope", "learned_bias"])
def test_equals_the_definition(encoding: Any, causal: bool) -> None:
    m = model(encoding, causal=causal)
    torch.testing.assert_close(m(tokens()), by_hand(m, tokens()), rtol=0, atol=1e-11)


@pytest.mark.parametrize("encoding", [None, "learned_bias", ToyBias(3), Ramp()])
def test_a_decoder_does_not_see_ahead_and_an_encoder_does(encoding: Any) -> None:
    ids = tokens()
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
    m = model(encoding)
    assert torch.equal(m(ids)[:, :5], m(changed)[:, :5]) and not torch.equal(m(ids)[:, 5:], m(changed)[:, 5:])
    both = model(encoding, causal=False)
    assert (both(ids)[:, :5] - both(changed)[:, :5]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("encoding", [None, "learned_bias", ToyBias(3), Ramp()])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"kv_heads": 1}])
def test_generation_with_a_cache_is_the_argmax_of_the_whole(options: dict[str, Any], encoding: Any) -> None:
    m = model(encoding, **options)
    prompt = tokens(4)
    got = m.generate(prompt, 12, temperature=0)
    want = prompt
    for _ in range(12):
        want = torch.cat([want, m(want)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(got, want)
    assert len(set(got[0].tolist())) > 2  # not one token over and over, which any cache would get right


def test_chunked_forward_equals_the_whole() -> None:
    for encoding in ("learned_bias", Ramp()):
        m = model(encoding)
        streams = m.streams()
        parts = [m(part, streams=streams) for part in tokens().split([4, 1, 2, 2], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), m(tokens()), rtol=0, atol=1e-11)


def test_sampling() -> None:
    m = model()
    prompt = tokens(3)
    runs = [m.generate(prompt, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].shape == (2, 11) and torch.equal(runs[0][:, :3], prompt)
    narrow = m.generate(prompt, 8, top_p=1e-9, generator=torch.Generator().manual_seed(5))
    assert torch.equal(narrow, m.generate(prompt, 8, temperature=0))
    assert torch.equal(m.generate(prompt, 0), prompt)


def test_top_p_keeps_the_smallest_set_with_that_mass() -> None:
    from relpos.models.transformer import _sample

    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    drawn = _sample(logits, 1.0, 0.7, torch.Generator().manual_seed(0)).flatten()
    share = torch.bincount(drawn, minlength=4) / 4000
    assert share[2:].sum() == 0 and abs(share[0] - 0.5 / 0.8) < 0.04
    hot = torch.bincount(_sample(logits, 0.5, None, torch.Generator().manual_seed(0)).flatten(), minlength=4) / 4000
    squares = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert (hot - squares / squares.sum()).abs().max() < 0.04


def test_generation_leaves_the_mode_as_it_was() -> None:
    m = model().train()
    m.generate(tokens(2), 1)
    assert m.training and m.blocks[0].training
    with pytest.raises((IndexError, ValueError)):
        m.generate(torch.tensor([[VOCABULARY + 3]]), 1)
    assert m.training


def test_share() -> None:
    """By name one a layer, or one for all on request; an object is one for all; gradients then add up."""
    own, one, given = model(), model(share=True), model(ToyBias(3))
    assert [name for name, _ in own.encodings()] == ["layer 1", "layer 2"]
    assert [name for name, _ in one.encodings()] == ["all layers"] == [name for name, _ in given.encodings()]
    assert own.blocks[0].attention.encoding is not own.blocks[1].attention.encoding
    assert one.blocks[0].attention.encoding is one.blocks[1].attention.encoding
    count = [sum("table" in name for name, _ in m.named_parameters()) for m in (own, one, given)]
    assert count == [2, 1, 1]
    table = next(p for name, p in one.named_parameters() if "table" in name)
    (grad,) = torch.autograd.grad(one(tokens()).square().mean(), table)
    parts = []
    for kept in range(2):
        frozen = rp.encodings.LearnedBias(3, 128).double().requires_grad_(False)
        frozen.load_state_dict({"table": table.detach()})
        live = rp.encodings.LearnedBias(3, 128).double()
        live.table = table
        for index, block in enumerate(one.blocks):
            block.attention.encoding = live if index == kept else frozen
        parts.append(torch.autograd.grad(one(tokens()).square().mean(), table)[0])
    torch.testing.assert_close(grad, parts[0] + parts[1], rtol=0, atol=1e-12)


def test_absolute_is_added_once_to_the_embeddings() -> None:
    m = model(Ramp())
    assert [name for name, _ in m.encodings()] == ["input"]
    assert all(block.attention.encoding is None for block in m.blocks)
    shifted = m(tokens(), positions=torch.arange(9) + 20)
    assert (shifted - m(tokens())).abs().max() > 1e-4


def test_padding_and_documents() -> None:
    m = model()
    ids = tokens()
    mask = torch.arange(9)[None] >= torch.tensor([[0], [3]])
    torch.testing.assert_close(m(ids, key_mask=mask)[1, 3:], m(ids[1:, 3:])[0], rtol=0, atol=1e-11)
    segments = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    torch.testing.assert_close(m(ids, segments=segments)[:, 4:], m(ids[:, 4:]), rtol=0, atol=1e-11)


def test_dropout_acts_in_training_only() -> None:
    m = model(dropout=0.3, attention_dropout=0.3)
    assert torch.equal(m(tokens()), m(tokens()))
    m.train()
    assert not torch.equal(m(tokens()), m(tokens()))


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    m = rp.models.Transformer(50, 32, 4, 4, "learned_bias")
    ids = torch.randint(50, (8, 33))
    loss = nn.functional.cross_entropy(m(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - float(torch.tensor(50.0).log())) < 0.1


def test_every_parameter_learns() -> None:
    m = model(expansion=2)
    m(tokens()).square().sum().backward()
    for name, p in m.named_parameters():
        dead = name.endswith("attention.k.bias")  # a constant on all keys moves no softmax
        assert p.grad is not None and (dead or p.grad.abs().max() > 1e-9), name
