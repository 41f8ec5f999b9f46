"""Every way to pool at every pool factor: what is found again, the objective, the size of the index, and the time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from common.arguments import by_name
from deit.evaluate import synchronize
from torch import Tensor
from tqdm import tqdm

import tpkernels
from tpkernels.retrieval import pool_embeddings

from . import rivals
from .documents import Pooled, Ragged
from .maxsim import max_sim, ranks
from .memory import peak_of

# An index commonly holds float16.
BYTES_PER_NUMBER = 2
# Two packages may break ties in their own ways; where fewer partitions are the same, another thing was timed.
SAME_AT_LEAST = 0.99


@dataclass(frozen=True)
class Method:
    """A row: the name that `--method` takes, its label, what is clustered by, and whose clusters they are.

    find: a rival's labels of one document, None for this library's; package: what the rival needs.
    """

    name: str
    label: str
    distance: str | None
    find: rivals.Find | None = None
    package: str | None = None

    def pool(self, documents: Ragged, pool_factor: float, protected: int) -> Pooled:
        if self.find is not None:
            return rivals.pool(self.find, documents, pool_factor, protected)
        found = pool_embeddings(
            tuple(documents), pool_factor, protected=protected, distance=self.distance, return_labels=True
        )
        return Pooled(*found)


METHODS = (
    Method("ward", "Ward, batched", "euclidean"),
    Method("scipy", "Ward, scipy", "euclidean", rivals.by_scipy, "scipy"),
    Method("fastcluster", "Ward, fastcluster", "euclidean", rivals.by_fastcluster, "fastcluster"),
    Method("dot", "Ward of 1 - x.y, batched", "dot"),
    Method("scipy-dot", "Ward of 1 - x.y, scipy", "dot", rivals.by_scipy_of_dot, "scipy"),
    Method("fastcluster-dot", "Ward of 1 - x.y, fastcluster", "dot", rivals.by_fastcluster_of_dot, "fastcluster"),
    Method("rows", "Ward of 1 - x.y rows, batched", "rows"),
    Method("scipy-rows", "Ward of 1 - x.y rows, scipy", "rows", rivals.by_scipy_of_rows, "scipy"),
    Method("runs", "runs of p tokens, averaged", None, rivals.runs),
    Method("every", "every p-th token", None, rivals.every),
)


def find_methods(names: list[str] | None) -> list[Method]:
    """The methods of these names, in the order given; all where None.

    Raises:
        ValueError: a name is unknown.
    """
    return by_name(METHODS, names)


def objective(documents: Ragged, labels: Tensor) -> Tensor | None:
    """`sum_i ||x_i - mean of its cluster||^2` [B] in float64; None where labels [B, N] leave tokens out."""
    if bool((documents.mask & (labels < 0)).any()):
        return None
    x = documents.vectors.double()
    means = tpkernels.cluster_mean(x, labels, int(labels.max()) + 1)
    return (x - tpkernels.unpool(means, labels)).masked_fill(~documents.mask[..., None], 0).square().sum((1, 2))


def seconds_of(
    documents: Ragged, methods: list[Method], pool_factor: float, protected: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every method's repeats. The methods take turns, each time another one first."""
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    for turn in range(repeats):
        first = turn % len(methods)
        for method in methods[first:] + methods[:first]:
            synchronize(documents.vectors.device)
            started = time.perf_counter()
            method.pool(documents, pool_factor, protected)
            synchronize(documents.vectors.device)
            seconds[method.name].append(time.perf_counter() - started)
    return seconds


def record(label: str, name: str, pool_factor: float, pooled: Ragged, queries: Ragged) -> dict[str, Any]:
    """A row without its objective and its times."""
    rank = ranks(max_sim(queries, pooled)).double()
    vectors = int(pooled.mask.sum())
    return {
        "method": name,
        "label": label,
        "pool_factor": pool_factor,
        "documents": len(pooled.mask),
        "vectors_per_document": round(vectors / len(pooled.mask), 2),
        "index_mb": round(vectors * pooled.vectors.shape[2] * BYTES_PER_NUMBER / 1e6, 4),
        "recall_at_1_percent": round(100 * (rank == 1).double().mean().item(), 2),
        "mrr": round((1 / rank).mean().item(), 4),
    }


