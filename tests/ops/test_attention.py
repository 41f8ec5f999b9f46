"""`attention`'s torch twin against SDPA and a naive softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpkernels.ops.eager import attention as module
from tpkernels.ops.eager.attention import attention_torch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v


def packed(b: int, h: int, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as a ViT's one projection leaves them: strided, of one memory."""
    qkv = torch.randn(b, n, 3, h, d, generator=torch.Generator().manual_seed(seed))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


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
    # Values have channels of their own, which do not scale the logits.
    v = v[..., :4]
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
    monkeypatch.setattr(module, "CPU_SAMPLE_ELEMENTS", elements)
    monkeypatch.setattr(module, "LEAST_ROWS", 1)
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


OPTIONS = ["none", "size", "mask", "both"]


def chosen(options: str, b: int, n: int) -> tuple[Tensor | None, Tensor | None]:
    """Sizes with zeros and a mask; the first sample has no key."""
    generator = torch.Generator().manual_seed(3)
    size = torch.randint(0, 4, (b, n), generator=generator).float()
    mask = torch.rand(b, n, generator=generator) < 0.7
    size[0], mask[0] = 0, False
    return size if options in ("size", "both") else None, mask if options in ("mask", "both") else None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gradient", [False, True])
def test_out_alone_is_the_same_out(dtype: torch.dtype, options: str, gradient: bool) -> None:
    q, k, v = (tensor.requires_grad_(gradient) for tensor in draw(3, 2, 9, 8, dtype=dtype))
    size, mask = chosen(options, 3, 9)
    expected = attention_torch(q, k, v, size, mask, 0.4)[0]
    out, significance = attention_torch(q, k, v, size, mask, 0.4, need_significance=False)
    assert significance is None and out.dtype == dtype and out.requires_grad == gradient
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    if options != "none":
        assert out[0].eq(0).all()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("width", [8, 5])
def test_gradients_change_no_result(options: str, width: int) -> None:
    q, k, v = draw(3, 2, 9, 8)
    size, mask = chosen(options, 3, 9)
    expected = attention_torch(q, k, v[..., :width], size, mask)
    found = attention_torch(q.requires_grad_(), k, v[..., :width], size, mask)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    assert found[0].requires_grad and not found[1].requires_grad


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("need", [False, True])
def test_padding_of_hundreds_of_keys_in_front(gradient: bool, need: bool) -> None:
    """SDPA meets whole blocks of keys that do not count before the first that does."""
    q, k, v = draw(1, 2, 1100, 4, dtype=torch.float64)
    mask = (torch.arange(1100) >= 1050)[None]
    inputs = [tensor.masked_fill(~mask[:, None, :, None], math.nan).requires_grad_(gradient) for tensor in (q, k, v)]
    out, significance = attention_torch(*inputs, mask=mask, need_significance=need)
    short = [tensor[:, :, 1050:].clone().requires_grad_(gradient) for tensor in (q, k, v)]
    expected, received = attention_torch(*short)
    torch.testing.assert_close(out[:, :, 1050:], expected)
    assert out[:, :, :1050].eq(0).all()
    if need:
        torch.testing.assert_close(significance[:, 1050:], received)
    if gradient:
        for found, cut in zip(
            torch.autograd.grad(out.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), short),
            strict=True,
        ):
            torch.testing.assert_close(found[:, :, 1050:], cut)
            assert found[:, :, :1050].eq(0).all()


