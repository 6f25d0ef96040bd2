"""relpos in models of timm, where timm is installed."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import relpos as rp
from relpos.integrations import timm as ours
from tests.integrations.hf import built, differences
from tests.integrations.test_transformers import Square

models: Any = pytest.importorskip("timm.models") if importlib.util.find_spec("timm") else None
needs_timm = pytest.mark.skipif(models is None, reason="timm is not installed")

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
SWIN: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
WINDOWS: dict[str, dict[str, Any]] = {
    "windows of 4": {"img_size": 32, "window_size": 4},
    "oblong": {"img_size": 64, "window_size": (4, 8)},
    "padded to whole windows": {"img_size": 56, "window_size": 8, "always_partition": True, "strict_img_size": False},
    "masks made anew": {"img_size": 32, "window_size": 4, "always_partition": True, "strict_img_size": False},
}
NAMES = ("axial_rope", "mixed_rope", "swin", "lrpe", "gqpe", "log_cpb", "alibi_2d", "decomposed_2d", "irpe", "nope")


@pytest.mark.skipif(models is not None, reason="timm is here")
def test_without_timm_the_error_is_an_import_error() -> None:
    for call in (ours.accelerate, lambda model: ours.replace_encoding(model, "swin")):
        with pytest.raises(ImportError, match=r"pip install .relpos\[vision\]"):
            call(nn.Linear(2, 2))


class Logits(nn.Module):
    """A model whose result is as `differences` reads it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(x)[:, None],)


def vit(**options: Any) -> Any:
    return built(lambda: models.VisionTransformer(**VIT, **options))


def swin(**options: Any) -> Any:
    return built(lambda: models.SwinTransformer(**{**SWIN, "drop_path_rate": 0.0, **options}))


