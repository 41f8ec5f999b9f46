"""The attention kernels in tiles so small that all loops go round: softmax in float64, and what they promise."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from test_launch import Allocations, Spy, alone
from tolerances import TOLERANCES
from torch import Tensor

import tpkernels
from tpkernels.ops.attention import attention_backward, attention_triton
from tpkernels.ops.eager.attention import attention_torch
from tpkernels.ops.gpu import attention
from tpkernels.ops.gpu.attention_tiles import HALF, Rows, Tiles, rows_config, split_row, tiles_config
from tpkernels.ops.gpu.launch import power_of_two
from tpkernels.ops.gpu.limits import Limits, limits_of

pytestmark = KERNELS
# Of values near 1.
TOLERANCE = {dtype: tolerance.attention for dtype, tolerance in TOLERANCES.items()}
# Significance computes in float32 whatever came. Two kernels each have an error of their own, and so have gradients.
RECEIVED = 1e-5
AGREE = 6 * TOLERANCE[torch.float32] if CUDA else RECEIVED
# Channels where any will do; a GPU has kernels for them already.
WIDTH = sized(4, gpu=5)
REGIMES = ("rows", "stream", "channels")
NAMES = {
    "rows": ("attend_rows_kernel", "sum_parts_kernel"),
    "stream": ("attend_stream_kernel", "received_kernel"),
    "backward": ("query_gradient_kernel", "key_gradient_kernel"),
}


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Few tokens a tile for a regime; "channels" streams, 16 channels of a product at a time."""
    tiles = Tiles(32, 16, 16 if name == "channels" else 0, 4, 1)

    def rows(n: int, _: int, e: int, *__: Any) -> Rows | None:
        return Rows(16, power_of_two(e, 32), *split_row(n), num_warps=4, num_stages=1) if name == "rows" else None

    monkeypatch.setattr(attention, "rows_config", rows)
    monkeypatch.setattr(attention, "tiles_config", lambda *_: tiles)


@pytest.fixture(params=REGIMES)
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return request.param


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "rows")