@pytest.mark.parametrize("need", [False, True])
def test_strided_input(need: bool) -> None:
    q, k, v = packed(2, 3, 7, 5)
    key_size = torch.rand(2, 14)[:, ::2] + 0.5
    strided = attention_torch(q, k, v, key_size, need_significance=need)
    whole = attention_torch(q.contiguous(), k.contiguous(), v.contiguous(), key_size.contiguous())
    torch.testing.assert_close(strided[0], whole[0])
    if need:
        torch.testing.assert_close(strided[1], whole[1])
    # Laid out as SDPA's: a block joins the heads without a copy.
    assert strided[0].transpose(1, 2).is_contiguous()


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that call holds at a time, beyond what was there: torch's own count of its allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("sized", [False, True])
def test_holds_a_chunk_of_probabilities(monkeypatch: pytest.MonkeyPatch, sized: bool) -> None:
    b, h, n, d = 4, 3, 300, 16
    q, k, v = packed(b, h, n, d)
    size = torch.rand(b, n) + 0.5 if sized else None
    out, chunk, small = 4 * b * h * n * d, 4 * (1 << 15), 4 * h * n * d
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1 << 15)
    monkeypatch.setattr(module, "CPU_SAMPLE_ELEMENTS", 1 << 15)
    monkeypatch.setattr(module, "LEAST_ROWS", 8)
    # Small: at most q, k and v of one sample, and what is per token.
    assert out + chunk // 2 < peak_bytes(lambda: attention_torch(q, k, v, size)) < out + chunk + 4 * small
    assert peak_bytes(lambda: attention_torch(q, k, v, size, need_significance=False)) < out + chunk + 4 * small

    def train() -> None:
        inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        torch.autograd.grad(attention_torch(*inputs, size)[0].sum(), inputs)

    # Out, its gradient, three gradients more, and SDPA's own buffers: far from a float of every probability.
    assert peak_bytes(train) < 8 * out < 4 * b * h * n * n // 2


def test_holds_one_sample_of_a_vit_at_a_time() -> None:
    b, h, n, d = 4, 6, 197, 64
    q, k, v = packed(b, h, n, d)
    out, probabilities = 4 * b * h * n * d, 4 * h * n * n
    # Beside them one sample's out, and what is per token.
    assert peak_bytes(lambda: attention_torch(q, k, v)) < out + probabilities + 2 * out // b


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


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options: str) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(2, 2, 4, 3, dtype=torch.float64))
    size = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 4.0, 1.0]]).double() if options in ("size", "both") else None
    mask = torch.tensor([[True, True, True, False], [True] * 4]) if options in ("mask", "both") else None
    assert torch.autograd.gradcheck(lambda *inputs: attention_torch(*inputs, size, mask)[0], (q, k, v))


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_autocast_does_not_reach_the_logits(need: bool, gradient: bool) -> None:
    q, k, v = (tensor.requires_grad_(gradient) for tensor in draw(2, 3, 7, 5))
    expected = attention_torch(q, k, v, need_significance=need)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_torch(q, k, v, need_significance=need)
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=0)
    if need:
        torch.testing.assert_close(found[1], expected[1], atol=0, rtol=0)


def assert_compiled_is_eager(compiled: Callable[..., Any], b: int, options: str, need: bool, gradient: bool) -> None:
    size, mask = chosen(options, b, 7)
    results = []
    for call in (compiled, attention_torch):
        inputs = [tensor.detach().requires_grad_(gradient) for tensor in packed(b, 3, 7, 5)]
        out, significance = call(*inputs, size, mask, None, need)
        gradients = torch.autograd.grad(out.square().sum(), inputs) if gradient else ()
        results.append((out, *gradients, *([significance] if need else [])))
    torch.testing.assert_close(*results, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("options", ["none", "both"])
@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_compiles_in_one_graph(options: str, need: bool, gradient: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention_torch, fullgraph=True, backend="aot_eager")
    assert_compiled_is_eager(compiled, 2, options, need, gradient)


@pytest.mark.parametrize("gradient", [False, True])
def test_one_graph_serves_every_batch(gradient: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention_torch, fullgraph=True, backend=counter, dynamic=True)
    for b in (2, 3, 5):
        assert_compiled_is_eager(compiled, b, "size", True, gradient)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "dynamic"), [(False, True), (True, False)])
def test_inductor(gradient: bool, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention_torch, fullgraph=True, dynamic=dynamic)
    assert_compiled_is_eager(compiled, 3, "both", True, gradient)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sized", [False, True])
def test_registration(dtype: torch.dtype, sized: bool) -> None:
    q, k, v = draw(2, 3, 7, 5, dtype=dtype)
    size = torch.rand(2, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32) + 0.5 if sized else None
    arguments = (q, k, v, size, None if size is None else size.log(), 0.4)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tpkernels.attention_chunks.default, arguments, test_utils=tests)
