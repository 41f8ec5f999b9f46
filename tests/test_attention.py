"""`attention`'s torch twin against SDPA and a naive softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpkernels.ops import attention as module
from tpkernels.ops.attention import attention_torch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v


def naive(q: Tensor, k: Tensor, v: Tensor, size: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """In float64, one sample, head and query at a time; keys of size 0 are left out."""
    q, k, v, size = (tensor.double() for tensor in (q, k, v, size))
    b, h, n, d = q.shape
    scale = scale or d**-0.5
    out, significance = torch.zeros(b, h, n, v.shape[3]).double(), torch.zeros(b, n).double()
    for sample in range(b):
        for head in range(h):
            for i in range(n):
                weights = [
                    float(size[sample, j]) * math.exp(float(q[sample, head, i] @ k[sample, head, j]) * scale)
                    for j in range(n)
                ]
                for j in range(n):
                    share = weights[j] / sum(weights)
                    out[sample, head, i] += share * v[sample, head, j]
                    significance[sample, j] += size[sample, i] * share
    return out, significance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_is_sdpa_and_the_naive_softmax(dtype: torch.dtype, scale: float | None) -> None:
    q, k, v = draw(2, 3, 7, 5, dtype=dtype)
    out, significance = attention_torch(q, k, v, scale=scale)
    assert out.dtype == dtype and significance.dtype == torch.float32 and not significance.requires_grad
    expected, received = naive(q, k, v, torch.ones(2, 7), scale)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(significance.double(), received, atol=1e-5, rtol=1e-5)
    reference = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    torch.testing.assert_close(out.double(), reference, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("elements", [1, 11, 49, 130, 10**6])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    q, k, v = draw(2, 3, 7, 5)
    size = torch.rand(2, 7) + 0.5
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    whole = attention_torch(q, k, v, size, mask)
    plain = attention_torch(q, k, v)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    for result, expected in ((attention_torch(q, k, v, size, mask), whole), (attention_torch(q, k, v), plain)):
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_a_size_is_the_token_so_many_times() -> None:
    q, k, v = draw(2, 3, 6, 4, dtype=torch.float64)
    size = torch.tensor([1, 3, 1, 2, 5, 1])
    out, significance = attention_torch(q, k, v, size.expand(2, 6).double())
    copies = torch.repeat_interleave(torch.arange(6), size)
    repeated_out, repeated = attention_torch(q[:, :, copies], k[:, :, copies], v[:, :, copies])
    torch.testing.assert_close(out[:, :, copies], repeated_out)
    torch.testing.assert_close(significance, torch.zeros(2, 6).index_add(1, copies, repeated))


def test_a_mask_is_a_slice_whatever_the_padding_holds() -> None:
    q, k, v = draw(2, 3, 8, 4)
    mask = torch.arange(8).expand(2, 8) < 5
    for tensor in (q, k, v):
        tensor[:, :, 5:] = math.nan
    size = torch.rand(2, 8) + 0.5
    for sizes, cut in ((None, None), (size, size[:, :5])):
        out, significance = attention_torch(q, k, v, sizes, mask)
        short_out, short = attention_torch(q[:, :, :5], k[:, :, :5], v[:, :, :5], cut)
        torch.testing.assert_close(out[:, :, :5], short_out)
        torch.testing.assert_close(significance[:, :5], short)
        assert out[:, :, 5:].eq(0).all() and significance[:, 5:].eq(0).all()


def test_size_zero_drops_the_key() -> None:
    q, k, v = draw(1, 2, 6, 4)
    size = torch.tensor([[1.0, 0.0, 2.0, 1.0, 0.0, 1.0]])
    out, significance = attention_torch(q, k, v, size)
    expected, received = naive(q, k, v, size)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(significance.double(), received, atol=1e-5, rtol=1e-5)
    assert significance[0, [1, 4]].eq(0).all()


def test_nothing_to_attend_to_gives_zeros_and_leaves_the_others_alone() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(2, 3, 5, 4))
    mask = torch.tensor([[False] * 5, [True] * 5])
    alone = attention_torch(q[1:], k[1:], v[1:])
    for options in ({"mask": mask}, {"key_size": mask.float()}):
        out, significance = attention_torch(q, k, v, **options)
        assert out[0].eq(0).all() and significance[0].eq(0).all()
        torch.testing.assert_close(out[1:], alone[0])
        torch.testing.assert_close(significance[1:], alone[1])
        for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
            assert gradient.isfinite().all() and gradient[0].eq(0).all()


def test_nan_stays_in_its_sample() -> None:
    q, k, v = draw(2, 2, 5, 4)
    alone = attention_torch(q[1:], k[1:], v[1:])
    k[0, 0, 2, 1] = math.nan
    out, significance = attention_torch(q, k, v)
    torch.testing.assert_close((out[1:], significance[1:]), alone)


@pytest.mark.parametrize("sized", [False, True])
def test_significance_sums_to_heads_times_sizes(sized: bool) -> None:
    q, k, v = draw(3, 4, 9, 8)
    size = torch.randint(0, 5, (3, 9), generator=torch.Generator().manual_seed(1)).float() if sized else None
    significance = attention_torch(q, k, v, size)[1]
    total = size.sum(1) if sized else torch.full((3,), 9.0)
    torch.testing.assert_close(significance.sum(1), 4 * total)


def test_strided_input() -> None:
    qkv = torch.randn(2, 7, 3, 3, 5, generator=torch.Generator().manual_seed(0)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    key_size = torch.rand(2, 14)[:, ::2] + 0.5
    torch.testing.assert_close(
        attention_torch(q, k, v, key_size),
        attention_torch(q.contiguous(), k.contiguous(), v.contiguous(), key_size.contiguous()),
    )


@pytest.mark.parametrize("shape", [(0, 3, 7, 5), (2, 3, 1, 5), (2, 1, 4, 1)])
@pytest.mark.parametrize("sized", [False, True])
def test_edges(shape: tuple[int, ...], sized: bool) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(*shape))
    b, h, n, _ = shape
    size = torch.full((b, n), 2.0) if sized else None
    out, significance = attention_torch(q, k, v, size)
    assert out.shape == shape and significance.shape == (b, n)
    out.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape
    if n == 1:
        torch.testing.assert_close(out, v)
        torch.testing.assert_close(significance, torch.full((b, 1), float(h * (2 if sized else 1))))


@pytest.mark.parametrize("options", ["none", "size", "mask", "both"])
def test_gradcheck(options: str) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(2, 2, 4, 3, dtype=torch.float64))
    size = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 4.0, 1.0]]).double() if options in ("size", "both") else None
    mask = torch.tensor([[True, True, True, False], [True] * 4]) if options in ("mask", "both") else None
    assert torch.autograd.gradcheck(lambda *inputs: attention_torch(*inputs, size, mask)[0], (q, k, v))


def test_autocast_does_not_reach_the_logits() -> None:
    q, k, v = draw(2, 3, 7, 5)
    expected = attention_torch(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention_torch(q, k, v), expected, atol=0, rtol=0)


def test_compiles_in_one_graph() -> None:
    q, k, v = draw(2, 3, 7, 5)
    size = torch.rand(2, 7) + 0.5
    mask = torch.arange(7).expand(2, 7) < 6
    compiled = torch.compile(attention_torch, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, size, mask), attention_torch(q, k, v, size, mask))
