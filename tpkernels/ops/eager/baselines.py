"""The methods that Token Pooling is compared with, as labels [B, N]: a pruned token has label -1.

All take prepared samples and give a sample `samples.k` clusters or kept tokens, numbered by their lowest token index.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..context import compute_dtype
from ..problem import Samples
from .samples import split_in_order
from .segments import canonical_order, renumber, stable_order
from .starts import highest, labels_of


def topk(samples: Samples, k: int) -> Tensor:
    """Keeps the k tokens of highest weight (PoWER-BERT, Goyal et al., arXiv 2001.08950)."""
    weight = samples.weight if samples.weight is not None else samples.x.new_ones(samples.x.shape[:2])
    return _keep_highest(samples, weight, k)


def random(samples: Samples, k: int, seed: int) -> Tensor:
    """Keeps k tokens drawn evenly without replacement, the same places in every sample."""
    b, n, _ = samples.x.shape
    noise = _gumbel(n, seed, samples.x.device)
    return _keep_highest(samples, noise.expand(b, n), k)


def importance(samples: Samples, k: int, seed: int) -> Tensor:
    """Keeps k tokens drawn without replacement, odds proportional to weight (Gumbel top-k, Kool et al., 2019)."""
    n = samples.x.shape[1]
    noise = _gumbel(n, seed, samples.x.device)
    weight = samples.weight if samples.weight is not None else samples.x.new_ones(samples.x.shape[:2])
    return _keep_highest(samples, weight.double().log() + noise, k)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch only shifts arithmetically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(n: int, seed: int, device: torch.device) -> Tensor:
    """n float64 in (0, 1): SplitMix64 (Steele et al., 2014) of a counter, so the i-th depends on seed and i alone."""
    counter = torch.arange(1, n + 1, device=device)
    z = counter * _signed(0xBF58476D1CE4E5B9) + _signed(seed * 0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return (_shift_right(z, 12).double() + 0.5) / 2**52


def _gumbel(n: int, seed: int, device: torch.device) -> Tensor:
    return -(-uniform(n, seed, device).log()).log()


def _keep_highest(samples: Samples, score: Tensor, k: int) -> Tensor:
    if samples.valid is not None:
        # Padding ranks below every score, log 0 of a token without weight included.
        score = score.double().clamp(min=torch.finfo(torch.float64).min).masked_fill(~samples.valid, -torch.inf)
    return labels_of(highest(score, k), score.shape[1], samples.k)


def grid(samples: Samples, grid_size: tuple[int, int] | None) -> Tensor:
    """Averages over cells of the patch grid: bands of rows, each cut into cells of near-equal width.

    Without a grid (N is no square, or tokens of the sample are masked) its tokens in their order form one row.
    """
    n = samples.x.shape[1]
    side = math.isqrt(n)
    if grid_size is None:
        grid_size = (side, side) if side * side == n else (1, n)
    height, width = grid_size
    strip = split_in_order(samples)
    if height <= 1:
        return strip
    k = samples.k[:, None]
    bands = _bands(height, width, k)
    index = torch.arange(n, device=samples.x.device)
    band = index // width * bands // height
    first, beyond = band * k // bands, (band + 1) * k // bands
    cell = index % width * (beyond - first) // width
    # A sample with padding has no grid.
    return torch.where((samples.n_valid == n)[:, None], first + cell, strip)


def _bands(height: int, width: int, k: Tensor) -> Tensor:
    """The number of bands [B, 1] nearest to `sqrt(k height / width)` whose cells of k [B, 1] all hold a token."""
    bands = torch.arange(1, height + 1, device=k.device)
    holds = (bands >= -(-k // width)) & (bands <= k)
    gap = (bands - (k.double() * height / width).sqrt()).abs()
    return 1 + gap.masked_fill(~holds, torch.inf).argmin(1, keepdim=True)


def bipartite(
    samples: Samples,
    k: int,
    metric: Tensor | None,
    mean: Callable[[Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor | None]],
    least: int | None = None,
) -> Tensor:
    """Bipartite soft matching (ToMe, Bolya et al., arXiv 2210.09461), repeated until k clusters are left.

    Tokens at even places are sources, at odd places destinations; each source finds its most similar destination
    (cosine of `metric`, the tokens themselves where None) and the sources of highest similarity merge. Merged tokens
    are means by weight, which are the tokens' sizes here.

    Args:
        mean: of a backend's primitives.
        least: the fewest clusters of a sample; k where None.
    """
    x, least = samples.x, k if least is None else least
    n = x.shape[1]
    # Cosines of the tokens as they came, with their mean.
    metric = x + samples.offset if metric is None else metric
    metric = torch.where(samples.finite[:, None, None], metric.to(compute_dtype(x)), 0)
    if samples.valid is not None:
        metric = metric.masked_fill(~samples.valid[..., None], 0)
    label = samples.rank if samples.valid is None else samples.rank.masked_fill(~samples.valid, -1)
    most, left = n, samples.n_valid
    while most > least:
        # Each pass removes half of the tokens at most, so the number of passes depends on shapes alone.
        merged, _ = mean(metric, label, max(k, most), samples.weight)
        matched, left = _match(merged, left, samples.k)
        label = torch.where(label < 0, label, matched.gather(1, label.clamp(min=0)))
        most = max(least, most - (most + 1) // 2)
        order = canonical_order(label, n)
        label = renumber(label, order)
    return label


def _match(mean: Tensor, count: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """One matching of the first count[b] of mean [B, M, D]: the new label of each place, and how many are left."""
    m = mean.shape[1]
    sources = (m + 1) // 2
    unit = torch.nn.functional.normalize(mean, dim=-1)
    place = torch.arange(m, device=mean.device)
    absent = place >= count[:, None]
    score = torch.bmm(unit[:, ::2], unit[:, 1::2].mT)
    score = score.masked_fill(absent[:, 1::2][:, None, :], -torch.inf)
    best, target = score.max(2)
    best = best.masked_fill(absent[:, ::2], -torch.inf)
    merges = torch.minimum(count - k, torch.where(count > 1, (count + 1) // 2, 0)).clamp(min=0)
    ranking = stable_order(best, descending=True)
    first = torch.arange(sources, device=mean.device) < merges[:, None]
    merged = torch.zeros_like(first).scatter(1, ranking, first)
    moved = torch.where(merged, 2 * target + 1, place[::2])
    label = torch.where(place % 2 == 0, moved.repeat_interleave(2, 1)[:, :m], place)
    return label, count - merges
