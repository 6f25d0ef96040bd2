"""What moves from one network to another, by patterns over names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relpos.models import Transformer, transfer


def network(vocabulary: int, seed: int) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(vocabulary, 16, 2, 2, "learned_bias", encoding_options={"max_lag": 8})


def test_relative_tables_move_and_tables_of_items_of_another_number_stay() -> None:
    old, new = network(11, 0), network(7, 1)
    with torch.no_grad():
        for _, encoding in old.encodings():
            encoding.table.normal_()  # type: ignore[union-attr, operator]
    before = new.embedding.weight.clone()
    report = transfer(old, new, reset=("embedding.*",), freeze=("*.encoding.*",))
    assert torch.equal(new.embedding.weight, before)
    for name, value in new.state_dict().items():
        assert name == "embedding.weight" or torch.equal(value, old.state_dict()[name])
    frozen = [name for name, parameter in new.named_parameters() if not parameter.requires_grad]
    assert frozen == list(report.frozen) and len(frozen) == 2 and all("table" in name for name in frozen)
    assert report.reset == ("embedding.weight",) and report.count(report.reset) == 7 * 16
    assert set(report.kept) | set(report.reset) == set(new.state_dict())
    assert "reset: 112 numbers in 1 tensors" in str(report) and "    embedding.weight" in str(report)


def test_what_moved_is_a_copy() -> None:
    old, new = network(7, 0), network(7, 1)
    transfer(old, new)
    with torch.no_grad():
        new.embedding.weight.add_(1)
    assert not torch.equal(old.embedding.weight, new.embedding.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("*", "*.tabel")}, "no parameter fits '\\*.tabel' of keep; there are"),
        ({"freeze": ("mark.*",), "reset": ("embedding.*",)}, "'mark.\\*' of freeze"),
        ({"keep": ("blocks.*",)}, "embedding.weight: neither kept nor reset"),
        ({}, r"embedding.weight has the shape \(11, 16\) in the source and \(7, 16\) in the target: name it under"),
    ],
)
def test_a_wrong_pattern_is_told_and_changes_nothing(options: dict[str, tuple[str, ...]], message: str) -> None:
    old, new = network(11, 0), network(7, 1)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        transfer(old, new, **options)
    assert all(torch.equal(before[name], value) for name, value in new.state_dict().items())
    assert all(parameter.requires_grad for parameter in new.parameters())


def test_what_only_one_of_them_has_is_told() -> None:
    old, new = nn.Linear(3, 2, bias=False), nn.Linear(3, 2)
    with pytest.raises(ValueError, match="bias is in the target only: name it under reset"):
        transfer(old, new)
    transfer(old, new, reset=("bias",))
    with pytest.raises(ValueError, match="bias is in the source only"):
        transfer(new, old)


def test_patterns_are_a_list() -> None:
    with pytest.raises(TypeError, match="keep is a list of patterns, got the text 'weight'"):
        transfer(nn.Linear(2, 2), nn.Linear(2, 2), keep="weight")
