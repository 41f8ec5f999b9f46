"""Problems for the attention kernels in small tiles, softmax in float64, and how the two are compared."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.launches import Spy
from tests.support.marks import CUDA, DEVICE, sized
from tests.support.tolerances import TOLERANCES
from tpkernels.ops.gpu import attention
from tpkernels.ops.gpu.attention_tiles import Rows, Tiles, split_row
from tpkernels.ops.gpu.launch import power_of_two

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
        return Rows(16, power_of_two(e, 32), split_row(n), 255, num_warps=4, num_stages=1) if name == "rows" else None

    monkeypatch.setattr(attention, "rows_config", rows)
    monkeypatch.setattr(attention, "tiles_config", lambda *_: tiles)


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


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every attention kernel; without `run` they are only counted."""
    launches: list[Spy.Launch] = []
    for name, kernels in NAMES.items():
        module = importlib.import_module(f"tpkernels.kernels.attention.{name}")
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, Spy(getattr(module, kernel), launches, run))
    return launches
