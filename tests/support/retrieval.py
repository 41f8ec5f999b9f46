"""Documents of token vectors for retrieval, and how pooled ones are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.scipys import decided

FACTORS = (2, 3, 4, 5, 6)
# Lengths that every corpus has: short ones, at which numbers of clusters change, and pages of images.
SHORT, LONG = tuple(range(1, 31)), (500, 700, 1030, 1100)
CHANNELS = 128


def make_documents(count: int = 520, seed: int = 0) -> list[Tensor]:
    """Documents [n, 128] of unit vectors in clusters around what they share: 1 to 1,100 tokens, most of them short."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.empty(count - len(SHORT) - len(LONG)).exponential_(1 / 60, generator=generator)
    lengths = [*SHORT, *(others.clamp(2, 300).int().tolist()), *LONG]
    return [make_document(n, generator) for n in lengths]


def make_document(n: int, generator: torch.Generator) -> Tensor:
    """One document [n, 128]."""
    topics = torch.randn(1 + n // 6, CHANNELS, generator=generator)
    topic = topics[torch.randint(len(topics), (n,), generator=generator)]
    shared, own = (torch.randn(rows, CHANNELS, generator=generator) for rows in (1, n))
    return normalize(topic + 0.7 * shared + 0.7 * own, dim=1)


def is_tie(document: Tensor, k: int, *, rows: bool = False) -> bool:
    """Whether rounding decides which of two mergers is the last of scipy's before k clusters are left.

    Args:
        rows: distances are those of the rows of `1 - x . y`, not these values themselves.
    """
    if not 1 < k < len(document):
        return False
    x = document.float()
    matrix = (1 - x @ x.T).numpy()
    return not decided(linkage(matrix if rows else squareform(matrix, checks=False), "ward"), k)


def distance_of_rows(one: Tensor, other: Tensor) -> float:
    """How far rows [k, D] are from the same rows in another order, at most; infinite where they are other rows."""
    if one.shape != other.shape:
        return float("inf")
    if len(one) == 0:
        return 0.0
    nearest = torch.cdist(one.double(), other.double()).argmin(1)
    if len(nearest.unique()) < len(one):
        return float("inf")
    return float((one.double() - other.double()[nearest]).abs().max())


def assert_pooled(ours: Sequence[Tensor], theirs: Sequence[Tensor], ties: Sequence[bool], tolerance: float) -> None:
    """The same rows for each document, in any order, ties excepted, which are few."""
    assert len(ours) == len(theirs) == len(ties)
    assert sum(ties) <= 0.01 * len(ties), f"{sum(ties)} ties"
    wrong = {
        place: far
        for place, (one, other, tie) in enumerate(zip(ours, theirs, ties, strict=True))
        if not tie and not (far := distance_of_rows(one, other)) <= tolerance
    }
    assert not wrong
