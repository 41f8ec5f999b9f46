"""What is computed from all channels of the tokens: centering, means, the objective. Each reads a sample once.

Loops take tokens as the memory that they lie in, x, with the strides of a sample and of a token; see `jit.over_tokens`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..problem import Samples
from .jit import jit, over_tokens

# What loops get for weights, masks and counts that there are none of.
NO_WEIGHT = {torch.float32: np.empty((0, 0), np.float32), torch.float64: np.empty((0, 0), np.float64)}
NO_MASK = np.empty((0, 0), np.bool_)
NO_COUNTS = np.empty(0, np.int64)


def prepare(
    x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int, counts: Tensor | None = None, *, cuts: bool = False,
    centers: bool = True,
) -> Samples:  # fmt: skip
    """`eager.samples.prepare`."""
    x = _wide(x)
    b, n, d = x.shape
    given, valid = weights_of(weight, x), NO_MASK if mask is None else mask.contiguous()
    out, offset, scale = x.new_empty(b, n, d), x.new_empty(b, 1, d), x.new_empty(b)
    relative = given if weight is None else x.new_empty(b, n)
    # Arrays, since rows of a tensor take microseconds.
    counted, flags = np.empty((2, b), np.int64), np.empty((2, b), np.bool_)
    wanted = k, NO_COUNTS if counts is None else counts.contiguous(), cuts, centers
    over_tokens(prepare_samples, x, [given, valid, *wanted, out, relative, counted, flags, offset, scale])
    count, clusters, finite = map(torch.from_numpy, (*counted, flags[0]))
    some = torch.from_numpy(flags[1]) if flags[1].any() else None
    return Samples(out, None if weight is None else relative, mask, count, clusters, finite, some, offset, scale)


def mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, None]:
    """`cluster_mean`, which tells no total."""
    return cluster_mean(x, label, k, weight), None


def gather(x: Tensor, source: Tensor, medoids: Tensor) -> tuple[Tensor, None]:
    """Tokens at medoids: the mean of one token is that token."""
    return cluster_mean(x, source, medoids.shape[1], None), None


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """`eager.means.cluster_mean` of tokens x [B, N, D] of any strides."""
    wide = _wide(x)
    return _means(zeros(x.shape[0], k, wide), wide, label, weight, False).to(x.dtype)


def moved_means(center: Tensor, x: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`eager.means.moved_means` of tokens x [B, N, D] of any strides, in the dtype to compute in."""
    return _means(center.clone(memory_format=torch.contiguous_format), x, label, weight, True)


def _means(out: Tensor, x: Tensor, label: Tensor, weight: Tensor | None, keeps: bool) -> Tensor:
    over_labels(write_means, x, label, out.shape[1], [weights_of(weight, x), label.contiguous(), out, keeps])
    return out


