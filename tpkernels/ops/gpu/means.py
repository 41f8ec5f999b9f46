"""Means of given clusters and their gradient on the GPU, for any number of tokens: sort, then walk the segments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .launch import on_device, power_of_two, strides, unfused

# Sorted tokens that are averaged beforehand where one cluster has all of them; a power of two.
CHUNK = 128


class Segments(NamedTuple):
    """Tokens sorted by cluster.

    key [B * N]: b (K + 1) + label in ascending order, label K for none; order [B * N] int64: the token b N + i at each
    place, ascending within a cluster; bounds [B, K + 1] int64: the place where each cluster begins, and the last ends.
    """

    key: Tensor
    order: Tensor
    bounds: Tensor


def first_keys(b: int, k: int, device: torch.device) -> Tensor:
    """The key [B, 1] of each sample's first cluster, in the narrowest type: a sort takes its time by bits."""
    dtype = torch.int32 if b * (k + 1) < 2**31 else torch.int64
    return torch.arange(0, b * (k + 1), k + 1, dtype=dtype, device=device)[:, None]


def keys_of(label: Tensor, k: int) -> Tensor:
    """Keys b (K + 1) + label [B, N] of labels; -1 becomes K."""
    base = first_keys(label.shape[0], k, label.device)
    return torch.where(label < 0, k, label).to(base.dtype) + base


def labels_of(key: Tensor, k: int) -> Tensor:
    """Labels [B, N] int64 of keys; -1 for K."""
    label = (key - first_keys(key.shape[0], k, key.device)).long()
    return torch.where(label == k, -1, label)


def sort_by_cluster(key: Tensor, k: int) -> Segments:
    """Segments of keys [B, N]: one sort for the whole batch, stable, so that members stay in their order."""
    b = key.shape[0]
    ordered, order = torch.sort(key.flatten(), stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(b * (k + 1), dtype=key.dtype, device=key.device))
    return Segments(ordered, order, bounds.view(b, k + 1))


def mean_config(n: int, k: int, d: int, gpu: bool) -> dict[str, int]:
    """Tiles of the kernels of means: S clusters by R members, many small clusters at once or few large ones."""
    # The interpreter pays for every operation, not for what it holds.
    rows = 16 if gpu else 64
    r = power_of_two(-(-n // max(k, 1)), 4, rows)
    block_d = power_of_two(d, 16, 128)
    config = {"S": rows // r, "R": r, "BD": block_d, "num_warps": 8 if block_d == 128 else 2}
    if gpu and torch.version.hip is None:
        # Without a limit ptxas spills registers to fit one more program per multiprocessor.
        config["maxnreg"] = 128
    return config


def token_tile(n: int, d: int, gpu: bool) -> tuple[int, int]:
    """Tokens and channels of a tile of the kernels that walk the tokens as they lie."""
    most_n, most_d = (16, 64) if gpu else (64, 128)
    return power_of_two(n, 16, most_n), power_of_two(d, 16, most_d)


def segment_means(
    x: Tensor, weight: Tensor | None, offset: Tensor | None, moving: Tensor | None, segments: Segments, mode: int,
    out: Tensor, **more: Tensor,
) -> None:  # fmt: skip
    """Two launches: chunks, then clusters. Writes to `out` and more what `kernels.streaming.means` says for the mode.

    Args:
        offset: [B, D] float32 that is taken from the tokens first, or None.
        moving: [B] int32, samples with 0 are left alone; None for none such.
    """
    from ...kernels.streaming.means import chunk_mean_kernel, segment_mean_kernel

    b, n, d = x.shape
    k = segments.bounds.shape[1] - 1
    config = mean_config(n, k, d, x.is_cuda)
    # A chunk belongs to one cluster.
    tiles = {name: value for name, value in config.items() if name != "S"}
    parts, chunks = -(-d // config["BD"]), n // CHUNK
    chunk_mean = torch.empty(b * chunks * d, dtype=torch.float32, device=x.device)
    chunk_mass = torch.empty(b * chunks if weight is not None else 0, dtype=torch.float32, device=x.device)
    flags = {"WEIGHTED": weight is not None, "CENTERED": offset is not None, "GATED": moving is not None}
    w, off, gate = (tensor if tensor is not None else x for tensor in (weight, offset, moving))

    def given(name: str) -> Tensor:
        return more.get(name, out)

    with on_device(x):
        if chunks:
            chunk_mean_kernel[(b * chunks * parts,)](
                x, w, off, segments.key, segments.order, gate, chunk_mean, chunk_mass,
                n, d, k, chunks, *x.stride(), *strides(weight, 2),
                L=CHUNK, **{**tiles, "R": min(CHUNK, 32)}, **flags, **unfused(x),
            )  # fmt: skip
        segment_mean_kernel[(b * -(-k // config["S"]) * parts,)](
            x, w, off, given("factor"), segments.order, segments.bounds, gate, chunk_mean, chunk_mass,
            out, given("low"), given("norm"), given("total"), given("least"), given("medoid"),
            n, d, k, chunks, out.shape[2], b * k, *x.stride(), *strides(weight, 2),
            L=CHUNK, MODE=mode, **config, **flags, **unfused(x),
        )  # fmt: skip


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted means [B, K, D] of the clusters in x's dtype, and `total` [B, K] float32.

    total is the sum of the members' weights; where that is 0, minus the number of members, which then count equally; 0
    for a cluster without members, whose mean is 0. Deterministic; NaN stays in its own cluster.

    Args:
        x: [B, N, D], any strides.
        label: [B, N] int64, -1 for none.
        weight: [B, N] or None for equal weights.
    """
    from ...kernels.streaming.means import MODE_TOKENS

    b, _, d = x.shape
    out = x.new_empty(b, k, d)
    total = torch.empty(b, k, dtype=torch.float32, device=x.device)
    if 0 in (*x.shape, k):
        return out.zero_(), total.zero_()
    segments = sort_by_cluster(keys_of(label, k), k)
    segment_means(x, weight, None, None, segments, MODE_TOKENS.value, out, total=total)
    return out, total


def cluster_mean_backward(
    grad: Tensor, label: Tensor, x: Tensor | None, mean: Tensor | None, weight: Tensor | None, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients [B, N, D] to tokens and, where x and mean are given, [B, N] to weights (else [0]), in one launch.

    Args:
        grad: [B, K, D].
        total: [B, K] float32, what `cluster_mean` returned beside the means.
    """
    from ...kernels.streaming.means import cluster_mean_backward_kernel

    b, k, d = grad.shape
    n = label.shape[1]
    wants = x is not None and mean is not None and weight is not None
    grad_x = grad.new_empty(b, n, d)
    grad_weight = grad.new_empty(b, n, dtype=weight.dtype) if wants and weight is not None else grad.new_empty(0)
    if 0 in (b, n, k, d):
        return grad_x.zero_(), grad_weight.zero_()
    tile, block_d = token_tile(n, d, grad.is_cuda)
    tokens, means, w = (tensor if tensor is not None else grad for tensor in (x, mean, weight))
    with on_device(grad):
        cluster_mean_backward_kernel[(b * -(-n // tile),)](
            grad, label, tokens, means, w, total, grad_x, grad_weight, n, d, k,
            *grad.stride(), *label.stride(), *strides(x, 3), *strides(mean, 3), *strides(weight, 2), *total.stride(),
            T=tile, BD=block_d, WEIGHTED=weight is not None, GRAD_WEIGHT=wants, num_warps=4, **unfused(grad),
        )  # fmt: skip
    return grad_x, grad_weight
