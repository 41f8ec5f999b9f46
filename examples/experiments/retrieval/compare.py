"""Every way to pool at every pool factor: what is found again, the objective, the size of the index, and the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common.arguments import by_name
from deit.evaluate import synchronize
from torch import Tensor
from tqdm import tqdm

import tpkernels

from . import rivals
from .documents import Ragged
from .maxsim import max_sim, ranks
from .pooling import Layout, average, lay_out, pool_documents, ward_labels

# An index commonly holds float16.
BYTES_PER_NUMBER = 2
# An objective that is further above scipy's on any document is another answer, which can't be compared in speed.
OBJECTIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Method:
    """A row: the name that `--method` takes, its label, how it labels tokens, and whether it needs scipy."""

    name: str
    label: str
    labels: Callable[[Tensor, Layout, int], Tensor]
    needs_scipy: bool = False

    def pool(self, documents: Ragged, pool_factor: float, protected: int) -> Ragged:
        if self.name == "ward":
            return Ragged(*pool_documents(*documents, pool_factor, protected))
        layout = lay_out(*documents, pool_factor, protected)
        labels = self.labels(documents.vectors, layout, protected)
        return Ragged(*average(documents.vectors, labels, layout, protected))


METHODS = (
    Method("ward", "Ward, batched", ward_labels),
    Method("scipy", "Ward, scipy", rivals.scipy_labels, needs_scipy=True),
    Method("scipy-rows", "Ward of 1 - cos rows, scipy", rivals.scipy_of_rows_labels, needs_scipy=True),
    Method("runs", "runs of p tokens, averaged", rivals.run_labels),
    Method("every", "every p-th token", rivals.strided_labels),
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
    documents: Ragged, queries: Ragged, methods: list[Method], pool_factors: list[float], protected: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows of numbers: the documents as they are, then every method at every pool factor.

    Times are medians; `speedup` is the median of scipy's time over the row's own, taken turn by turn, for rows whose
    objective is scipy's on every document.
    """
    rows = [record("not pooled", "none", 1, documents, queries)]
    there = [method for method in methods if not method.needs_scipy or rivals.scipy_there()]
    with tqdm(total=len(methods) * len(pool_factors), unit="row", mininterval=0.5) as bar:
        for factor in pool_factors:
            bar.set_postfix_str(f"pool factor {factor:g}")
            found, losses = {}, {}
            layout = lay_out(*documents, factor, protected)
            for method in there:
                # Also the warm-up of what is timed below.
                found[method.name] = record(
                    method.label, method.name, factor, method.pool(documents, factor, protected), queries
                )
                losses[method.name] = objective(documents, method.labels(documents.vectors, layout, protected))
                bar.update()
            seconds = seconds_of(documents, there, factor, protected, repeats)
            for name, row in found.items():
                row["seconds"] = round(statistics.median(seconds[name]), 4)
                row |= against_scipy(losses.get("scipy"), losses[name])
                if row.get("objective_worst", torch.inf) <= 1 + OBJECTIVE_TOLERANCE:
                    ratios = [theirs / own for theirs, own in zip(seconds["scipy"], seconds[name], strict=True)]
                    row["speedup"] = round(statistics.median(ratios), 3)
            bar.update(len(methods) - len(there))
            rows += [found.get(method.name, absent(method, factor)) for method in methods]
    return rows


def against_scipy(theirs: Tensor | None, own: Tensor | None) -> dict[str, float]:
    """The objective [B] over scipy's: least, mean and greatest of the documents that lose anything; {} without either.

    No document loses anything at a pool factor of 1.
    """
    if theirs is None or own is None or not bool((theirs > 0).any()):
        return {}
    ratio = (own / theirs)[theirs > 0]
    least, mean, worst = (round(value.item(), 6) for value in (ratio.min(), ratio.mean(), ratio.max()))
    return {"objective_least": least, "objective_mean": mean, "objective_worst": worst}
