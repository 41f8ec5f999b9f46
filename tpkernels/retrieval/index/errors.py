"""What pooling loses of each document."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this share of a document's sum of squares, the spread about its mean is rounding.
_NONE = 1e-26


def document_errors(vectors: Tensor, lengths: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """`sum_i ||x_i - mean of its cluster||^2 / sum_i ||x_i - mean of its document||^2` of every document.

    The share of a document's variance that its clusters lose, in [0, 1] as `max_error` counts it, whatever the pooled
    vectors' lengths; 0 where all vectors are equal.

    Args:
        vectors: packed [T, D], any float dtype.
        lengths: int64 [B], on the same device as all others.
        labels: int64 [T], each vector's pooled one within its document.
        counts: int64 [B], the pooled vectors of each document.

    Returns:
        [B] float64; NaN for documents with NaN or infinity.
    """
    documents = torch.arange(len(lengths), device=vectors.device).repeat_interleave(lengths)
    clusters = labels + (counts.cumsum(0) - counts)[documents]
    x = vectors.to(torch.float64, copy=True)
    of_all = _squares(x, documents, len(lengths))
    x -= _means(x, documents, len(lengths))[documents]
    of_document = _squares(x, documents, len(lengths))
    x -= _means(x, clusters, int(counts.sum()))[clusters]
    error = torch.where(of_document > _NONE * of_all, _squares(x, documents, len(lengths)) / of_document, 0.0)
    return torch.where(of_all.isfinite(), error, torch.nan)


def _means(x: Tensor, groups: Tensor, count: int) -> Tensor:
    sums = x.new_zeros(count, x.shape[1]).index_add_(0, groups, x)
    return sums / groups.bincount(minlength=count).clamp(min=1)[:, None]


def _squares(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """The sum of squares of each group; of rows by their norm, which needs no copy."""
    return x.new_zeros(count).index_add_(0, groups, torch.linalg.vector_norm(x, dim=1).square())
