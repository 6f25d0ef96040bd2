"""relpos in models of transformers: the same outputs and gradients, no matrix, and everything undone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from relpos.integrations import transformers as ours
from tests.core.test_memory import tensors_of
from tests.integrations.hf import (
    DECODERS,
    ENCODERS,
    PICTURES,
    ROTARY,
    SEQ2SEQ,
    SPEECH,
    SWIN,
    built,
    differences,
    padded,
    tokens,
)


def pair(make: Any) -> tuple[Any, Any]:
    model = built(make)
    other = copy.deepcopy(model)
    report = ours.accelerate(other)
    assert report.changed and str(report)
    return model, other


def close(found: tuple[float, float]) -> None:
    assert found[0] < 1e-5 and found[1] < 2e-6, found


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_outputs_and_gradients(name: str, side: str) -> None:
    x = tokens()
    mask = None if side == "none" else padded(x, side)
    inputs = {"input_ids": x} if mask is None else {"input_ids": x, "attention_mask": mask}
    close(differences(*pair((DECODERS | ENCODERS)[name]), inputs, mask))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoders_and_decoders(name: str) -> None:
    x, y = tokens(90), tokens(37)
    inputs = {"input_ids": x, "attention_mask": padded(x, "right"), "decoder_input_ids": y}
    close(differences(*pair(SEQ2SEQ[name]), inputs))


def test_speech() -> None:
    close(differences(*pair(SPEECH["wav2vec2-conformer"]), {"input_values": torch.randn(2, 300)}))


@pytest.mark.parametrize("side", [32, 64, 50])  # the last is padded to whole windows
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, side: int) -> None:
    options = {"interpolate_pos_encoding": True} if side == 50 else {}
    close(differences(*pair(PICTURES[name]), {"pixel_values": torch.randn(2, 3, side, side), **options}))


def test_large_windows_make_no_matrix() -> None:
    """Windows of 32 x 32 cells, shifted: neither biases nor masks nor scores of 1,024 x 1,024."""
    model = built(lambda: hf.SwinModel(hf.SwinConfig(**{**SWIN, "image_size": 128, "window_size": 32})))
    x = torch.randn(1, 3, 128, 128)
    found = []
    for _ in range(2):
        with Square(1024) as square:
            model(x)[0].square().mean().backward()
        found.append(square.operation)
        if len(found) == 1:
            ours.accelerate(model)
    assert found[0] and not found[1]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_generation_with_a_cache(name: str, cache: str) -> None:
    model, other = pair((DECODERS | SEQ2SEQ)[name])
    x = tokens(20)
    options = {"input_ids": x, "attention_mask": padded(x, "left" if name in DECODERS else "right", 7)}
    options |= {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    options |= {} if cache == "dynamic" or name == "mpt" else {"cache_implementation": "static"}
    assert torch.equal(model.generate(**options), other.generate(**options))


def test_beams() -> None:
    model, other = pair(SEQ2SEQ["t5"])
    options = {"input_ids": tokens(20), "max_new_tokens": 9, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(**options), other.generate(**options))


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_documents(name: str) -> None:
    """Position ids that start again: transformers packs documents so, and they do not see each other."""
    places = torch.cat([torch.arange(31), torch.arange(39)])[None]
    close(differences(*pair(ROTARY[name]), {"input_ids": tokens(70, 1), "position_ids": places}))


class Square(TorchDispatchMode):
    """Keeps the first tensor with two axes of at least n that any operation returned, views of small ones aside."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.operation = n, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            square = sum(side >= self.n for side in tensor.shape) > 1
            if not self.operation and square and tensor.untyped_storage().nbytes() >= self.n**2:
                self.operation = f"{func} {tuple(tensor.shape)}"
        return result


def run(name: str, model: Any, n: int) -> str:
    """The first operation, forward or backward, that makes something of queries x keys."""
    x = tokens(n, 1)
    inputs: dict[str, Any] = {"input_ids": x, "attention_mask": padded(tokens(n), "right", 5)[1:]}
    if name in SEQ2SEQ:
        inputs["decoder_input_ids"] = x
    if name in SPEECH:
        inputs = {"input_values": torch.randn(1, 4 * n + 8)}
    with Square(n // 2) as square:
        model(**inputs)[0].square().mean().backward()
    return square.operation


@pytest.mark.slow(15)
@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ, *ENCODERS, *SPEECH])
def test_nothing_of_queries_by_keys(name: str) -> None:
    model = built({**SEQ2SEQ, **DECODERS, **ENCODERS, **SPEECH}[name])
    ours.accelerate(model)
    assert run(name, model, 2500) == ""


@pytest.mark.parametrize("name", ["t5", "umt5", "bloom", "mpt", "deberta-v2", "wav2vec2-conformer", "llama"])
def test_the_model_itself_makes_such(name: str) -> None:
    """The test above can fail. (Mistral's own mask is one too.)"""
    assert run(name, built({**SEQ2SEQ, **DECODERS, **ENCODERS, **SPEECH}[name]), 600)


