"""Everything that does not fit is refused at the call, in words that name what was got and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Bias
from tests.core.naive import ToyBias, ToyContent, ToyTurn
from tests.core.test_self_attention import Ramp

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 3)
TOY = ToyBias(4)


class CausalOnly(ToyBias):
    causal_only = True


class ForGates(ToyBias):
    mixers = ("gate",)


class NeedsInput(ToyContent):
    needs_content = True


def attend(q: Any = Q, k: Any = K, v: Any = V, encoding: Any = TOY, **options: Any) -> Any:
    return lambda: rp.attention(q, k, v, encoding, **options)


ones = torch.ones
ATTENTION: dict[str, tuple[Any, str]] = {
    "rank of q": (attend(q=Q[0]), r"q has shape \(batch, heads, n, dim\), got \(4, 5, 8\)"),
    "rank of v": (attend(v=V[0]), "v has shape"),
    "no tensor": (attend(k=[1.0]), "k is a tensor .* got list"),
    "integers": (attend(q=Q.long()), "q is floating point, got torch.int64"),
    "mixed dtypes": (attend(k=K.double()), "one dtype and device; q is torch.float32 .* k torch.float64"),
    "mixed devices": (attend(v=V.to("meta")), "one dtype and device; .*v torch.float32 on meta"),
    "all on meta": (attend(Q.to("meta"), K.to("meta"), V.to("meta")), "meta device"),
    "encoding elsewhere": (attend(encoding=ToyBias(4).to("meta")), "ToyBias is on meta and q on cpu"),
    "batch": (attend(q=Q[:1]), r"agree in batch and dim; got \(1, 4, 5, 8\) and \(2, 2, 6, 8\)"),
    "width": (attend(q=Q[..., :7]), "agree in batch and dim"),
    "length of v": (attend(v=V[:, :, :5]), "k and v agree"),
    "kv heads": (attend(q=Q[:, :3], encoding=None), "key heads divide the query heads; got 2 and 3"),
    "no heads": (attend(q=Q[:, :0], encoding=None), "heads"),
    "heads of the encoding": (attend(encoding=ToyBias(3)), "ToyBias was built for 3 heads, q has 4"),
    "absolute": (attend(encoding=Ramp()), "Ramp is absolute: .*encoding.add"),
    "no encoding": (attend(encoding=torch.nn.Linear(2, 2)), "encoding is a relpos Encoding.* got Linear"),
    "class, not object": (attend(encoding=ToyBias), "encoding is a relpos Encoding"),
    "other mixer": (attend(encoding=ForGates(4)), "ForGates has no meaning in softmax attention; it works in gate"),
    "causal only": (attend(encoding=CausalOnly(4)), "CausalOnly .* pass causal=True"),
    "name with parameters": (attend(encoding="learned_bias"), "LearnedBias has parameters: build it once"),
    "unknown name": (attend(encoding="lerned_bias"), "did you mean learned_bias"),
    "kernel": (attend(kernel="flash"), "kernel is auto, dense, .* got 'flash'"),
    "kernel of a type": (attend(kernel=3), "got 3"),
    "length of q_pos": (attend(q_pos=torch.arange(4)), "q_pos holds 4 positions, .* for 5 tokens"),
    "length of k_pos": (attend(k_pos=torch.arange(5)), "k_pos holds 5 positions"),
    "batch of q_pos": (attend(q_pos=torch.arange(5).expand(3, 5)), "for 3 sequences.* batch of 2"),
    "NaN in positions": (attend(q_pos=torch.full((5,), torch.nan)), "Times positions hold NaN"),
    "falling times": (attend(q_pos=torch.tensor([0.0, 2, 1, 3, 4])), "must not decrease.*token 2"),
    "kinds of positions": (attend(q_pos=torch.zeros(5)), "one kind, got Index and Times; give both"),
    "kind for the encoding": (
        attend(q_pos=rp.positions.Grid.of(5, 1)),
        "ToyBias takes Index or Times positions, got Grid",
    ),
    "named positions": (attend(q_pos={"mark": [0] * 5}), "ToyBias takes .* got named positions"),
    "positions of two kinds": (attend(q_pos={"time": [0.0] * 5}), "positions of one kind, got Index and Times"),
    "text for positions": (attend(q_pos="abc"), "positions are a tensor or numbers, got str"),
    "key_mask shape": (attend(key_mask=ones(2, 5).bool()), r"key_mask has shape .*= \(2, 6\), got \(2, 5\)"),
    "key_mask without batch": (attend(key_mask=ones(6).bool()), "key_mask has shape"),
    "key_mask dtype": (attend(key_mask=ones(2, 6)), r"key_mask is a boolean .* got torch.float32 .*mask.bool\(\)"),
    "key_mask device": (attend(key_mask=ones(2, 6).bool().to("meta")), "on cpu .* on meta"),
    "key_mask list": (attend(key_mask=[[True] * 6] * 2), "boolean tensor .* got list"),
    "segments shape": (attend(segments=torch.zeros(2, 5).long()), r"segments of keys are integers \(2, 6\)"),
    "segments dtype": (attend(segments=torch.zeros(2, 6)), "segments of queries are integers .* got torch.float32"),
    "segments list": (attend(segments=[0] * 6), "segments is an integer tensor .* got list"),
    "segments triple": (attend(segments=(torch.zeros(5).long(),) * 3), "pair"),
    "segments of more queries": (
        attend(K.repeat(1, 2, 1, 1), Q[:, :2], V[:, :, :5], segments=torch.zeros(5).long()),
        "pair",
    ),
    "window negative": (attend(window=-1), "window is an integer >= 0 .* got -1"),
    "window float": (attend(window=1.5), "window is an integer"),
    "window triple": (attend(window=(1, 2, 3)), r"window is .* got \(1, 2, 3\)"),
    "scale NaN": (attend(scale=float("nan")), "scale is a finite number"),
    "scale text": (attend(scale="x"), "scale is a finite number or None, got 'x'"),
    "dropout": (attend(dropout=1.0), r"dropout is a probability in \[0, 1\), got 1.0"),
    "one order": (attend(q_order=torch.arange(5), causal=True), "q_order and k_order go together"),
    "order shape": (attend(q_order=torch.arange(4), k_order=torch.arange(6)), r"integer tensor \(5,\) or \(2, 5\)"),
    "order dtype": (attend(q_order=torch.zeros(5), k_order=torch.arange(6)), "an order is an integer tensor"),
    "content missing": (attend(encoding=NeedsInput(4, 8)), "NeedsInput reads the layer's input: pass content=x"),
    "content shape": (attend(encoding=NeedsInput(4, 8), content=torch.zeros(2, 5, 3)), r"content .*\(2, 6, ..\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ATTENTION))
def test_attention(case: str) -> None:
    call, message = ATTENTION[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_explain_refuses_what_attention_refuses() -> None:
    with pytest.raises(ValueError, match="window"):
        rp.explain(Q, K, V, TOY, window=-1)
    with pytest.raises(TypeError, match="one dtype"):
        rp.explain(Q, K.double(), V)


X = torch.randn(2, 5, 8)
LAYERS: dict[str, tuple[Any, str]] = {
    "heads and width": (lambda: rp.SelfAttention(8, 3), "heads divides dim, got dim=8, heads=3"),
    "kv heads": (lambda: rp.SelfAttention(8, 4, kv_heads=3), "multiple of kv_heads"),
    "no heads": (lambda: rp.SelfAttention(8, 0), "heads is positive"),
    "mixer": (lambda: rp.SelfAttention(8, 2, mixer="softmx"), "mixer is one of .* got 'softmx'"),
    "dropout": (lambda: rp.SelfAttention(8, 2, dropout=1.5), "dropout is a probability"),
    "options of an object": (lambda: rp.SelfAttention(8, 2, ToyBias(2), encoding_options={"reach": 1}), "by name"),
    "no encoding": (lambda: rp.SelfAttention(8, 2, torch.nn.Linear(1, 1)), "got Linear"),
    "other mixer's encoding": (lambda: rp.SelfAttention(8, 2, ForGates(2)), "no meaning in softmax"),
    "causal only": (lambda: rp.SelfAttention(8, 2, CausalOnly(2)), "causal"),
    "x": (lambda: rp.SelfAttention(8, 2)(X[0]), r"x has shape \(batch, n, 8\), got \(5, 8\)"),
    "width of x": (lambda: rp.SelfAttention(8, 2)(X[..., :7]), "x has shape"),
    "context": (lambda: rp.SelfAttention(8, 2)(X, X[..., :7]), r"context has shape \(2, m, 8\), got \(2, 5, 7\)"),
    "batch of the context": (lambda: rp.SelfAttention(8, 2)(X, X[:1]), "context has shape"),
    "stream not causal": (lambda: streamed(causal=False), "causal self-attention"),
    "stream with context": (lambda: streamed(context=X), "causal self-attention"),
    "vocabulary": (lambda: rp.models.Transformer(0, 8, 1, 2), "vocabulary=0"),
    "depth": (lambda: rp.models.Transformer(5, 8, 0, 2), "depth=0"),
    "heads": (lambda: rp.models.Transformer(5, 8, 1, 0), "heads=0"),
    "width and heads": (lambda: rp.models.Transformer(5, 8, 1, 3), "heads divides dim"),
    "tokens": (lambda: rp.models.Transformer(5, 8, 1, 2)(torch.zeros(1, 3)), "tokens are integers"),
    "rank of tokens": (lambda: rp.models.Transformer(5, 8, 1, 2)(torch.zeros(3).long()), "tokens are integers"),
    "unshared object": (lambda: rp.models.Transformer(5, 8, 1, 2, ToyBias(2), share=False), "shared by all"),
    "encoder generates": (lambda: generate(causal=False), "causal"),
    "empty prompt": (lambda: generate(prompt=torch.zeros(1, 0).long()), "n >= 1"),
    "steps": (lambda: generate(steps=-1), "steps >= 0"),
    "temperature": (lambda: generate(temperature=-1.0), "temperature is at least 0"),
    "temperature NaN": (lambda: generate(temperature=float("nan")), "temperature"),
    "top_p": (lambda: generate(top_p=0.0), r"top_p in \(0, 1\]"),
    "stream of absolute": (lambda: rp.Stream(Ramp()), "acts on the input"),
    "stream by name": (lambda: rp.Stream("alibi"), "got str"),
    "lags": (lambda: TOY.lags(0, 3), "at least 1"),
    "heads of a bias": (lambda: rp.encodings.LearnedBias(0, 3), "heads is a positive integer, got 0"),
    "max_lag": (lambda: rp.encodings.LearnedBias(2, 2.5), "max_lag is a positive integer, got 2.5"),
}  # fmt: skip


def streamed(causal: bool = True, **options: Any) -> Tensor:
    m = rp.SelfAttention(8, 2, causal=causal)
    return m(X, stream=m.stream(), **options)


def generate(causal: bool = True, prompt: Tensor | None = None, steps: int = 1, **options: Any) -> Tensor:
    m = rp.models.Transformer(5, 8, 1, 2, causal=causal)
    return m.generate(torch.zeros(1, 2).long() if prompt is None else prompt, steps, **options)


@pytest.mark.parametrize("case", list(LAYERS))
def test_layers(case: str) -> None:
    call, message = LAYERS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_an_absolute_encoding_checks_its_positions() -> None:
    with pytest.raises(ValueError, match="4 positions for 5 tokens"):
        Ramp().add(X, rp.positions.Index.arange(4))
    with pytest.raises(TypeError, match="Ramp takes Index positions, got Times"):
        Ramp().add(X, rp.positions.Times(torch.zeros(5)))


def test_unfinished_encodings_say_so() -> None:
    class Nothing(Bias):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4

    with pytest.raises(NotImplementedError):
        rp.attention(Q, K, V, Nothing())
    assert ToyTurn(8).cite().startswith("@")
