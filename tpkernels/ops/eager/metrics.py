"""What Ward's dendrogram is made of beside Euclidean distances: cosines and products of the tokens as they come.

Lance and Williams' update (see `ward`) takes any dissimilarity d as costs `m_a m_b / (m_a + m_b) d_ab^2`. Retrieval
packages cluster with scipy's Ward by `d = 1 - x . y`, of unit vectors the cosine's, as it comes or within [0, 2], or by
Euclidean distances between the rows of the square matrix of all d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..problem import Samples


def inner_products(x: Tensor) -> Tensor:
    """`X X^T` [B, N, N] of tokens [B, N, D]."""
    return torch.bmm(x, x.mT)


def products(samples: Samples, metric: str, product: Callable[[Tensor], Tensor] = inner_products) -> Tensor:
    """The matrix G [B, N, N] whose `G_ii + G_jj - 2 G_ij` are the squared dissimilarities of the samples' tokens.

    For the Euclidean metric, and "rows" as points, that is `X X^T`; else G has a zero diagonal. Zero vectors have the
    cosine dissimilarity 1 to all others and 0 to each other.

    Args:
        product: what multiplies, on and below the diagonal at least, which is then all that G has.
    """
    x = samples.x
    if metric in ("euclidean", "rows"):
        return product(x)
    if metric == "cosine":
        length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        x = x / torch.where(length > 0, length, 1)
    gram = product(x)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    if metric == "cosine":
        # By the product's own diagonal: equal tokens are at distance 0 to the last bit.
        norm = torch.where(diagonal > 0, diagonal, 1)
        gram /= (norm[:, :, None] * norm[:, None, :]).sqrt_()
        gram.neg_().add_(1).clamp_(min=0)
        zero = length.squeeze(2) == 0
        gram.masked_fill_(zero[:, :, None] & zero[:, None, :], 0)
    else:
        gram.neg_().add_(1)
    if metric == "clipped":
        gram.clamp_(0, 2)
    gram.square_().mul_(-0.5).diagonal(dim1=1, dim2=2).zero_()
    return gram


def rows(samples: Samples) -> Samples:
    """The samples with the rows of `1 - x . y`, over their valid tokens, in place of their tokens, centered."""
    x, valid = samples.x, samples.valid
    points = 1 - inner_products(x)
    if valid is None:
        points = points - points.mean(1, keepdim=True)
    else:
        both = valid[:, :, None] & valid[:, None, :]
        points = points.masked_fill(~both, 0)
        mean = points.sum(1, keepdim=True) / samples.n_valid.clamp(min=1)[:, None, None]
        points = (points - mean).masked_fill(~both, 0)
    return samples._replace(x=points, offset=points.new_zeros(len(points), 1, points.shape[2]))
