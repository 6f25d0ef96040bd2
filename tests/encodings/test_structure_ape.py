from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Labels
from tests.core.test_memory import Largest
from tests.encodings.structure import phi

BASES = {"tempo": 9919.0, "section": 11339.0, "chord": 10001.0, "melody": 7920.0}


def song(n: int, *rows: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n)
    return {
        name: torch.randint(0, high, (*rows, n), generator=g)
        for name, high in (("tempo", 4), ("section", 52), ("chord", 395), ("melody", 129))
    }


def test_registered() -> None:
    found = rp.names()["structure_ape"]
    assert (found.form, found.learned) == ("Absolute", False)
    assert rp.encoding("structure_ape", model_dim=8).cite().startswith("@")


def test_sines_by_their_formula() -> None:
    x, named = torch.randn(2, 7, 10, dtype=torch.float64), song(7, 2)
    want = x.clone()
    for b in range(2):
        for t in range(7):
            for name, base in BASES.items():
                want[b, t] += phi(int(named[name][b, t]), base, 10)
    torch.testing.assert_close(rp.encodings.StructureAPE(10).add(x, named), want, rtol=0, atol=1e-12)


def test_tables_by_their_formula_with_gradients() -> None:
    torch.manual_seed(0)
    encoding = rp.encodings.StructureAPE(6, {"chord": None, "verse": 3}, "learned").double()
    assert [tuple(table.shape) for table in encoding.tables] == [(395, 6), (3, 6)]
    named = {"chord": torch.tensor([[394, 0], [7, 7]]), "verse": torch.tensor([2, 1])}
    x = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    out = encoding.add(x, named)
    want = x + encoding.tables[0][named["chord"]] + encoding.tables[1][named["verse"]]
    torch.testing.assert_close(out, want)
    out.sum().backward()
    assert encoding.tables[0].grad[7].tolist() == [2.0] * 6 and encoding.tables[1].grad[0].tolist() == [0.0] * 6
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("label", [-1, 395, 4000])
def test_a_label_outside_the_vocabulary(label: int) -> None:
    encoding = rp.encodings.StructureAPE(6, ("chord",), "learned")
    with pytest.raises(ValueError, match=f"level 'chord' has 395 labels, 0..394, got {label};"):
        encoding.add(torch.zeros(1, 2, 6), {"chord": [3, label]})
    assert torch.isfinite(
        rp.encodings.StructureAPE(6, ("chord",)).add(torch.zeros(1, 2, 6), {"chord": [3, label]})
    ).all()


def test_short_types_keep_the_phase() -> None:
    named = song(50)
    encoding = rp.encodings.StructureAPE(16)
    exact = encoding.add(torch.zeros(1, 50, 16, dtype=torch.float64), named)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        out = encoding.add(torch.zeros(1, 50, 16, dtype=dtype), named)
        assert out.dtype == dtype and (out.double() - exact).abs().max() < (1e-6 if dtype == torch.float32 else 1e-2)


def test_in_a_network() -> None:
    """At the input, once, and token by token as at once."""
    model = rp.models.Transformer(11, 8, 2, 2, "structure_ape", encoding_options={"kind": "learned"}).double()
    tokens, named = torch.randint(0, 11, (2, 9)), song(9, 2)
    whole = model(tokens, positions=named)
    moved = {**named, "chord": (named["chord"] + 1) % 395}
    assert (model(tokens, positions=moved) - whole).abs().max() > 1e-6
    streams = model.streams()
    for t in range(9):
        chunk = {name: x[:, t : t + 1] for name, x in named.items()}
        out = model(tokens[:, t : t + 1], positions=chunk, streams=streams)
        torch.testing.assert_close(out, whole[:, t : t + 1], rtol=0, atol=1e-12)


def test_it_is_linear_in_the_length() -> None:
    x = torch.zeros(1, 2048, 8)
    with Largest() as seen:
        rp.encodings.StructureAPE(8).add(x, song(2048))
    assert seen.bytes <= 2048 * 8 * 8


def test_what_does_not_fit_is_refused() -> None:
    encoding = rp.encodings.StructureAPE(8, ("chord", "section"))
    x = torch.zeros(1, 4, 8)
    cases: list[tuple[Any, type[Exception], str]] = [
        (None, ValueError, "positions by level: 'chord', 'section'"),
        (torch.arange(4), TypeError, "named positions"),
        ({"chord": torch.arange(4)}, ValueError, "the level 'section'"),
        ({"chord": torch.arange(4), "section": torch.arange(3)}, ValueError, "3 positions"),
        ({"chord": torch.zeros(3, 4, dtype=torch.int64), "section": torch.arange(4)}, ValueError, None),
    ]
    for positions, error, message in cases[:4]:
        with pytest.raises(error, match=message):
            encoding.add(x, positions)
    with pytest.raises(ValueError, match="8, x has 6"):
        encoding.add(x[..., :6], {"chord": torch.arange(4), "section": torch.arange(4)})
    with pytest.raises(ValueError, match="'verse' is not known"):
        rp.encodings.StructureAPE(8, ("verse",))
    one = rp.encodings.StructureAPE(8, ("chord",))
    assert torch.equal(one.add(x, Labels(torch.arange(4))), one.add(x, {"chord": torch.arange(4)}))
    assert rp.encodings.StructureAPE(8, same_base=True).levels == dict.fromkeys(BASES, 10001.0)
