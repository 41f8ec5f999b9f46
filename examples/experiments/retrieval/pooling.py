"""Token pooling of multi-vector documents (Clavié, Chaffin and Adams, arXiv 2409.14683) in batched calls.

A document is a set of unit vectors, one a token, and is found by late interaction: `sum_i max_j <q_i, d_j>` over its
vectors d_j (Khattab and Zaharia, arXiv 2004.12832). Ward's clusters of them, averaged and made unit again, are a
document of fewer vectors. On unit vectors `||x - y||^2 = 2 (1 - cos)`, so that Ward's is the clustering by cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


class Group(NamedTuple):
    """Documents that are cut at the same number of clusters.

    rows [R] int64: their numbers; tokens [R, W] int64: their unprotected tokens; there [R, W] bool: False for padding;
    k: clusters.
    """

    rows: Tensor
    tokens: Tensor
    there: Tensor
    k: int


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


def groups(layout: Layout, protected: int) -> Iterator[Group]:
    """The batch's documents by their number of clusters; documents without unprotected tokens are in no group.

    A document is padded to the longest of its group alone, and those of one group are of nearly one length.
    """
    clusters, others = layout.clusters.cpu(), layout.others.cpu()
    device = layout.order.device
    for k in clusters[clusters > 0].unique().tolist():
        rows = (clusters == k).nonzero().squeeze(1)
        lengths = others[rows]
        width = int(lengths.max())
        there = torch.arange(width) < lengths[:, None]
        rows = rows.to(device)
        # A document with unprotected tokens has all its protected ones.
        yield Group(rows, layout.order[rows, protected : protected + width], there.to(device), k)


def cluster(embeddings: Tensor, group: Group, backend: str) -> tpkernels.Clusters:
    """Ward's clusters of a group: one call for all its documents."""
    return tpkernels.ward(embeddings[group.rows[:, None], group.tokens], group.k, mask=group.there, backend=backend)


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

    A document of n unprotected tokens is cut at `max(1, floor(n / pool_factor + 0.5))` clusters of its own. Documents
    of equal counts share a call of `tpkernels.ward`, so that there are as many calls as counts, not as documents; on a
    GPU, grouping waits for the lengths. Differentiable with the clusters held constant.

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
    b, _, d = embeddings.shape
    width = int(layout.lengths.max()) if b else 0
    place = torch.arange(width, device=embeddings.device)

    vectors = embeddings.new_zeros(b, width, d)
    first = layout.order[:, : min(protected, width), None]
    absent = place[: first.shape[1]] >= layout.protected[:, None]
    vectors[:, : first.shape[1]] = embeddings.gather(1, first.expand(-1, -1, d)).masked_fill(absent[..., None], 0)
    for group in groups(layout, protected):
        centers = cluster(embeddings, group, backend).centers
        vectors[group.rows, protected : protected + group.k] = unit(centers) if normalize else centers
    return vectors, place < layout.lengths[:, None]


def ward_labels(embeddings: Tensor, layout: Layout, protected: int, backend: str = "auto") -> Tensor:
    """The vector [B, N] int64 that each token became in `pool_documents`; -1 for padding."""
    labels = protected_labels(layout)
    for group in groups(layout, protected):
        found = cluster(embeddings, group, backend).assignment
        labels[group.rows[:, None], group.tokens] = torch.where(group.there, protected + found, -1)
    return labels


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
