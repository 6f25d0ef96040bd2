"""An encoding from outside the package, one of each form, works everywhere as soon as its class exists."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import relpos as rp
from relpos.encodings import registry
from relpos.kernels.call import Refusal
from relpos.kernels.choose import KERNELS
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, agree, inputs, naive_attention
from tests.core.test_self_attention import Ramp

TOYS: dict[str, Any] = {
    "toy_bias": ToyBias,
    "toy_row": ToyRow,
    "toy_content": ToyContent,
    "toy_rotation": ToyTurn,
    "toy_ramp": Ramp,
}
RELATIVE = [name for name in TOYS if name != "toy_ramp"]
KNOWN = {"heads": 2, "dim": 4, "model_dim": 8, "causal": True}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(registry._ENTRIES)
    for name, cls in TOYS.items():
        rp.register(name, cls)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_in_every_kernel(kernel: str, name: str) -> None:
    encoding: Any = registry.fitted(name, KNOWN).double()
    q, k, v = inputs(2, 2, 6, 9, grad=True)
    want = naive_attention(q, k, v, encoding, causal=True)
    q_pos = k_pos = None
    if kernel == "fused":  # square, from the first token
        q, k, v = inputs(2, 2, 6, grad=True)
        want = naive_attention(q, k, v, encoding, causal=True)
    try:
        got = rp.attention(q, k, v, encoding, causal=True, kernel=kernel, q_pos=q_pos, k_pos=k_pos)
    except Refusal as refusal:
        allowed: dict[str, set[str]] = {"fused": {"toy_rotation"}, "hankel": {"toy_bias", "toy_rotation"}}
        allowed |= {"triton": set(), "flex": set()}  # which take no float64
        assert name not in allowed[kernel], refusal
        return
    agree(got, want, [q, k, v, *encoding.parameters()])


@pytest.mark.parametrize("name", list(TOYS))
def test_by_name_in_the_layer_the_stream_and_the_transformer(name: str) -> None:
    layer = rp.SelfAttention(8, 2, name, causal=True).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    whole, stream = layer(x), layer.stream()
    parts = [layer(part, stream=stream) for part in x.split([3, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)
    model = rp.models.Transformer(5, 8, 2, 2, name)
    tokens = torch.randint(5, (2, 6))
    model(tokens).square().sum().backward()
    found = [encoding for _, encoding in model.encodings()]
    assert found and all(isinstance(e, TOYS[name]) for e in found)
    assert all(p.grad is not None and p.grad.any() for e in found for p in e.parameters())
    assert model.generate(tokens, 3, temperature=0).shape == (2, 9)
    shared = rp.models.Transformer(5, 8, 2, 2, name, share=True)
    assert len(list(shared.encodings())) == 1


@pytest.mark.parametrize("name", list(TOYS))
def test_listed_and_explained(name: str) -> None:
    described = rp.names()[name]
    cls = TOYS[name]
    assert described.cls == cls.__name__ and described.form == cls.form and described.summary
    assert described.fused == (name in ("toy_rotation", "toy_ramp")) and described.decoding
    assert getattr(rp.encodings, cls.__name__) is cls
    encoding = registry.fitted(name, KNOWN)
    if name == "toy_ramp":
        with pytest.raises(TypeError, match="absolute"):
            rp.explain(*inputs(1, 2, 300), encoding)
        return
    said = rp.explain(*inputs(1, 2, 300), encoding)
    assert said.kernel == ("fused" if name == "toy_rotation" else "tiled")
    assert (cls.__name__ in said.reason) == (name in ("toy_row", "toy_content"))


def test_a_bias_draws_its_lags() -> None:
    bias = rp.encoding("toy_bias", heads=2)
    assert bias.lags(4, 6, 2).shape == (2, 9)  # type: ignore[operator]
    assert torch.equal(bias.lags(4, 6, 2)[:, 5], bias.at(torch.tensor(0)))  # type: ignore[operator]


LAB = Path(rp.__file__).parent / "lab"
needs_lab = pytest.mark.skipif(
    not (LAB / "cli.py").exists() or importlib.util.find_spec("matplotlib") is None, reason="needs the extras"
)


@needs_lab
@pytest.mark.parametrize("name", ["toy_bias", "toy_rotation"])
def test_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`relpos show` draws an encoding that it has never heard of."""
    testing = pytest.importorskip("typer.testing")
    from relpos.lab import cli

    monkeypatch.chdir(tmp_path)
    result = testing.CliRunner().invoke(cli.app, ["show", name])
    assert result.exit_code == 0, result.output
