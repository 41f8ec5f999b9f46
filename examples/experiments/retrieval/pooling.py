"""Token pooling of multi-vector documents (Clavié, Chaffin and Adams, arXiv 2409.14683) in batched calls.

A document is a set of unit vectors, one a token, and is found by late interaction: `sum_i max_j <q_i, d_j>` over its
vectors d_j (Khattab and Zaharia, arXiv 2004.12832). Ward's clusters of them, averaged and made unit again, are a
document of fewer vectors. On unit vectors `||x - y||^2 = 2 (1 - cos)`, so that Ward's is the clustering by cosine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import tpkernels
from tpkernels import checks


class Layout(NamedTuple):
    """Where a batch's tokens are, and how many vectors they become.

    order [B, N] int64: protected tokens, then the others, each in their own order, then padding; protected, others,
    clusters [B] int64: how many of each a document has. Its vectors are the protected tokens and then the clusters.
    """

    order: Tensor
    protected: Tensor
    others: Tensor
    clusters: Tensor

    @property
    def lengths(self) -> Tensor:
        """Vectors [B] of each pooled document."""
        return self.protected + self.clusters

    def unprotected(self, protected: int) -> tuple[Tensor, Tensor]:
        """Places [B, W] int64 of the unprotected tokens, W as many as any document has, and which of them there are.

        Args:
            protected: the number of protected tokens of a document that has others too.
        """
        longest = int(self.others.max()) if len(self.others) else 0
        places = self.order[:, protected : protected + longest]
        return places, torch.arange(places.shape[1], device=places.device) < self.others[:, None]


def lay_out(embeddings: Tensor, mask: Tensor | None, pool_factor: float, protected: int) -> Layout:
    """The layout of embeddings [B, N, D]; arguments and errors are those of `pool_documents`."""
    checks.tokens(embeddings, "embeddings")
    checks.mask(mask, embeddings)
    if isinstance(pool_factor, bool) or not isinstance(pool_factor, (int, float)):
        raise TypeError(f"pool_factor must be a number, got {type(pool_factor).__name__}")
    if not (math.isfinite(pool_factor) and pool_factor >= 1):
        raise ValueError(f"pool_factor must be at least 1 and finite, got {pool_factor}")
    checks.count("protected", protected, 0)
    b, n, _ = embeddings.shape
    if n and protected >= n:
        raise ValueError(f"protected must be less than the {n} tokens of a document, got {protected}")
    if mask is None:
        mask = torch.ones(b, n, dtype=torch.bool, device=embeddings.device)
    first = mask & (mask.cumsum(1) <= protected)
    order = torch.where(mask, torch.where(first, 0, 1), 2).argsort(dim=1, stable=True)
    kept = first.sum(1)
    others = mask.sum(1) - kept
    # In float64: n / pool_factor of a long document has no digits to lose in front of the rounding.
    clusters = (others.double() / pool_factor + 0.5).floor().long().clamp(min=1)
    return Layout(order, kept, others, torch.where(others > 0, clusters, 0))


def cluster(embeddings: Tensor, layout: Layout, protected: int, backend: str) -> tuple[tpkernels.Clusters, Tensor]:
    """Ward's clusters of all documents' unprotected tokens in one call, and the places [B, W] of those tokens."""
    places, there = layout.unprotected(protected)
    # Without tokens there is no cluster, whatever is asked for.
    wanted = layout.clusters.clamp(min=1)
    return tpkernels.ward(rows_at(embeddings, places), wanted, mask=there, backend=backend), places


def rows_at(embeddings: Tensor, places: Tensor) -> Tensor:
    """The rows [B, W, D] of embeddings [B, N, D] at places [B, W]."""
    b, n, d = embeddings.shape
    # Whole rows: to gather by places of every channel takes three times as long.
    flat = places + n * torch.arange(b, device=places.device)[:, None]
    return embeddings.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, d)


def unit(vectors: Tensor) -> Tensor:
    """vectors [..., D] at length 1 in their own dtype; zero vectors stay zero."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return F.normalize(wide, dim=-1).to(vectors.dtype)


def pool_documents(
    embeddings: Tensor,
    mask: Tensor | None = None,
    pool_factor: float = 2,
    protected: int = 1,
    *,
    normalize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Fewer vectors for every document of a ragged batch: Ward's clusters of its tokens, averaged.

    A document of n unprotected tokens is cut at `max(1, floor(n / pool_factor + 0.5))` clusters of its own, all in one
    call of `tpkernels.ward`; on a GPU, its shapes wait for the lengths. Differentiable with the clusters held constant.

    Args:
        embeddings: [B, N, D] float, on any device, of length 1 where clusters by cosine are wanted.
        mask: bool [B, N], False for padding, wherever it stands.
        pool_factor: unprotected tokens for each vector, at least 1; 1 keeps all of them.
        protected: number of first tokens of each document that are kept bit for bit, markers like [CLS]; less than N.
        normalize: make the clusters' means unit vectors.
        backend: "auto", "torch" or "triton".

    Returns:
        vectors [B, M, D], protected tokens first, then the clusters by their first token, then zeros; M is the longest
        pooled document's length; and their mask, bool [B, M].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, pool_factor below 1, protected negative or no less than N, a document of more than
            4,096 unprotected tokens.
        RuntimeError: backend="triton" cannot run this call.
    """
    layout = lay_out(embeddings, mask, pool_factor, protected)
    centers = cluster(embeddings, layout, protected, backend)[0].centers
    first = layout.order[:, :protected]
    absent = torch.arange(first.shape[1], device=first.device) >= layout.protected[:, None]
    kept = rows_at(embeddings, first).masked_fill(absent[..., None], 0)
    width = int(layout.lengths.max()) if len(embeddings) else 0
    vectors = torch.cat([kept, unit(centers) if normalize else centers], 1)[:, :width]
    return vectors, torch.arange(width, device=first.device) < layout.lengths[:, None]


def ward_labels(embeddings: Tensor, layout: Layout, protected: int, backend: str = "auto") -> Tensor:
    """The vector [B, N] int64 that each token became in `pool_documents`; -1 for padding."""
    found, places = cluster(embeddings, layout, protected, backend)
    return relabelled(layout, places, found.assignment, protected)


def relabelled(layout: Layout, places: Tensor, found: Tensor, protected: int) -> Tensor:
    """Labels [B, N] of all tokens, from the clusters found [B, W] of the tokens at places [B, W], -1 for none."""
    return protected_labels(layout).scatter(1, places, torch.where(found < 0, -1, protected + found))


def protected_labels(layout: Layout) -> Tensor:
    """Labels [B, N] of the protected tokens, 0, 1, ...; -1 elsewhere."""
    place = torch.arange(layout.order.shape[1], device=layout.order.device).expand_as(layout.order)
    place = torch.where(place < layout.protected[:, None], place, -1)
    return torch.empty_like(layout.order).scatter_(1, layout.order, place)


def average(embeddings: Tensor, labels: Tensor, layout: Layout, protected: int) -> tuple[Tensor, Tensor]:
    """What `pool_documents` returns, normalised, for any labels [B, N]; -1 leaves a token out, vectors need members."""
    width = int(layout.lengths.max())
    vectors = tpkernels.cluster_mean(embeddings, labels, width)
    place = torch.arange(width, device=embeddings.device)
    vectors = torch.where((place < protected)[:, None], vectors, unit(vectors))
    mask = torch.zeros(len(labels), width + 1, dtype=torch.bool, device=embeddings.device)
    mask.scatter_(1, torch.where(labels < 0, width, labels), True)
    return vectors, mask[:, :width]