def pictures(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


@needs_timm
@pytest.mark.parametrize("name", ["swin", "lrpe", "gqpe", "log_cpb", "alibi_2d", "axial_rope", "nope"])
def test_a_compiled_model_is_one_graph(name: str) -> None:
    """A class token beside the grid too; and windows, under "nope"."""
    torch._dynamo.reset()
    model, graphs = swin(img_size=32, window_size=4) if name == "nope" else vit(), []
    ours.accelerate(model) if name == "nope" else ours.replace_encoding(model, name)

    def count(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    other = torch.compile(copy.deepcopy(model), backend=count)
    found = differences(Logits(model), Logits(other), {"x": pictures()})
    assert found[0] < 1e-5 and found[1] < 5e-6 and len(graphs) == 1, (found, graphs)


@needs_timm
class TestReplace:
    def test_nothing_but_the_encoding_is_other(self) -> None:
        """With NoPE and the embedding kept, the model is what it was: registers, norms and gradients included."""
        for options in (
            {},
            {"reg_tokens": 3, "qk_norm": True, "scale_attn_norm": True, "init_values": 0.5},
            {"class_token": False, "global_pool": "avg", "qkv_bias": False},
            {"dynamic_img_size": True, "no_embed_class": True},
        ):
            model = vit(**options)
            other = copy.deepcopy(model)
            ours.replace_encoding(other, "nope", keep_pos_embed=True)
            found = differences(Logits(model), Logits(other), {"x": pictures()})
            assert found[0] < 1e-5 and found[1] < 2e-6, found

    def test_the_table_of_lags_is_put_where_it_belongs(self) -> None:
        """Against the dense definition, written down here for one block: class token outside, rows first."""
        model = vit(reg_tokens=2)
        ours.replace_encoding(model, "swin")
        part = model.blocks[0].attn
        nn.init.normal_(part.relpos_encoding.table)
        seen: list[Any] = []
        part.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
        model(pictures())
        x, out = seen[0]
        cells = [(i // 8, i % 8) for i in range(64)]
        bias = torch.zeros(4, 67, 67)
        for i, (y, u) in enumerate(cells):
            for j, (z, w) in enumerate(cells):
                bias[:, 3 + i, 3 + j] = part.relpos_encoding.table[(y - z + 7) * 15 + u - w + 7].detach()
        q, k, v = part.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * 8**-0.5 + bias).softmax(-1)
        torch.testing.assert_close(out, part.proj((weights @ v).transpose(1, 2).flatten(2)), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_trained_and_undone(self, name: str) -> None:
        model = vit(reg_tokens=1)
        own, names = model(pictures()), set(model.state_dict())
        report = ours.replace_encoding(model, name, share=False)
        assert [c.name for c in report.changed] == ["blocks.0.attn", "blocks.1.attn", "pos_embed"]
        added = {key: p for key, p in model.named_parameters() if "relpos_encoding" in key}
        assert "pos_embed" in model.state_dict() and bool(added) == rp.names()[name].learned
        steps = torch.optim.SGD(model.parameters(), 0.05)
        losses = []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(pictures()), torch.tensor([1, 4]))
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] and all(p.grad is not None for p in added.values())
        assert model.get_parameter("blocks.0.attn.qkv.weight").grad is not None
        ours.restore(model)
        assert set(model.state_dict()) == names and model.pos_embed is not None
        assert not torch.equal(model(pictures()), own)  # it was trained

    def test_pictures_of_another_shape(self) -> None:
        model = vit(dynamic_img_size=True)
        ours.replace_encoding(model, "alibi_2d")
        wide = torch.randn(1, 3, 24, 48, generator=torch.Generator().manual_seed(0))
        turned = model(wide.mT)
        assert model(wide).shape == (1, 7) and not torch.allclose(model(wide), turned)
        ours.restore(model)
        ours.replace_encoding(model, "swin")
        with pytest.raises(ValueError, match="window"):
            model(wide)

    @pytest.mark.parametrize("given", ["shared", "object", "callable"])
    def test_one_for_all_or_one_each(self, given: str) -> None:
        makers = {"object": rp.encodings.SwinBias(4, (8, 8)), "callable": lambda: rp.encodings.SwinBias(4, (8, 8))}
        encoding: Any = makers.get(given, "swin")
        model = vit()
        ours.replace_encoding(model, encoding)
        tables = {id(block.attn.relpos_encoding.table) for block in model.blocks}
        assert len(tables) == (2 if given == "callable" else 1)

    def test_refused_and_as_before(self) -> None:
        model, given = vit(), None
        for given, words in (
            ("sinusoidal", "added to the input"),
            ("t5", "T5Bias takes Index"),
            ("foo", "no encoding is called"),
            (rp.encodings.SwinBias(4, (4, 4)), "window"),
            (rp.encodings.SwinBias(3, (8, 8)), "heads"),
            (4, "got int"),
        ):
            encoding: Any = given
            with pytest.raises((ValueError, TypeError), match=words):
                ours.replace_encoding(model, encoding)
            assert "forward" not in vars(model.blocks[0].attn) and model.pos_embed is not None
        ours.replace_encoding(model, "swin")
        with pytest.raises(ValueError, match="already"):
            ours.replace_encoding(model, "swin")
        with pytest.raises(NotImplementedError, match="takes no masks"):
            model.forward_features(pictures(), attn_mask=torch.zeros(65, 65))
        with pytest.raises(TypeError, match="got SwinTransformer"):
            ours.replace_encoding(swin(**WINDOWS["windows of 4"]), "swin")
        with pytest.raises(ValueError, match="patch_drop_rate"):
            ours.replace_encoding(vit(patch_drop_rate=0.5), "swin")
        with pytest.raises(ValueError, match=r"blocks\.0\.attn is NoneType"):
            ours.replace_encoding(vit(block_fn=models.vision_transformer.ParallelScalingBlock), "swin")


@needs_timm
class TestAccelerate:
    @pytest.mark.parametrize("name", WINDOWS)
    def test_outputs_and_gradients(self, name: str) -> None:
        options = WINDOWS[name]
        model = swin(**options)
        if name == "masks made anew":
            for block in (block for layer in model.layers for block in layer.blocks):
                block.dynamic_mask = True
        other = copy.deepcopy(model)
        report = ours.accelerate(other)
        assert len(report.changed) == 4 and "layers.0.blocks.1" in str(report)
        x = pictures(40 if name == "masks made anew" else options["img_size"])
        found = differences(Logits(model), Logits(other), {"x": x})
        assert found[0] < 1e-5 and found[1] < 2e-6, found
        ours.restore(other)
        assert torch.equal(model(x), other(x)) and set(vars(model)) == set(vars(other))

    def test_large_windows_make_no_matrix(self) -> None:
        model = swin(img_size=128, window_size=32, depths=(2,), num_heads=(2,))
        for accelerated in (False, True):
            if accelerated:
                ours.accelerate(model)
            with Square(1024) as square:
                model(pictures(128)[:1]).square().mean().backward()
            assert bool(square.operation) != accelerated, square.operation

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="nothing in this VisionTransformer"):
            ours.accelerate(vit())
        model = swin(**WINDOWS["windows of 4"])
        ours.accelerate(model)
        with pytest.raises(ValueError, match="already"):
            ours.accelerate(model)

    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "3.2.1")
        with pytest.raises(RuntimeError, match=r"timm 1\.0 to 1\.0, not with 3\.2\.1"):
            ours.accelerate(swin(**WINDOWS["windows of 4"]))


@needs_timm
def test_what_the_document_shows_runs() -> None:
    """It is a block of `py`, which the tests of all documents leave alone: they run without timm too."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    shown = text.split("```py\n")[1:]
    assert shown
    for block in shown:
        exec(block.split("```")[0], {})
