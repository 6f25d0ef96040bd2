"""relpos in models of x-transformers: the same outputs, gradients and tokens, no matrix, and everything undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import x_transformers as xt
from torch import Tensor, nn

import relpos as rp
from relpos.integrations import x_transformers as ours
from relpos.integrations.common import KEPT
from tests.integrations.hf import built, differences, padded, tokens
from tests.integrations.test_transformers import Square

SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16, "verbose": False}
SERVED: dict[str, dict[str, Any]] = {
    "alibi": {"alibi_pos_bias": True},
    "alibi, two heads, memory keys": {"alibi_pos_bias": True, "alibi_num_heads": 2, "attn_num_mem_kv": 3},
    "t5": {"rel_pos_bias": True},
    "t5, grouped": {"rel_pos_bias": True, "attn_kv_heads": 2, "rel_pos_num_buckets": 12, "rel_pos_max_distance": 40},
    "t5, one key head, cosines": {"rel_pos_bias": True, "attn_one_kv_head": True, "attn_qk_norm": True},
    "t5, window": {"rel_pos_bias": True, "attn_max_attend_past": 9},
    "rotary": {"rotary_pos_emb": True},
    "rotary, flash, rmsnorm": {"rotary_pos_emb": True, "attn_flash": True, "attn_qk_rmsnorm": True},
    "rotary and alibi": {"rotary_pos_emb": True, "alibi_pos_bias": True, "attn_value_dim_head": 24},
    "polar": {"polar_pos_emb": True},
    "gates and residuals": {"alibi_pos_bias": True, "attn_gate_values": True, "add_value_residual": True},
}
DECODED = ["alibi", "t5", "t5, grouped", "t5, window", "rotary", "rotary, flash, rmsnorm"]
REFUSED: dict[str, dict[str, Any]] = {
    "talking heads": {"attn_pre_talking_heads": True},
    "no softmax": {"attn_sparse_topk": 3},
    r"no softmax over the keys \(sigmoid": {"attn_sigmoid": True},
    "distances": {"attn_l2_distance": True},
    "tanh": {"attn_softclamp_logits": True},
    "sinks": {"attn_head_learned_sink": True},
    "key of zeros": {"attn_add_zero_kv": True},
    "selective": {"attn_selective": True},
    "signs": {"attn_cog_signed": True},
    "CoPE": {"attn_use_cope": True},
    "from its input": {"attn_data_dependent_alibi": True},
    "DynamicPositionBias": {"dynamic_pos_bias": True},
    "residual_attn": {"residual_attn": True},
    "does not bound its memory keys": {"attn_max_attend_past": 9, "attn_num_mem_kv": 2},
}


class First(nn.Module):
    """A model whose result is the first of a tuple, as `differences` reads it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> tuple[Tensor]:
        return (self.model(**inputs),)


def made(kind: type = xt.Decoder, **options: Any) -> Any:
    layers = {**SHAPE, **options}
    return built(lambda: xt.TransformerWrapper(num_tokens=100, max_seq_len=4000, attn_layers=kind(**layers)))


def pair(model: Any) -> tuple[Any, Any]:
    other = copy.deepcopy(model)
    assert ours.accelerate(other).changed
    return model, other


def close(one: Any, other: Any, valid: Tensor | None = None, **inputs: Any) -> None:
    found = differences(First(one), First(other), inputs, valid)
    assert found[0] < 1e-5 and found[1] < 3e-6, found


@pytest.mark.slow(7)
@pytest.mark.parametrize(
    "name", ["t5, grouped", "rotary and alibi", "alibi, two heads, memory keys", "t5, memory keys, long"]
)
def test_compiled(name: str) -> None:
    """One graph, a second one for all other lengths; memory keys have no place, of few tokens or many."""
    torch._dynamo.reset()
    more = {"t5, memory keys, long": {"rel_pos_bias": True, "attn_num_mem_kv": 2}}
    model, other = pair(made(**(SERVED | more)[name]))
    graphs: list[int] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    program = torch.compile(other, backend=count)
    for n in (300, 410) if "long" in name else (40, 70):
        close(model, program, x=tokens(n))
        close(model, other, x=tokens(n))
    assert len(graphs) <= (2 if "memory" not in name else 20)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", [xt.Decoder, xt.Encoder])
@pytest.mark.parametrize("name", SERVED)
def test_outputs_and_gradients(name: str, kind: type, mask: bool) -> None:
    x = tokens()
    seen = {"mask": padded(x, "right").bool()} if mask else {}
    close(*pair(made(kind, **SERVED[name])), seen.get("mask"), x=x, **seen)


@pytest.mark.parametrize("name", ["alibi", "t5", "t5, grouped", "rotary and alibi"])
def test_of_long_sequences(name: str) -> None:
    """Long enough for the tiled kernel. In float32 the model's own gradient of a table is further off than 1e-5."""
    model, other = pair(made(**SERVED[name]))
    close(model.double(), other, x=tokens(700, 1))


