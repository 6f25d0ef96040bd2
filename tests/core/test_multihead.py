"""relpos.nn.MultiheadAttention against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp

DIM, HEADS = 24, 4


def pair(**options: Any) -> tuple[nn.MultiheadAttention, rp.nn.MultiheadAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    ours = rp.nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    return theirs, ours


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 10, "vdim": 7}], ids=["packed", "no bias", "widths"])
def test_as_torch(options: dict[str, Any], batch_first: bool) -> None:
    theirs, ours = pair(**options, batch_first=batch_first)
    sizes = (DIM, options.get("kdim", DIM), options.get("vdim", DIM))
    q, k, v = (draw(2, n, width) for n, width in zip((5, 7, 7), sizes))
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    for mask in (None, padding, torch.zeros(2, 7, dtype=torch.float64).masked_fill(padding, -torch.inf)):
        expected, _ = theirs(q, k, v, key_padding_mask=mask, need_weights=False)
        found, weights = ours(q, k, v, key_padding_mask=mask)
        assert weights is None
        torch.testing.assert_close(found, expected)


def test_causal_and_one_sequence() -> None:
    theirs, ours = pair()
    x = draw(6, DIM)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    expected, _ = theirs(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(ours(x, x, x, attn_mask=mask, is_causal=True)[0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_inside_an_encoder_layer(training: bool) -> None:
    """torch's fused path of evaluation would not know of the encoding."""
    torch.manual_seed(1)
    block = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    plain = rp.nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    plain.load_state_dict(block.self_attn.state_dict())
    x = draw(2, 9, DIM)
    expected = block.train()(x)
    block.self_attn = plain
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(block.train(training)(x), expected)
        plain.encoding = rp.encoding("alibi", heads=HEADS, symmetric=True).to(torch.float64)
        found = block(x)
    assert float((found - expected).detach().abs().max()) > 1e-3
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in plain._projected(x, x, x))
    own = plain.out_proj(rp.attention(q, k, v, plain.encoding).transpose(1, 2).flatten(2))
    torch.testing.assert_close(plain(x, x, x)[0], own)


def test_encodings_by_name() -> None:
    layer = rp.nn.MultiheadAttention(DIM, HEADS, batch_first=True, encoding="shaw", encoding_options={"max_lag": 4})
    x = torch.randn(2, 9, DIM)
    out, _ = layer(x, x, x, is_causal=True)
    out.square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {
        "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "encoding.keys", "encoding.values",
    }  # fmt: skip
    poisoned = x.clone()
    poisoned[:, 5:] = torch.nan
    torch.testing.assert_close(layer(poisoned, poisoned, poisoned, is_causal=True)[0][:, :5], out[:, :5])
    shifted = layer(x, x, x, q_pos=torch.arange(7, 16), k_pos=torch.arange(7, 16), is_causal=True)[0]
    torch.testing.assert_close(shifted, out)


def test_dropout_is_for_training() -> None:
    layer = rp.nn.MultiheadAttention(DIM, HEADS, dropout=0.5, batch_first=True, encoding="t5")
    x = torch.randn(1, 9, DIM)
    assert not torch.allclose(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_what_is_refused() -> None:
    layer = rp.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    x = torch.randn(1, 4, DIM)
    with pytest.raises(ValueError, match="no matrix of weights"):
        layer(x, x, x, need_weights=True)
    with pytest.raises(ValueError, match="is_causal=True where it is the causal one"):
        layer(x, x, x, attn_mask=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="floats of 0 and -inf"):
        layer(x, x, x, key_padding_mask=torch.full((1, 4), 0.5))
    with pytest.raises(TypeError, match="relative Encoding"):
        rp.nn.MultiheadAttention(DIM, HEADS, encoding="sinusoidal")
    with pytest.raises(ValueError, match="by name"):
        rp.nn.MultiheadAttention(DIM, HEADS, encoding=rp.encoding("alibi", heads=4), encoding_options={"a": 1})


def test_no_tokens_and_wrong_shapes() -> None:
    layer = rp.nn.MultiheadAttention(DIM, HEADS, batch_first=True, encoding="alibi")
    empty, x = torch.randn(2, 0, DIM), torch.randn(2, 5, DIM)
    assert layer(empty, empty, empty)[0].shape == (2, 0, DIM)
    assert torch.equal(layer(x, empty, empty)[0], layer.out_proj.bias.expand(2, 5, DIM))
    with pytest.raises(ValueError, match="k and v agree"):
        layer(x, x[:, :3], x)
    with pytest.raises(ValueError, match="key_mask"):
        layer(x, x, x, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool))
