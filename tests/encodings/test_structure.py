from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.content import _structure
from relpos.encodings.levels import distinct
from relpos.mixers.stream import Stream
from relpos.positions import Labels
from tests.core.test_memory import Largest
from tests.encodings.case import EncodingCase
from tests.encodings.structure import Named, few, inputs, song, srpe

TILE = 2 * 256 * 1024 * 8  # bytes of one tile of scores of two heads, or of places of one, int64


class TestSines(EncodingCase):
    name = "structure_rpe"
    heads, dim = 2, 4
    exact_shift = False  # other ticks have other labels

    def make(self) -> Any:
        return rp.encodings.StructureRPE(self.heads, self.heads * self.dim, ("chord", "section"))

    def positions(self, index: Tensor) -> Any:
        return few(index)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return srpe(encoding, q, self.positions(q_pos), self.positions(k_pos))


class TestTables(TestSines):
    """Tables that end within the differences that occur, one short enough to be multiplied as a whole."""

    def make(self) -> Any:
        return rp.encodings.StructureRPE(self.heads, self.heads * self.dim, {"chord": 5, "section": 1}, "learned")

    def positions(self, index: Tensor) -> Any:
        return {"chord": few(index)["chord"], "section": index}


class TestClocksAsLabels(TestSines):
    """Labels that grow by the tick: many of them, and moving all by a number changes nothing."""

    exact_shift = True

    def positions(self, index: Tensor) -> Any:
        return {"chord": index, "section": 3 * index + 7}


def make(kind: str = "sine", levels: Any = ("melody", "chord", "section"), **options: Any) -> Any:
    torch.manual_seed(3)
    return rp.encodings.StructureRPE(2, 8, levels, kind, **options).double()


