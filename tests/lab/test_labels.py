"""Labels of contestants: read, refused, merged, made into names of folders."""

from __future__ import annotations

import re

import pytest

from relpos.lab.errors import LabError
from relpos.lab.labels import assignments, merged, read, slug, split
from tests.lab.conftest import settings


def test_commas_inside_brackets_do_not_separate_contestants() -> None:
    text = "alibi, learned_bias[mixer=kernelized,features=prf],swin[encoding.window=[3,[4]]],,rope"
    assert split(text) == [
        "alibi",
        "learned_bias[mixer=kernelized,features=prf]",
        "swin[encoding.window=[3,[4]]]",
        "rope",
    ]


def test_a_label_is_an_encoding_and_typed_options() -> None:
    found = read(" t5[ mixer = kernelized, depth=2,rate=0.5,tied=true, encoding.max_lag=64,encoding.window=[3,4]] ")
    assert found.encoding == "t5"
    assert found.options == {
        "mixer": "kernelized",
        "depth": 2,
        "rate": 0.5,
        "tied": True,
        "encoding_options": {"max_lag": 64, "window": [3, 4]},
    }
    assert found.label == "t5[mixer=kernelized,depth=2,rate=0.5,tied=true,encoding.max_lag=64,encoding.window=[3,4]]"
    assert read("rope").options == read("rope[]").options == {} and read("rope[]").label == "rope"
    assert read(found.label) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t5[mixer=kernelized", "'[' without its ']'"),
        ("t5]", "']' without its '['"),
        ("t5[a=1],rope]x[", "']' without its '['"),
        ("t5[kernelized]", "'kernelized' is not key=value"),
        ("t5[=3]", "is not key=value"),
        ("t5[encoding.=3]", "is not key=value"),
        ("t5[a=1,a=2]", "'a' is given twice"),
        ("t5[encoding_options=1,encoding.a=2]", "'encoding.a' is given twice"),
        ("t5[a=1]b", "not an encoding with options in brackets"),
        ("t5 rope", "not an encoding with options in brackets"),
        ("[a=1]", "not an encoding with options in brackets"),
    ],
)
def test_what_is_no_label_is_refused_with_an_example(text: str, message: str) -> None:
    with pytest.raises(LabError, match=re.escape(message)) as caught:
        for part in split(text):
            read(part)
    assert "learned_bias[mixer=kernelized,features=prf]" in str(caught.value)


def test_key_value_options_are_typed_and_nested_by_dots() -> None:
    words = ["depth=2", "kind=log", "name=NaN", "far=1e999", "path=a=b/c.d", "encoding.max_lag=8"]
    assert assignments(words) == {
        "depth": 2,
        "kind": "log",
        "name": "NaN",
        "far": "1e999",
        "path": "a=b/c.d",
        "encoding_options": {"max_lag": 8},
    }
    for word in ("depth", "=2"):
        with pytest.raises(LabError, match="key=value"):
            assignments([word])


def test_a_contestant_s_options_go_over_those_of_all() -> None:
    below = {"mixer": "softmax", "dim": 8, "encoding_options": {"max_lag": 4, "beyond": "zero"}}
    plan = settings(encodings=("nope", "t5[mixer=kernelized,encoding.max_lag=9]"), model=below)
    assert plan.network("nope") == ("nope", below)
    assert plan.network(plan.encodings[1]) == (
        "t5",
        {"mixer": "kernelized", "dim": 8, "encoding_options": {"max_lag": 9, "beyond": "zero"}},
    )
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2} and below["encoding_options"] == {
        "max_lag": 4,
        "beyond": "zero",
    }


def test_one_contestant_in_two_spellings_is_refused() -> None:
    with pytest.raises(LabError, match=r"twice: t5\[a=1,b=2\] and t5\[b=2,a=1\]"):
        settings(encodings=("t5[a=1,b=2]", "t5[b=2,a=1]"))
    assert len(settings(encodings=("t5[a=1]", "t5[a=2]", "t5")).encodings) == 3


def test_names_of_folders_are_plain_and_differ() -> None:
    assert [slug(name) for name in ("learned_bias", "path-x")] == ["learned_bias", "path-x"]
    labels = ["t5[a=1,b=2]", "t5[a=1-b=2]", "t5[a=1, b=2]", "t5[A=1,b=2]", "t5[a=../../x]", f"t5[a={'x' * 300}]", ".."]
    slugs = [slug(label) for label in labels]
    assert len({each.lower() for each in slugs}) == len(labels)
    assert all(re.fullmatch(r"[\w.-]{1,120}", each) and ".." not in each.strip("-") for each in slugs[:4])
    assert all("/" not in each and not each.startswith(".") for each in slugs)
