"""Leading tokens outside an additive encoding: nothing is added for their pairs, in every kernel and in gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Pairwise
from relpos.mixers.prefix import Beside, beside, with_prefix
from relpos.positions import Grid, Index, Position

HEADS, DIM, GRID = 2, 4, (3, 5)
CELLS = GRID[0] * GRID[1]


def positions(name: str, prefix: int) -> Position:
    own: Position = Grid.of(*GRID) if name in ("swin", "log_cpb") else Index.arange(CELLS)
    return with_prefix(own, prefix)


def encoding(name: str) -> Pairwise:
    torch.manual_seed(1)
    options = {"swin": {"window": GRID}, "log_cpb": {"window": GRID}, "shaw": {"dim": DIM, "max_lag": 4}}
    options["deberta"] = {"dim": DIM, "span": 8}
    found = rp.encoding(name, **({} if name == "shaw" else {"heads": HEADS}), **options.get(name, {})).double()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    assert isinstance(found, Pairwise)
    return found


def inputs(n: int, n_q: int | None = None) -> list[Tensor]:
    torch.manual_seed(2)
    sizes = (n if n_q is None else n_q, n, n)
    return [torch.randn(2, HEADS, size, DIM, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("name", ["swin", "log_cpb", "learned_bias", "alibi"])
def test_a_bias_is_zero_for_pairs_with_the_prefix(name: str, prefix: int) -> None:
    inner, (q, k, v) = (
        encoding(name) if name != "alibi" else rp.encoding("alibi", heads=HEADS, symmetric=True),
        inputs(CELLS + prefix),
    )
    pos = positions(name, prefix)
    own = positions(name, 0)
    bias = torch.zeros(HEADS, CELLS + prefix, CELLS + prefix, dtype=torch.float64)
    bias[:, prefix:, prefix:] = inner.bias(own, own)  # type: ignore[operator]
    expected = torch.softmax(q @ k.mT * DIM**-0.5 + bias, -1) @ v
    assert isinstance(inner, Pairwise)
    for kernel in ("dense", "generic"):
        out = rp.attention(q, k, v, Beside(inner, prefix), q_pos=pos, k_pos=pos, kernel=kernel)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_q", [None, 4, CELLS])
@pytest.mark.parametrize("name", ["swin", "shaw", "deberta", "fire", "transformer_xl"])
def test_tiles_equal_the_definition(name: str, n_q: int | None) -> None:
    """Terms of content and values too, with fewer queries than keys, so that the prefix is cut at the queries' end."""
    prefix, total = 2, CELLS + 2
    torch.manual_seed(3)
    inner = (
        rp.encoding(name, heads=HEADS, dim=DIM, model_dim=HEADS * DIM).double()
        if name == "transformer_xl"
        else (encoding(name))
    )
    q, k, v = inputs(total, n_q)
    pos = positions(name, prefix)
    start = total - q.shape[2]
    found = []
    for kernel in ("dense", "generic"):
        out = rp.attention(
            q, k, v, Beside(inner, prefix), q_pos=pos.narrow(start, total), k_pos=pos, kernel=kernel
        )  # fmt: skip
        given = [q, k, v, *inner.parameters()]
        found.append([out, *torch.autograd.grad(out.sin().sum(), given, allow_unused=True)])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    square = torch.cat([q.new_zeros(2, HEADS, start, DIM), q], 2)
    whole = rp.attention(square, k, v, Beside(inner, prefix), q_pos=pos, k_pos=pos, kernel="dense")
    torch.testing.assert_close(found[0][0], whole[:, :, start:], rtol=1e-9, atol=1e-9)
    plain = rp.attention(q, k, v, inner, q_pos=pos.narrow(start, total), k_pos=pos)
    assert (plain - found[0][0]).abs().max() > 1e-6


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["alibi", "learned_bias", "shaw"])
def test_positions_that_run_through_the_prefix_change_nothing(name: str, compiled: bool) -> None:
    """Consecutive integers have a generator of lags; it is not the term of the prefix."""
    torch._dynamo.reset()
    prefix, n = 3, 300
    inner = rp.encoding("alibi", heads=HEADS, symmetric=True) if name == "alibi" else encoding(name)
    assert isinstance(inner, Pairwise)
    q, k, v = (x.float().detach().requires_grad_() for x in inputs(n + prefix, n))

    def attend(kernel: str) -> Tensor:
        places = {"q_pos": Index.arange(n), "k_pos": Index.arange(n + prefix, -prefix)}
        return rp.attention(q, k, v, Beside(inner.float(), prefix), **places, kernel=kernel)

    found = []
    for call, kernel in ((attend, "dense"), (torch.compile(attend, backend="eager") if compiled else attend, "auto")):
        out = call(kernel)
        given = [q, k, v, *inner.parameters()]
        found.append([out, *torch.autograd.grad(out.sin().sum(), given)])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["swin", "log_cpb"])
def test_a_compiled_program_of_a_class_token_is_one_graph(name: str) -> None:
    torch._dynamo.reset()
    inner, (q, k, v), places = encoding(name), inputs(CELLS + 1), positions(name, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.attention(q, k, v, beside(inner, 1), q_pos=places, k_pos=places)

    found = []
    for call in (attend, torch.compile(attend, backend="aot_eager", fullgraph=True)):
        out = call(q, k, v)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [q, k, v, *inner.parameters()])])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixer", ["softmax", "kernelized"])
def test_a_layer_hands_the_prefix_on(mixer: str) -> None:
    torch.manual_seed(0)
    layer = rp.SelfAttention(8, HEADS, "swin", mixer, encoding_options={"window": GRID}).double()
    torch.nn.init.normal_(layer.encoding.table)  # type: ignore[union-attr, arg-type]
    x = torch.randn(2, CELLS + 1, 8, dtype=torch.float64)
    pos = with_prefix(Grid.of(*GRID), 1)
    out = layer(x, q_pos=pos, prefix=1)
    moved = Grid(torch.cat([torch.tensor([[[2, 3]]]), pos.values[:, 1:]], 1))
    torch.testing.assert_close(layer(x, q_pos=moved, prefix=1), out)  # the position of the prefix counts for nothing
    if mixer == "softmax":
        assert (layer(x, q_pos=pos) - out).abs().max() > 1e-6


def test_a_transform_finds_the_prefix_at_zero() -> None:
    pos = with_prefix(Grid.of(2, 2), 1)
    assert pos.values[0].tolist() == [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]
    assert with_prefix(Index.arange(2), 2).values.tolist() == [0, 0, 0, 1]
    assert with_prefix(pos, 0) is pos


def test_errors() -> None:
    layer = rp.SelfAttention(8, HEADS, "alibi", encoding_options={"symmetric": True})
    with pytest.raises(ValueError, match=r"prefix=6: leading tokens"):
        layer(torch.randn(1, 5, 8), prefix=6)
    with pytest.raises(ValueError, match="prefix"):
        layer(torch.randn(1, 5, 8), context=torch.randn(1, 5, 8), prefix=1)