def objective(x: Tensor, center: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`eager.distances.objective`, without a gradient, of centers [B, K, D]."""
    x = _wide(x)
    out, center = x.new_empty(x.shape[0]), center.to(x.dtype).contiguous()
    over_labels(write_losses, x, label, center.shape[1], [weights_of(weight, x), label.contiguous(), center, out])
    return out


def mean_and_loss(
    x: Tensor, label: Tensor, k: int, shares: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`mean` by shares, and its `objective`."""
    wide, label = _wide(x), label.contiguous()
    if wide.dtype != x.dtype:
        # The objective is that of the rounded means.
        means = cluster_mean(x, label, k, shares)
        return means, objective(x, means, label, weight)
    out, losses = zeros(x.shape[0], k, wide), wide.new_empty(x.shape[0])
    given = [weights_of(shares, wide), weights_of(weight, wide), label, out, losses]
    over_labels(write_means_and_losses, wide, label, k, given)
    return out, losses


def zeros(b: int, k: int, x: Tensor) -> Tensor:
    """Zeros [B, K, D]; memory of a large result that stays 0 is not even touched, as by torch's own it is."""
    return torch.from_numpy(np.zeros((b, k, x.shape[2]), np.float64 if x.dtype == torch.float64 else np.float32))


def weights_of(weight: Tensor | None, x: Tensor) -> Any:
    """Weights [B, N] in the dtype of x; NO_WEIGHT for equal ones."""
    return NO_WEIGHT[x.dtype] if weight is None else weight.detach().to(x.dtype).contiguous()


def loop_inputs(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, N], which tokens are there [B, N], and clusters that are wanted [B]: a loop skips samples with 0."""
    x, valid, plain = samples.x, samples.valid, samples.plain
    there = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid.contiguous()
    weight = x.new_ones(x.shape[:2]) if samples.weight is None else samples.weight.contiguous()
    return weight, there, samples.k if plain is None else torch.where(plain, 0, samples.k)


def over_labels(kernel: Any, x: Tensor, label: Tensor, k: int, arguments: list[Any]) -> None:
    """`over_tokens` of a loop that writes where labels point.

    Raises:
        IndexError: a label is above K - 1.
    """
    try:
        over_tokens(kernel, x, arguments)
    except IndexError:
        raise out_of_range(label, k) from None


def out_of_range(label: Tensor, k: int) -> IndexError:
    """The error of a loop that met a label above K - 1."""
    return IndexError(f"label: expected -1 to {k - 1}, got {int(label.max())}")


def _wide(x: Tensor) -> Tensor:
    """x in the dtype to compute in."""
    return x if x.dtype == torch.float64 else x.float()


@jit
def add(row: Any, total: Any) -> None:
    """Adds row to total."""
    for j in range(len(total)):
        total[j] += row[j]


@jit
def subtract(row: Any, offset: Any, out: Any) -> Any:
    """Writes row - offset; its squared norm."""
    norm = row.dtype.type(0)
    for j in range(len(row)):
        gap = row[j] - offset[j]
        out[j] = gap
        norm += gap * gap
    return norm


@jit
def relative(weight: Any, there: Any, out: Any) -> Any:
    """Writes weights over their largest, 0 for what is not there; the largest, NaN where one is NaN or Inf."""
    top = weight.dtype.type(0)
    for i in range(len(weight)):
        out[i] = weight[i] if there[i] else 0
        if not np.isfinite(out[i]):
            return weight.dtype.type(np.nan)
        top = max(top, out[i])
    top = top if top > 0 else weight.dtype.type(1)
    for i in range(len(weight)):
        out[i] /= top
    return top


@jit
def prepare_samples(
    x: Any, per_sample: int, per_token: int, weights: Any, masks: Any, k: int, each: Any, cuts: bool, centers: bool,
    out: Any, relatives: Any, counts: Any, flags: Any, offsets: Any, scales: Any, first: int, last: int,
) -> None:  # fmt: skip
    """`prepare`; weights, masks and each (sample's k) may be empty. counts: valid tokens and clusters; flags: finite,
    plain.
    """
    n, d = out.shape[1:]
    there = np.ones(n, np.bool_)
    for s in range(first, last):
        if len(masks) > 0:
            there[:] = masks[s]
        count, offset, norm = 0, offsets[s, 0], out.dtype.type(0)
        offset[:] = 0
        for i in range(n):
            if there[i]:
                at = s * per_sample + i * per_token
                if centers:
                    add(x[at : at + d], offset)
                count += 1
        offset /= out.dtype.type(max(count, 1))
        for i in range(n):
            if there[i]:
                at = s * per_sample + i * per_token
                norm += subtract(x[at : at + d], offset, out[s, i])
            else:
                out[s, i] = 0
        scale = relative(weights[s], there, relatives[s]) if len(weights) > 0 else out.dtype.type(1)
        finite = np.isfinite(norm) and np.isfinite(scale)
        wanted = min(k, max(1, each[s])) if len(each) > 0 else k
        counts[0, s], counts[1, s], scales[s] = count, min(count, wanted), scale
        flags[0, s], flags[1, s] = finite, not finite or count <= (1 if cuts else wanted)
        if not finite:
            out[s] = 0
            scales[s] = 1
            if len(weights) > 0:
                relatives[s] = 1


@jit
def write_mean(
    x: Any, begin: int, per_token: int, weight: Any, label: Any, keeps: bool, mass: Any, size: Any, out: Any
) -> None:
    """The means of one sample, whose first token begins there in x, into zeros, or into what a cluster without members
    keeps.
    """
    k, d = out.shape
    mass[:] = 0
    size[:] = 0
    for i in range(len(label)):
        c = label[i]
        if c >= k:
            raise IndexError
        if c >= 0:
            mass[c] += weight[i]
            size[c] += out.dtype.type(1)
    for c in range(k if keeps else 0):
        if size[c] > 0:
            out[c] = 0
    for i in range(len(label)):
        c = label[i]
        if c >= 0:
            at = begin + i * per_token
            row, total = x[at : at + d], out[c]
            share = weight[i] / mass[c] if mass[c] > 0 else out.dtype.type(1) / size[c]
            for j in range(d):
                total[j] += share * row[j]


@jit
def loss_of(x: Any, begin: int, per_token: int, weight: Any, label: Any, center: Any) -> float:
    """The objective of one sample, whose first token begins there in x."""
    k, d = center.shape
    total = 0.0
    for i in range(len(label)):
        if label[i] >= k:
            raise IndexError
        if label[i] >= 0:
            at = begin + i * per_token
            row, own = x[at : at + d], center[label[i]]
            sqdist = center.dtype.type(0)
            for j in range(d):
                sqdist += (row[j] - own[j]) * (row[j] - own[j])
            total += weight[i] * sqdist
    return total


@jit
def write_means(
    x: Any, per_sample: int, per_token: int, weights: Any, labels: Any, out: Any, keeps: bool, first: int, last: int
) -> None:
    """`mean` and, where it keeps the rows of clusters without members, `moved_means`; weights may be empty."""
    k, equal = out.shape[1], np.ones(labels.shape[1], out.dtype)
    mass, size = np.empty(k, out.dtype), np.empty(k, out.dtype)
    for s in range(first, last):
        weight = weights[s] if len(weights) > 0 else equal
        write_mean(x, s * per_sample, per_token, weight, labels[s], keeps, mass, size, out[s])


@jit
def write_losses(
    x: Any, per_sample: int, per_token: int, weights: Any, labels: Any, centers: Any, out: Any, first: int, last: int
) -> None:
    """`objective`; weights may be empty."""
    equal = np.ones(labels.shape[1], out.dtype)
    for s in range(first, last):
        weight = weights[s] if len(weights) > 0 else equal
        out[s] = loss_of(x, s * per_sample, per_token, weight, labels[s], centers[s])


@jit
def write_means_and_losses(
    x: Any, per_sample: int, per_token: int, shares: Any, weights: Any, labels: Any, out: Any, losses: Any, first: int,
    last: int,
) -> None:  # fmt: skip
    """`mean_and_loss`; shares and weights may be empty."""
    k, equal = out.shape[1], np.ones(labels.shape[1], out.dtype)
    mass, size = np.empty(k, out.dtype), np.empty(k, out.dtype)
    for s in range(first, last):
        share, weight = shares[s] if len(shares) > 0 else equal, weights[s] if len(weights) > 0 else equal
        write_mean(x, s * per_sample, per_token, share, labels[s], False, mass, size, out[s])
        losses[s] = loss_of(x, s * per_sample, per_token, weight, labels[s], out[s])
