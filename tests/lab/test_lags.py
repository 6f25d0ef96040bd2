"""The picture of an encoding, measured from outside, is what its formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import relpos as rp
from relpos.encodings.base import Bias
from relpos.lab.errors import LabError
from relpos.lab.lags import _probe, lag_picture
from relpos.lab.show import explanation, initial_picture
from tests.lab.toy import Places, Slope, Turn


def test_a_bias_is_drawn_as_it_is() -> None:
    picture = lag_picture(Slope(3), 3, 8, 5)
    assert picture.exact and picture.lags.tolist() == list(range(-5, 6))
    assert picture.mean == pytest.approx(-np.array([0.1, 0.3, 0.5])[:, None] * np.abs(picture.lags))
    assert lag_picture(Slope(3), 3, 8, 5, causal=True).mean == pytest.approx(picture.mean[:, :6])


@pytest.mark.parametrize("causal", [False, True])
def test_the_probe_reads_a_bias_back_through_attention(causal: bool) -> None:
    bias: Bias = Slope(2).double()
    change = _probe(bias, 2, 4, 7, causal, draws=3, seed=0)
    lags = torch.arange(-7, 1 if causal else 8)
    expected = bias.at(lags).detach()
    assert change.shape == (3, 2, len(lags))
    torch.testing.assert_close(change.detach(), expected.expand(3, -1, -1), rtol=0, atol=1e-12)


def test_a_transform_is_drawn_as_the_mean_over_content() -> None:
    picture = lag_picture(Turn(), 2, 6, 9, draws=4000)
    # of a random unit vector in 6 dimensions a third of the squared length lies in the two that turn
    expected = (np.cos(0.3 * picture.lags) - 1) / 3
    assert not picture.exact
    assert picture.mean == pytest.approx(np.stack([expected] * 2), abs=0.02)
    assert picture.mean[:, 9] == pytest.approx(0.0, abs=1e-12)


def test_an_absolute_is_drawn_as_far_as_its_table_goes() -> None:
    picture = lag_picture(Places(8, 6), 2, 4, 20)
    assert picture.lags[-1] == 2 and np.isfinite(picture.mean).all()


def test_the_picture_leaves_the_encoding_as_it_was() -> None:
    encoding = Slope(2).train()
    lag_picture(encoding, 2, 4, 3)
    assert encoding.training and encoding.slope.dtype == torch.float32 and encoding.slope.grad is None


LABELLED = ["hstu", "non_stationary_rpe", "same_label", "structure_ape", "structure_rpe"]


@pytest.mark.parametrize("name", LABELLED)
def test_what_depends_on_labels_has_no_picture_by_lag(name: str) -> None:
    with pytest.raises(LabError, match=r"cannot be drawn: .* takes named positions, .* not on a lag"):
        initial_picture(name, 2, 8, 6, False, 0, {})
    if name == "structure_ape":
        assert "added to the input" in explanation(name, 8, 8, True, 2, 8, "auto", {})
        return
    with pytest.raises(LabError, match="takes named positions"):
        explanation(name, 8, 8, True, 2, 8, "auto", {})


@pytest.mark.parametrize("name", sorted(set(rp.names()) - set(LABELLED)))
def test_every_encoding_can_be_drawn_and_explained(name: str) -> None:
    assert initial_picture(name, 2, 8, 6, False, 0, {}).startswith(b"\x89PNG")
    assert explanation(name, 8, 8, True, 2, 8, "auto", {})


@pytest.mark.parametrize("name", ["nope", "learned_bias", "toy_slope", "toy_turn", "toy_places"])
def test_encodings_of_every_form_are_drawn(name: str) -> None:
    assert initial_picture(name, 2, 8, 6, False, 0, {}).startswith(b"\x89PNG")


def test_options_that_an_encoding_does_not_take_are_named() -> None:
    with pytest.raises(LabError, match="colour"):
        initial_picture("toy_slope", 2, 8, 6, False, 0, {"colour": 3})
