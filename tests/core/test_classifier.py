"""The classifier: padding is not there, pooling is what it says, towers are one encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.models import Classifier

ENCODINGS = ["nope", "sinusoidal", "rope", "alibi", "t5", "shaw", "learned_bias", "fire"]


def small(encoding: str | None = "t5", **options: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(9, 3, 8, 2, 2, encoding, padding=0, **options).double().eval()  # type: ignore[arg-type]


def tokens(batch: int = 3, n: int = 13, seed: int = 1) -> Tensor:
    return torch.randint(1, 9, (batch, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_padding_changes_nothing(encoding: str, pooling: str) -> None:
    model, x = small(encoding, pooling=pooling), tokens()
    longer = torch.cat([x, torch.zeros(3, 5, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(longer), model(x), rtol=1e-9, atol=1e-9)
    alone = model(x[1:2, :7])
    cut = x.clone()
    cut[1, 7:] = 0
    torch.testing.assert_close(model(cut)[1:2], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ["sinusoidal", "rope", "t5", "shaw"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_answer_depends_on_the_order_only_through_an_encoding(encoding: str, pooling: str) -> None:
    x = tokens(1)
    turned = x.flip(1)
    without, with_one = small("nope", pooling=pooling), small(encoding, pooling=pooling)
    if encoding == "t5":  # its table begins at zero
        nn.init.normal_(next(e for _, e in with_one.encodings()).table)  # type: ignore[arg-type]
    torch.testing.assert_close(without(x), without(turned))
    assert (with_one(x) - with_one(turned)).abs().max() > 1e-9


def test_mean_pooling_is_the_mean_of_the_real_tokens() -> None:
    model, x = small(), tokens()
    x[2, 4:] = 0
    hidden = model.encode(model.embedding(x), key_mask=x != 0)
    expected = torch.stack([hidden[0].mean(0), hidden[1].mean(0), hidden[2, :4].mean(0)])
    torch.testing.assert_close(model.embed(x), expected)
    nothing = model(torch.zeros(2, 4, dtype=torch.int64))
    assert nothing.isfinite().all()


def test_the_learned_vector_is_a_token_in_front() -> None:
    model, x = small(pooling="cls"), tokens()
    assert model.cls is not None
    whole = torch.cat([model.cls.expand(3, 1, 8), model.embedding(x)], 1)
    torch.testing.assert_close(model(x), model.head(model.encode(whole)[:, 0]))
    torch.testing.assert_close(model(x, positions=torch.arange(13)), model(x))
    with pytest.raises(ValueError, match='pooling="mean"'):
        model(x, positions=torch.arange(13) / 2)


def test_both_towers_are_one_encoder() -> None:
    pairs = tokens(6).unflatten(0, (3, 2))
    plain, crossed = small(two_tower=True), small(two_tower=True, interaction=True)
    one, two = plain.embed(pairs[:, 0]), plain.embed(pairs[:, 1])
    torch.testing.assert_close(plain(pairs), plain.head(torch.cat([one, two], -1)))
    one, two = crossed.embed(pairs[:, 0]), crossed.embed(pairs[:, 1])
    torch.testing.assert_close(crossed(pairs), crossed.head(torch.cat([one, two, one * two, one - two], -1)))
    assert sum(isinstance(layer, nn.Linear) for layer in plain.head) == 3


def test_vectors_can_be_the_input() -> None:
    model = Classifier(None, 4, 8, 1, 2, "rope", channels=3)
    assert model(torch.randn(2, 5, 3)).shape == (2, 4)
    with pytest.raises(ValueError, match="floats"):
        model(torch.zeros(2, 5, dtype=torch.int64))


def test_cells_of_a_grid_reach_the_encoding() -> None:
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    model = Classifier(9, 2, 8, 1, 2, "swin", encoding_options={"window": (3, 4)}).double()
    nn.init.normal_(next(e for _, e in model.encodings()).table)  # type: ignore[arg-type]
    x = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x[:, mixed], positions=cells[mixed]), model(x, positions=cells))


def test_heads_may_be_narrower_than_the_width_divided() -> None:
    model = Classifier(256, 2, 32, 1, 4, "rope", head_dim=4, expansion=1)
    assert model.blocks[0].attention.q.weight.shape == (16, 32)  # type: ignore[union-attr, operator]
    assert model(torch.zeros(1, 6, dtype=torch.int64)).shape == (1, 2)


def test_all_parameters_learn() -> None:
    model = Classifier(9, 3, 8, 2, 2, "learned_bias", padding=0, pooling="cls", encoding_options={"max_lag": 4})
    nn.functional.cross_entropy(model(tokens()), torch.tensor([0, 1, 2])).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == [name for name in still if name.endswith("k.bias")]  # softmax does not see the keys' bias


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": None}, "vocabulary=None and positive channels"),
        ({"channels": 3}, "vocabulary=None and positive channels"),
        ({"classes": 0}, "positive classes"),
        ({"pooling": "max"}, "pooling is"),
        ({"padding": 9}, "padding is a token below"),
        ({"interaction": True}, "two_tower=True"),
        ({"causal": True}, "causal=True is not possible"),
        ({"heads": 3}, "heads divides dim"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    fine: dict[str, object] = {"vocabulary": 9, "classes": 2, "dim": 8, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match=message):
        Classifier(**(fine | arguments))  # type: ignore[arg-type]


def test_bad_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="integers"):
        small()(torch.rand(2, 3))
    with pytest.raises(ValueError, match="integers"):
        small()(tokens(2).unflatten(0, (1, 2)))
    with pytest.raises(ValueError, match="axis of 2"):
        small(two_tower=True)(tokens(3)[None])


def test_it_is_public() -> None:
    assert rp.models.Classifier is Classifier
