"""The attention kernels as an operation: tiles for each device, which backend, and how PyTorch sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.attention import (
    RECEIVED,
    TOLERANCE,
    WIDTH,
    attend,
    close,
    draw,
    gradients,
    naive,
    packed,
    same,
    sizes_and_mask,
    spy,
)
from tests.support.marks import DEVICE, KERNELS, sized
from tpkernels.ops.attention import attention_backward, attention_triton
from tpkernels.ops.gpu.attention_tiles import HALF, rows_config, split_row, tiles_config
from tpkernels.ops.gpu.limits import Limits

pytestmark = KERNELS


DEVICES = {
    name: Limits(processors, shared << 10, 4 << 20, warp)
    for name, processors, shared, warp in (("large", 132, 227, 32), ("middle", 108, 163, 32), ("consumer", 82, 99, 32),
                                           ("old", 68, 64, 32), ("wide", 304, 64, 64))
}  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)


def test_a_row_splits_in_powers_of_two() -> None:
    for n in range(1, 700):
        parts = split_row(n)
        widths = [width for _, width in parts]
        assert [begin for begin, _ in parts] == [sum(widths[:i]) for i in range(len(parts))]
        assert all(width >= 16 and width & (width - 1) == 0 for width in widths)
        assert widths == sorted(set(widths), reverse=True) and len(widths) <= 3
        # No part that no key is in, and at most a third of a longer row is nobody's.
        assert parts[-1][0] < n <= sum(widths) <= max(32, 1.5 * n)
    assert split_row(197) == ((0, 128), (128, 64), (192, 32))


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
            assert config is None or 4 * width * sum(config.parts[-1]) <= limits.shared_bytes


def test_registers_are_limited_where_the_shared_memory_holds_three_programs() -> None:
    found = {
        (name, n): rows_config(n, 64, 64, torch.bfloat16, DEVICES[name]) for name in DEVICES for n in (72, 197, 256)
    }
    limited = {key for key, config in found.items() if config and config.registers < 255}
    assert limited == {("large", 72), ("large", 197), ("middle", 72), ("consumer", 72)}
    wide = rows_config(72, 128, 128, torch.bfloat16, DEVICES["large"])
    assert wide is not None and wide.registers == 255


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
    with pytest.raises(RuntimeError, match=r"Trying to backward through tpkernels\.attention_backward"):
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
