"""Small models of transformers with random weights, built from their configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY = 100
DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "dropout_rate": 0.0, "decoder_start_token_id": 0, "eos_token_id": None}  # fmt: skip
DEBERTA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "relative_attention": True, "max_position_embeddings": 4096, "share_att_key": False,
    "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "position_buckets": 16,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
CONFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (16, 16),
    "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "position_embeddings_type": "relative", "hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0,
    "mask_time_prob": 0.0, "feat_proj_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip


def decoder(name: str, **more: Any) -> Callable[[], nn.Module]:
    """A causal language model of the class ``nameForCausalLM``."""
    config = {**DECODER, **more}
    return lambda: getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{more.pop('config', name)}Config")(**config))


ROTARY: dict[str, Callable[[], nn.Module]] = {
    "cohere": decoder("Cohere"),
    "gemma": decoder("Gemma", head_dim=8),
    "gemma3_text": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=16)),
    "gpt_neox": decoder("GPTNeoX"),
    "granite": decoder("Granite"),
    "llama": decoder("Llama"),
    "mistral": decoder("Mistral", sliding_window=16),
    "olmo2": decoder("Olmo2"),
    "phi3": decoder("Phi3"),
    "qwen2": decoder("Qwen2"),
    "qwen3": decoder("Qwen3", head_dim=8),
    "smollm3": decoder("SmolLM3"),
    "stablelm": decoder("StableLm"),
    "starcoder2": decoder("Starcoder2"),
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    **ROTARY,
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=48, n_layer=2, n_head=6, eos_token_id=None)
    ),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(vocab_size=VOCABULARY, d_model=48, n_layers=2, n_heads=6, max_seq_len=4096)
    ),
}
SEQ2SEQ: dict[str, Callable[[], nn.Module]] = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5)),
    "umt5": lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**T5)),
    "t5, gated (Flan)": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "t5, other buckets": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**T5, relative_attention_num_buckets=12, relative_attention_max_distance=40)
    ),
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "t5 encoder": lambda: hf.T5EncoderModel(hf.T5Config(**T5)),
    "umt5 encoder": lambda: hf.UMT5EncoderModel(hf.UMT5Config(**T5)),
    "deberta-v2": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**DEBERTA)),
    "deberta-v2, a bucket a lag": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**{**DEBERTA, "position_buckets": -1})),
    "deberta-v2, shared keys": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**{**DEBERTA, "share_att_key": True})),
    "deberta-v2, c2p": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**{**DEBERTA, "pos_att_type": ["c2p"]})),
}
SPEECH: dict[str, Callable[[], nn.Module]] = {
    "wav2vec2-conformer": lambda: hf.Wav2Vec2ConformerModel(hf.Wav2Vec2ConformerConfig(**CONFORMER))
}
SWIN = {"num_channels": 3, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "patch_size": 2, "window_size": 4,
        "drop_path_rate": 0.0}  # fmt: skip
PICTURES: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: hf.SwinModel(hf.SwinConfig(**{**SWIN, "image_size": 32})),
    "swin, windows of 8": lambda: hf.SwinModel(hf.SwinConfig(**{**SWIN, "image_size": 64, "window_size": 8})),
}


def built(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """A model in eval mode with weights large enough for attention to matter."""
    torch.manual_seed(seed)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def tokens(n: int = 70, batch: int = 2) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(n))


def padded(x: Tensor, side: str, count: int = 23) -> Tensor:
    """The mask of a batch whose second row has pads."""
    mask = torch.ones_like(x)
    mask[1, slice(0, count) if side == "left" else slice(-count, None)] = 0
    return mask


def differences(one: Any, other: Any, inputs: dict[str, Any], valid: Tensor | None = None) -> tuple[float, float]:
    """The largest difference of the first output over valid tokens, and of the gradients, relative to the largest of
    any; of two models with equal weights."""
    found = [model(**inputs)[0] for model in (one, other)]
    ones = torch.ones(found[0].shape[:2], dtype=torch.bool) if valid is None else valid.bool()
    weights = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1)) * ones[..., None]
    for model, out in zip((one, other), found):
        model.zero_grad()
        (out * weights).sum().backward()
    pairs = [
        (p.grad, q.grad)
        for p, q in zip(one.parameters(), other.parameters())
        if p.grad is not None or q.grad is not None
    ]
    assert pairs and all(p is not None and q is not None for p, q in pairs)
    largest = max(float(p.abs().max()) for p, _ in pairs)
    off = max(float((p - q).abs().max()) for p, q in pairs)
    return float((found[0] - found[1])[ones].detach().abs().max()), off / largest
