"""Tokens, weights and starts of a case, from a seed: the same numbers on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import gpu
from .cases import Case

# Of structured tokens: smooth fields over the patch grid, the share of noise in the variance, how unevenly the noise is
# spread (plain backgrounds, busy objects), the offset that all share. At K = N / 2 Ward then takes 4 to 6 rounds and
# loses about 0.07 of the variance; on the middle blocks of a trained ViT-S it takes 7 to 10 and loses as much.
RANK = 48
NOISE = 0.45
UNEVEN = 0.7
OFFSET = 1.0
# Of outlying tokens: the share of quiet channels, how quiet, the offset that their tokens share, and the share of
# entries that lack it. Less the pivot a half type then holds 500 to 1,200 of a sample's 75,264 entries inexactly, in
# every sample; on a trained ViT-S in bfloat16 500 to 5,400. Ward takes one round more than for structured tokens.
QUIET = 0.75
QUIET_SCALE = 0.125
QUIET_OFFSET = 1.0
ABSENT = 0.05
# Sets with values of their own; further sets are copies, since only their addresses matter.
DISTINCT_SETS = 4


@dataclass(frozen=True)
class Inputs:
    """x [B, N, D] in the case's dtype; weight [B, N] float32 or None; start [B, K] int64, ascending."""

    case: Case
    x: Tensor
    weight: Tensor | None
    start: Tensor


def grid_of(n: int) -> tuple[int, int]:
    """The most nearly square h x w = n."""
    h = next(h for h in range(math.isqrt(n), 0, -1) if n % h == 0)
    return h, n // h


def _fields(count: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields [count, h * w]: noise at three coarser resolutions, enlarged and summed; unit variance."""
    total = torch.zeros(count, 1, h, w)
    for coarser in (2, 4, 8):
        size = max(1, h // coarser), max(1, w // coarser)
        noise = torch.randn(count, 1, *size, generator=generator)
        total += interpolate(noise, (h, w), mode="bilinear", align_corners=False)
    fields = total.flatten(1)
    fields = fields - fields.mean(1, keepdim=True)
    return fields / fields.std(1, correction=0, keepdim=True).clamp_min(1e-6)


def structured_tokens(b: int, n: int, d: int, generator: torch.Generator) -> Tensor:
    """Tokens [B, N, D] of low rank, alike where they are near on the grid, with a falling spectrum and an offset."""
    rank = min(RANK, d)
    # Falling as the square root of the index: the first few directions carry most of the variance.
    scale = (1 + torch.arange(rank)).rsqrt()
    mixing = torch.randn(b, rank, d, generator=generator) * (scale / scale.norm())[:, None]
    fields = _fields(b * rank, *grid_of(n), generator).view(b, rank, n)
    x = math.sqrt(1 - NOISE) * (fields.mT @ mixing)
    busy = (UNEVEN * _fields(b, *grid_of(n), generator)).exp()
    busy /= busy.square().mean(1, keepdim=True).sqrt()
    x += math.sqrt(NOISE) * busy[..., None] * torch.randn(b, n, d, generator=generator)
    return x + OFFSET * torch.randn(d, generator=generator)


def outlying_tokens(b: int, n: int, d: int, generator: torch.Generator) -> Tensor:
    """Structured tokens [B, N, D], most of whose channels are small about an offset that a few entries lack."""
    x = structured_tokens(b, n, d, generator)
    offset = QUIET_OFFSET * torch.randn(d, generator=generator).sign()
    quiet = QUIET_SCALE * x + offset * (torch.rand(b, n, d, generator=generator) >= ABSENT)
    return torch.where(torch.rand(d, generator=generator) < QUIET, quiet, x)


def make_inputs(case: Case, device: torch.device | str, seed: int = 0) -> Inputs:
    """The case's inputs on a device.

    Weights are positive and skewed, higher in a region than elsewhere, as the attention that tokens receive is. The
    start is theirs ("topk") or "strided", whether or not the clustering itself is weighted.
    """
    generator = torch.Generator().manual_seed(seed)
    if case.tokens == "structured":
        x = structured_tokens(case.b, case.n, case.d, generator)
    elif case.tokens == "outlying":
        x = outlying_tokens(case.b, case.n, case.d, generator)
    else:
        x = torch.randn(case.b, case.n, case.d, generator=generator)
    region = _fields(case.b, *grid_of(case.n), generator)
    weight = (0.7 * region + 0.3 * torch.randn(case.b, case.n, generator=generator)).exp()
    if case.init == "topk":
        start = weight.sort(dim=1, descending=True, stable=True).indices[:, : case.k].sort(1).values
    else:
        start = (torch.arange(case.k) * case.n // case.k).repeat(case.b, 1)
    x = x.to(getattr(torch, case.dtype))
    return Inputs(case, x.to(device), weight.to(device) if case.weighted else None, start.to(device))


def input_sets(case: Case, device: torch.device, most: int = gpu.MOST_SETS) -> list[Inputs]:
    """Sets of the case's inputs that calls rotate over: on a GPU as many as exceed its cache, on a CPU one."""
    first = make_inputs(case, device)
    if device.type == "cpu":
        return [first]
    count = min(most, gpu.input_sets(device, first.x.numel() * first.x.element_size()))
    distinct = [first, *(make_inputs(case, device, seed) for seed in range(1, min(count, DISTINCT_SETS)))]
    copies = [distinct[i % len(distinct)] for i in range(len(distinct), count)]
    return [*distinct, *(replace(inputs, x=inputs.x.clone()) for inputs in copies)]
