"""The attention kernels' numbers: softmax in float64, its gradients, any layout, sizes and masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.attention import (
    AGREE,
    RECEIVED,
    REGIMES,
    TOLERANCE,
    WIDTH,
    alike,
    asked,
    attend,
    close,
    draw,
    gradients,
    naive,
    packed,
    padded,
    sizes_and_mask,
    strided,
    use,
)
from tests.support.launches import alone
from tests.support.marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from tpkernels.ops.eager.attention import attention_torch

pytestmark = KERNELS


SHAPES = [(2, 2, 21, 5, 7), (1, 1, 1, 3, 3), (1, 2, 16, 16, 16), (2, 1, 37, 33, 20)]
# Of the same kernels as others.
ON_A_GPU = {(1, 1, 1, 3, 3): (1, 2, 2, 5, 7), (1, 2, 1, 4, 4): (1, 2, 2, 5, 7)}


@pytest.mark.parametrize("options", ["plain", "sized", "masked", "sized masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_softmax(regime: str, shape: tuple[int, ...], options: str, poisoned: None) -> None:
    options = asked(regime, options)
    # On a GPU the other shapes, which are other kernels, have all there is; and few tokens the same channels.
    b, h, n, d, e = sized(shape, gpu=ON_A_GPU.get(shape, shape) if options == "sized masked" else SHAPES[0])
    size, mask = sizes_and_mask(b, n, options)
    q, k, v = padded(draw(b, h, n, d, e=e), mask)
    out, significance = attend(q, k, v, size, mask, scale=0.3)
    expected, received = naive(q, k, v, size, mask, scale=0.3)
    assert out.dtype == q.dtype and significance.dtype == torch.float32 and not significance.requires_grad
    close(out, expected, TOLERANCE[q.dtype])
    close(significance, received, RECEIVED)
    if mask is not None:
        assert out[~mask[:, None].expand(b, h, n)].eq(0).all() and significance[~mask].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(regime: str, dtype: torch.dtype) -> None:
    dtype = sized(dtype, gpu=torch.float16 if regime == "channels" else dtype)
    size, mask = sizes_and_mask(2, 21, "sized masked")
    inputs = draw(2, 2, 21, 20, dtype=dtype)
    grad = draw(2, 2, 21, 20, seed=3)[0]
    out, significance = attend(*inputs, size, mask)
    expected, received = naive(*inputs, size, mask)
    assert out.dtype == dtype and significance.dtype == torch.float32
    close(out, expected, TOLERANCE[dtype])
    close(significance, received, RECEIVED)
    found = gradients(lambda *given: attend(*given, size, mask), inputs, grad)
    for one, two in zip(
        found, gradients(lambda *given: naive(*given, size, mask), [t.double() for t in inputs], grad), strict=True
    ):
        assert one.dtype == dtype
        close(one, two, 2 * TOLERANCE[dtype] * max(1.0, float(two.abs().max())))


@pytest.mark.parametrize("options", ["plain", "sized masked"])
@pytest.mark.parametrize("shape", [(2, 2, 21, 5, 7), (1, 2, 1, 4, 4), (2, 1, 37, 33, 20)], ids=str)
def test_gradients(regime: str, shape: tuple[int, ...], options: str, poisoned: None) -> None:
    # Wide heads have gradients in half types, too.
    b, h, n, d, e = sized(shape, gpu=ON_A_GPU.get(shape, SHAPES[0]))
    size, mask = sizes_and_mask(b, n, options)
    inputs = padded(draw(b, h, n, d, e=e), mask)
    (grad,) = draw(b, h, n, e, seed=1)[:1]
    if mask is not None:
        grad = grad.masked_fill(~mask[:, None, :, None], math.nan)
    found = gradients(lambda *given: attend(*given, size, mask), inputs, grad)
    clean = [tensor.nan_to_num().double() for tensor in inputs]
    expected = gradients(lambda *given: naive(*given, size, mask), clean, grad.nan_to_num())
    twin = gradients(lambda *given: attention_torch(*given, size, mask), inputs, grad.nan_to_num())
    for one, two, other in zip(found, expected, twin, strict=True):
        assert one.isfinite().all()
        close(one, two, 3 * TOLERANCE[torch.float32])
        close(one, other, 6 * TOLERANCE[torch.float32])


def test_the_regimes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    b, h, n, d = sized((2, 1, 37, 20), gpu=(2, 2, 30, 5))
    size, mask = sizes_and_mask(b, n, "sized masked")
    inputs = draw(b, h, n, d)
    results = []
    for name in REGIMES:
        use(monkeypatch, name)
        results.append((*attend(*inputs, size, mask), *gradients(lambda *x: attend(*x, size, mask), inputs, inputs[0])))
    for result in results[1:]:
        for one, two in zip(result, results[0], strict=True):
            close(one, two, AGREE)


def test_large_logits_need_no_large_numbers(regime: str) -> None:
    q, k, v = draw(*sized((1, 1, 20, 8), gpu=(1, 2, 20, 5)))
    out, significance = attend(30 * q, 30 * k, v)
    expected, received = naive(30 * q, 30 * k, v)
    # A logit of 4000 is known to 2e-4, and to four times as much where a product keeps 22 bits.
    tolerance = 8e-3 if CUDA else 2e-3
    close(out, expected, tolerance)
    close(significance, received, tolerance)


@pytest.mark.parametrize("scale", [-0.3, 1e-40, 2.0])
def test_any_scale_will_do(regime: str, scale: float) -> None:
    size, mask = sizes_and_mask(2, 21, asked(regime, "sized masked"))
    inputs = draw(2, 2, 21, WIDTH)
    out, significance = attend(*inputs, size, mask, scale=scale)
    expected, received = naive(*inputs, size, mask, scale=scale)
    close(out, expected, 2 * TOLERANCE[out.dtype])
    close(significance, received, RECEIVED)


@pytest.mark.parametrize("layout", [packed, strided])
def test_strides_do_not_show(regime: str, layout: Any) -> None:
    inputs = layout(2, sized(2, gpu=4), 21, sized(6, gpu=5))
    size = (torch.rand(2, 42, generator=torch.Generator().manual_seed(1)) + 0.5).to(DEVICE)[:, ::2]
    mask = torch.rand(21, 2, generator=torch.Generator().manual_seed(2)).to(DEVICE).T < 0.8
    assert not any(t.is_contiguous() for t in (*inputs, size, mask))
    plain = [t.contiguous() for t in inputs]
    alike(attend(*inputs, size, mask), attend(*plain, size.contiguous(), mask.contiguous()))
    # The gradient of a sum has no strides at all.
    grad = torch.ones((), device=DEVICE).expand(inputs[0].shape)
    found = gradients(lambda *given: attend(*given, size, mask), inputs, grad)
    alike(found, gradients(lambda *given: attend(*given, size, mask), plain, grad.contiguous()))


def test_the_heads_lie_beside_each_other(small: None) -> None:
    out, _ = attend(*packed(2, *sized((3, 5), gpu=(4, 21)), WIDTH))
    assert out.transpose(1, 2).is_contiguous()


def test_a_size_is_the_token_so_many_times(regime: str) -> None:
    q, k, v = draw(2, 2, 9, WIDTH)
    size = torch.tensor([1, 3, 1, 2, 5, 1, 1, 4, 1], device=DEVICE)
    out, significance = attend(q, k, v, size.expand(2, 9).to(sized(torch.float16, gpu=torch.float32)))
    copies = torch.repeat_interleave(torch.arange(9, device=DEVICE), size)
    many, received = attend(q[:, :, copies], k[:, :, copies], v[:, :, copies])
    close(out[:, :, copies], many, RECEIVED)
    close(significance, torch.zeros_like(significance).index_add(1, copies, received), RECEIVED)


def test_a_mask_is_a_slice_whatever_the_padding_holds(regime: str) -> None:
    q, k, v = draw(2, 2, 30, WIDTH)
    mask = torch.arange(30, device=DEVICE).expand(2, 30) < 18
    size, _ = sizes_and_mask(2, 30, "sized")
    for filled in (math.nan, math.inf, 0.0):
        given = [t.masked_fill(~mask[:, None, :, None], filled) for t in (q, k, v)]
        out, significance = attend(*given, size, mask)
        short_out, short = attend(*(t[:, :, :18] for t in (q, k, v)), size[:, :18])
        close(out[:, :, :18], short_out, RECEIVED)
        close(significance[:, :18], short, RECEIVED)
        assert out[:, :, 18:].eq(0).all() and significance[:, 18:].eq(0).all()


def test_padding_may_come_first(regime: str) -> None:
    mask = torch.arange(21, device=DEVICE).expand(2, 21) >= torch.tensor([[5], [12]], device=DEVICE)
    q, k, v = padded(draw(2, 2, 21, 5, e=7), mask)
    out, significance = attend(q, k, v, None, mask, scale=0.3)
    expected, received = naive(q, k, v, None, mask, scale=0.3)
    close(out, expected, TOLERANCE[q.dtype])
    close(significance, received, RECEIVED)


def test_a_key_of_size_0_may_hold_anything(regime: str) -> None:
    q, k, v = draw(2, 2, 9, WIDTH)
    size, _ = sizes_and_mask(2, 9, "sized")
    size = torch.where(torch.arange(9, device=DEVICE) < 6, size, 0)
    gone = (size == 0)[:, None, :, None]
    found, expected = (
        attend(q, k.masked_fill(gone, filled), v.masked_fill(gone, filled), size) for filled in (math.nan, 0.0)
    )
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("options", ["masked", "sized"])
def test_nothing_to_attend_to_gives_zeros(regime: str, options: str, poisoned: None) -> None:
    inputs = draw(2, 2, 19, WIDTH)
    mask = torch.tensor([[False], [True]], device=DEVICE).expand(2, 19)
    given = (None, mask) if options == "masked" else (mask.float(), None)
    if FOR_GPU:
        # What says nothing, for a kernel that others compile.
        some = mask.contiguous()
        given = (torch.ones_like(some).float(), some) if options == "masked" else (some.float(), torch.ones_like(some))
    out, significance = attend(*inputs, *given)
    assert out[0].eq(0).all() and significance[0].eq(0).all()
    one, received = attend(*(alone(t, 1) for t in inputs))
    close(out[1:], one, RECEIVED)
    close(significance[1:], received, RECEIVED)
    for grad in gradients(lambda *x: attend(*x, *given), inputs, torch.ones_like(out)):
        assert grad.isfinite().all() and grad[0].eq(0).all()


@pytest.mark.parametrize("options", ["plain", "sized", "masked", "sized masked"])
def test_significance_sums_to_heads_times_sizes(regime: str, options: str) -> None:
    options = asked(regime, options)
    b, h, n, d = sized((3, 3, 33, 8), gpu=(3, 2, 30, 5))
    size, mask = sizes_and_mask(b, n, options)
    significance = attend(*draw(b, h, n, d), size, mask)[1]
    weight = torch.ones_like(significance) if size is None else size
    close(significance.sum(1), h * (weight if mask is None else weight * mask).sum(1), RECEIVED)
