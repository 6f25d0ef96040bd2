"""One inherited test case: a new encoding supplies a constructor and its dense truth, and receives the whole suite."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Bias, Encoding, Pairwise, RowBias, Transform
from relpos.kernels.call import Refusal
from relpos.kernels.choose import KERNELS

SIZES = [(1, 1), (1, 7), (2, 2), (3, 8), (5, 5), (31, 31), (7, 3)]


class EncodingCase:
    """Subclass as `Test...`, give `make` and `truth`; override the class constants where the method differs."""

    name: str
    heads = 3
    dim = 8
    model_dim = 12  # width of the content, where one is read
    causal = False  # True: only lags <= 0 are defined, comparisons use causal=True
    exact_shift = True  # the term depends on differences of positions only
    tolerance = 1e-12
    half_tolerance = 3e-2

    def make(self) -> Encoding:
        raise NotImplementedError

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        """The definition by brute force, float64. Additive forms: the term (batch or 1, heads, n_q, n_k).
        Transforms: the whole logit, scale = 1/sqrt(dim) included."""
        raise NotImplementedError

    def value_truth(self, encoding: Any, p: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor | float:
        """What is added to the output for weights p (batch, heads, n_q, n_k)."""
        return 0.0

    def positions(self, index: Tensor) -> Any:
        """What stands for these integers as q_pos or k_pos: themselves, or labels by level for named positions."""
        return index

    # ---- helpers

    def build(self) -> Any:
        torch.manual_seed(1)
        return self.make().double()

    def inputs(self, n_q: int, n_k: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
        g = torch.Generator().manual_seed(n_q * 1000 + n_k)
        shapes = [(batch, self.heads, n, self.dim) for n in (n_q, n_k, n_k)] + [(batch, n_k, self.model_dim)]
        return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]

    def options(self, encoding: Encoding, content: Tensor) -> dict[str, Any]:
        return {"content": content} if isinstance(encoding, Pairwise) and encoding.needs_content else {}

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        options.setdefault("causal", self.causal)
        if type(self).positions is not EncodingCase.positions:
            n_q, n_k = q.shape[2], k.shape[2]
            for name, start, n in (("q_pos", n_k - n_q, n_q), ("k_pos", 0, n_k)):
                options[name] = self.positions(options.get(name, torch.arange(start, start + n)))
        return rp.attention(q, k, v, encoding, **self.options(encoding, content), **options)

    def expected(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, start: int = 0) -> Tensor:
        n_q, n_k = q.shape[2], k.shape[2]
        k_pos = torch.arange(start, start + n_k)
        q_pos = torch.arange(start + n_k - n_q, start + n_k)
        term = self.truth(encoding, q, k, q_pos, k_pos, content)
        scale = encoding.score_scale(self.dim) or self.dim**-0.5
        score = term if isinstance(encoding, Transform) else q @ k.transpose(-1, -2) * scale + term
        seen = (k_pos[None] <= q_pos[:, None]) if self.causal else torch.ones(n_q, n_k, dtype=torch.bool)
        p = score.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        return p @ v + self.value_truth(encoding, p, q_pos, k_pos)

    # ---- the suite

    def test_registered(self) -> None:
        description = rp.names()[self.name]
        encoding = self.make()
        assert description.cls == type(encoding).__name__
        assert description.form == encoding.form
        assert description.learned == any(p.requires_grad for p in encoding.parameters())
        assert encoding.cite().strip().startswith("@")
        assert type(encoding).__doc__

    @pytest.mark.parametrize(("n_q", "n_k"), SIZES)
    def test_attention_equals_truth(self, n_q: int, n_k: int) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(n_q, n_k)
        got = self.run(encoding, q, k, v, content, kernel="dense" if n_q == 7 else "auto")
        torch.testing.assert_close(got, self.expected(encoding, q, k, v, content), rtol=0, atol=self.tolerance)

    @pytest.mark.parametrize("kernel", ["tiled", "fused", "hankel", "generic"])
    @pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (1, 9), (31, 31), (17, 40), (67, 67)])
    def test_kernel_equals_dense(self, kernel: str, n_q: int, n_k: int) -> None:
        """Values, and gradients to q, k, v, the content and every parameter."""
        assert kernel in KERNELS
        results = []
        for name in ("dense", kernel):
            encoding = self.build()
            inputs = [x.requires_grad_() for x in self.inputs(n_q, n_k)]
            try:
                out = self.run(encoding, *inputs, kernel=name)
            except Refusal as refusal:
                assert len(str(refusal)) > 20  # says why
                return
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            leaves = [*inputs, *(p for p in encoding.parameters() if p.requires_grad)]
            results.append([out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)])
        for a, b in zip(*results, strict=True):
            assert (a is None or not a.any()) if b is None else True
            if a is not None and b is not None:
                torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)

    def test_shift_of_all_positions_changes_nothing(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(6, 6)
        near = self.run(encoding, q, k, v, content)
        far = self.run(encoding, q, k, v, content, q_pos=torch.arange(6) + 1000, k_pos=torch.arange(6) + 1000)
        if self.exact_shift:
            torch.testing.assert_close(far, near, rtol=0, atol=1e-9)
        else:
            assert (far - near).abs().max() > 1e-6

    def test_rows_decode_like_the_whole(self) -> None:
        """Each query alone, against the keys up to it, gives its row of the causal whole."""
        encoding = self.build()
        q, k, v, content = self.inputs(9, 9)
        whole = self.run(encoding, q, k, v, content, causal=True)
        for i in (0, 1, 4, 8):
            parts = (q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], content[:, : i + 1])
            row = self.run(encoding, *parts, causal=True)
            torch.testing.assert_close(row, whole[:, :, i : i + 1], rtol=0, atol=1e-10)

    def test_future_has_no_influence(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(8, 8)
        before = self.run(encoding, q, k, v, content, causal=True)
        for x in (q, k, v, content):
            x[..., 5:, :] += 3.0
        after = self.run(encoding, q, k, v, content, causal=True)
        assert torch.equal(before[:, :, :5], after[:, :, :5])

    @pytest.mark.parametrize("kernel", ["dense", "tiled", "fused"])
    def test_future_may_hold_nan(self, kernel: str) -> None:
        """The past keeps every bit, its gradient is that without the poison, and whoever sees a bad token is NaN."""
        results = []
        for poison in (None, float("nan"), float("inf")):
            encoding = self.build()
            inputs = self.inputs(8, 8)
            for x in inputs:
                x[..., 5:, :] = x[..., 5:, :] if poison is None else poison
                x.requires_grad_()
            try:
                out = self.run(encoding, *inputs, causal=True, kernel=kernel)
            except Refusal:
                return
            assert poison is None or out[:, :, 5:].isnan().all()
            leaves = [*inputs, *(p for p in encoding.parameters() if p.requires_grad)]
            found = torch.autograd.grad(out[:, :, :5].square().sum(), leaves, allow_unused=True)
            results.append([out[:, :, :5], *(x if g is None else g for g, x in zip(found, leaves))])
            assert not any(g is not None and g[..., 5:, :].any() for g in found[:4])
            results[-1][1:5] = [x[..., :5, :] for x in results[-1][1:5]]
        for other in results[1:]:
            assert torch.equal(other[0], results[0][0])
            for a, b in zip(other, results[0], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_padding_is_invisible(self) -> None:
        """Keys that key_mask hides do nothing, whatever they hold; a row with no key gives 0 and no NaN gradient."""
        encoding = self.build()
        q, k, v, content = self.inputs(6, 6)
        short = self.run(encoding, q[:, :, :4], k[:, :, :4], v[:, :, :4], content[:, :4])
        mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
        q.requires_grad_()
        k[0, :, 4:], v[0, :, 4:] = 1e4, float("nan")
        out = self.run(encoding, q, k, v, content, key_mask=mask)
        torch.testing.assert_close(out[0, :, :4], short[0], rtol=0, atol=1e-10)
        assert torch.equal(out[1], torch.zeros_like(out[1]))
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert torch.isfinite(grad).all() and not grad[1].any()

    def test_gradcheck(self) -> None:
        encoding = self.build()
        q, k, v, content = (x.requires_grad_() for x in self.inputs(4, 4, batch=1))
        parameters = [p for p in encoding.parameters() if p.requires_grad]

        def f(*leaves: Tensor) -> Tensor:
            return self.run(encoding, q, k, v, content)

        assert torch.autograd.gradcheck(f, (q, k, v, *parameters), atol=1e-5, rtol=1e-4, nondet_tol=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_short_types_follow_float64(self, dtype: torch.dtype) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(33, 33, dtype)
        want = self.run(encoding, q.double(), k.double(), v.double(), content.double(), kernel="dense")
        got = self.run(copy.deepcopy(encoding).float(), q, k, v, content)
        assert got.dtype == dtype
        limit = 2e-5 if dtype == torch.float32 else self.half_tolerance
        assert (got.double() - want).abs().max() < limit

    def test_state_dict_and_pickle(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(5, 5)
        want = self.run(encoding, q, k, v, content)
        other = self.make().double()
        other.load_state_dict(encoding.state_dict())
        for copied in (other, pickle.loads(pickle.dumps(encoding)), copy.deepcopy(encoding)):
            assert torch.equal(self.run(copied, q, k, v, content), want)

    def test_generator_equals_pointwise(self) -> None:
        encoding = self.build()
        if not isinstance(encoding, Bias) or rp.positions.Index not in encoding.takes:
            return
        for n_q, n_k, offset in [(1, 1, 0), (4, 6, 2), (6, 4, -2), (5, 5, 0), (1, 9, 8)]:
            lags = encoding.lags(n_q, n_k, offset)
            assert lags.shape == (self.heads, n_q + n_k - 1)
            q_pos, k_pos = torch.arange(n_q) + offset, torch.arange(n_k)
            bias = encoding.bias(rp.positions.Index(q_pos), rp.positions.Index(k_pos))
            index = torch.arange(n_k)[None] - torch.arange(n_q)[:, None] + n_q - 1
            assert torch.equal(lags[:, index], bias)

    def test_positions_of_any_kind_agree(self) -> None:
        """Consecutive integers, integers with a gap, rows of a batch: one answer, through three different paths."""
        encoding = self.build()
        q, k, v, content = self.inputs(7, 7)
        pos = torch.tensor([0, 1, 2, 5, 6, 9, 30])
        whole = self.run(encoding, q, k, v, content, q_pos=pos, k_pos=pos, kernel="dense")
        batched = self.run(encoding, q, k, v, content, q_pos=pos.expand(2, -1), k_pos=pos.expand(2, -1) + 0)
        torch.testing.assert_close(batched, whole, rtol=0, atol=1e-10)
        wild = pos * 1 + torch.tensor([0, 0, 0, 0, 0, 0, 5000])
        a = self.run(encoding, q, k, v, content, q_pos=wild, k_pos=wild, kernel="dense")
        b = self.run(encoding, q, k, v, content, q_pos=wild, k_pos=wild)
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)

    def test_refuses_what_does_not_fit(self) -> None:
        encoding = self.build()
        q, k, v, content = self.inputs(4, 4)
        if isinstance(getattr(encoding, "heads", None), int):
            wrong = q.repeat(1, 2, 1, 1)
            with pytest.raises(ValueError, match="heads"):
                self.run(encoding, wrong, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), content)
        with pytest.raises((ValueError, TypeError)):
            self.run(encoding, q, k, v, content, q_pos=torch.tensor([0.0, 1.0, float("nan"), 2.0]))
        with pytest.raises((ValueError, TypeError)):
            self.run(encoding, q, k, v, content, q_pos=torch.arange(5))


__all__ = ["SIZES", "EncodingCase", "RowBias"]
