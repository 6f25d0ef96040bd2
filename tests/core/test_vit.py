"""The Vision Transformer: any encoding of a grid, other sizes by positions, resize, a class token outside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.encodings.absolute.learned import Learned
from relpos.models import ViT
from relpos.models.images import DropPath, rising

BY_CELLS = ["swin", "lrpe", "gqpe", "log_cpb", "irpe", "decomposed_2d", "axial_rope", "mixed_rope", "conv_spe"]
IN_RASTER = ["sinusoidal", "learned", "t5", "shaw"]


def small(encoding: str | None = "swin", image: Any = (12, 15), **options: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(image, 3, 4, 16, 2, 2, encoding, in_channels=1, **options)
    for name, parameter in model.named_parameters():  # tables of zeros say nothing
        if "encoding" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def images(height: int = 12, width: int = 15, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("encoding", [None, "nope", *BY_CELLS, *IN_RASTER])
def test_every_weight_is_trained(encoding: str | None, pooling: str) -> None:
    model = small(encoding, pooling=pooling).train()
    y = model(images())
    assert y.shape == (2, 4)
    y.sin().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith(".k.bias"):  # adds one number to a row of scores: softmax ignores it without a rotation
            continue
        if pooling == "cls" and name.startswith("blocks.1.attention.encoding") and encoding != "irpe":
            continue  # no pair of the class token has a bias
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoding", ["swin", "lrpe", "gqpe", "log_cpb", "alibi_2d"])
def test_kernelized_mixing_is_block_toeplitz(encoding: str) -> None:
    """The same weights as kernelised attention written out, with and without a class token."""
    for pooling in ("mean", "cls"):
        model = small(encoding, mixer="kernelized", pooling=pooling, feature_count=8)
        expected = copy.deepcopy(model)
        for block in expected.blocks:
            block.attention.kernel = "dense"  # type: ignore[union-attr]
        torch.testing.assert_close(model(images()), expected(images()), rtol=1e-8, atol=1e-8)
        model(images()).sum().backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "encoding" in n)


@pytest.mark.parametrize("encoding", [*BY_CELLS, "alibi_2d"])
def test_the_picture_counts_by_place(encoding: str) -> None:
    x = images()
    turned = x.unflatten(2, (4, 3))[:, :, [1, 0, 2, 3]].flatten(2, 3)  # rows of patches in another order
    without, with_one = small(None), small(encoding)
    torch.testing.assert_close(without(x), without(turned))
    assert (with_one(x) - with_one(turned)).abs().max() > 1e-7


@pytest.mark.parametrize("encoding", ["swin", "log_cpb", "axial_rope", "irpe", "decomposed_2d"])
def test_patches_are_cells_of_a_grid(encoding: str) -> None:
    """Of one sign with the encoding itself: the layer on hand-made patches and positions."""
    model, x = small(encoding), images()
    weight, bias = model.patches.project.weight, model.patches.project.bias
    cells = x.unfold(2, 3, 3).unfold(3, 3, 3)[:, 0].flatten(1, 2)  # (batch, cells, 3, 3)
    tokens = torch.einsum("bnyx,dyx->bnd", cells, weight[:, 0]) + bias
    positions = torch.tensor([[y, x] for y in range(4) for x in range(5)])
    for block in model.blocks:
        tokens = block(tokens, q_pos=positions)
    torch.testing.assert_close(model.tokens(x), model.norm(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ["axial_rope", "mixed_rope", "log_cpb", "alibi_2d", "irpe", "gqpe"])
def test_other_sizes_by_positions_alone(encoding: str) -> None:
    model = small(encoding)
    for height, width in ((3, 3), (6, 15), (18, 24)):
        assert model(images(height, width)).shape == (2, 4)
    alone, resized = model(images(18, 24)), model.resize((18, 24))
    if encoding.endswith("rope"):  # resized, it spans the angles of its training instead of going on beyond them
        assert {(e.window, e.pretrained) for _, e in resized.encodings()} == {((6, 8), (4, 5))}  # type: ignore[union-attr]
        assert (resized(images(18, 24)) - alone).abs().max() > 1e-8
    else:
        torch.testing.assert_close(resized(images(18, 24)), alone)


def test_a_table_serves_smaller_images_and_names_resize_for_larger() -> None:
    model = small("swin")
    assert model(images(9, 9)).shape == (2, 4)
    with pytest.raises(ValueError, match="resize"):
        model(images(15, 15))
    other = model.resize((24, 15))
    assert other.image == (24, 15) and other.grid == (8, 5) and other(images(24, 15)).shape == (2, 4)
    tables = [e.table for _, e in other.encodings()]
    assert [tuple(table.shape) for table in tables] == [(15 * 9, 2)] * 2
    one = next(e for _, e in model.encodings())
    torch.testing.assert_close(tables[0], one.resize((8, 5)).table)  # type: ignore[operator]
    torch.testing.assert_close(model.resize((12, 15))(images()), model(images()))
    tables[0].data.zero_()
    assert one.table.abs().sum() > 0  # the weights are copies
    assert not other.training and model.train().resize(12).training


@pytest.mark.parametrize("mixer", ["softmax", "kernelized"])
def test_the_class_token_stands_outside(mixer: str) -> None:
    model = small("swin", pooling="cls", mixer=mixer)
    before = model.tokens(images())
    table = model.blocks[1].attention.encoding.table  # type: ignore[union-attr]
    with torch.no_grad():
        table.add_(torch.randn_like(table))  # type: ignore[arg-type, union-attr]
    after = model.tokens(images())
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=1e-12, atol=1e-12)
    assert ((after[:, 1:] - before[:, 1:]).abs().amax(-1) > 1e-9).all()


def test_the_class_token_has_a_bucket_in_irpe_alone() -> None:
    buckets = [next(e for _, e in small("irpe", pooling=pooling).encodings()) for pooling in ("mean", "cls")]
    assert buckets[1].keys.shape[-2] == buckets[0].keys.shape[-2] + 1
    model = small("irpe", pooling="cls", encoding_options={"skip": False})
    assert model(images()).shape == (2, 4)


def test_cosine_attention_for_log_cpb() -> None:
    model = small("log_cpb", normalize=True, temperature=0.1)
    assert [block.attention.scale for block in model.blocks] == [10, 10]  # type: ignore[union-attr]
    x = model.patches(images())
    attention = model.blocks[0].attention
    larger = model.blocks[0].norm_attention(x)  # type: ignore[operator]
    positions = torch.tensor([[y, x] for y in range(4) for x in range(5)])
    with torch.no_grad():
        before = attention(larger, q_pos=positions)  # type: ignore[operator]
        attention.q.weight.mul_(3), attention.q.bias.mul_(3)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(attention(larger, q_pos=positions), before)  # type: ignore[operator]


def test_one_encoding_for_all_layers_stays_one() -> None:
    torch.manual_seed(0)
    shared = rp.encoding("swin", heads=2, window=(4, 5))
    model = ViT((12, 15), 3, 4, 16, 2, 2, shared, in_channels=1)
    other = model.resize((24, 30))
    found = [block.attention.encoding for block in other.blocks]  # type: ignore[union-attr]
    assert found[0] is found[1] and found[0].window == (8, 10)  # type: ignore[union-attr]


@pytest.mark.parametrize("encoding", IN_RASTER)
def test_raster_order_belongs_to_one_grid(encoding: str) -> None:
    model = small(encoding)
    with pytest.raises(ValueError, match=r"raster order, of 4 x 5 .* and 3 x 3 here.*resize"):
        model(images(9, 9))
    assert model.resize((9, 9))(images(9, 9)).shape == (2, 4)


def test_the_learned_table_is_interpolated_over_cells() -> None:
    model = small("learned")
    assert isinstance(model.absolute, Learned) and model.absolute.max_length == 20
    columns = torch.tensor([0.0, 1, 4, 9, 16])
    with torch.no_grad():
        model.absolute.table.copy_(columns.repeat(4).unsqueeze(-1).expand(-1, 16))
    doubled = model.resize((24, 30)).absolute
    assert isinstance(doubled, Learned)
    cells = doubled.table.view(8, 10, 16)
    torch.testing.assert_close(cells, cells[:1, :, :1].expand(8, -1, 16))  # what depends on the column alone still does
    torch.testing.assert_close(cells[0, :, 0].view(5, 2).mean(1)[1:4], columns[1:4].double(), atol=0.4, rtol=0)
    given = ViT(12, 3, 4, 16, 1, 2, rp.encoding("learned", model_dim=16, max_length=99), in_channels=1)
    with pytest.raises(ValueError, match=r"99 rows for 4 x 4"):
        given.resize(24)


def test_weights_of_another_size_are_refused_and_resize_is_named() -> None:
    model = small("swin")
    with pytest.raises(RuntimeError, match=r"table has shape \(35, 2\).* \(63, 2\) .*12 x 15.*resize"):
        model.load_state_dict(small("swin", (9, 12)).state_dict())
    twin = small("swin")
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(images()), model(images()))


def test_determinism_and_stochastic_depth() -> None:
    torch.manual_seed(0)
    model = ViT(12, 3, 4, 16, 3, 2, "swin", in_channels=1, drop_path=0.5, dropout=0.1)
    x = torch.randn(8, 1, 12, 12)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(model(x))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert (model(x) - results[0]).abs().max() > 0
    model.eval()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert [round(rate, 3) for rate in rising(0.5, 3)] == [0, 0.25, 0.5]


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    path = DropPath(0.25).train()
    y = path(torch.ones(4000, 3))
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1) / 0.75)}
    assert (y == y[:, :1]).all() and abs(float(y.mean()) - 1) < 0.03


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (torch.randn(2, 12, 15), ValueError, r"\(batch, 1, height, width\), got \(2, 12, 15\)"),
        (torch.randn(2, 3, 12, 15), ValueError, r"1 channels.*got \(2, 3, 12, 15\).*in_channels=3"),
        (torch.zeros(2, 1, 12, 15, dtype=torch.uint8), TypeError, "1/255"),
        (torch.randn(2, 1, 13, 15), ValueError, r"height 13.*multiples of 3 do, the nearest is 12 or 15"),
        (torch.randn(2, 1, 12, 1), ValueError, r"width 1;.*the nearest is 3$"),
        ("a picture", TypeError, "got str"),
    ],
)
def test_bad_images(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        small("swin").float()(given)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image": 13}, "height 13"),
        ({"image": (12, 15, 3)}, "height, width"),
        ({"image": 12.0}, r"image is \(height, width\) or an integer for a square, got 12.0"),
        ({"classes": 0}, "classes is a positive integer, got 0"),
        ({"pooling": "max"}, "pooling"),
        ({"causal": True}, "causal"),
        ({"drop_path": 1.0}, "drop_path is a probability"),
        ({"in_channels": 0}, "in_channels"),
        ({"encoding": "swni"}, "did you mean swin"),
        ({"heads": 3}, "divides dim"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    given = {"image": 12, "patch": 3, "classes": 4, "dim": 16, "depth": 1, "heads": 2, "encoding": "swin"} | options
    with pytest.raises(ValueError, match=match):
        ViT(**given)


def test_an_encoding_without_cells_is_refused() -> None:
    with pytest.raises(TypeError, match="TimeRoPE takes Times positions; patches"):
        small("time_rope")
