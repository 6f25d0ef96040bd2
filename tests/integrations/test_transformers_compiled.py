"""Models of transformers that compute with relpos, through torch.compile: one graph, the numbers of the eager model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from relpos.integrations import transformers as ours
from tests.integrations.hf import (
    DECODERS,
    ENCODERS,
    PICTURES,
    ROTARY,
    SEQ2SEQ,
    SPEECH,
    built,
    differences,
    padded,
    tokens,
)


@pytest.fixture(autouse=True)
def anew() -> None:
    torch._dynamo.reset()


def twins(make: Any) -> tuple[Any, Any, list[int]]:
    """An accelerated model, and a copy of it that is compiled; the list has a number for each of its graphs."""
    model = built(make)
    ours.accelerate(model)
    other = copy.deepcopy(model)
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    return model, torch.compile(other, backend=count), graphs


def same(model: Any, other: Any, inputs: dict[str, Any], valid: torch.Tensor | None = None) -> None:
    found = differences(model, other, inputs, valid)
    assert found[0] < 1e-5 and found[1] < 5e-6, found  # sums in another order


@pytest.mark.slow(6)
@pytest.mark.parametrize("name", ["llama", "bloom", "mpt", "t5 encoder", "deberta-v2"])
def test_one_graph(name: str) -> None:
    model, other, graphs = twins((DECODERS | ENCODERS)[name])
    for n in (40, 70):
        same(model, other, {"input_ids": tokens(n)})
    assert len(graphs) <= 2
    x = tokens(70)
    before = len(graphs)
    same(model, other, {"input_ids": x, "attention_mask": padded(x, "right")}, padded(x, "right"))
    assert len(graphs) <= before + 1


@pytest.mark.slow(6)
@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_encoders_and_decoders(name: str) -> None:
    model, other, _ = twins(SEQ2SEQ[name])
    x, y = tokens(60), tokens(37)
    same(model, other, {"input_ids": x, "attention_mask": padded(x, "right"), "decoder_input_ids": y})


def test_speech_and_pictures() -> None:
    model, other, _ = twins(SPEECH["wav2vec2-conformer"])
    for n in (300, 410):
        same(model, other, {"input_values": torch.randn(2, n)})
    model, other, _ = twins(PICTURES["swin"])
    same(model, other, {"pixel_values": torch.randn(2, 3, 32, 32)})


@pytest.mark.parametrize("name", ["mistral"])
def test_documents_are_those_of_the_call(name: str) -> None:
    """Their numbers are tensors: a compiled program must read them anew."""
    model, other, _ = twins(ROTARY[name])
    for cut in (31, 12):
        places = torch.cat([torch.arange(cut), torch.arange(70 - cut)])[None]
        same(model, other, {"input_ids": tokens(70, 1), "position_ids": places})


def test_copies_have_rules_of_their_own() -> None:
    """A compiled model goes on when the model that it was copied from is gone."""
    model, other, _ = twins(ENCODERS["deberta-v2"])
    x = {"input_ids": tokens(40)}
    wanted = model(**x)[0].detach()
    del model
    torch.testing.assert_close(other(**x)[0].detach(), wanted, rtol=1e-5, atol=1e-6)
