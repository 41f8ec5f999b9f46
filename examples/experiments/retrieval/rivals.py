"""Other ways to the same number of vectors a document: labels [B, N], as `pooling.ward_labels` gives them.

A token's label is the vector that it is averaged into; -1 leaves it out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .pooling import Layout, protected_labels, relabelled


def scipy_there() -> bool:
    return importlib.util.find_spec("scipy") is not None


def scipy_labels(embeddings: Tensor, layout: Layout, protected: int) -> Tensor:
    """Ward by `scipy.cluster.hierarchy`, one document after the other."""
    return _by_document(embeddings, layout, protected, lambda x: x)


def scipy_of_rows_labels(embeddings: Tensor, layout: Layout, protected: int) -> Tensor:
    """scipy's Ward of the rows of `1 - x x^T` as points: what ColBERT's and colpali-engine's pooling calls it with."""
    return _by_document(embeddings, layout, protected, lambda x: 1 - x @ x.T)


def _by_document(embeddings: Tensor, layout: Layout, protected: int, points: Callable[[Tensor], Tensor]) -> Tensor:
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = protected_labels(layout)
    counts = zip(layout.others.tolist(), layout.clusters.tolist(), strict=True)
    for document, (n, k) in enumerate(counts):
        tokens = layout.order[document, protected : protected + n]
        if n < 2:
            # linkage raises below two points.
            found = torch.zeros_like(tokens)
        else:
            tree = linkage(points(embeddings[document, tokens]).double().cpu().numpy(), "ward")
            found = torch.from_numpy(fcluster(tree, k, "maxclust")).to(tokens) - 1
        labels[document, tokens] = protected + found
    return labels


def run_labels(embeddings: Tensor, layout: Layout, protected: int) -> Tensor:
    """Runs of neighbouring tokens, as long as each other up to one: the paper's sequential pooling."""
    places, run = _runs(layout, protected)
    return relabelled(layout, places, run, protected)


def strided_labels(embeddings: Tensor, layout: Layout, protected: int) -> Tensor:
    """Every p-th token alone: the first one of each run."""
    places, run = _runs(layout, protected)
    repeated = torch.zeros_like(run, dtype=torch.bool)
    repeated[:, 1:] = run[:, 1:] == run[:, :-1]
    return relabelled(layout, places, run.masked_fill(repeated, -1), protected)


def _runs(layout: Layout, protected: int) -> tuple[Tensor, Tensor]:
    """Places [B, W] of the unprotected tokens, and the run [B, W] that each belongs to, -1 for padding."""
    places, there = layout.unprotected(protected)
    rank = torch.arange(places.shape[1], device=places.device)
    run = rank * layout.clusters[:, None] // layout.others.clamp(min=1)[:, None]
    return places, run.masked_fill(~there, -1)
