"""Rows of the study: recall and mean reciprocal rank with standard errors, differences paired query by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .compare import BYTES_PER_NUMBER
from .study import NONE, Result
from .ways import DEFAULT, WAYS, Way

# Of both kinds of queries at once: the mean of a document's two, so that its two queries are one observation.
BOTH = "both"


@dataclass(frozen=True)
class Row:
    """One way at one factor for one kind of queries; recalls and lost in per cent, each `_se` a standard error.

    bound: the value of the way's own option; mrr_to_unpooled and mrr_to_default: differences of the mean reciprocal
    rank, paired; objective: the sum of squares over the default's at this factor; same_partitions: documents that are
    parted as the default parts them.
    """

    way: str
    label: str
    pool_factor: float
    bound: float | None
    queries: str
    asked: int
    documents: int
    vectors_per_document: float
    index_mb: float
    recall_at_1: float
    recall_at_1_se: float
    recall_at_10: float
    recall_at_10_se: float
    mrr: float
    mrr_se: float
    mrr_to_unpooled: float
    mrr_to_unpooled_se: float
    mrr_to_default: float | None
    mrr_to_default_se: float | None
    lost: float | None
    objective: float | None
    same_partitions: int | None


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def measures(result: Result, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Recall at 1 and at 10 in per cent, and the reciprocal rank, of each query of a kind, or of each document's."""
    kinds = list(result.ranks) if kind == BOTH else [kind]
    rank = torch.tensor([result.ranks[name] for name in kinds]).double()
    return 100 * (rank <= 1).double().mean(0), 100 * (rank <= 10).double().mean(0), rank.reciprocal().mean(0)


def rows(results: Sequence[Result], channels: int) -> list[Row]:
    """A row for every result and kind of queries."""
    by_key = {(result.way, result.factor): result for result in results}
    labels = {way.name: way.label for way in (Way(NONE[0], "not pooled"), *WAYS)}
    found = []
    for result in results:
        default = by_key.get((DEFAULT.name, result.factor))
        for kind in (*result.ranks, BOTH):
            at_1, at_10, reciprocal = measures(result, kind)
            to_default = None if default is None else reciprocal - measures(default, kind)[2]
            gap, error = (None, None) if to_default is None else mean_and_error(to_default)
            vectors = sum(result.lengths)
            objective = None
            if default is not None and default.lost and result.lost is not None:
                objective = round(result.lost / default.lost, 5)
            found.append(
                Row(
                    result.way, labels[result.way], result.factor,
                    None if result.bound is None else round(result.bound, 5), kind, len(reciprocal),
                    len(result.lengths), round(vectors / len(result.lengths), 2),
                    round(vectors * channels * BYTES_PER_NUMBER / 1e6, 3),
                    *rounded(2, *mean_and_error(at_1), *mean_and_error(at_10)),
                    *rounded(5, *mean_and_error(reciprocal)),
                    *rounded(5, *mean_and_error(reciprocal - measures(by_key[NONE], kind)[2])),
                    *rounded(5, gap, error), *rounded(3, None if result.lost is None else 100 * result.lost),
                    objective, result.same,
                )
            )  # fmt: skip
    return found


def rounded(digits: int, *values: float | None) -> list[float | None]:
    return [None if value is None else round(value, digits) for value in values]
