"""The rows of the evaluation: every way to reduce tokens that is compared, under the name that `--method` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.arguments import by_name


@dataclass(frozen=True)
class Method:
    """One row: its name and label, the arguments it gives `tpkernels.patch`, and the family that colours its point."""

    name: str
    label: str
    family: str
    method: str
    init: str = "ward"
    weighted: bool | None = False
    refine: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `tpkernels.patch` is given."""
        names = ("method", "init", "weighted", "refine")
        return {name: getattr(self, name) for name in names}


METHODS = (
    Method("ward", "Ward (default)", "Ward and its refinements", "ward", weighted=None),
    Method("kmedoids", "K-Medoids from Ward", "Ward and its refinements", "kmedoids"),
    Method("kmedoids-swap", "K-Medoids from Ward, swaps", "Ward and its refinements", "kmedoids", refine="swap"),
    Method("kmeans", "K-Means from Ward", "Ward and its refinements", "kmeans"),
    # The paper's four (arXiv 2110.03860) start from the tokens of highest significance; W weighs the objective by it.
    Method("wk-medoids", "WK-Medoids from top-K (paper)", "the paper's", "kmedoids", "topk", weighted=True),
    Method("kmedoids-topk", "K-Medoids from top-K (paper)", "the paper's", "kmedoids", "topk"),
    Method("wk-means", "WK-Means from top-K (paper)", "the paper's", "kmeans", "topk", weighted=True),
    Method("kmeans-topk", "K-Means from top-K (paper)", "the paper's", "kmeans", "topk"),
    Method("topk", "top-K (PoWER-BERT)", "pruning", "topk"),
    Method("importance", "importance sampling", "pruning", "importance"),
    Method("random", "random", "pruning", "random"),
    Method("grid", "grid", "other merging", "grid"),
    Method("bipartite", "bipartite (ToMe)", "other merging", "bipartite"),
)
BASE_LABEL = "base model"


def find_methods(names: list[str] | None) -> list[Method]:
    """The methods of these names, in the order given; all of them where no names are given.

    Raises:
        ValueError: a name is unknown.
    """
    return by_name(METHODS, names)
