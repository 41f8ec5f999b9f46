"""What bad numbers of clusters, cuts and metrics get: an exception that names the argument and what came."""

from __future__ import annotations

import re

import pytest
import torch

import tpkernels
from tests.support.bad_input import CLUSTERERS, Case, X, every_clusterer
from tests.support.marks import DEVICE, runs_triton
from tpkernels import TokenPool, linkage, ward
from tpkernels.ops.backends import why_not_triton

TWO = torch.tensor([2, 3])
NAN, INF = float("nan"), float("inf")
ANY_CUT = ("distance_threshold", "max_error")


def counts(*values: float, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


CASES = [
    *every_clusterer("k-none", ValueError, (r"^k\b", "given", *ANY_CUT, "none of them"), k=None),
    *every_clusterer("k-int32", TypeError, (r"^k\b", r"int64 tensor \[B\]", "torch.int32"), k=TWO.int()),
    *every_clusterer("k-float-tensor", TypeError, (r"^k\b", r"int64 tensor \[B\]", "float32"), k=TWO.float()),
    *every_clusterer("k-bool-tensor", TypeError, (r"^k\b", r"int64 tensor \[B\]", "torch.bool"), k=TWO > 2),
    *every_clusterer("k-list", TypeError, (r"^k\b", r"int or an int64 tensor \[B\]", "got list"), k=[2, 3]),
    *every_clusterer("k-shape", ValueError, (r"^k\b", r"\[2\]", r"got \[3\]"), k=counts(1, 2, 3)),
    *every_clusterer("k-rank", ValueError, (r"^k\b", r"\[2\]", r"got \[1, 2\]"), k=TWO[None]),
    *every_clusterer("k-scalar", ValueError, (r"^k\b", r"\[2\]", r"got \[\]"), k=torch.tensor(3)),
    *every_clusterer("k-device", ValueError, (r"^k\b", "device of x, cpu", "got meta"), k=TWO.to("meta")),
    *every_clusterer("k-one-is-0", ValueError, (r"^k\b", "at least 1", "got 0"), k=counts(3, 0)),
    *every_clusterer("k-one-is-negative", ValueError, (r"^k\b", "at least 1", "got -4"), k=counts(-4, 3)),
    *every_clusterer("k-above-k_max", ValueError, (r"^k\b", "at most k_max, 2", "got 3"), k_max=2),
    *every_clusterer("k-one-above", ValueError, (r"^k\b", "at most k_max, 4", "got 5"), k=counts(1, 5), k_max=4),
    *every_clusterer("k_max-0", ValueError, (r"^k_max\b", "at least 1", "got 0"), k=TWO, k_max=0),
    *every_clusterer("k_max-float", TypeError, (r"^k_max\b", r"\bint\b", "got float"), k=TWO, k_max=3.0),
    *every_clusterer("k_max-bool", TypeError, (r"^k_max\b", r"\bint\b", "got bool"), k=TWO, k_max=True),
    *every_clusterer("k_max-tensor", TypeError, (r"^k_max\b", r"\bint\b", "got Tensor"), k=TWO, k_max=TWO),
    *every_clusterer("k_max-alone", ValueError, (r"^k\b", "given", "none of them"), k=None, k_max=3),
    *every_clusterer(
        "two-cuts", ValueError, (*ANY_CUT, "both", r"\b1\.5\b", r"\b0\.2\b"), distance_threshold=1.5, max_error=0.2
    ),
    *(
        case
        for value in (-0.5, NAN, INF, -INF)
        for case in every_clusterer(
            f"distance-{value}",
            ValueError,
            ("^distance_threshold", "finite", "at least 0", f"got {value}"),
            distance_threshold=value,
        )
    ),
    *(
        case
        for value in (-0.1, 1.0, 3, NAN, INF)
        for case in every_clusterer(
            f"error-{value}", ValueError, ("^max_error", r"\[0, 1\)", f"got {value}"), max_error=value
        )
    ),
    *(
        case
        for name in ANY_CUT
        for value, kind in ((True, "bool"), ("0.5", "str"), (torch.tensor(0.5), "Tensor"))
        for case in every_clusterer(
            f"{name}-{kind}", TypeError, (f"^{name}", "number or None", f"got {kind}"), **{name: value}
        )
    ),
    *(
        case
        for name in ANY_CUT
        for init in ("topk", "farthest", "strided", torch.tensor([0, 1, 2]))
        for case in every_clusterer(
            f"{name}-from-{init if isinstance(init, str) else 'given'}",
            ValueError,
            (f"^{name}", "None without Ward", 'init="ward"', r"got 0\.5"),
            init=init,
            **{name: 0.5},
        )
    ),
    *(
        Case(
            f"{method}-{init}-too-long-for-a-cut",
            lambda m=method, i=init: getattr(tpkernels, m)(torch.zeros(1, 4097, 1), init=i, max_error=0.5),
            ValueError,
            patterns,
        )
        for method in ("kmeans", "kmedoids")
        for init, patterns in (("ward", ("Ward", "4096", "4097")), ("auto", ("^max_error", "None without Ward")))
    ),
    *every_clusterer(
        "init-as-wide-as-k",
        ValueError,
        ("^init", r"\[3\] or \[2, 3\]", r"got \[2, 2\]"),
        k=TWO,
        init=torch.tensor([[0, 1], [2, 3]]),
    ),
    *every_clusterer(
        "init-twice-within-k", ValueError, ("^init", "distinct"), k=TWO, init=torch.tensor([[0, 1, 5], [2, 3, 2]])
    ),
    *every_clusterer(
        "init-above-within-k",
        ValueError,
        ("^init", r"0\.\.5", r"0\.\.9"),
        k=TWO,
        init=torch.tensor([[0, 1, 5], [2, 3, 9]]),
    ),
    Case(
        "ward-metric", lambda: ward(X, 3, metric="l1"), ValueError, ("^metric", "euclidean, cosine, dot, rows", "'l1'")
    ),
    Case("ward-metric-none", lambda: ward(X, 3, metric=None), ValueError, ("^metric", "euclidean", "None")),
    Case("linkage-metric", lambda: linkage(X, metric="l1"), ValueError, ("^metric", "cosine", "'l1'")),
    *(
        Case(
            f"ward-error-of-{metric}",
            lambda m=metric: ward(X, max_error=0.5, metric=m),
            ValueError,
            ("^max_error", "None with another metric", "euclidean", r"0\.5", metric),
        )
        for metric in ("cosine", "dot", "rows")
    ),
    Case("linkage-x", lambda: linkage(X[0]), ValueError, (r"^x\b", r"\[B, N, D\]", r"\[6, 3\]")),
    Case("linkage-integer", lambda: linkage(TWO[:, None, None]), TypeError, (r"^x\b", "floating-point", "int64")),
    Case("linkage-weight", lambda: linkage(X, -X[..., 0].abs()), ValueError, ("^weight", "negative")),
    Case("linkage-mask", lambda: linkage(X, mask=X[..., 0]), TypeError, ("^mask", "bool", "float32")),
    Case("linkage-backend", lambda: linkage(X, backend="gpu"), ValueError, ("^backend", "auto", "'gpu'")),
    Case("linkage-too-long", lambda: linkage(torch.zeros(1, 4097, 1)), ValueError, ("Ward", "4096", "4097")),
    Case("pool-k-above-keep", lambda: TokenPool(2)(X, k=3), ValueError, (r"^k\b", "what keep keeps, 2", "got 3")),
    Case(
        "pool-k-one-above",
        lambda: TokenPool(2, "random")(X, k=counts(1, 4)),
        ValueError,
        (r"^k\b", "what keep keeps, 2", "got 4"),
    ),
    Case("pool-k-0", lambda: TokenPool(2)(X, k=0), ValueError, (r"^k\b", "at least 1", "got 0")),
    Case("pool-k-float", lambda: TokenPool(2)(X, k=1.0), TypeError, (r"^k\b", "int", "got float")),
    Case("pool-k-dtype", lambda: TokenPool(2)(X, k=TWO.int()), TypeError, (r"^k\b", "int64", "int32")),
    Case("pool-k-shape", lambda: TokenPool(2)(X, k=counts(1)), ValueError, (r"^k\b", r"\[2\]", r"got \[1\]")),
    Case("pool-distance", lambda: TokenPool(2, distance_threshold=-1), ValueError, ("^distance_threshold", "0", "-1")),
    Case(
        "pool-distance-nan",
        lambda: TokenPool(2, distance_threshold=NAN),
        ValueError,
        ("^distance_threshold", "finite", "nan"),
    ),
    *(
        Case(
            f"pool-distance-of-{method}-{init}",
            lambda m=method, i=init: TokenPool(2, m, init=i, distance_threshold=0.5),
            ValueError,
            ("^distance_threshold", "None without Ward", r"0\.5"),
        )
        for method, init in (
            ("topk", "ward"),
            ("random", "ward"),
            ("grid", "ward"),
            ("bipartite", "ward"),
            ("kmeans", "topk"),
            ("kmedoids", "strided"),
        )
    ),
    Case("pool-metric-name", lambda: TokenPool(2, metric="l2"), ValueError, ("^metric", "cosine", "'l2'")),
    *(
        Case(
            f"pool-metric-of-{method}",
            lambda m=method: TokenPool(2, m, metric="cosine"),
            ValueError,
            ("^metric", "euclidean", method, "'cosine'"),
        )
        for method in ("kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite")
    ),
    Case(
        "pool-metric-of-forward",
        lambda: TokenPool(2)(X, metric="cosine"),
        TypeError,
        ("^metric", "torch.Tensor", "str"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case: Case) -> None:
    case.check()


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("method", CLUSTERERS)
def test_edges_are_no_errors(method: str) -> None:
    function = getattr(tpkernels, method)
    assert function(X, 3, k_max=3).n_clusters.tolist() == [3, 3]
    assert function(X, counts(9, 1)).n_clusters.tolist() == [6, 1]
    assert function(X, k_max=99, distance_threshold=0).n_clusters.tolist() == [6, 6]
    assert function(X, max_error=0).n_clusters.tolist() == [6, 6]
    assert function(X, max_error=1 - 1e-9).n_clusters.tolist() != [6, 6]
    # An int is a number, too.
    assert function(X, distance_threshold=10**6).n_clusters.tolist() == [1, 1]
    assert function(X[:0], counts()).n_clusters.tolist() == []


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_what_a_sample_ignores_of_its_start_is_not_looked_at(method: str) -> None:
    function = getattr(tpkernels, method)
    given = torch.tensor([[0, 1, 5], [2, 4, 3]])
    odd = torch.tensor([[0, 1, 0], [2, 4, 3]])
    far = torch.tensor([[0, 1, 99], [2, 4, 3]])
    for start in (given, odd, far):
        found = function(X, TWO, init=start)
        assert torch.equal(found.assignment, function(X, TWO, init=given).assignment)


@runs_triton
def test_rows_of_distances_have_no_kernel() -> None:
    assert "no kernel" in (why_not_triton(DEVICE, torch.float32, 4, 8, "ward", "rows") or "")
    for call in (
        lambda: ward(X.to(DEVICE), 3, metric="rows", backend="triton"),
        lambda: linkage(X.to(DEVICE), metric="rows", backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=re.escape('backend="triton" cannot take this call: metric="rows"')):
            call()
