"""Names of encodings: lookup, suggestions, options, and what may be registered."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import relpos as rp
from relpos.encodings import registry
from relpos.encodings.base import Absolute, Bias, ContentBias, Encoding, RowBias, Transform
from tests.core.naive import ToyBias, ToyRow


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


def test_names_describe_every_encoding() -> None:
    own = [name for name, entry in registry.each() if entry.cls is None]  # those registered from outside are not ours
    for name, found in ((name, rp.names()[name]) for name in own):
        assert found.name == name == registry.key_of(name)
        cls = registry.entry(name).load()
        assert found.cls == cls.__name__ and getattr(rp.encodings, found.cls) is cls and found.cls in dir(rp.encodings)
        assert issubclass(cls, {"Bias": Bias, "RowBias": RowBias, "ContentBias": ContentBias, "Transform": Transform,
                                "Absolute": Absolute}[found.form])  # fmt: skip
        assert found.summary and len(found.summary) < 400
        known = {"heads": 2, "dim": 8, "model_dim": 16, "causal": True}
        assert isinstance(registry.fitted(name, known), Encoding), name  # a layer builds it from what it knows


@pytest.mark.parametrize("spelling", ["learned_bias", "Learned-Bias", " LEARNED BIAS ", "learned bias"])
def test_spelling(spelling: str) -> None:
    assert isinstance(rp.encoding(spelling, heads=2), rp.encodings.LearnedBias)


@pytest.mark.parametrize(
    ("wrong", "near"), [("lerned_bias", "learned_bias"), ("nop", "nope"), ("learnedbias", "learned_bias")]
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, near: str) -> None:
    for call in (
        lambda: rp.encoding(wrong),
        lambda: rp.SelfAttention(8, 2, wrong),
        lambda: rp.models.Transformer(5, 8, 1, 2, wrong),
    ):
        with pytest.raises(ValueError, match=f"{wrong}.*did you mean .*{near}"):
            call()
    with pytest.raises(ValueError, match=r"no encoding is called 'qqqq' \(relpos.names\(\) lists all\)"):
        rp.encoding("qqqq")


@pytest.mark.parametrize("name", [3, None, b"t5"])
def test_a_name_is_a_string(name: Any) -> None:
    for call in (lambda: rp.encoding(name), lambda: rp.register(name, ToyBias)):
        with pytest.raises(TypeError, match="string"):
            call()


def test_unknown_and_missing_options_say_which_there_are() -> None:
    with pytest.raises(TypeError, match=r"learned_bias.*max_lags.*LearnedBias\(.*max_lag"):
        rp.encoding("learned_bias", heads=2, max_lags=3)
    with pytest.raises(TypeError, match=r"learned_bias.*heads.*LearnedBias\("):
        rp.encoding("learned_bias")
    with pytest.raises(TypeError, match="max_lags"):
        rp.SelfAttention(8, 2, "learned_bias", encoding_options={"max_lags": 3})


def test_context_defaults_and_options_in_rising_order() -> None:
    rp.register("toy", ToyBias, reach=4, heads=7)
    assert rp.encoding("toy").heads == 7 and rp.encoding("toy").reach == 4
    found = registry.fitted("toy", {"heads": 2, "dim": 8})
    assert (found.heads, found.reach) == (7, 4)
    found = registry.fitted("toy", {"heads": 2}, {"heads": 5, "reach": 1})
    assert (found.heads, found.reach) == (5, 1)


def test_registering() -> None:
    rp.register("My Toy", ToyBias)
    assert isinstance(rp.encoding("my_toy", heads=2), ToyBias) and "my_toy" in rp.names()
    rp.register("my-toy", ToyBias, reach=2)  # again, by the same class: new defaults
    assert rp.encoding("my_toy", heads=2).reach == 2
    assert rp.encodings.ToyBias is ToyBias
    with pytest.raises(ValueError, match=r"my_toy.*taken by ToyBias"):
        rp.register("my_toy", ToyRow)
    with pytest.raises(ValueError, match="taken by LearnedBias"):
        rp.register("learned_bias", ToyBias)
    for wrong in (3, int, ToyBias(2)):
        with pytest.raises(TypeError, match="subclass"):
            rp.register("other", wrong)  # type: ignore[arg-type]


def test_an_unknown_attribute_lists_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"LearnedBias.*NoPE"):
        rp.encodings.Unheard  # noqa: B018
    assert inspect.isclass(rp.encodings.Bias)
