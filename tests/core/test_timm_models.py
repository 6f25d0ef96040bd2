"""PosMLP through timm, where timm is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from relpos.models import register_with_timm

timm = pytest.importorskip("timm") if importlib.util.find_spec("timm") else None


@pytest.mark.skipif(timm is not None, reason="timm is here")
def test_without_timm_the_error_is_an_import_error() -> None:
    with pytest.raises(ImportError, match=r"pip install .relpos\[vision\]"):
        register_with_timm()


@pytest.mark.skipif(timm is None, reason="timm is not installed")
def test_created_by_name() -> None:
    assert register_with_timm() == register_with_timm() == ["relpos_posmlp_t", "relpos_posmlp_s", "relpos_posmlp_b"]
    options = {"img_size": 64, "in_chans": 1, "depths": (1, 1, 1, 1)}
    model = timm.create_model("relpos_posmlp_t", num_classes=10, drop_path_rate=0.1, **options).eval()
    x = torch.randn(2, 1, 64, 64)
    assert model(x).shape == (2, 10) and model.num_classes == 10
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 768)
    assert timm.create_model("relpos_posmlp_t", num_classes=0, **options)(x).shape == (2, 768)
    pyramid = timm.create_model("relpos_posmlp_t", features_only=True, out_indices=(1, 3), **options)
    assert [tuple(m.shape) for m in pyramid(x)] == [(2, 192, 8, 8), (2, 768, 2, 2)]
    assert pyramid.feature_info.channels() == [192, 768] and pyramid.feature_info.reduction() == [8, 32]
    with pytest.raises(ValueError, match="pretrained"):
        timm.create_model("relpos_posmlp_t", pretrained=True)
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"] == (1, 64, 64)