def draw(*shape: int, e: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k [B, H, N, d] and v [B, H, N, e]."""
    generator = torch.Generator().manual_seed(seed)
    widths = (shape[3], shape[3], shape[3] if e is None else e)
    return [torch.randn(*shape[:3], width, generator=generator).to(DEVICE, dtype) for width in widths]


def sizes_and_mask(b: int, n: int, options: str) -> tuple[Tensor | None, Tensor | None]:
    """Sizes from 0 to 3 and a mask for the words in options; a masked sample 1 of several has no key."""
    generator = torch.Generator().manual_seed(7)
    size = torch.randint(0, 4, (b, n), generator=generator).float()
    mask = torch.rand(b, n, generator=generator) < 0.7
    size[:, 0], mask[:, 0], mask[1:2] = 2, True, False
    return (
        size.to(DEVICE) if "sized" in options else None,
        mask.to(DEVICE) if "masked" in options else None,
    )


def asked(regime: str, options: str) -> str:
    """The options; on a GPU, where each is another kernel, a product in parts is made with both or none."""
    return sized(options, gpu="sized masked" if regime == "channels" and options != "plain" else options)


def padded(tensors: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """The tensors with NaN where the mask has padding."""
    return tensors if mask is None else [t.masked_fill(~mask[:, None, :, None], math.nan) for t in tensors]


def naive(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Out and significance in float64, differentiable, from softmax as it is written; one sample after the other."""
    b, h, n, d = q.shape
    weight = q.new_ones(b, n, dtype=torch.float64) if size is None else size.double()
    valid = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    outs, sums = [], []
    for sample in range(b):
        out, received = q.new_zeros(h, n, v.shape[3], dtype=torch.float64), weight.new_zeros(n)
        rows = valid[sample].nonzero().flatten()
        keys = (valid[sample] & (weight[sample] > 0)).nonzero().flatten()
        if len(keys):
            logits = q[sample, :, rows].double() @ k[sample, :, keys].double().mT * (scale or d**-0.5)
            p = (weight[sample, keys] * (logits - logits.amax(-1, keepdim=True).detach()).exp()).double()
            p = p / p.sum(-1, keepdim=True)
            out = out.index_copy(1, rows, p @ v[sample, :, keys].double())
            received = received.index_add(0, keys, (weight[sample, rows, None] * p.detach()).sum((0, 1)))
        outs.append(out)
        sums.append(received)
    return torch.stack(outs), torch.stack(sums)


def attend(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, mask: Tensor | None = None, **more: Any) -> Any:
    return tpkernels.attention(q, k, v, key_size=size, mask=mask, backend="triton", **more)


def gradients(function: Any, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients to q, k, v of a function's out."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)[0]
    return list(torch.autograd.grad(out, inputs, grad.to(out.dtype)))


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    if CUDA and expected.numel():
        torch.testing.assert_close(found, expected, atol=tolerance * max(1.0, float(expected.abs().max())), rtol=0)
        return
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def same(found: Any, expected: Any) -> None:
    """Bitwise equality."""
    for one, two in zip(found, expected, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)


def alike(found: Any, expected: Any) -> None:
    """What two kernels make of the same numbers: the same bits in the interpreter, close on a GPU."""
    if not CUDA:
        same(found, expected)
        return
    for one, two in zip(found, expected, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        close(one, two, AGREE)


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


# Layouts


def packed(b: int, h: int, n: int, d: int) -> list[Tensor]:
    """q, k, v as one linear layer makes them for all heads."""
    qkv = torch.randn(b, n, 3 * h * d, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return list(qkv.view(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0))


def strided(b: int, h: int, n: int, d: int) -> list[Tensor]:
    """q, k, v of which each lies in memory in another way, with NaN between the rows."""
    q, k, v = draw(b, h, n, d)
    wide = q.new_full((b, h, n + 1, 2 * d), math.nan)
    wide[:, :, 1:, ::2] = q
    return [wide[:, :, 1:, ::2], k.mT.contiguous().mT, v.transpose(0, 2).contiguous().transpose(0, 2)]


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


# Sizes and masks


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
    alone = attend(*(t[1:] for t in inputs))
    close(out[1:], alone[0], RECEIVED)
    close(significance[1:], alone[1], RECEIVED)
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


# One sample and its batch


def test_nan_stays_in_its_sample(regime: str) -> None:
    inputs = draw(3, sized(1, gpu=2), 20, WIDTH)
    alone, grads = attend(*inputs), gradients(attend, inputs, inputs[0])
    for bad in range(3):
        hurt = [t.clone() for t in inputs]
        hurt[bad][1, 0, 5, 2] = math.nan
        out, significance = attend(*hurt)
        assert out[1].isnan().any() and significance[1].isnan().any() == (bad < 2)
        same((out[[0, 2]], significance[[0, 2]]), (alone[0][[0, 2]], alone[1][[0, 2]]))
        for one, two in zip(gradients(attend, hurt, inputs[0]), grads, strict=True):
            same([one[[0, 2]]], [two[[0, 2]]])


def test_a_sample_is_the_same_alone_and_in_a_batch(regime: str) -> None:
    size, mask = sizes_and_mask(4, 20, "sized masked")
    d = sized(6, gpu=5)
    inputs = draw(4, 2, 20, d)
    grad = draw(4, 2, 20, d, seed=4)[0]
    whole = (*attend(*inputs, size, mask), *gradients(lambda *x: attend(*x, size, mask), inputs, grad))
    for b in (0, 3):
        *some, s, m, g = (alone(t, b) for t in (*inputs, size, mask, grad))
        found = (*attend(*some, s, m), *gradients(lambda *x, s=s, m=m: attend(*x, s, m), some, g))
        same(found, [t[b : b + 1] for t in whole])


def test_programs_that_have_all_of_a_head_give_the_same(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, results = draw(2, 2, 70, WIDTH), []
    launches = spy(monkeypatch)
    for programs in (1, 10**6):
        monkeypatch.setattr(attention, "PROGRAMS", programs / limits_of(DEVICE).processors)
        results.append(attend(*inputs))
    # A program for all five blocks of a head, and one for each.
    assert [one.grid for one in launches if one.name == "attend_rows_kernel"] == [(4,), (20,)]
    same(*results)


def test_twice_the_same(regime: str) -> None:
    inputs = draw(2, 2, 20, sized(6, gpu=5))
    same(attend(*inputs), attend(*inputs))
    same(gradients(attend, inputs, inputs[1]), gradients(attend, inputs, inputs[1]))


def test_edges(regime: str) -> None:
    for shape in ((0, 2, 7, 4), (2, 2, 0, 4)):
        inputs = draw(*shape)
        out, significance = attend(*inputs)
        assert out.shape == shape and significance.shape == (shape[0], shape[2])
        assert all(g.shape == shape for g in gradients(attend, inputs, torch.ones_like(out)))
    h = sized(3, gpu=2)
    q, k, v = draw(2, h, 1, 5)
    out, significance = attend(q, k, v)
    alike([out], [v])
    close(significance, torch.full((2, 1), float(h), device=DEVICE), RECEIVED)


# Launches and memory


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every attention kernel; without `run` they are only counted."""
    launches: list[Spy.Launch] = []
    for name, kernels in NAMES.items():
        module = importlib.import_module(f"tpkernels.kernels.attention.{name}")
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, Spy(getattr(module, kernel), launches, run))
    return launches


def test_launches_are_few_and_of_one_dimension(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, run=False)
    q, k, v = (tensor.requires_grad_() for tensor in draw(3, 2, 40, 4))
    first = ["attend_rows_kernel"] if regime == "rows" else ["attend_stream_kernel"]
    second = [] if regime == "rows" else ["received_kernel"]
    out, significance = attend(q, k, v, need_significance=False)
    assert significance is None
    assert [one.name for one in launches] == first
    launches.clear()
    out, significance = attend(q, k, v)
    assert [one.name for one in launches] == [*first, *second, "sum_parts_kernel"]
    launches.clear()
    out.sum().backward()
    assert [one.name for one in launches] == ["query_gradient_kernel", "key_gradient_kernel"]
    launches.clear()
    attend(*draw(0, 2, 40, 4))
    attend(*draw(2, 2, 0, 4))
    assert not launches
    attend(*draw(70000, 1, 1, 1))
    assert all(len(one.grid) == 1 for one in launches) and len(launches) == len(first) + len(second) + 1


def test_the_significance_is_not_paid_for_where_it_is_not_needed(regime: str) -> None:
    inputs = draw(2, 2, sized(40, gpu=30), WIDTH)
    alike([attend(*inputs, need_significance=False)[0]], [attend(*inputs)[0]])


def test_nothing_of_n_by_n_is_allocated(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy(monkeypatch, run=False)
    b, h, n, d = 2, 3, 256, 8
    q, k, v = draw(b, h, n, d)
    with Allocations() as seen:
        out, _, lse = attention.attend(q, k, v, None, None, 1.0, True)
        attention.attend_backward(out, q, k, v, out, lse, None, None, 1.0)
    # Partial sums of each block of 16 queries are the largest: a sixteenth of N x N.
    assert max(seen.sizes) <= 4 * b * h * n * max(n // 16, d)
    assert sum(seen.sizes) < 4 * b * h * n * n


# Configurations

DEVICES = {
    name: Limits(processors, shared << 10, 4 << 20, warp)
    for name, processors, shared, warp in (("large", 132, 227, 32), ("middle", 108, 163, 32), ("consumer", 82, 99, 32),
                                           ("old", 68, 64, 32), ("wide", 304, 64, 64))
}  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)


def test_a_row_splits_in_two_powers_of_two() -> None:
    for n in range(1, 700):
        first, second = split_row(n)
        parts = [part for part in (first, second) if part]
        assert all(part >= 16 and part & (part - 1) == 0 for part in parts) and second < first
        assert first + second >= n
        # At most a third of a longer row is nobody's.
        assert first + second <= max(32, 1.5 * n)


@pytest.mark.parametrize("name", DEVICES)
def test_rows_are_whole_where_a_program_can_hold_them(name: str) -> None:
    limits = DEVICES[name]
    most = {n for n in range(1, 1100) if rows_config(n, 64, 64, torch.bfloat16, limits)}
    # No hole: longer rows stream.
    assert most == set(range(1, len(most) + 1))
    assert len(most) == {"large": 288, "middle": 288, "consumer": 288, "old": 192, "wide": 128}[name]
    assert rows_config(50, 256, 64, torch.float16, limits) is rows_config(50, 64, 64, torch.float32, limits) is None
    for n in most:
        for width in (64, 128):
            config = rows_config(n, width, width, torch.float16, limits)
            assert config is None or 4 * width * (config.first + config.second) <= limits.shared_bytes


@pytest.mark.parametrize("name", DEVICES)
def test_tiles_fit_the_shared_memory(name: str) -> None:
    limits = DEVICES[name]
    for kernel, width in HALF:
        for dtype in HALVES:
            tiles = tiles_config(kernel, width, width, dtype, limits)
            sides = [tiles.queries, tiles.keys]
            held, passing = sides if kernel in ("forward", "query") else reversed(sides)
            channels = width if kernel == "received" else 2 * width
            assert 2 * channels * (held + tiles.num_stages * passing) <= limits.shared_bytes
            assert tiles_config(kernel, width, 16, dtype, limits) == tiles_config(kernel, width - 7, 16, dtype, limits)


# Which backend, and how PyTorch sees it


def test_what_the_kernels_cannot_take_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"not torch\.float64"):
        attend(*draw(1, 1, 4, 4, dtype=torch.float64))
    for given in (draw(1, 1, 4, 257), draw(1, 1, 4, 4, e=257)):
        with pytest.raises(RuntimeError, match="up to 256 channels, got 257"):
            attend(*given)
        out, _ = tpkernels.attention(*given)
        close(out, naive(*given)[0], TOLERANCE[torch.float32])
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton; got 'cuda'"):
        tpkernels.attention(*draw(1, 1, 4, 4), backend="cuda")


def test_auto_takes_torch_on_a_cpu_and_triton_on_a_gpu(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch)
    found = tpkernels.attention(*draw(1, 2, 20, WIDTH))
    assert bool(launches) == (DEVICE == "cuda")
    for one, two in zip(found, attend(*draw(1, 2, 20, WIDTH)), strict=True):
        close(one, two, RECEIVED)
    launches.clear()
    tpkernels.attention(*draw(1, 2, 20, WIDTH), backend="torch")
    assert not launches


def test_sizes_are_constants_and_there_is_no_second_gradient(small: None) -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(1, 2, 9, WIDTH)]
    size = torch.ones(1, 9, device=DEVICE, requires_grad=True)
    out, significance = attend(*inputs, size)
    assert not significance.requires_grad and not attend(*(t.detach() for t in inputs), size)[0].requires_grad
    grads = torch.autograd.grad(out.square().sum(), [*inputs, size], allow_unused=True, create_graph=True)
    assert grads[3] is None
    with pytest.raises(RuntimeError):
        grads[0].sum().backward()


def test_autocast_does_not_reach_the_kernels(small: None) -> None:
    inputs, grad = draw(2, 2, 20, WIDTH), draw(2, 2, 20, WIDTH, seed=2)[0]
    expected = (*attend(*inputs), *gradients(attend, inputs, grad))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        same((*attend(*inputs), *gradients(attend, inputs, grad)), expected)


@pytest.fixture
def cold_cache() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", ["plain", "sized masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(small: None, options: str, dtype: torch.dtype, cold_cache: None) -> None:
    h, n = sized((2, 6), gpu=(4, 21))
    size, mask = sizes_and_mask(2, n, options)
    inputs = [t.requires_grad_() for t in packed(2, h, n, WIDTH)] if dtype == torch.float32 else draw(2, h, n, WIDTH)
    # A type is another kernel, and nothing of it shows in what is checked here.
    inputs = [t.to(sized(dtype, gpu=torch.float32)) for t in inputs]
    # Ahead-of-time autograd traces forward and backward under fake tensors once more: once is enough.
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"] if (options, dtype) == ("sized masked", torch.float32) else []
    for needed in (True, False):
        torch.library.opcheck(attention_triton, (*inputs, size, mask, 0.5, needed), test_utils=checks)
    out, _, lse = attention_triton(*(t.detach() for t in inputs), size, mask, 0.5, True)
    backward = (torch.ones_like(out), *(t.detach() for t in inputs), out, lse, size, mask, 0.5)
    torch.library.opcheck(attention_backward, backward, test_utils=("test_schema", "test_faketensor"))


def test_compiles_into_one_graph(small: None, cold_cache: None) -> None:
    heads, n = sized((2, 20), gpu=(4, 21))

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = x.view(*x.shape[:2], 3, heads, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        out, significance = attend(q, k, v, x[..., 0].detach().abs(), x[..., 1] > -1)
        return out.transpose(1, 2).flatten(2), significance

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for b in (2, 3):
        results = []
        for function in (compiled, call):
            x = (
                torch.randn(b, n, 3 * heads * WIDTH, generator=torch.Generator().manual_seed(b))
                .to(DEVICE)
                .requires_grad_()
            )
            out, significance = function(x)
            results.append((out, significance, *torch.autograd.grad(out.square().sum(), x)))
        for one, two in zip(*results, strict=True):
            close(one, two, RECEIVED)
