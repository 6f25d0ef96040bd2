"""gMLP: the published size, gates by name, one image size a network, resize."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relpos.mixers.gating import SGU, PoSGU
from relpos.models import GMLP, macs
from relpos.models.gates import resized


def small(gate: Any = "sgu", image: Any = (12, 15), **options: Any) -> GMLP:
    torch.manual_seed(0)
    given = {"patch": 3, "dim": 8, "depth": 2, "ratio": 3, "classes": 4, "in_channels": 1, "groups": 3}
    return GMLP(image, gate=gate, **(given | options)).double().eval()


def images(height: int = 12, width: int = 15, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_published_sizes() -> None:
    """19.42 M with free matrices; PoSGU leaves out 30 matrices and 30 norms, and brings a bias a token, and its own."""
    assert count(GMLP()) == 19_422_656
    rest = 19_422_656 - 1_158_360 - 30 * 2 * 768
    assert count(GMLP(gate="gqpe")) == rest + 30 * (196 + 6 * 8) == 18_225_536
    assert count(GMLP(gate="lrpe")) == rest + 30 * (196 + 27 * 27 * 8)
    layer = 196 * 256 * 6 * 256 + 196 * 196 * 768 + 196 * 768 * 256
    assert macs(GMLP(depth=2), 1, 3, 224, 224) == 196 * 768 * 256 + 2 * layer + 256_000


@pytest.mark.parametrize("gate", ["sgu", "lrpe", "gqpe"])
def test_every_weight_is_trained(gate: str) -> None:
    model = small(gate).train()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.normal_(parameter, std=0.3)
    y = model(images())
    assert y.shape == (2, 4)
    y.sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_the_free_gate_begins_as_the_identity_on_the_other_half() -> None:
    model = small("sgu")
    block = model.blocks[0]
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    torch.testing.assert_close(block.gate(x), x[..., 12:], atol=0.01, rtol=0)  # type: ignore[operator]


@pytest.mark.parametrize("gate", ["sgu", "lrpe", "gqpe"])
def test_other_sizes_by_resize(gate: str) -> None:
    model = small(gate)
    with pytest.raises(ValueError, match="height 0; patches of"):
        model(torch.zeros(2, 1, 0, 15))
    with pytest.raises(ValueError, match=r"images of 12 x 15, got 18 x 24; .*network\.resize\(\(18, 24\)\)"):
        model(images(18, 24))
    other = model.resize((18, 24))
    assert other.image == (18, 24) and other.grid == (6, 8)
    assert other(images(18, 24)).shape == (2, 4) and not other.training
    torch.testing.assert_close(model.resize((12, 15))(images()), model(images()), rtol=1e-6, atol=1e-6)
    built = small(gate, (18, 24))
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    before = [p.clone() for p in model.parameters()]
    for parameter in other.parameters():
        parameter.data.zero_()
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters()))


def test_a_free_matrix_keeps_what_it_sums_to() -> None:
    """Interpolated over both cells of a pair, and divided by the growth, so that a mean stays a mean."""
    gate = SGU(8, (4, 5)).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            if parameter.shape == (20, 20):
                parameter.fill_(1 / 20)
    other = resized(gate, (8, 7))
    matrix = next(p for p in other.parameters() if p.dim() == 2)
    torch.testing.assert_close(matrix, torch.full((56, 56), 1 / 56, dtype=torch.float64))


def test_a_learned_table_keeps_what_it_sums_to() -> None:
    """A smooth map mixed by a smooth table gives the same numbers in the middle of a grid of twice the cells a side."""
    gate = PoSGU(4, (4, 4), "lrpe").double()
    nn.init.ones_(gate.encoding.table)  # type: ignore[arg-type]
    other = resized(gate, (8, 8))
    ones = torch.ones(1, 16, 4, dtype=torch.float64), torch.ones(1, 64, 4, dtype=torch.float64)
    torch.testing.assert_close(other(ones[1])[:, :16], gate(ones[0]))
    quadratic = PoSGU(4, (4, 4), "gqpe").double()
    torch.testing.assert_close(
        resized(quadratic, (8, 8)).encoding.spreads,
        quadratic.encoding.spreads,  # type: ignore[union-attr]
    )


def test_weights_of_another_size_name_resize() -> None:
    with pytest.raises(RuntimeError, match=r"blocks\.0\.gate\.weight has shape \(16, 16\).*12 x 15.*network\.resize"):
        small().load_state_dict(small(image=(12, 12)).state_dict())


def test_released_weights_by_the_formula() -> None:
    """timm's names and order: the second half of the channels is normalised and mixed, the first one is the gate."""
    torch.manual_seed(0)
    shapes = {
        "stem.proj.weight": (6, 2, 4, 4), "stem.proj.bias": (6,), "norm.weight": (6,), "norm.bias": (6,),
        "head.weight": (3, 6), "head.bias": (3,),
    }  # fmt: skip
    own = {
        "norm.weight": (6,), "norm.bias": (6,), "mlp_channels.fc1.weight": (8, 6), "mlp_channels.fc1.bias": (8,),
        "mlp_channels.gate.norm.weight": (4,), "mlp_channels.gate.norm.bias": (4,),
        "mlp_channels.gate.proj.weight": (6, 6), "mlp_channels.gate.proj.bias": (6,),
        "mlp_channels.fc2.weight": (6, 4), "mlp_channels.fc2.bias": (6,),
    }  # fmt: skip
    shapes |= {f"blocks.{index}.{name}": shape for index in range(2) for name, shape in own.items()}
    w = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    x = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    f = nn.functional
    y = f.conv2d(x, w["stem.proj.weight"], w["stem.proj.bias"], 4).flatten(2).mT
    for b in ("blocks.0.", "blocks.1."):
        z = f.layer_norm(y, (6,), w[b + "norm.weight"], w[b + "norm.bias"], 1e-6)
        z = f.gelu(f.linear(z, w[b + "mlp_channels.fc1.weight"], w[b + "mlp_channels.fc1.bias"]))
        u, v = z[..., :4], z[..., 4:]
        v = f.layer_norm(v, (4,), w[b + "mlp_channels.gate.norm.weight"], w[b + "mlp_channels.gate.norm.bias"])
        v = w[b + "mlp_channels.gate.proj.weight"] @ v + w[b + "mlp_channels.gate.proj.bias"].unsqueeze(-1)
        y = y + f.linear(u * v, w[b + "mlp_channels.fc2.weight"], w[b + "mlp_channels.fc2.bias"])
    y = f.layer_norm(y, (6,), w["norm.weight"], w["norm.bias"], 1e-6).mean(1)
    expected = f.linear(y, w["head.weight"], w["head.bias"])
    model = GMLP.from_reference(w, (8, 12))
    assert (model.patches.patch, model.image) == ((4, 4), (8, 12))
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"stem\.proj\.weight"):
        GMLP.from_reference({})


