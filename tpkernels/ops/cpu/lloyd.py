"""K-Means and K-Medoids as compiled loops over one sample's Gram matrix at a time, for CPUs where numba is installed.

The same algorithms as the torch twin in `lloyd.py`, in less work: with G = X X^T the distance of token i to the mean of
the tokens j with shares p_j is `q / 2 - S_i` up to a constant of the token, where `S_i = sum_j p_j G_ji` and
`q = sum_j p_j S_j`, so no iteration touches the channels; and only clusters whose members changed are updated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager.samples import Samples
from . import jit

# Products [B, K, T] of a tile of tokens: what is read at once after it was written stays in the cache.
TILE_ELEMENTS = 1 << 19


def kmeans(
    samples: Samples, gram: Tensor, start: Tensor, k: int, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Label [B, N], source [B, N], n_iter [B], lost [B, K] and kept [B, K, D], which is written where lost alone.

    Args:
        gram: [B, N, N] of the samples, contiguous.
        start: [B, N], labels whose clusters' means are the first centres.
    """
    from . import lloyd_loops

    b = start.shape[0]
    label, source, n_iter = writable(start), writable(start), start.new_zeros(b)
    lost = torch.zeros(b, k, dtype=torch.bool)
    kept = samples.x.new_empty(b, k, samples.x.shape[2])
    _run(lloyd_loops.kmeans, samples, gram, [label, source, kept, lost, n_iter, max_iter], k)
    return label, source, n_iter, lost, kept


def kmedoids(
    samples: Samples, gram: Tensor, start: Tensor, k: int, max_iter: int, tie: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Label [B, N], medoid [B, K] (N where there is none), n_iter [B].

    Args:
        tie: costs of a cluster's members are tied up to a factor of 1 + tie.
    """
    from . import lloyd_loops

    b, n = start.shape
    label, n_iter, medoid = writable(start), start.new_zeros(b), start.new_full((b, k), n)
    _run(lloyd_loops.kmedoids, samples, gram, [label, medoid, n_iter, max_iter, tie], k)
    return label, medoid, n_iter


def nearest(x: Tensor, centre: Tensor, half_norm: Tensor) -> Tensor:
    """Slot [B, N] of least `half_norm - <centre, x>` for every token, the lowest on ties.

    Args:
        half_norm: [B, K], half of the squared norms of centre [B, K, D]; +inf for those that take no token.
    """
    from . import lloyd_loops

    b, n, _ = x.shape
    k = centre.shape[1]
    tile = max(1, min(n, TILE_ELEMENTS // max(1, k)))
    group = max(1, TILE_ELEMENTS // max(1, k * tile))
    product = x.new_empty(min(group, b), k, tile)
    label = torch.empty(b, n, dtype=torch.int64)
    for i in range(0, b, group):
        for j in range(0, n, tile):
            part = x[i : i + group, j : j + tile]
            g, t, _ = part.shape
            score = product.view(-1)[: g * k * t].view(g, k, t)
            torch.bmm(centre[i : i + group], part.mT, out=score)
            arguments = [score, half_norm[i : i + group], label[i : i + group], j]
            jit.over_samples(lloyd_loops.nearest, arguments, g, g * k * t)
    return label


def facts(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, N], which tokens are there [B, N], and how many clusters are wanted [B]: 0 skips a sample."""
    x, valid = samples.x, samples.valid
    weight = x.new_ones(x.shape[:2]) if samples.weight is None else samples.weight.contiguous()
    there = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid.contiguous()
    return weight, there, torch.where(samples.plain, 0, samples.k)


def writable(label: Tensor) -> Tensor:
    """A copy of labels, however they lie, for loops to write into."""
    return label.clone(memory_format=torch.contiguous_format)


def _run(kernel: Any, samples: Samples, gram: Tensor, results: list[Any], k: int) -> None:
    x = samples.x
    b, n, d = x.shape
    arguments = [gram, x.contiguous(), *facts(samples), *results]
    jit.over_samples(kernel, arguments, b, b * n * (n + d + k))
