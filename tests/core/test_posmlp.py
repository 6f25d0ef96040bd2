"""PosMLP: published sizes, the released level, windows and image sizes, feature maps, resize."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import relpos as rp
from relpos.models import PosMLP, macs, posmlp
from relpos.models.posmlp import Stage
from relpos.models.windows import derived, merge, partition

GOLDEN = Path(__file__).parents[1] / "golden" / "rpe_posmlp.npz"


def small(encoding: str = "gqpe", image: Any = 32, **options: Any) -> PosMLP:
    torch.manual_seed(0)
    given = {"ratios": (4, 2), "groups": (2, 4), "classes": 5, "in_channels": 1}
    return PosMLP((8, 16), (1, 2), image=image, encoding=encoding, **(given | options)).double().eval()


def images(height: int = 32, width: int = 32, batch: int = 2, channels: int = 1) -> Tensor:
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "encoding", "parameters", "giga"),
    [
        ("t", "gqpe", 20_925_538, 5.18),
        ("t", "lrpe", 21_397_554, 5.06),
        ("s", "gqpe", 36_816_450, 8.71),
        ("b", "gqpe", 81_976_834, 18.53),
    ],
)
@pytest.mark.slow(3)
def test_the_published_sizes(size: str, encoding: str, parameters: int, giga: float) -> None:
    model = posmlp(size, encoding)
    assert count(model) == parameters
    assert round(macs(model, 1, 3, 224, 224) / 1e9, 2) == giga
    assert model.windows == [(14, 14), (14, 14), (14, 14), (7, 7)] and model.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("encoding", ["gqpe", "lrpe"])
def test_the_released_level(encoding: str) -> None:
    arrays = dict(np.load(GOLDEN))
    own = {
        name.removeprefix(f"level_{encoding}_sd_"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(f"level_{encoding}_sd_")
    }
    stage = Stage.from_reference(own, 3)
    x, y = (torch.from_numpy(arrays[f"level_{encoding}_{which}"]) for which in "xy")
    assert len(stage.blocks) == 2
    out = stage(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)


def test_the_order_of_windows() -> None:
    arrays = np.load(GOLDEN)
    x, y = (torch.from_numpy(arrays[name]) for name in ("window_in", "window_out"))
    tokens = partition(x, (3, 3))
    assert tokens.shape == (1, 6, 9, 1)
    assert torch.equal(tokens.flatten(), y.flatten())
    assert torch.equal(merge(y.view(1, 6, 9, 1), (3, 3), (6, 9)), x)


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 4)] * 4)
def test_merge_undoes_partition(rows: int, columns: int, height: int, width: int) -> None:
    x = torch.randn(2, rows * height, columns * width, 3)
    tokens = partition(x, (height, width))
    assert tokens.shape == (2, rows * columns, height * width, 3)
    assert torch.equal(merge(tokens, (height, width), (rows * height, columns * width)), x)
    last = tokens[0, -1].view(height, width, 3)
    assert torch.equal(last, x[0, -height:, -width:])


@pytest.mark.parametrize("encoding", ["gqpe", "lrpe"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_weight_is_trained(encoding: str, norm: str) -> None:
    model = small(encoding, stem_norm=norm).train()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.normal_(parameter, std=0.3)
    y = model(images())
    assert y.shape == (2, 5)
    y.sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not (norm == "batch" and name in ("stem.0.bias", "stem.3.bias", "stem.6.bias")):  # the norm takes them out
            assert parameter.grad.abs().sum() > 0, name


def test_an_empty_batch() -> None:
    assert small()(images(batch=0)).shape == (0, 5)


def test_tokens_mix_within_windows_alone() -> None:
    model = small(windows=((4, 2), 2), stride=1, image=8)
    stage = model.stages[0]
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 5, 6, 0] += 1
    changed = (stage(x) - stage(moved)).abs().sum(-1)[0] > 1e-12
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, 6:] = True
    assert torch.equal(changed, expected)


def test_feature_maps() -> None:
    model = posmlp("t", image=(64, 96), depths=(1, 1, 1, 1), in_channels=1, features_only=True).eval()
    x = torch.randn(2, 1, 64, 96)
    maps = model(x)
    assert model.channels == (96, 192, 384, 768) and model.strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 64 // stride, 96 // stride) for width, stride in zip(model.channels, model.strides)
    ]
    assert model.head is None and not any("head" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="features"):
        model.embed(x)
    full = small()
    last = full.features(images())[-1].movedim(1, -1)
    torch.testing.assert_close(full.head(full.norm(last).mean((1, 2))), full(images()))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image", "windows"),
    [
        ((224, 224), [(14, 14), (14, 14), (14, 14), (7, 7)]),
        ((256, 384), [(8, 12), (8, 12), (8, 12), (8, 12)]),
        ((32, 448), [(8, 14), (4, 14), (2, 14), (1, 14)]),
        ((416, 288), [(13, 12), (13, 12), (13, 9), (13, 9)]),
    ],
)
def test_derived_windows(image: tuple[int, int], windows: list[tuple[int, int]]) -> None:
    assert derived(image, (4, 8, 16, 32)) == windows


@pytest.mark.parametrize(
    ("image", "match"),
    [
        ((230, 224), r"image height 230: .*multiple of 32 .*the nearest that do: 224 or 256; or give windows"),
        ((224, 544), r"image width 544: .*the nearest that do: 512 or 576"),
        ((8, 224), r"image height 8: .*the nearest that do: 32;"),
    ],
)
def test_sizes_without_windows_name_those_with(image: tuple[int, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        posmlp("t", image=image)


def test_other_sizes_that_the_windows_tile() -> None:
    model = small(windows=(4, 2))  # a step of 4 * 4 and 8 * 2
    assert model(images(48, 16)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"height 40: windows of 4, 2 cells .*multiple of 16; .*32 or 48"):
        model(images(40, 32))
    with pytest.raises(ValueError, match=r"height 384: windows of 14, 14, 14, 7 .*multiple of 224; .* 224 or 448"):
        posmlp("t", image=384, windows=(14, 14, 14, 7))


@pytest.mark.parametrize("encoding", ["gqpe", "lrpe"])
def test_resize(encoding: str) -> None:
    model = small(encoding, image=(32, 48))
    assert model.windows == [(8, 12), (4, 6)]
    other = model.resize((64, 32))
    assert other.windows == [(16, 8), (8, 4)] and other.image == (64, 32)
    assert other(images(64, 32)).shape == (2, 5) and not other.training
    built = small(encoding, image=(64, 32), windows=other.windows)
    built.load_state_dict(other.state_dict())
    torch.testing.assert_close(built(images(64, 32)), other(images(64, 32)))
    torch.testing.assert_close(model.resize((32, 48))(images(32, 48)), model(images(32, 48)), rtol=1e-6, atol=1e-6)
    same = model.resize((64, 96), windows=model.windows)
    torch.testing.assert_close(same(images(64, 96)), model(images(64, 96)), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="height 36"):
        model.resize(36)
    if encoding == "lrpe":
        with pytest.raises(RuntimeError, match=r"64 x 32.*network\.resize"):
            nn.ModuleList([built]).load_state_dict(nn.ModuleList([model]).state_dict())  # inside another module too


def test_small_pictures_by_the_stride_of_the_stem() -> None:
    options = {"ratios": (2, 2, 2), "groups": (2, 2, 2), "in_channels": 1}
    model = PosMLP((8, 16, 32), (1, 1, 1), image=28, stride=1, **options)  # type: ignore[arg-type]
    assert model.strides == (1, 2, 4) and model.windows == [(14, 14), (14, 14), (7, 7)]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 1000)


def test_determinism_pickling_and_stochastic_depth() -> None:
    one, two = small(), small()
    torch.testing.assert_close(one(images()), two(images()), rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(one))
    torch.testing.assert_close(one(images()), again(images()), rtol=0, atol=0)
    model = small(dropout=0.1, drop_path=0.5).train()
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]  # type: ignore[union-attr]
    assert rates == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"encoding": "swni"}, "swni"),
        ({"groups": (3, 4)}, "groups"),
        ({"groups": (2,)}, "for every stage"),
        ({"ratios": (0.5, 0.25)}, r"even|groups|divid"),
        ({"windows": (4,)}, "windows"),
        ({"windows": 4}, "windows"),
        ({"windows": (5, 2)}, "multiple of"),
        ({"stride": 3}, "stride 1, 2 or 4"),
        ({"stem_norm": "group"}, "stem_norm"),
        ({"classes": 0}, "classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"drop_path": 1}, "drop_path"),
        ({"image": 0}, "image"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small(**options)


def test_bad_widths_sizes_and_images() -> None:
    with pytest.raises(ValueError, match='size is "t", "s" or "b", got \'x\''):
        posmlp("x")
    with pytest.raises(ValueError, match="hold a number for every stage, got 8, 1, "):
        PosMLP(8, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="8 does not divide 12"):
        PosMLP((8, 12), (1, 1), ratios=(2, 2), groups=(2, 2))
    with pytest.raises(ValueError, match="first of dims is even"):
        PosMLP((7, 14), (1, 1), ratios=(2, 2), groups=(1, 1))
    with pytest.raises(ValueError, match="in_channels=3"):
        small()(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="4 x 4 cells do not tile a map of 8 x 6"):
        partition(torch.randn(1, 8, 6, 2), (4, 4))
    assert rp.models.posmlp is posmlp
