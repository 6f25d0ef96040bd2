"""torch.func, autocast and torch.export over attention and the layers made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import relpos as rp
from relpos.encodings import registry
from relpos.encodings.registry import fitted

ROOT = Path(__file__).parents[2]
KNOWN = {"heads": 2, "dim": 8, "model_dim": 16, "causal": True}
SIZES = [9, 300]  # the plain formula, and tiles


class Attends(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoding = fitted(name, KNOWN).double()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.attention(q, k, v, self.encoding, causal=True)


def qkv(n: int, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(batch, 2, n, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["rope", "t5", "shaw", "fire"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_grad_and_vmap(name: str, n: int) -> None:
    """Gradients, rows of a batch one by one, and the gradient of each row, as autograd has them."""
    module, inputs = Attends(name), qkv(n)
    want = module(*inputs)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return module(q, k, v).square().sum()

    def row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return loss(q[None], k[None], v[None])

    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for each in (grad(loss, (0, 1, 2)), vmap(grad(row, (0, 1, 2)))):
        for got, wanted in zip(each(*inputs), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    rows = vmap(lambda q, k, v: module(q[None], k[None], v[None])[0])(*inputs)
    torch.testing.assert_close(rows, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["t5", "shaw"])
def test_an_ensemble(name: str, n: int) -> None:
    """Parameters of several modules at once, and their gradients."""
    modules, inputs = [Attends(name) for _ in range(2)], qkv(n, 1)
    stacked, _ = stack_module_state(modules)

    def run(parameters: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(modules[0], parameters, tuple(inputs))
        return out

    got = vmap(run)(stacked)
    found = vmap(grad(lambda parameters: run(parameters).square().sum()))(stacked)
    for index, module in enumerate(modules):
        torch.testing.assert_close(got[index], module(*inputs), rtol=0, atol=1e-12)
        module(*inputs).square().sum().backward()
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(found[key][index], parameter.grad, rtol=1e-10, atol=1e-10)


def test_what_has_no_derivative_says_so() -> None:
    inputs = tuple(qkv(300, 1))
    module = Attends("t5")
    with pytest.raises(NotImplementedError, match=r'no forward-mode derivative .* kernel="dense" has'):
        jvp(module, inputs, inputs)
    once = grad(lambda q: module(q, *inputs[1:]).square().sum())
    with pytest.raises(RuntimeError, match='differentiated again, which it does not support; kernel="dense" does'):
        grad(lambda q: once(q).square().sum())(inputs[0])

    def small(q: Tensor) -> Tensor:
        return rp.attention(q, *inputs[1:], module.encoding, causal=True, kernel="dense")

    _, tangent = jvp(small, inputs[:1], inputs[:1])
    step = 1e-6
    about = (small(inputs[0] * (1 + step)) - small(inputs[0] * (1 - step))) / (2 * step)
    torch.testing.assert_close(tangent, about, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", SIZES)
def test_autocast(n: int) -> None:
    """One type: as it came in. Several: autocast's own, as torch's attention has it; never without autocast."""
    q, k, v = (x.float() for x in qkv(n))
    encoding = rp.encoding("t5", heads=2)
    mixed = (q.bfloat16(), k, v)
    sdpa: Any = nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16):
        assert rp.attention(q, k, v, encoding).dtype == torch.float32
        assert rp.attention(*mixed, encoding).dtype == sdpa(*mixed).dtype == torch.bfloat16
        torch.testing.assert_close(rp.attention(*mixed), sdpa(*mixed), rtol=2e-2, atol=2e-2)
        for attend in (rp.attention, sdpa):
            with pytest.raises((TypeError, RuntimeError, ValueError)):
                attend(q.double(), k, v)
    with pytest.raises(TypeError, match="one dtype"):
        rp.attention(*mixed, encoding)


@pytest.mark.parametrize("name", [None, "alibi", "shaw", "rope"])
def test_autocast_in_multihead_attention(name: str | None) -> None:
    """The types of torch's layer: bfloat16 out of it, float32 gradients in its float32 weights."""
    torch.manual_seed(0)
    ours = rp.nn.MultiheadAttention(16, 2, batch_first=True, encoding=name)
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 40, 16)
    outside = ours(x, x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got, like = ours(x, x, x)[0], theirs(x, x, x, need_weights=False)[0]
    assert got.dtype == like.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), outside, rtol=5e-2, atol=2e-2)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())


# ---- torch.export

PLAIN = ["nope", "rope", "rope_pool", "xpos", "permuteformer", "flt", "cosformer", "sinusoidal", "learned"]
LAGS = ["alibi", "t5", "kerple", "learned_bias", "sandwich", "hype"]
PAIRS = ["shaw", "music_transformer", "deberta", "low_rank_logits", "fire", "fox", "relative_channels"]
NOT = ["sine_spe", "conv_spe", "fstripe", "transformer_xl"]  # docs/compile.md says why


def exported(name: str, kernel: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    network = rp.models.Transformer(11, 16, 1, 2, name, kernel=kernel).eval()
    shapes = {"tokens": {1: torch.export.Dim("n", min=3, max=4096)}}
    return network, torch.export.export(network, (torch.randint(11, (1, 40)),), dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize(
    ("name", "kernel"), [*((n, "auto") for n in PLAIN + LAGS), *((n, "dense") for n in ["t5", *PAIRS])]
)
def test_an_exported_network_serves_other_lengths(name: str, kernel: str) -> None:
    """kernel="auto" keeps its memory linear; "dense" is plain operators, which run without this library."""
    network, program = exported(name, kernel)
    for n in (7, 90):
        tokens = torch.randint(11, (1, n))
        torch.testing.assert_close(program.module()(tokens), network(tokens), rtol=1e-5, atol=1e-6)
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    own = {target for target in called if target.startswith("relpos")}
    assert own == ({"relpos.attend.default"} if kernel == "auto" and name in LAGS else set())


@pytest.mark.parametrize("name", ["shaw", "fire"])
def test_what_a_program_cannot_hold(name: str) -> None:
    with pytest.raises(ValueError, match='an exported program cannot hold; kernel="dense" exports its definition'):
        exported(name, "auto")


def test_every_encoding_is_exported_or_said_not_to_be() -> None:
    """Of those that stand on the positions that a Transformer gives by itself."""
    known, document = {*PLAIN, *LAGS, *PAIRS, *NOT}, (ROOT / "docs/compile.md").read_text()
    for name, entry in registry.each():
        if name not in known and entry.load().__module__.startswith("relpos."):  # other tests register their own
            with pytest.raises((TypeError, ValueError)):
                rp.models.Transformer(11, 16, 1, 2, name)(torch.randint(11, (1, 9)))
    assert all(f"`{name}`" in document for name in NOT)
