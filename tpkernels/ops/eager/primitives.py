"""What the eager room brings to the clustering operation."""

from __future__ import annotations

from torch import Tensor

from ..problem import Primitives
from .distances import objective
from .linkage import linkage
from .lloyd import lloyd, nearest
from .means import cluster_mean, gather_tokens, nearest_members
from .samples import prepare
from .ward import ward


def mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, None]:
    """`cluster_mean`, which tells no total."""
    return cluster_mean(x, label, k, weight), None


def gather(x: Tensor, _: Tensor, medoids: Tensor) -> tuple[Tensor, None]:
    """`gather_tokens`, which tells no total."""
    return gather_tokens(x, medoids), None


EAGER = Primitives(False, False, prepare, ward, lloyd, nearest, nearest_members, mean, gather, objective, linkage)