def absent(method: Method, pool_factor: float) -> dict[str, Any]:
    """The row of a method whose package is not installed."""
    return {"method": method.name, "label": f"{method.label}: not installed", "pool_factor": pool_factor}


@torch.inference_mode()
def compare(
    documents: Ragged,
    queries: Ragged,
    methods: list[Method],
    pool_factors: list[float],
    protected: int,
    repeats: int,
    memory: bool = False,
) -> list[dict[str, Any]]:
    """Rows of numbers: the documents as they are, then every method at every pool factor.

    Times are medians; `over_scipy` and `over_fastcluster` the median of the other's time over the row's own, taken turn
    by turn, for rows with the partitions of the other on at least SAME_AT_LEAST of the documents.

    Args:
        memory: measure what each method has in memory at its peak, in a process of its own.
    """
    rows = [record("not pooled", "none", 1, documents, queries)]
    there = [method for method in methods if rivals.is_there(method.package)]
    with tqdm(total=len(methods) * len(pool_factors), unit="row", mininterval=0.5) as bar:
        for factor in pool_factors:
            bar.set_postfix_str(f"pool factor {factor:g}")
            found, labels = {}, {}
            for method in there:
                # Also the warm-up of what is timed below.
                pooled = method.pool(documents, factor, protected)
                labels[method.name] = pooled.labels
                found[method.name] = record(method.label, method.name, factor, Ragged(*pooled[:2]), queries)
                if memory:
                    peak = peak_of(method.pool, documents, factor, protected)
                    found[method.name]["peak_over_batch"] = (
                        None if peak is None else round(peak / bytes_of(documents), 2)
                    )
                bar.update()
            seconds = seconds_of(documents, there, factor, protected, repeats)
            for method in there:
                row = found[method.name]
                row["seconds"] = round(statistics.median(seconds[method.name]), 4)
                row |= against_scipy(documents, labels, method.name)
                for package in ("scipy", "fastcluster"):
                    row |= faster_than(package, method, there, labels, seconds)
            bar.update(len(methods) - len(there))
            rows += [found.get(method.name, absent(method, factor)) for method in methods]
    return rows


def bytes_of(documents: Ragged) -> int:
    return documents.vectors.numel() * documents.vectors.element_size()


def against_scipy(documents: Ragged, labels: dict[str, Tensor], name: str) -> dict[str, float]:
    """The objective over that of scipy's Ward: least, mean and greatest of the documents that lose anything.

    {} without either; no document loses anything at a pool factor of 1.
    """
    theirs = objective(documents, labels["scipy"]) if "scipy" in labels else None
    own = objective(documents, labels[name])
    if theirs is None or own is None or not bool((theirs > 0).any()):
        return {}
    ratio = (own / theirs)[theirs > 0]
    least, mean, worst = (round(value.item(), 6) for value in (ratio.min(), ratio.mean(), ratio.max()))
    return {"objective_least": least, "objective_mean": mean, "objective_worst": worst}


def faster_than(
    package: str, method: Method, there: list[Method], labels: dict[str, Tensor], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """How many partitions are those of `package` by the same distance, and where nearly all are, the ratio of times."""
    other = next((m.name for m in there if m.package == package and m.distance == method.distance), None)
    if other is None:
        return {}
    same = int((labels[method.name] == labels[other]).all(1).sum())
    row: dict[str, Any] = {f"same_as_{package}": same}
    if same >= SAME_AT_LEAST * len(labels[other]):
        ratios = [theirs / own for theirs, own in zip(seconds[other], seconds[method.name], strict=True)]
        row[f"over_{package}"] = round(statistics.median(ratios), 3)
    return row
