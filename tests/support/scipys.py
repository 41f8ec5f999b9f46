"""What scipy's hierarchical clustering says, as labels that are numbered as ours, and how far apart two cuts are."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from tests.support.pooled import canonical

DISSIMILARITIES = ("cosine", "dot", "clipped")


def condensed(x: Tensor, metric: str) -> np.ndarray:
    """The condensed matrix of `1 - cos` or `1 - x . y`, as it comes or clipped, of one sample [N, D], in float64."""
    x = x.double()
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    far = 1 - x @ x.T
    matrix = (far.clamp(0, 2) if metric == "clipped" else far.abs()).numpy()
    np.fill_diagonal(matrix, 0)
    return squareform((matrix + matrix.T) / 2, checks=False)


def tree(x: Tensor, metric: str = "euclidean") -> np.ndarray:
    """scipy's Ward of one sample [N, D], N at least 2."""
    if metric in DISSIMILARITIES:
        return linkage(condensed(x, metric), "ward")
    points = x.double()
    return linkage((1 - points @ points.T if metric == "rows" else points).numpy(), "ward")


def cut(tree: np.ndarray, k: int) -> Tensor:
    """Labels [N] of k clusters, numbered by their lowest token. On ties scipy has fewer than k: merge row by row."""
    n = len(tree) + 1
    members = [[i] for i in range(n)]
    for row in tree[: n - k]:
        members.append(members[int(row[0])] + members[int(row[1])])
        members[int(row[0])] = members[int(row[1])] = []
    label = torch.empty(n, dtype=torch.int64)
    for number, cluster in enumerate(members):
        label[cluster] = number
    return canonical(label)


def cut_at(tree: np.ndarray, distance: float) -> Tensor:
    """Labels [N] of `fcluster(tree, distance, "distance")`, numbered by their lowest token."""
    return canonical(torch.from_numpy(fcluster(tree, distance, "distance")))


def decided(tree: np.ndarray, k: int, of_largest: float = 0) -> bool:
    """Whether the last merger made and the first one left out are farther apart than 1e-5 of a distance.

    Args:
        of_largest: and their squares farther than this share of the largest square, whose rounding they share.
    """
    made, left = len(tree) - k, len(tree) - k + 1
    if made < 0 or left >= len(tree):
        return True
    one, two, largest = (float(tree[row, 2]) for row in (made, left, -1))
    return two - one > 1e-5 * two and two**2 - one**2 > of_largest * largest**2