@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_every_form_of_the_score_agrees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct differences, all in a range, channels over labels; tables merged or not: values and gradients."""
    named, found, forms, multiplied = song(37, rows=(2,)), [], set(), []
    table = _structure.Scores._table
    monkeypatch.setattr(_structure.Scores, "_table", lambda *given: multiplied.append(setting) or table(*given))
    none = {"PAIRS": 0, "SPAN": 0}
    settings: list[dict[str, int]] = [{}, {"MERGED": 1}, {"PAIRS": 0}, none, none | {"MERGED": 1}]
    for setting in settings:
        for name, value in ({"MERGED": 512, "PAIRS": 2**16, "SPAN": 2**12} | setting).items():
            monkeypatch.setattr(_structure, name, value)
        monkeypatch.setattr(_structure.Scores, "_is_cheap", lambda *_: True)
        encoding = make(kind, {"melody": None, "chord": 20.0, "section": 5.0})
        qkv = [x.requires_grad_() for x in inputs(37, batch=2)]
        positions = {name: Labels(x) for name, x in named.items()}
        forms.add(tuple(sorted(encoding.prepare(*qkv[:2], positions, positions))))
        out = rp.attention(*qkv, encoding, q_pos=named, k_pos=named, causal=True, kernel="tiled")
        leaves = [*qkv, *encoding.parameters()]
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert len(forms) == 2  # names of the states
    assert none not in multiplied if kind == "sine" else none in multiplied
    assert {} in multiplied and {"PAIRS": 0} in multiplied
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)


def test_the_sign_of_a_difference() -> None:
    """The query's label minus the key's, as the source has it: a table with one row, for a key one below the query."""
    encoding = make("learned", {"chord": 1})
    part = encoding.parts[0]
    with torch.no_grad():
        for layer in (part, encoding.map):
            layer.weight.copy_(torch.eye(8)), layer.bias.zero_()
        part.table.zero_()
        part.table[2] = 5.0  # difference 1
    q = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    v = torch.eye(3, dtype=torch.float64).expand(1, 2, 3, 3)
    weights = rp.attention(q, 0 * q, v, encoding, q_pos={"chord": [1, 2, 1]}, k_pos={"chord": [1, 2, 1]})
    e = torch.exp(torch.tensor(10.0, dtype=torch.float64))
    torch.testing.assert_close(weights[0, 0, 1], torch.stack([e, e / e, e]) / (1 + 2 * e))
    torch.testing.assert_close(weights[0, 0, 0], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_heads_read_interleaved_channels() -> None:
    encoding = make("learned", {"chord": 1})
    part = encoding.parts[0]
    with torch.no_grad():
        for layer in (part, encoding.map):
            layer.weight.copy_(torch.eye(8)), layer.bias.zero_()
        part.table.copy_(torch.arange(8).double().expand(3, 8))
    parts = encoding.split(part.table)
    assert parts[..., 0].tolist() == [[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 7.0]]


def test_layers_share_what_belongs_to_the_levels() -> None:
    first = make("learned")
    second = make("learned", shared=first)
    assert second.parts is first.parts and second.map.weight is not first.map.weight
    network = torch.nn.ModuleList([first, second])
    assert len(list(network.parameters())) == 3 * 3 + 2 * 2
    with pytest.raises(ValueError, match="alike"):
        make("sine").share(first)
    stack = rp.models.Transformer(5, 8, 2, 2, "structure_rpe", causal=True)
    layers: list[Any] = [encoding for _, encoding in stack.encodings()]
    before = sum(p.numel() for p in stack.parameters())
    layers[1].share(layers[0])
    assert sum(p.numel() for p in stack.parameters()) == before - 3 * (8 * 8 + 8)
    ns = rp.encodings.NonStationaryRPE(2, 8, "chord")
    assert rp.encodings.NonStationaryRPE(2, 8, "chord", shared=ns).clocks is ns.clocks
    with pytest.raises(ValueError, match="like"):
        rp.encodings.NonStationaryRPE(2, 8, "both", shared=ns)


def outputs(encoding: Any, named: Named, n: int) -> Tensor:
    q, k, v = inputs(n, batch=max((len(x) for x in named.values() if x.dim() == 2), default=1))
    if isinstance(encoding, rp.encodings.StructureAPE):
        return encoding.add(torch.zeros(1, n, 8, dtype=torch.float64), named)
    return rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True)


def same_label() -> Any:
    encoding = rp.encodings.SameLabel(2, ("melody", "chord", "section")).double()
    with torch.no_grad():
        encoding.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.3, 2.0, 1.0]]))
    return encoding


def test_renaming_and_moving_the_labels() -> None:
    """Differences of numbers change when labels are renamed; whether labels agree does not."""
    named = song(40)
    renamed = {**named, "chord": torch.randperm(395, generator=torch.Generator().manual_seed(1))[named["chord"]]}
    moved = {name: labels + 17 for name, labels in named.items()}
    for encoding, by_name, by_move in (
        (make("sine"), True, False),
        (make("learned"), True, False),
        (same_label(), False, False),
        (rp.encodings.StructureAPE(8, ("melody", "chord", "section")).double(), True, True),
    ):
        before = outputs(encoding, named, 40)
        for other, changes in ((renamed, by_name), (moved, by_move)):
            change = (outputs(encoding, other, 40) - before).abs().max()
            assert change > 1e-3 if changes else change < 1e-12, type(encoding)


@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_constant_labels_are_no_encoding(kind: str) -> None:
    named = {name: torch.full((9,), 30) for name in ("melody", "chord", "section")}
    torch.testing.assert_close(outputs(make(kind), named, 9), outputs(None, named, 9), rtol=0, atol=1e-13)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=3))
def test_distinct_labels(rows: list[list[int]]) -> None:
    codes = torch.tensor(rows)
    token, rank = distinct(codes)
    assert torch.equal(codes.gather(1, token).gather(1, rank), codes)
    assert token.shape[1] == max(len(set(row)) for row in rows)


def encodings() -> dict[str, Any]:
    torch.manual_seed(5)
    ns = rp.encodings.NonStationaryRPE(2, 8, "both").double()
    return {"sine": make(), "learned": make("learned"), "ns": ns, "same": same_label()}


@pytest.mark.parametrize("name", list(encodings()))
def test_rows_of_a_batch_have_labels_of_their_own(name: str) -> None:
    named = song(23, rows=(3,))
    named["section"] = named["section"][0]  # one level alike in all rows
    encoding = encodings()[name]
    whole = outputs(encoding, named, 23)
    q, k, v = inputs(23, batch=3)
    for row in range(3):
        alone = {level: x[row] if x.dim() == 2 else x for level, x in named.items()}
        one = rp.attention(*(x[row : row + 1] for x in (q, k, v)), encoding, q_pos=alone, k_pos=alone, causal=True)
        torch.testing.assert_close(whole[row : row + 1], one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(encodings()))
def test_the_future_has_no_influence(name: str) -> None:
    """Neither its content, NaN included, nor its labels."""
    encoding, named = encodings()[name], song(21)
    q, k, v = inputs(21)
    for kernel in ("dense", "tiled"):
        before = rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True, kernel=kernel)
        later = {level: torch.cat([x[:13], (x[13:] * 3 + 1) % 40]) for level, x in named.items()}
        poisoned = [x.clone() for x in (q, k, v)]
        poisoned[0][:, :, 13:] = torch.nan
        poisoned[1][:, :, 13:] += 5
        after = rp.attention(*poisoned, encoding, q_pos=later, k_pos=later, causal=True, kernel=kernel)
        torch.testing.assert_close(after[:, :, :13], before[:, :, :13], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", list(encodings()))
@pytest.mark.parametrize("index", [False, True])
def test_decoding_in_chunks(name: str, index: bool) -> None:
    encoding, named = encodings()[name], song(29)
    if index:
        named["index"] = torch.arange(29) + 100
    q, k, v = inputs(29)
    whole = rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True)
    stream, start = Stream(encoding), 0
    for size in (1, 1, 7, 3, 1, 16):
        part = slice(start, start + size)
        chunk = {level: x[part] for level, x in named.items()}
        out = stream.step(q[:, :, part], k[:, :, part], v[:, :, part], position=chunk)
        torch.testing.assert_close(out, whole[:, :, part], rtol=0, atol=1e-12)
        start += size


@pytest.mark.parametrize("name", list(encodings()))
def test_one_tick_and_none(name: str) -> None:
    encoding, named = encodings()[name], song(1)
    q, k, v = inputs(1)
    torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True), v)
    none = {level: x[:0] for level, x in named.items()}
    empty = rp.attention(q[:, :, :0], k[:, :, :0], v[:, :, :0], encoding, q_pos=none, k_pos=none, causal=True)
    assert empty.shape == (1, 2, 0, 4)


def test_bfloat16_keeps_the_phase_of_large_labels() -> None:
    """Labels up to 395 at frequency 1: angles in bfloat16 would be off by a radian."""
    named = song(40)
    q, k, v = inputs(40, dtype=torch.bfloat16)
    want = rp.attention(q.double(), k.double(), v.double(), make(), q_pos=named, k_pos=named, causal=True)
    for cast in (torch.float32, torch.bfloat16):
        encoding = make().to(cast)
        exact = make().to(cast).double()
        want = rp.attention(q.double(), k.double(), v.double(), exact, q_pos=named, k_pos=named, causal=True)
        got = rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True)
        assert got.dtype == torch.bfloat16 and (got.double() - want).abs().max() < 2e-2


@pytest.mark.parametrize("name", list(encodings()))
def test_no_tensor_of_pairs_by_width_is_made(name: str) -> None:
    """Nor one number a pair: what is kept grows with n times the number of distinct labels."""
    n, encoding = 2048, encodings()[name].float()
    q, k, v = (x.requires_grad_() for x in inputs(n, dtype=torch.float32))
    small = {level: x % 12 for level, x in song(n).items()}
    with Largest() as seen:
        rp.attention(q, k, v, encoding, q_pos=small, k_pos=small, causal=True).sum().backward()
    assert seen.bytes <= TILE < n * n * 2, seen.operation


def test_many_labels_stay_linear() -> None:
    """A label a tick: more of them than 2 model_dim, so channels take over, and tables would be n x n."""
    n = 2048
    for kind in ("sine", "learned"):
        encoding = make(kind, {"chord": None}).float()
        q, k, v = (x.requires_grad_() for x in inputs(n, dtype=torch.float32))
        named = {"chord": torch.arange(n)}
        with Largest() as seen:
            rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True).sum().backward()
        assert seen.bytes <= TILE, (kind, seen.operation)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = inputs(4)
    encoding = make()
    cases: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "named positions.*'melody': .., 'chord'"),
        ({"melody": torch.arange(4)}, ValueError, "'chord' and 'section'; the positions name melody"),
        ({"melody": torch.arange(4), "chord": torch.rand(4), "section": torch.arange(4)}, TypeError, "integers"),
        ({"melody": torch.arange(5), "chord": torch.arange(4), "section": torch.arange(4)}, ValueError, "4 tokens"),
    ]
    for positions, error, message in cases:
        with pytest.raises(error, match=message):
            rp.attention(q, k, v, encoding, q_pos=positions, k_pos=positions)
    with pytest.raises(ValueError, match="2 heads of width 4; got 2 of width 6"):
        wide = torch.randn(1, 2, 4, 6).double()
        rp.attention(wide, wide, wide, encoding, q_pos=song(4), k_pos=song(4))
    strict = make("learned", {"chord": 3}, beyond="error")
    for labels, fits in (([5, 6, 8, 5], True), ([5, 6, 9, 5], False)):
        named = {"chord": torch.tensor(labels)}
        if fits:
            rp.attention(q, k, v, strict, q_pos=named, k_pos=named)
            continue
        with pytest.raises(ValueError, match=r"level 'chord' differ by -?4; its table has rows for -3\.\.3"):
            rp.attention(q, k, v, strict, q_pos=named, k_pos=named)
    for build, message in (
        (lambda: make(levels=("verse",)), "base of level 'verse' is not known"),
        (lambda: make("learned", ("verse",)), "reach of level 'verse'"),
        (lambda: make("learned", {"chord": 2.5}), "whole number"),
        (lambda: make(levels=()), "one or more names"),
        (lambda: make(levels=("chord", "chord")), "once"),
        (lambda: make("cosine"), "kind is"),
        (lambda: rp.encodings.StructureRPE(3, 8), "heads divides"),
        (lambda: make(beyond="zero"), "beyond is"),
        (lambda: rp.encodings.NonStationaryRPE(2, 8, "melody"), "level is"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_a_level_may_have_a_base_of_its_own_and_one_level_needs_no_name() -> None:
    q, k, v = inputs(9)
    verse = make(levels={"verse": 500.0})
    given = torch.arange(9) // 3
    named = rp.attention(q, k, v, verse, q_pos={"verse": given}, k_pos={"verse": given})
    assert torch.equal(rp.attention(q, k, v, verse, q_pos=Labels(given), k_pos=Labels(given)), named)
    assert make(same_base=True).levels == {"melody": 10001.0, "chord": 10001.0, "section": 10001.0}


def test_explained() -> None:
    q = torch.zeros(1, 2, 600, 4)
    named = song(600)
    words = str(rp.explain(q, q, q, make().float(), q_pos=named, k_pos=named, causal=True))
    assert "tiled" in words and "StructureRPE" in words