def test_training_is_the_same() -> None:
    x = tokens(40)
    curves = []
    for model in pair(SEQ2SEQ["t5"]):
        model.train()
        steps = torch.optim.AdamW(model.parameters(), 1e-3)
        curves.append([])
        for _ in range(50):
            loss = model(input_ids=x, labels=x).loss
            steps.zero_grad()
            loss.backward()
            steps.step()
            curves[-1].append(float(loss.detach()))
    assert max(abs(a - b) for a, b in zip(*curves)) < 1e-4
    assert curves[0][-1] < curves[0][0] - 0.5


@pytest.mark.slow(5)
def test_the_trainer(tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in tokens(24, 16).tolist()]
    curves = []
    for model in pair(ROTARY["llama"]):
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=50, per_device_train_batch_size=4, logging_steps=1, report_to=[],
            save_strategy="no", learning_rate=1e-3, use_cpu=True, disable_tqdm=True, seed=3,
        )  # fmt: skip
        trainer = hf.Trainer(model, arguments, train_dataset=rows, data_collator=hf.default_data_collator)
        trainer.train()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(curves[0]) == 50 and max(abs(a - b) for a, b in zip(*curves)) <= 1e-4


@pytest.mark.parametrize("name", ["t5", "llama", "deberta-v2"])
def test_gradient_checkpointing(name: str) -> None:
    model, other = pair({**SEQ2SEQ, **ROTARY, **ENCODERS}[name])
    for each in (model, other):
        each.gradient_checkpointing_enable({"use_reentrant": False})
        each.train()
    inputs = {"input_ids": tokens()} | ({"decoder_input_ids": tokens(9)} if name in SEQ2SEQ else {})
    close(differences(model, other, inputs))


@pytest.mark.parametrize("name", ["t5", "llama", "bloom", "deberta-v2"])
def test_dropout_of_the_model_is_used(name: str) -> None:
    model = built({**SEQ2SEQ, **DECODERS, **ENCODERS}[name])
    for part in model.modules():  # of the weights alone
        for field in ("dropout", "attention_dropout"):
            if isinstance(getattr(part, field, None), float) and "Attention" in type(part).__name__:
                setattr(part, field, 0.5)
        if type(part).__name__ == "BloomAttention":
            part.attention_dropout.p = 0.5
        if type(part).__name__ == "DisentangledSelfAttention":
            part.dropout.p = 0.5
    ours.accelerate(model)
    inputs = {"input_ids": tokens()} | ({"decoder_input_ids": tokens(9)} if name in SEQ2SEQ else {})
    exact = model(**inputs)[0]
    model.train()
    with torch.no_grad():
        drawn = torch.stack([model(**inputs)[0] for _ in range(2)])
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[0], exact)


@pytest.mark.parametrize("name", ["t5", "bloom", "mpt", "deberta-v2", "wav2vec2-conformer", "swin", "llama"])
def test_restored_and_saved(name: str, tmp_path: Path) -> None:
    make = {**SEQ2SEQ, **DECODERS, **ENCODERS, **SPEECH, **PICTURES}[name]
    model = built(make)
    before, names, way = copy.deepcopy(vars(model)), set(model.state_dict()), model.config._attn_implementation
    ours.accelerate(model)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert "relpos" not in (tmp_path / "config.json").read_text()
    again = type(model).from_pretrained(tmp_path)
    assert again.config._attn_implementation == way
    clone = copy.deepcopy(model)  # a copy has its own weights, and can be restored on its own
    with torch.no_grad():
        next(iter(clone.parameters())).zero_()
    ours.restore(clone)
    assert clone.config._attn_implementation == way and model.config._attn_implementation == "relpos"
    ours.restore(model)
    assert model.config._attn_implementation == way and set(vars(model)) == set(before)
    inputs = {"input_values": torch.randn(1, 300)} if name in SPEECH else {"input_ids": tokens()}
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32)} if name in PICTURES else inputs
    inputs |= {"decoder_input_ids": tokens(9)} if name in SEQ2SEQ else {}
    assert torch.equal(model(**inputs)[0], again.eval()(**inputs)[0])


def test_a_copy_has_its_own_table() -> None:
    model = built(ENCODERS["t5 encoder"])
    ours.accelerate(model)
    clone = copy.deepcopy(model)
    clone(input_ids=tokens())[0].square().sum().backward()
    tables = [m.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight for m in (model, clone)]
    assert tables[0].grad is None and float(tables[1].grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["t5", "mpt", "llama", "deberta-v2"])