def test_a_gate_of_ones_own() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., : x.shape[-1] // 2]

    seen = []

    def make(hidden: int, grid: tuple[int, int]) -> nn.Module:
        seen.append((hidden, grid))
        return Half()

    assert small(make)(images()).shape == (2, 4)
    assert seen == [(24, (4, 5))] * 2
    with pytest.raises(TypeError, match="Half"):
        small(make).resize((24, 24))


def test_dropout_and_stochastic_depth_act_in_training_alone() -> None:
    model = small(dropout=0.3, drop_path=0.5)
    torch.testing.assert_close(model(images()), model(images()), rtol=0, atol=0)
    model.train()
    torch.manual_seed(1)
    one = model(images(batch=16))
    torch.manual_seed(1)
    torch.testing.assert_close(one, model(images(batch=16)), rtol=0, atol=0)
    assert (one - model(images(batch=16))).abs().max() > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image": 13}, r"height 13; patches of 3 x 3"),
        ({"dim": 5}, r"even, got 15"),
        ({"ratio": 2.3}, "whole number of channels, got ratio=2.3 and dim=8"),
        ({"dim": 0}, "dim is a positive integer"),
        ({"gate": "gqpe", "groups": 5}, "groups"),
        ({"gate": "sgpu"}, "sgpu"),
        ({"classes": 0}, "classes"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small(**options)


def test_bad_images() -> None:
    with pytest.raises(ValueError, match="in_channels=3"):
        small()(torch.randn(2, 3, 12, 15))
