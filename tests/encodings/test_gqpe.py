from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels import window as kernel
from tests.encodings.case import EncodingCase
from tests.encodings.test_lrpe import arrays
from tests.encodings.test_swin import WIDTH, GridCase, cells


def wild(encoding: Any) -> Any:
    """Centres and spreads far from where they start, so that no term of the form is near nothing."""
    torch.nn.init.normal_(encoding.centers)
    torch.nn.init.normal_(encoding.spreads, std=0.4)
    return encoding


def square(encoding: Any, g: int) -> Tensor:
    spread = encoding.spreads[g]
    if encoding.kind == "full":
        return spread @ spread.T if encoding.symmetric else spread
    return torch.diag((spread**2 if encoding.symmetric else spread).expand(2))


class OfAKind(GridCase):
    name = "gqpe"
    kind = "full"
    symmetric = True
    tolerance = 1e-10  # scores of far cells are in the hundreds

    def make(self) -> Any:
        return wild(rp.encodings.GQPE(self.heads, (9, WIDTH), symmetric=self.symmetric, kind=self.kind))

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for g in range(self.heads):
            form, centre = square(encoding, g), encoding.centers[g]
            for i, query in enumerate(cells(q_pos)):
                for j, key in enumerate(cells(k_pos)):
                    r = (key - query).double()
                    out[0, g, i, j] = r @ form @ centre - r @ form @ r / 2
        return out


class TestGQPE(OfAKind):
    pass


class TestGQPENotSymmetric(OfAKind):
    symmetric = False


class TestGQPEDiagonal(OfAKind):
    kind = "diagonal"


class TestGQPEIsotropic(OfAKind):
    kind = "isotropic"


class TestGQPEOnALine(EncodingCase):
    name = "gqpe"
    tolerance = 1e-10

    def make(self) -> Any:
        return wild(rp.encodings.GQPE(self.heads, (64,)))

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        lag = (k_pos[None, :] - q_pos[:, None]).double()
        parts = [
            encoding.spreads[g, 0, 0] ** 2 * (encoding.centers[g, 0] * lag - lag**2 / 2) for g in range(self.heads)
        ]
        return torch.stack(parts)[None]


@pytest.mark.parametrize("side", [3, 4])
@pytest.mark.parametrize("kind", ["sym", "nonsym", "iso"])
def test_golden(kind: str, side: int) -> None:
    """The released scores, maps and outputs, plain and with the masks of three windows."""
    a = arrays(f"gqpe_{kind}{side}_")
    encoding = rp.encodings.GQPE.from_reference(a, side, symmetric=kind == "sym")
    scores = kernel.matrices(encoding.lags((side, side)), (side, side))
    torch.testing.assert_close(scores, a["score"][0].movedim(-1, 0), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.softmax(-1), a["map"][0].movedim(-1, 0), rtol=0, atol=1e-12)
    assert rp.encodings.GQPE.from_reference(a, symmetric=kind == "sym").window == (side, side)
    for method in ("auto", "dense", "axes"):
        got = rp.window_mix(a["x"], encoding, side, method=method) + a["tokbias"].reshape(-1, 1)
        torch.testing.assert_close(got, a["y"], rtol=0, atol=1e-12)
    got = rp.window_mix(a["x"], encoding, side, mask=a["mask"]) + a["tokbias"].reshape(-1, 1)
    torch.testing.assert_close(got, a["y_mask"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("general", [True, False])
def test_golden_on_a_line(general: bool) -> None:
    a = arrays("gqpe1d_gen_" if general else "gqpe1d_nogen_")
    encoding = rp.encodings.GQPE.from_reference(a, (7,), generalized=general)
    got = rp.window_mix(a["x"], encoding, (7,)) + a["tokbias"].reshape(-1, 1)
    torch.testing.assert_close(got, a["y"], rtol=0, atol=1e-12)


def test_a_centre_is_the_lag_that_is_looked_at_most() -> None:
    """Rows and columns of the library's own lag: one row down, two columns to the left."""
    encoding = rp.encodings.GQPE(1, 7)
    with torch.no_grad():
        encoding.centers.copy_(torch.tensor([[1.0, -2.0]]))
        encoding.spreads.copy_(torch.eye(2)[None])
    lags = encoding.lags((7, 7))[0]
    assert divmod(int(lags.argmax()), 13) == (1 + 6, -2 + 6)


def test_the_released_isotropic_form_never_changes_its_width() -> None:
    wide, released = (rp.encodings.GQPE(1, 5, kind="isotropic", as_released=flag) for flag in (False, True))
    for encoding, curvature in ((wide, 9.0), (released, 1.0)):
        with torch.no_grad():
            encoding.spreads.fill_(3.0)
            encoding.centers.zero_()
        lags = encoding.lags((5, 5))[0]
        torch.testing.assert_close(lags[4, 5] - lags[4, 4], torch.tensor(-curvature / 2))
    with pytest.raises(ValueError, match="as_released"):
        rp.encodings.GQPE(1, 5, as_released=True)
    with pytest.raises(ValueError, match="kind is full, diagonal or isotropic"):
        rp.encodings.GQPE(1, 5, kind="round")  # type: ignore[arg-type]


def test_the_start_is_a_gaussian_of_unit_width() -> None:
    """family figures at 14 x 14: the weight of a token on itself 0.183, perplexity 14.3."""
    torch.manual_seed(0)
    encoding = rp.encodings.GQPE(64, 14)
    p = kernel.matrices(encoding.lags((14, 14)), (14, 14)).softmax(-1)
    own = p.diagonal(dim1=-2, dim2=-1).mean().item()
    perplexity = (-(p * p.clamp_min(1e-30).log()).sum(-1)).exp().mean().item()
    assert abs(own - 0.183) < 2e-3 and abs(perplexity - 14.3) < 0.2


def test_resize_is_the_same_function() -> None:
    encoding = wild(rp.encodings.GQPE(3, (4, 5), symmetric=False))
    other = encoding.resize((7, 6))
    assert other.window == (7, 6) and not other.symmetric
    assert torch.equal(other.lags((4, 5)), encoding.lags((4, 5)))
    with pytest.raises(ValueError, match="window is"):
        encoding.resize((7,))


@pytest.mark.parametrize("kind", ["diagonal", "isotropic"])
def test_the_sum_over_axes(kind: Any) -> None:
    encoding = wild(rp.encodings.GQPE(3, (4, 6), kind=kind).double())
    parts = encoding.per_axis((4, 6))
    assert parts is not None
    torch.testing.assert_close(parts[0][:, :, None] + parts[1][:, None], encoding.lags((4, 6)), rtol=0, atol=1e-12)
    assert rp.encodings.GQPE(3, (4, 6)).per_axis((4, 6)) is None
