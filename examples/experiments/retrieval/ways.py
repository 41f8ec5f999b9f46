"""Ways to pool a corpus, one choice of `pool_embeddings` changed at a time, and bounds that give as many vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tpkernels
from tpkernels.retrieval import pool_embeddings

from . import rivals
from .documents import ragged

# First tokens that are kept, where a way says nothing else: [CLS], as PyLate and sentence-transformers have it.
PROTECTED = 1
# Documents whose dendrograms are made at once.
CHUNK = 32


@dataclass(frozen=True)
class Way:
    """options: of `pool_embeddings`; bound: the option that is found so that the corpus has as many vectors as by the
    factor, None for the factor itself; find: clusters of a rival."""

    name: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    bound: str | None = None
    find: rivals.Find | None = None

    def pool(self, documents: list[Tensor], factor: float, bound: float | None) -> tuple[list[Tensor], list[Tensor]]:
        """Vectors of each document, and the vector that each token became."""
        if self.find is not None:
            found = [rivals.pool(self.find, ragged([one]), factor, PROTECTED) for one in documents]
            return [pooled.vectors[0] for pooled in found], [pooled.labels[0] for pooled in found]
        budget = {"pool_factor": factor} if self.bound is None else {self.bound: bound}
        return pool_embeddings(documents, **{"protected": PROTECTED, **budget, **self.options}, return_labels=True)


DEFAULT = Way("default", "Ward, as it is without further arguments")
WAYS = (
    DEFAULT,
    Way("rows", 'distance="rows"', {"distance": "rows"}),
    Way("dot", 'distance="dot"', {"distance": "dot"}),
    Way("cosine", 'distance="cosine"', {"distance": "cosine"}),
    Way("clipped", 'distance="clipped"', {"distance": "clipped"}),
    Way("raw", "normalize=False", {"normalize": False}),
    Way("unprotected", "protected=0", {"protected": 0}),
    Way("error", "max_error", bound="max_error"),
    Way("distance", "distance_threshold", bound="distance_threshold"),
    Way("runs", "runs of tokens, averaged", find=rivals.runs),
    Way("every", "every p-th token", find=rivals.every),
)


def merge_distances(documents: list[Tensor]) -> list[Tensor]:
    """The distances [n - 1] of each document's mergers, its protected tokens left out, rising."""
    found: list[Tensor] = [torch.empty(0)] * len(documents)
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for chunk in (by_length[i : i + CHUNK] for i in range(0, len(by_length), CHUNK)):
        batch = ragged([documents[i][PROTECTED:] for i in chunk])
        for i, tree in zip(chunk, tpkernels.linkage(batch.vectors, mask=batch.mask), strict=True):
            found[i] = tree[: max(len(documents[i]) - PROTECTED - 1, 0), 2]
    return found


def shares_lost(distances: Tensor) -> Tensor:
    """The share of a document's variance that is lost after each of its mergers: what `max_error` bounds."""
    lost = distances.square().cumsum(0)
    return lost / lost[-1:]


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {"max_error": shares_lost, "distance_threshold": lambda d: d}


def bounds_for(documents: list[Tensor], factors: list[float]) -> dict[tuple[str, float], float]:
    """The value of each option in BOUNDS that gives the whole corpus as many vectors as each factor does."""
    merged = merge_distances(documents)
    found = {}
    for option, measure in BOUNDS.items():
        values = torch.cat([measure(distances) for distances in merged]).sort().values
        for factor in factors:
            others = [len(one) - PROTECTED for one in documents if len(one) > PROTECTED]
            mergers = sum(n - max(int(n // factor), 1) for n in others)
            # Between two of the values, where rounding cannot move a merger across.
            found[option, factor] = float(values[mergers - 1 : mergers + 1].mean())
    return found