@pytest.mark.parametrize("name", ["alibi", "t5", "rotary"])
def test_left_padding(name: str) -> None:
    model, other = pair(made(**SERVED[name]))
    x, starts = tokens(), torch.tensor([0, 23])
    close(model, other, padded(x, "left").bool(), x=x, seq_start_pos=starts)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", DECODED)
def test_generation(name: str, cache: bool) -> None:
    lengths = torch.tensor([20, 13])
    found = [
        xt.AutoregressiveWrapper(model).generate(tokens(20), 9, temperature=0.0, cache_kv=cache, prompt_lens=lengths)
        for model in pair(made(**SERVED[name]))
    ]
    assert torch.equal(*found)


def test_memories_of_earlier_segments() -> None:
    layers = {**SHAPE, "rel_pos_bias": True}
    model = built(
        lambda: xt.TransformerWrapper(num_tokens=100, max_seq_len=64, max_mem_len=64, attn_layers=xt.Decoder(**layers))
    )
    found = []
    for each in pair(model):
        _, memories = each(tokens(), return_mems=True)
        found.append(each(tokens(40), mems=memories))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_encoder_and_decoder() -> None:
    sides = {
        f"{side}_{key}": value
        for side in ("enc", "dec")
        for key, value in (SHAPE | {"num_tokens": 100, "max_seq_len": 128, "rel_pos_bias": True}).items()
        if key != "dim"
    }
    model, other = pair(built(lambda: xt.XTransformer(dim=32, tie_token_emb=True, **sides)))
    x, y = tokens(), tokens(37)
    inputs = {"src": x, "tgt": y, "mask": padded(x, "right").bool()}
    losses = [each(**inputs) for each in (model, other)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
    for loss in losses:
        loss.backward()
    for one, two in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    start = torch.full((2, 1), 2)
    found = [each.generate(x, start, 9, mask=inputs["mask"], temperature=0.0) for each in (model, other)]
    assert torch.equal(*found)


def test_places_of_the_caller() -> None:
    """ALiBi takes positions, also such that do not rise; what is seen follows the order of the tokens."""
    pos = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    close(*pair(made(alibi_pos_bias=True, attn_num_mem_kv=2)), x=tokens(), pos=pos)


@pytest.mark.parametrize("name", ["alibi", "t5, window", "rotary, flash, rmsnorm", "rotary and alibi"])
def test_nothing_of_queries_by_keys(name: str) -> None:
    """With a key mask; and the model itself makes such, so that this can fail."""
    model, other = pair(made(**SERVED[name]))
    for each, n in ((model, 600), (other, 2000)):
        x = tokens(n)
        with Square(n // 2) as square:
            each(x[:1], mask=padded(x, "right")[1:].bool()).square().mean().backward()
        assert bool(square.operation) == (each is model), square.operation


@pytest.mark.parametrize("name", ["alibi", "t5", "rotary"])
def test_half_precision(name: str) -> None:
    model, other = (each.to(torch.bfloat16) for each in pair(made(**SERVED[name])))
    with torch.no_grad():
        one, two = (each(tokens()).float() for each in (model, other))
    assert torch.isfinite(two).all() and float((one - two).abs().max()) < 0.05 * float(one.abs().max())


def test_dropout_of_the_model_is_used() -> None:
    _, other = pair(made(rel_pos_bias=True, attn_dropout=0.5))
    exact = other(tokens())
    drawn = [other.train()(tokens()) for _ in range(2)]
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[0], exact)


def test_restored() -> None:
    model = made(alibi_pos_bias=True, attn_max_attend_past=9)
    own = model(tokens())
    names = set(model.state_dict())
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    assert "2 parts changed, 0 not" in str(ours.accelerate(model))
    assert model.attn_layers.rel_pos.bias is None  # what an earlier call left
    model(tokens())
    clone = copy.deepcopy(model)  # has its own, and can be restored on its own
    ours.restore(clone)
    assert set(model.state_dict()) == names
    with pytest.raises(ValueError, match="already"):
        ours.accelerate(model)
    ours.restore(model)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == before
    assert torch.equal(model(tokens()), own) and torch.equal(clone(tokens()), own)
    with pytest.raises(ValueError, match="nothing to restore"):
        ours.restore(model)


def test_a_copy_has_its_own_table() -> None:
    _, model = pair(made(rel_pos_bias=True))
    model(tokens())
    clone = copy.deepcopy(model)
    clone(tokens()).square().sum().backward()
    tables = [each.attn_layers.rel_pos.relative_attention_bias.weight for each in (model, clone)]
    assert tables[0].grad is None and float(tables[1].grad.abs().sum()) > 0


class TestBadInput:
    @pytest.mark.parametrize("words", REFUSED)
    def test_options_that_are_not_computed(self, words: str) -> None:
        model = made(**REFUSED[words])
        with pytest.raises(ValueError, match=rf"attn_layers\.layers\.0\.1: .*{words}"):
            ours.accelerate(model)
        assert not [part for part in model.modules() if "forward" in vars(part)]

    def test_one_layer_of_many(self) -> None:
        """The others are changed, this one is as it was, and the report says why."""
        model = made(rel_pos_bias=True, attn_softclamp_logits=(False, True))
        other = copy.deepcopy(model)
        report = ours.accelerate(other)
        assert [(c.name, c.changed) for c in report.changes] == [
            ("attn_layers.layers.0.1", True),
            ("attn_layers.layers.2.1", False),
        ]
        assert "capped by a tanh (softclamp_logits)" in str(report)
        close(model, other, x=tokens())

    def test_prefix_decoders(self) -> None:
        with pytest.raises(ValueError, match="mask of a prefix decoder"):
            ours.accelerate(made(xt.PrefixDecoder, alibi_pos_bias=True))

    def test_no_model(self) -> None:
        with pytest.raises(ValueError, match="nothing in this Linear can be changed: it has no attention"):
            ours.accelerate(nn.Linear(2, 2))
        with pytest.raises(TypeError, match="got str"):
            ours.accelerate("model")  # type: ignore[arg-type]

    def test_masks_of_pairs(self) -> None:
        _, model = pair(made(rotary_pos_emb=True))
        with pytest.raises(NotImplementedError, match="mask of queries x keys"):
            model(tokens(8), attn_mask=torch.ones(8, 8, dtype=torch.bool))
        with pytest.raises(NotImplementedError, match="bias of queries x keys"):
            model(tokens(8), attn_bias=torch.zeros(4, 8, 8))

    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "9.1.0")
        model = made(rotary_pos_emb=True)
        with pytest.raises(RuntimeError, match=r"x-transformers 2\.31 to 2\.31, not with 9\.1\.0"):
            ours.accelerate(model)
        ours.accelerate(model, untested=True)


