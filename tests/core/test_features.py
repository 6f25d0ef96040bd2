"""Feature maps: what they stand for, with which error, and what they say to bad input."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos import features
from tests.core.naive import inputs
from tests.core.naive_linear import made, phi_of, seed

DIM = 8
RANDOM = {
    "prf": lambda count, g: features.PRF(DIM, count, generator=g),
    "orf": lambda count, g: features.PRF(DIM, count, orthogonal=True, generator=g),
    "sphere": lambda count, g: features.SpherePRF(DIM, count, generator=g),
    "trf": lambda count, g: features.TRF(DIM, count, generator=g),
}


def unit_rows(n: int, number: int, dim: int = DIM) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=seed(number), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("name", ["prf", "prf_scaled", "orf", "sphere", "trf", "elu1", "relu"])
def test_the_formulas(name: str) -> None:
    f = made(name)
    x = torch.randn(2, 3, 5, 4, generator=seed(1), dtype=torch.float64)
    torch.testing.assert_close(f(x), phi_of(f, x), rtol=1e-13, atol=1e-14)
    assert f(x).shape == (2, 3, 5, f.width)
    assert f.positive == (name != "trf") and bool((f(x) >= 0).all()) == f.positive
    assert f(x.bfloat16()).dtype == torch.float32 and f(x[:, :, :0]).shape == (2, 3, 0, f.width)


def products(f: features.Features, x: Tensor, y: Tensor) -> Tensor:
    """phi(x) . phi(y) of every draw that the features are a row of."""
    found: Tensor = (f(x) * f(y)).sum(-1)
    return found


@pytest.mark.parametrize("name", ["prf", "trf", "orf"])
def test_unbiased(name: str) -> None:
    """The mean over many draws is exp(x.y), within 5 standard errors; the weights times exp(b) likewise."""
    x, y = unit_rows(6, 2), unit_rows(6, 3)
    y[0], y[1] = -x[0], (x[1] + 2 * y[1]) / (x[1] + 2 * y[1]).norm()
    draws = 400
    f = RANDOM[name](64, seed(4)).double()
    found = []
    g = seed(5)
    for _ in range(draws):
        f.redraw(g)
        found.append(products(f, x, y))
    values = torch.stack(found)
    want = (x * y).sum(-1).exp()
    z = (values.mean(0) - want) / (values.std(0) / math.sqrt(draws) + 1e-12)
    assert z.abs().max() < 5, z
    scaled = products(f, x * 0.5, y * 0.5)
    assert (scaled - (0.25 * (x * y).sum(-1)).exp()).abs().max() < 0.5, "and so it is of other lengths"


def test_the_variance_is_that_of_lemma_2() -> None:
    """(exp(|x + y|^2) - 1) exp(2 x.y) / m, for vectors that are not too near to each other."""
    x = unit_rows(5, 6)
    y = torch.nn.functional.normalize(-0.5 * x + 0.4 * unit_rows(5, 7), dim=-1)
    want = ((x + y).square().sum(-1).exp() - 1) * (2 * (x * y).sum(-1)).exp()
    f, g = features.PRF(DIM, 50_000, generator=seed(8)).double(), seed(9)
    single = torch.cat([(f.redraw(g), f(x) * f(y) * f.count)[1] for _ in range(8)], -1)  # type: ignore[func-returns-value]
    torch.testing.assert_close(single.var(-1) / want, torch.ones(5, dtype=torch.float64), rtol=0, atol=0.15)
    other = features.TRF(DIM, 50_000, generator=seed(8)).double()
    assert (products(other, x, y) - (x * y).sum(-1).exp()).abs().max() < 0.05


def test_orthogonal_rows() -> None:
    """Within each block of dim rows; lengths are those of Gaussian rows, and the spread of products is smaller."""
    f = features.PRF(DIM, 2 * DIM + 3, orthogonal=True, generator=seed(1)).double()
    for block in torch.split(f.weight, DIM):
        gram = torch.nn.functional.normalize(block, dim=-1) @ torch.nn.functional.normalize(block, dim=-1).T
        torch.testing.assert_close(gram, torch.eye(len(block), dtype=torch.float64), rtol=0, atol=1e-6)
    lengths = f.weight.norm(dim=-1)
    assert lengths.std() > 0.2, "not all of one length"
    many = features.PRF(DIM, 8000, orthogonal=True, generator=seed(2)).double().weight
    assert abs(float(many.square().sum(-1).mean()) / DIM - 1) < 0.05 and many.mean().abs() < 0.02
    sphere = features.SpherePRF(DIM, 100, generator=seed(3)).double().weight
    torch.testing.assert_close(sphere.norm(dim=-1), torch.full((100,), math.sqrt(DIM), dtype=torch.float64))
    both = features.SpherePRF(DIM, DIM, orthogonal=True, generator=seed(3)).double().weight
    torch.testing.assert_close(both @ both.T, DIM * torch.eye(DIM, dtype=torch.float64), rtol=0, atol=1e-5)
    x, y, g = unit_rows(20, 4), unit_rows(20, 5), seed(6)
    spread = {}
    for orthogonal in (False, True):
        f = features.TRF(DIM, DIM, orthogonal=orthogonal).double()
        drawn = torch.stack([(f.redraw(g), products(f, x, y))[1] for _ in range(300)])  # type: ignore[func-returns-value]
        spread[orthogonal] = float((drawn - (x * y).sum(-1).exp()).square().mean())
    assert spread[True] < 0.97 * spread[False]


def softmax_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, factor: float) -> Tensor:
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    return (factor * q @ k.mT + bias).softmax(-1) @ v


def test_the_limit_is_softmax_of_the_cosine_without_a_root() -> None:
    """Of many features: softmax(cos / temperature + b), and not softmax(cos / sqrt(dim) + b)."""
    q, k, v = inputs(1, 1, 12, dim=DIM)
    encoding = rp.encodings.LearnedBias(1, 3).double()
    lag = torch.arange(12)[None] - torch.arange(12)[:, None]
    bias = encoding.at(lag).detach()
    f = features.PRF(DIM, 2**15, orthogonal=True, generator=seed(1)).double()
    got = rp.linear_attention(q, k, v, encoding, features=f)
    assert (got - softmax_of(q, k, v, bias, 1)).abs().max() < 0.02
    assert (got - softmax_of(q, k, v, bias, DIM**-0.5)).abs().max() > 0.1
    cool = rp.linear_attention(q, k, v, encoding, features=f, temperature=2.0)
    assert (cool - softmax_of(q, k, v, bias, 0.5)).abs().max() < 0.02
    plain = features.PRF(DIM, 2**15, orthogonal=True, normalize=False, generator=seed(1)).double()
    got = rp.linear_attention(0.4 * q, 0.5 * k, v, encoding, features=plain)
    want = (0.2 * q @ k.mT * DIM**-0.5 + bias).softmax(-1) @ v
    assert (got - want).abs().max() < 0.05


def test_the_error_falls_as_one_over_the_root_of_the_count() -> None:
    q, k, _ = inputs(1, 1, 16, dim=DIM)
    v = torch.eye(16, dtype=torch.float64)[None, None]
    want = softmax_of(q, k, v, torch.zeros(()), 1)
    errors, counts, g = [], (16, 64, 256, 1024), seed(3)
    for count in counts:
        found = []
        for _ in range(30):
            f = features.PRF(DIM, count, generator=g).double()
            found.append((rp.linear_attention(q, k, v, features=f) - want).abs().sum(-1).mean())
        errors.append(float(torch.stack(found).mean()))
    slope = math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert -0.55 < slope < -0.37, errors


@pytest.mark.parametrize("name", ["prf", "orf", "sphere", "trf"])
def test_redraw_and_copies(name: str) -> None:
    """One draw for q and k; the same generator gives the same weights; copies and files keep them."""
    f = RANDOM[name](12, seed(1))
    again = RANDOM[name](12, seed(1))
    assert torch.equal(f.weight, again.weight) and dict(f.named_parameters()) == {}
    assert list(f.state_dict()) == ["weight"] and f.weight.shape == (12, DIM)
    storage = f.weight
    f.redraw(seed(2))
    assert f.weight is storage and not torch.equal(f.weight, again.weight)
    for copied in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert torch.equal(copied.weight, f.weight) and copied.normalize == f.normalize and copied.width == f.width
    again.load_state_dict(f.state_dict())
    x = torch.randn(3, DIM, generator=seed(3))
    assert torch.equal(again(x), f(x))
    torch.manual_seed(0)
    first = RANDOM[name](12, None).weight
    torch.manual_seed(0)
    assert torch.equal(first, RANDOM[name](12, None).weight), "the global generator is the default"
    before = torch.get_rng_state()
    f.redraw(seed(4))
    assert torch.equal(before, torch.get_rng_state()), "and is left alone where another is given"


def test_scales() -> None:
    assert features.PRF(16, 4).scale(16) == 1 and features.PRF(16, 4, normalize=False).scale(16) == 0.25
    assert features.ELU1().scale(16) == 1 and features.ReLU(normalize=True).scale(16) == 1
    assert not features.ELU1().normalize and features.PRF(16, 4).normalize


def test_names() -> None:
    made = {name: features.named(name, DIM, None) for name in ("prf", "orf", "sphere", "trf", "elu1", "relu")}
    assert [f.width for f in made.values()] == [16, 16, 16, 32, DIM, DIM]
    assert made["orf"].orthogonal and not made["prf"].orthogonal
    assert features.named(" PRF ", DIM, 5, normalize=False).normalize is False
    assert features.named("relu", DIM, DIM, True).normalize is True
    assert all(f.cite().startswith("@") for f in made.values())


@pytest.mark.parametrize(
    ("kind", "message", "make"),
    [
        (ValueError, "dim is a positive integer, got 0", lambda: features.PRF(0, 4)),
        (ValueError, "count is a positive integer, got True", lambda: features.PRF(4, True)),
        (ValueError, r"count is a positive integer, got 2\.5", lambda: features.TRF(4, 2.5)),  # type: ignore[arg-type]
        (ValueError, "features is one of prf, orf.* got 'softmax'", lambda: features.named("softmax", 4)),
        (ValueError, "features is one of prf, orf.* got 3", lambda: features.named(3, 4)),  # type: ignore[arg-type]
        (ValueError, "elu1 features are as many as the columns of its input, 4; leave the count out",
         lambda: features.named("elu1", 4, 8)),
        (ValueError, "give dim to know", lambda: features.ReLU().width),
        (ValueError, "built for rows of width 4, got 3", lambda: features.PRF(4, 2)(torch.zeros(1, 3))),
        (ValueError, "built for rows of width 4, got 3", lambda: features.ELU1(4)(torch.zeros(1, 3))),
    ],
)  # fmt: skip
def test_bad_input(kind: Any, message: str, make: Any) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_no_draw_moves_another_row() -> None:
    """Rows are mapped one by one, and no maximum over the rest of the batch enters."""
    f = features.PRF(DIM, 6, normalize=False, generator=seed(1))
    x = torch.randn(2, 5, DIM, generator=seed(2))
    torch.testing.assert_close(f(x)[1, 3:4], f(x[1, 3:4]), rtol=1e-6, atol=0)
    y = x.clone()
    y[0] *= 10
    assert torch.equal(f(y)[1], f(x)[1])


@pytest.mark.parametrize("name", ["prf", "orf", "sphere", "trf", "elu1", "relu_normal"])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_prepared_rows_are_those_of_unit_length(name: str, scale: float) -> None:
    """Dividing after the projection says the same, gradients too; a row of zeros stays one, and gets no gradient."""
    phi = made(name)
    x = torch.randn(5, phi.dim or DIM, generator=seed(3), dtype=torch.float64)
    x[2] = 0
    one, other = (x.clone().requires_grad_() for _ in range(2))
    got = phi.prepared(one, scale)
    want = phi((features.unit(other) if phi.normalize else other) * math.sqrt(scale))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    grads = [torch.autograd.grad((out * weights).sum(), leaf)[0] for out, leaf in ((got, one), (want, other))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert not phi.normalize or not grads[0][2].any()
