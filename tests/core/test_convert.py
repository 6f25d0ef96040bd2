"""Converting a network to another mixer: the same weights, and in the limit of many features the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.mixers.self_attention import SelfAttention
from relpos.models import Seq2Seq, Transformer
from relpos.models.convert import convert


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(encoding: Any = "learned_bias", kind: type = Transformer, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    m = kind(11, 24, 2, 3, encoding, **options).double()
    for p in m.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.15)
    return m.eval()


def answer(m: nn.Module) -> Tensor:
    ids = torch.randint(11, (3, 9), generator=seeded())
    if isinstance(m, Seq2Seq):
        mask = torch.arange(9) < torch.tensor([[9], [4], [7]])
        return m(ids, ids.flip(1), mask).detach()
    return m(ids).detach()


def attentions(m: nn.Module) -> list[SelfAttention]:
    return [layer for layer in m.modules() if isinstance(layer, SelfAttention)]


@pytest.mark.parametrize("kind", [Transformer, Seq2Seq])
@pytest.mark.parametrize(
    ("encoding", "normalize"),
    [("learned_bias", True), ("learned_bias", False), ("t5", False), ("t5", True), ("alibi", True), (None, False)],
)
def test_with_many_features_it_is_the_same_function(encoding: Any, normalize: bool, kind: type) -> None:
    """Also with T5, whose q.k is not divided by sqrt(dim); the error falls like 1 / sqrt(features)."""
    exact = model(encoding, kind, normalize=normalize)
    size = 0.3 if normalize else 0.06 if encoding == "t5" else 0.1
    for layer in attentions(exact):  # at which the exponential matters and the features still converge
        nn.init.normal_(layer.q.weight, std=size)
        nn.init.normal_(layer.k.weight, std=size)
    want = answer(exact)

    def error(count: int) -> float:
        found = [answer(convert(exact, feature_count=count, generator=seeded(s))) for s in range(4)]
        return float(torch.stack([(each - want).square().mean() for each in found]).mean().sqrt() / want.std())

    few, many = error(32), error(32 * 64)
    assert many < 0.08 and 4 < few / many < 16


def test_weights_are_shared_and_the_original_is_untouched() -> None:
    exact = model("learned_bias", Seq2Seq, normalize=True, share=True)
    before = answer(exact)
    twin = convert(exact, feature_count=8, generator=seeded())
    assert torch.equal(answer(exact), before) and not torch.equal(answer(twin), before)
    assert {id(p) for p in exact.parameters()} == {id(p) for p in twin.parameters()}
    assert [layer.mixer for layer in attentions(exact)] == ["softmax"] * 4
    assert [layer.mixer for layer in attentions(twin)] == ["kernelized"] * 4
    assert len({id(layer.encoding) for layer in attentions(twin)}) == 2  # one a side, as before
    with torch.no_grad():
        twin.embedding.weight.mul_(2)
    assert not torch.equal(answer(exact), before)


def test_features_come_from_the_generator_and_differ_by_layer() -> None:
    exact = model(normalize=True)
    one, same, other = (convert(exact, feature_count=8, generator=seeded(s)) for s in (1, 1, 2))
    drawn = [[layer.features.weight for layer in attentions(m)] for m in (one, same, other)]
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(answer(one), answer(same))
    assert not torch.equal(drawn[0][0], drawn[2][0]) and not torch.equal(drawn[0][0], drawn[0][1])
    sphere = convert(exact, features="sphere", feature_count=5)
    assert {type(layer.features).__name__ for layer in attentions(sphere)} == {"SpherePRF"}


@pytest.mark.parametrize("encoding", ["learned_bias", "t5"])
@pytest.mark.parametrize("normalize", [True, False])
def test_there_and_back_is_where_it_was(encoding: str, normalize: bool) -> None:
    exact = model(encoding, normalize=normalize)
    back = convert(convert(exact, feature_count=4), "softmax")
    torch.testing.assert_close(answer(back), answer(exact), rtol=0, atol=1e-12)


def test_decoding_of_a_converted_network_equals_the_whole() -> None:
    m = convert(model("learned_bias", normalize=True, encoding_options={"max_lag": 4}), feature_count=6)
    assert isinstance(m, Transformer)
    prompt = torch.tensor([[1, 5, 2], [7, 7, 3]])
    got, want = m.generate(prompt, 8, temperature=0), prompt
    for _ in range(8):
        want = torch.cat([want, m(want)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(got, want)


def test_a_layer_alone() -> None:
    torch.manual_seed(0)
    layer = rp.SelfAttention(12, 3, "t5", normalize=True).double().eval()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    twin = convert(layer, feature_count=3000, generator=seeded())
    assert isinstance(twin, SelfAttention) and not twin.training
    torch.testing.assert_close(twin(x), layer(x), rtol=0.1, atol=0.02)


def test_what_means_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="RoPE acts on q and k in softmax attention"):
        convert(model("rope"))
    with pytest.raises(ValueError, match="trained with normalize=False and the features have normalize=True"):
        convert(model(normalize=False), features=rp.features.PRF(8, 4))
    with pytest.raises(ValueError, match="Linear has no SelfAttention"):
        convert(nn.Linear(2, 2))
