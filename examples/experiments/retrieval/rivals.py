"""Other ways to the same number of vectors a document, one document after the other.

Each takes a document's unprotected tokens [n, D] and the number of clusters, and returns labels [n]: the cluster that a
token is averaged into, -1 where it is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

import tpkernels

from .documents import Pooled, Ragged, unit

Find = Callable[[Tensor, int], Tensor]


def is_there(package: str | None) -> bool:
    """Whether a rival's package is installed; None needs none."""
    return package is None or importlib.util.find_spec(package) is not None


def by_scipy(points: Tensor, k: int) -> Tensor:
    from scipy.cluster.hierarchy import linkage

    return _cut(linkage(points.double().numpy(), "ward"), k)


def by_scipy_of_rows(points: Tensor, k: int) -> Tensor:
    """Ward of the rows of `1 - x x^T` as points: how ColBERT's and colpali-engine's pooling call scipy."""
    return by_scipy(1 - points @ points.T, k)


def by_scipy_of_dot(points: Tensor, k: int) -> Tensor:
    """Ward of the condensed `1 - x . y`: how PyLate's, sentence-transformers' and next-plaid's pooling call it."""
    from scipy.cluster.hierarchy import linkage

    return _cut(linkage(_condensed(points), "ward"), k)


def by_fastcluster(points: Tensor, k: int) -> Tensor:
    import fastcluster

    return _cut(fastcluster.linkage(points.double().numpy(), "ward"), k)


def by_fastcluster_of_dot(points: Tensor, k: int) -> Tensor:
    import fastcluster

    return _cut(fastcluster.linkage(_condensed(points), "ward"), k)


def runs(points: Tensor, k: int) -> Tensor:
    """Runs of neighbouring tokens, as long as each other up to one: the paper's sequential pooling."""
    return torch.arange(len(points)) * k // len(points)


def every(points: Tensor, k: int) -> Tensor:
    """The first token of each run alone."""
    run = runs(points, k)
    return run.masked_fill(run.diff(prepend=run.new_tensor([-1])) == 0, -1)


def _condensed(points: Tensor):
    n = len(points)
    above = torch.triu_indices(n, n, 1)
    return (1 - points @ points.T)[above[0], above[1]].double().numpy()


def _cut(tree, k: int) -> Tensor:
    """Labels of k clusters, numbered by their first tokens."""
    from scipy.cluster.hierarchy import fcluster

    found = torch.from_numpy(fcluster(tree, k, "maxclust")).long() - 1
    token = torch.arange(len(found))
    first = torch.full((int(found.max()) + 1,), len(found)).scatter_reduce(0, found, token, "amin")
    return first.argsort().argsort()[found]


def pool(find: Find, documents: Ragged, pool_factor: float, protected: int) -> Pooled:
    """What `pool_embeddings` returns of a padded batch, labels too, with clusters by `find`."""
    labels = torch.full(documents.mask.shape, -1)
    for row, vectors, there in zip(labels, documents.vectors.cpu(), documents.mask.cpu(), strict=True):
        places = there.nonzero()[:, 0]
        kept, others = places[:protected], places[protected:]
        row[kept] = torch.arange(len(kept))
        if len(others):
            k = max(int(len(others) // pool_factor), 1)
            # scipy raises below two points.
            found = find(vectors[others], k) if len(others) > 1 else torch.zeros(1, dtype=torch.int64)
            row[others] = torch.where(found < 0, -1, protected + found)
    return average(documents, labels.to(documents.mask.device), protected)


def average(documents: Ragged, labels: Tensor, protected: int) -> Pooled:
    """Means of the tokens of each label [B, N], of length 1 but for the protected ones."""
    width = int(labels.max()) + 1
    vectors = tpkernels.cluster_mean(documents.vectors, labels, width)
    place = torch.arange(width, device=labels.device)
    vectors = torch.where((place < protected)[:, None], vectors, unit(vectors))
    return Pooled(vectors, place < labels.amax(1, keepdim=True) + 1, labels)