class TestReplace:
    @pytest.mark.parametrize("name", ["fire", "kerple", "shaw", "alibi", "t5", "rope", "nope"])
    def test_decoding_is_the_parallel_result(self, name: str) -> None:
        model = made(rotary_pos_emb=True)
        own = model(tokens())
        ours.replace_encoding(model, name)
        assert float((model(tokens()) - own).abs().max()) > 0.1
        found = xt.AutoregressiveWrapper(model).generate(tokens(), 6, temperature=0.0)
        whole = torch.cat([tokens(), found], 1)
        assert torch.equal(found, model(whole)[:, 69:-1].argmax(-1))
        ours.restore(model)
        assert torch.equal(model(tokens()), own)

    def test_the_same_encoding_is_no_change(self) -> None:
        """ALiBi for ALiBi, beside memory keys and whatever else the layers do."""
        model = made(alibi_pos_bias=True, attn_num_mem_kv=2, attn_gate_values=True)
        other = copy.deepcopy(model)
        ours.replace_encoding(other, rp.encodings.ALiBi(4))
        close(model, other, x=tokens())

    @pytest.mark.parametrize("given", ["shared", "each", "object", "callable"])
    def test_it_is_trained_and_undone(self, given: str) -> None:
        model = made(dynamic_pos_bias=True)  # the bias that goes may be one that accelerate refuses
        names = set(model.state_dict())
        encoding: Any = {"object": rp.encodings.KERPLE(4), "callable": lambda: rp.encodings.KERPLE(4)}.get(
            given, "kerple"
        )
        report = ours.replace_encoding(model, encoding, share=given != "each")
        assert len(report.changed) == 2 and "KERPLE in place" in str(report)
        added = {name: p for name, p in model.named_parameters() if "relpos_encoding" in name}
        assert len(added) == 2 * (2 if given in ("each", "callable") else 1) and set(model.state_dict()) > names
        steps = torch.optim.SGD(model.parameters(), 0.1)
        losses, before = [], [p.detach().clone() for p in added.values()]
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(tokens()).transpose(1, 2), tokens())
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] and all(not torch.equal(p, q) for p, q in zip(added.values(), before))
        ours.restore(model)
        assert set(model.state_dict()) == names

    def test_positions_of_the_input_are_told(self) -> None:
        report = ours.replace_encoding(made(alibi_pos_bias=True), "kerple")
        assert [c.name for c in report.unchanged] == ["pos_emb"] and "use_abs_pos_emb" in report.unchanged[0].what

    def test_refused_and_as_before(self) -> None:
        model = made(rel_pos_bias=True)
        keys: Any
        for given, words in (
            ("sinusoidal", "added to the input"),
            ("fox", "reads the layer's input"),
            ("axial_rope", r"layers\.0\.1: AxialRoPE takes Grid"),
            ("foo", "no encoding is called"),
            (rp.encodings.ALiBi(3), r"layers\.0\.1: .*heads"),
            (4, "got int"),
            (lambda: nn.Linear(2, 2), "got Linear"),
        ):
            keys = given
            with pytest.raises((ValueError, TypeError), match=words):
                ours.replace_encoding(model, keys)
            assert KEPT not in vars(model) and "forward" not in vars(model.attn_layers.layers[0][1])
        with pytest.raises(ValueError, match="options go with"):
            ours.replace_encoding(model, rp.encodings.ALiBi(4), symmetric=True)
        with pytest.raises(ValueError, match="talking heads"):
            ours.replace_encoding(made(attn_post_talking_heads=True), "t5")
        with pytest.raises(ValueError, match="causal"):
            ours.replace_encoding(made(xt.Encoder), "hype")
