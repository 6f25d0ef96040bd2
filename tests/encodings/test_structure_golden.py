"""Arrays computed by the released code, and by its authors' formulas, through the public names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.encodings.base import Tile
from relpos.encodings.levels import frequencies
from relpos.positions import Labels
from tests.encodings.structure import golden, labels


def term(encoding: Any, q: Tensor, positions: Mapping[str, Tensor]) -> Tensor:
    """What is added to the logits, (batch, heads, n, n)."""
    named = {name: Labels(x) for name, x in positions.items()}
    n = q.shape[2]
    tile = Tile(0, n, 0, n, n, n)
    states = encoding.prepare(q, q, named, named)
    return encoding.tile(q, q, {name: tile.slice(state) for name, state in states.items()}, tile)  # type: ignore[no-any-return]


def layer(arrays: Mapping[str, Any], encoding: Any) -> Tensor:
    """A post-norm encoder layer with ReLU, as it was released, with our attention in it."""
    g = {key.replace("__", "."): torch.as_tensor(value) for key, value in arrays.items() if value.dtype.kind == "f"}
    x, heads = g["x"], arrays["q"].shape[2]
    d = x.shape[-1]
    projected = nn.functional.linear(x, g["self_attn.in_proj_weight"], g["self_attn.in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.split(d, -1))
    np.testing.assert_allclose(q.transpose(1, 2).numpy(), arrays["q"], atol=1e-5)
    out = rp.attention(q, k, v, encoding, q_pos=labels(arrays), k_pos=labels(arrays), causal=True)
    out = nn.functional.linear(
        out.transpose(1, 2).flatten(2), g["self_attn.out_proj.weight"], g["self_attn.out_proj.bias"]
    )
    x = nn.functional.layer_norm(x + out, (d,), g["norm1.weight"], g["norm1.bias"])
    hidden = nn.functional.linear(x, g["linear1.weight"], g["linear1.bias"]).relu()
    return nn.functional.layer_norm(
        x + nn.functional.linear(hidden, g["linear2.weight"], g["linear2.bias"]),
        (d,),
        g["norm2.weight"],
        g["norm2.bias"],
    )


def close(got: Tensor, want: Any) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-5, atol=1e-5)


def test_ape_of_sines() -> None:
    arrays = golden("music_sape_sine.npz")
    x, named = torch.as_tensor(arrays["x"]), labels(arrays)
    encoding = rp.encodings.StructureAPE.from_reference(arrays)
    assert list(encoding.levels) == ["tempo", "section", "chord", "melody"] and encoding.kind == "sine"
    close(encoding.add(x, named), arrays["out"])
    close(rp.encodings.StructureAPE(16, ("tempo", "section", "chord", "melody")).add(x, named), arrays["out"])
    for name in named:
        alone = rp.encodings.StructureAPE.from_reference(arrays, levels=[name])
        close(alone.add(torch.zeros(2, 24, 16), named), arrays[f"pe_{name}"])
    for base in (7920, 9919, 10001, 11339, 24149):
        close(frequencies(16, base).float(), arrays[f"angles_{base}"])


def test_rpe_of_sines() -> None:
    arrays = golden("music_srpe_sine.npz")
    encoding = rp.encodings.StructureRPE.from_reference(arrays)
    assert encoding.levels == {"melody": 7920.0, "chord": 10001.0, "section": 11339.0} and encoding.heads == 4
    q = torch.as_tensor(arrays["q"]).transpose(1, 2)
    want = sum(arrays[f"logit_add_{i}"] for i in range(3))
    close(term(encoding, q, labels(arrays)), want)
    close(layer(arrays, encoding), arrays["layer_out"])
    close(layer(arrays, None), arrays["layer_out_nope"])
    for i, name in enumerate(encoding.levels):
        alone = rp.encodings.StructureRPE(4, 16, [name])
        alone.load_state_dict(
            {"parts.0." + key: value for key, value in encoding.parts[i].state_dict().items()}
            | {"map." + key: value for key, value in encoding.map.state_dict().items()}
        )
        close(term(alone, q, labels(arrays)), arrays[f"logit_add_{i}"])


def test_ns_rpe_as_released() -> None:
    arrays = golden("music_nsrpe_section.npz")
    encoding = rp.encodings.NonStationaryRPE.from_reference(arrays, as_released=True)
    assert encoding.level == "section"
    q = torch.as_tensor(arrays["q"]).transpose(1, 2)
    close(term(encoding, q, labels(arrays)), sum(arrays[f"logit_add_{i}"] for i in range(4)))
    close(layer(arrays, encoding), arrays["layer_out"])


def test_ns_rpe_corrected() -> None:
    arrays, want = golden("music_nsrpe_section.npz"), golden("music_nsrpe_corrected.npz")
    encoding = rp.encodings.NonStationaryRPE.from_reference(arrays)
    q = torch.as_tensor(arrays["q"]).transpose(1, 2)
    close(term(encoding, q, labels(arrays)), want["section_logit_add_total"])
    sections = labels(arrays)["section"].long()
    for part in encoding.taus("section", sections, sections, 0):
        np.testing.assert_array_equal(part, want["section_section_tau"])


def test_two_clocks_in_either_order() -> None:
    arrays = golden("music_nsrpe_section.npz")
    for part in ("lin_w", "lin_b"):
        arrays[part] = np.concatenate([arrays[part], arrays[part][:1] + 1])
    made = []
    for swap in ([0, 1, 2, 3], [0, 1, 3, 2]):
        bases = np.array([10001, 11339, 24149, 9919])[swap]
        stored = arrays | {"bases": bases} | {part: arrays[part][swap] for part in ("lin_w", "lin_b")}
        made.append(rp.encodings.NonStationaryRPE.from_reference(stored))
        assert made[-1].level == "both" and made[-1].heads == 4
        with pytest.raises(ValueError, match="not those of level='chord'"):
            rp.encodings.NonStationaryRPE.from_reference(stored, level="chord")
    for name, value in made[0].state_dict().items():
        assert torch.equal(made[1].state_dict()[name], value)
    assert torch.equal(made[0].clocks[1].weight, torch.as_tensor(arrays["lin_w"][2]))


def test_modules_by_their_names() -> None:
    """The weights of one layer of a network, which numbers the levels melody, tempo, chord, section."""
    arrays = golden("music_srpe_sine.npz")
    slots = {"melody": 0, "chord": 2, "section": 3}
    named = {"path/p/rw.1.weight": arrays["layer_lin_w"], "path/p/rw.1.bias": arrays["layer_lin_b"]}
    named |= {f"path/p/rw.0.{part}": 0 * arrays["layer_lin_w"] for part in ("weight", "bias")}
    for i, name in enumerate(arrays["order"]):
        for part, stored in (("weight", "lin_w"), ("bias", "lin_b")):
            named[f"path/p/rpe.weights.{slots[str(name)]}.{part}"] = arrays[stored][i]
            named[f"path/grad/rpe.weights.{slots[str(name)]}.{part}"] = 0 * arrays[stored][i]
    named |= {f"path/p/rpe.weights.1.{part}": 0 * arrays["lin_b"][0] for part in ("weight", "bias")}
    first = rp.encodings.StructureRPE.from_reference(arrays)
    other = rp.encodings.StructureRPE.from_reference(named, layer=1)
    for name, value in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    plain = golden("music_nsrpe_section.npz")
    released = {f"rw.0.{part}": plain[f"layer_lin_{part[0]}"] for part in ("weight", "bias")}
    for i, slot in enumerate((2, 3, 4)):
        released |= {f"rpe.weights.{slot}.{part}": plain[f"lin_{part[0]}"][i] for part in ("weight", "bias")}
    with pytest.raises(ValueError, match="give level="):
        rp.encodings.NonStationaryRPE.from_reference(released)
    made = rp.encodings.NonStationaryRPE.from_reference(released, level="section")
    for name, value in rp.encodings.NonStationaryRPE.from_reference(plain).state_dict().items():
        assert torch.equal(made.state_dict()[name], value)


@pytest.mark.parametrize("missing", ["lin_w", "layer_lin_b", "lin_b"])
def test_missing_arrays_are_named(missing: str) -> None:
    for name, cls in (
        ("music_srpe_sine.npz", rp.encodings.StructureRPE),
        ("music_nsrpe_section.npz", rp.encodings.NonStationaryRPE),
    ):
        arrays = golden(name)
        del arrays[missing]
        with pytest.raises(ValueError, match=r"there is no (rpe\.weights|rw)\."):
            cls.from_reference(arrays)


def test_learned_tables_by_level() -> None:
    g = torch.Generator().manual_seed(0)
    arrays = golden("music_srpe_sine.npz")
    del arrays["bases"]
    rows = {"melody": 257, "chord": 791, "section": 105}
    tables = {f"table_{name}": torch.randn(count, 16, generator=g).numpy() for name, count in rows.items()}
    encoding = rp.encodings.StructureRPE.from_reference(arrays | tables | {"max_pos": np.array([128, 395, 52])})
    assert encoding.kind == "learned" and encoding.levels == {"melody": 128, "chord": 395, "section": 52}
    for part, table in zip(encoding.parts, tables.values()):
        assert torch.equal(part.table, torch.as_tensor(table))
    with pytest.raises(ValueError, match="tables of melody, chord"):
        rp.encodings.StructureRPE.from_reference(arrays | {name: tables[name] for name in list(tables)[:2]})
    x, named = torch.as_tensor(arrays["x"]), labels(arrays)
    tables["table_tempo"] = torch.randn(4, 16, generator=g).numpy()
    tables["table_section"] = torch.randn(52, 16, generator=g).numpy()
    ape = rp.encodings.StructureAPE.from_reference(tables)
    want = x + sum(torch.as_tensor(tables[f"table_{name}"])[named[name].long()] for name in named)
    close(ape.add(x, named), want)