def test_half_precision(name: str) -> None:
    model, other = (each.to(torch.bfloat16) for each in pair({**SEQ2SEQ, **DECODERS, **ENCODERS}[name]))
    inputs = {"input_ids": tokens()} | ({"decoder_input_ids": tokens(9)} if name in SEQ2SEQ else {})
    with torch.no_grad():
        one, two = (each(**inputs)[0].float() for each in (model, other))
    assert torch.isfinite(two).all() and float((one - two).abs().max()) < 0.05 * float(one.abs().max())


class TestBadInput:
    def test_twice(self) -> None:
        model = built(ROTARY["llama"])
        ours.accelerate(model)
        with pytest.raises(ValueError, match="already"):
            ours.accelerate(model)

    def test_nothing_to_restore(self) -> None:
        with pytest.raises(ValueError, match="nothing to restore"):
            ours.restore(built(ROTARY["llama"]))

    def test_unsupported(self) -> None:
        config = hf.BertConfig(
            vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        with pytest.raises(ValueError, match=r"'bert'.*T5: t5, mt5, umt5; ALiBi: bloom"):
            ours.accelerate(hf.BertModel(config))
        with pytest.raises(TypeError, match="got Linear"):
            ours.accelerate(torch.nn.Linear(2, 2))
        swin = hf.Swinv2Model(hf.Swinv2Config(image_size=32, embed_dim=8, depths=(1,), num_heads=(2,), window_size=4))
        with pytest.raises(ValueError, match="cosines"):
            ours.accelerate(swin)

    def test_nothing_to_change(self) -> None:
        config = hf.DebertaV2Config(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        model = hf.DebertaV2Model(config)
        with pytest.raises(ValueError, match="it has no relative positions"):
            ours.accelerate(model)
        assert not [part for part in model.modules() if "forward" in vars(part)]

    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "9.1.0")
        model = built(ROTARY["llama"])
        with pytest.raises(RuntimeError, match=r"5\.23 to 5\.24, not with 9\.1\.0"):
            ours.accelerate(model)
        ours.accelerate(model, untested=True)

    def test_weights_are_not_returned(self) -> None:
        model = built(DECODERS["bloom"])
        ours.accelerate(model)
        with pytest.raises(ValueError, match="output_attentions"):
            model(input_ids=tokens(), output_attentions=True)

    def test_masks_of_pairs(self) -> None:
        model = built(ROTARY["llama"])
        ours.accelerate(model)
        with pytest.raises(NotImplementedError, match="mask of queries x keys"):
            model(input_ids=tokens(8), attention_mask=torch.zeros(2, 1, 8, 8))


class TestReplace:
    @pytest.mark.parametrize("name", ["alibi", "t5", "kerple", "shaw", "nope"])
    def test_decoding_is_the_parallel_result(self, name: str) -> None:
        model = built(ROTARY["llama"])
        own = model(input_ids=tokens()).logits
        ours.replace_encoding(model, name)
        full = model(input_ids=tokens()).logits
        assert float((full - own).abs().max()) > 0.1
        found = model.generate(tokens(), max_new_tokens=6, do_sample=False, pad_token_id=0)
        again = model(input_ids=found).logits[:, tokens().shape[1] - 1 : -1].argmax(-1)
        assert torch.equal(found[:, tokens().shape[1] :], again)
        ours.restore(model)
        assert torch.equal(model(input_ids=tokens()).logits, own)

    def test_nope_does_not_know_the_order(self) -> None:
        model = built(ROTARY["llama"])
        ours.replace_encoding(model, "nope")
        x = tokens()
        turned = torch.cat([x[:, :-1].flip(1), x[:, -1:]], 1)
        last = [model(input_ids=each).logits[:, -1] for each in (x, turned)]
        # of the first layer; the second sees how much of the past the first could see
        assert model.model.layers[0].self_attn.relpos_encoding is None
        assert float((last[0] - last[1]).abs().max()) < float(last[0].abs().max())

    @pytest.mark.parametrize("share", [True, False])
    def test_it_is_trained_and_undone(self, share: bool) -> None:
        model = built(SEQ2SEQ["t5"])
        names = set(model.state_dict())
        report = ours.replace_encoding(model, "kerple", share=share)
        assert len(report.changed) == 4  # self-attention of two and two layers
        added = {name: p for name, p in model.named_parameters() if "relpos_encoding" in name}
        assert added and set(model.state_dict()) > names
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        assert all(p.grad is not None for p in added.values())
        layers = [block.layer[0].SelfAttention.relpos_encoding for block in model.encoder.block]
        assert (layers[0] is layers[1]) is share
        ours.restore(model)
        assert set(model.state_dict()) == names

    def test_refused_and_as_before(self) -> None:
        model = built(ROTARY["llama"])
        for name, words in (("rope", "no term of the scores"), ("foo", "no encoding is called")):
            with pytest.raises(ValueError, match=words):
                ours.replace_encoding(model, name)
            assert model.config._attn_implementation == "sdpa"
        with pytest.raises(ValueError, match="not for ALiBi"):
            ours.replace_encoding(built(DECODERS["bloom"]), "t5")
