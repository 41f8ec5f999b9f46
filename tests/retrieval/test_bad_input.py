"""What poolers of documents say of what they cannot take: the argument, what was expected, and what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tpkernels.retrieval import pool_embeddings, stream_pooled

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 7, dtype=torch.bool)


class Case(NamedTuple):
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    words: tuple[str, ...]


def case(name: str, embeddings: Any, error: type[Exception], *words: str, **options: Any) -> Case:
    options = options or {"pool_factor": 2}
    return Case(name, lambda: pool_embeddings(embeddings, **options), error, words)


CASES = [
    # Budgets
    Case("no-budget", lambda: pool_embeddings([X]), ValueError, ("^one of pool_factor, max_tokens", "none")),
    case("two-budgets", [X], ValueError, "^one of", "pool_factor=2", "max_error=0.1", pool_factor=2, max_error=0.1),
    case("factor-below-1", [X], ValueError, "^pool_factor", "at least 1", "0.9", pool_factor=0.9),
    case("factor-nan", [X], ValueError, "^pool_factor", "nan", pool_factor=math.nan),
    case("factor-inf", [X], ValueError, "^pool_factor", "finite", pool_factor=math.inf),
    case("factor-bool", [X], TypeError, "^pool_factor", "bool", pool_factor=True),
    case("factor-text", [X], TypeError, "^pool_factor", "str", pool_factor="2"),
    case("factor-colpali", [X], ValueError, "^pool_factor", "int", "1.5", pool_factor=1.5, preset="colpali"),
    case("most-0", [X], ValueError, "^max_tokens", "at least 1", max_tokens=0),
    case("most-float", [X], TypeError, "^max_tokens", "float", max_tokens=2.0),
    case("most-protected", [X], ValueError, "^max_tokens", "2 protected", max_tokens=2, protected=2),
    case("threshold-negative", [X], ValueError, "^distance_threshold", "-1", distance_threshold=-1),
    case("threshold-text", [X], TypeError, "^distance_threshold", "str", distance_threshold="1"),
    case("error-1", [X], ValueError, "^max_error", "[0, 1)", max_error=1),
    case("error-dot", [X], ValueError, "^max_error", "'dot'", max_error=0.1, distance="dot"),
    case("error-preset", [X], ValueError, "^max_error", "'rows'", max_error=0.1, preset="colpali"),
    # Rules
    case("protected-negative", [X], ValueError, "^protected", "-1", pool_factor=2, protected=-1),
    case("protected-float", [X], TypeError, "^protected", "float", pool_factor=2, protected=1.0),
    case("place", [X], ValueError, "^protected_at", "start, end", "'front'", pool_factor=2, protected_at="front"),
    case("distance", [X], ValueError, "^distance", "euclidean", "'l1'", pool_factor=2, distance="l1"),
    case("rounding", [X], ValueError, "^rounding", "floor, nearest", "'up'", pool_factor=2, rounding="up"),
    case("normalize", [X], ValueError, "^normalize", "'some'", pool_factor=2, normalize="some"),
    case("labels", [X], TypeError, "^return_labels", "int", pool_factor=2, return_labels=1),
    case("preset", [X], ValueError, "^preset", "colpali, pylate", "'colbertv2'", pool_factor=2, preset="colbertv2"),
    case("backend", [X], ValueError, "^backend", "'gpu'", pool_factor=2, backend="gpu"),
    # Documents
    case("none", None, TypeError, "^embeddings", "list", "NoneType"),
    case("array", np.ones((7, 4)), TypeError, "^embeddings", "ndarray"),
    case("list-array", [X, np.ones((7, 4))], TypeError, r"^embeddings\[1\]", "ndarray"),
    case("list-3d", [X, X[None]], ValueError, r"^embeddings\[1\]", "[n, D]", "[1, 7, 4]"),
    case("list-ints", [X.long()], TypeError, r"^embeddings\[0\]", "int64"),
    case("list-widths", [X, X[:, :3]], ValueError, r"^embeddings\[1\]", "4 channels", "3"),
    case("list-dtypes", [X, X.half()], TypeError, r"^embeddings\[1\]", "float32", "float16"),
    case("list-devices", [X, X.to("meta")], ValueError, r"^embeddings\[1\]", "cpu", "meta"),
    case("list-long", [X, torch.ones(4097, 4)], ValueError, r"^embeddings\[1\]", "4096", "4097"),
    case("tensor-long", torch.ones(1, 4097, 4), ValueError, "^document 0 of embeddings", "4096", "4097"),
    case("colpali-1", [X, X[:1]], ValueError, r"^embeddings\[1\]", "at least 2", "1", pool_factor=2, preset="colpali"),
    case("colpali-1-by-1", [X, X[:1]], ValueError, r"^embeddings\[1\]", "2", pool_factor=1, preset="colpali"),
    case("tensor-1d", X[0], ValueError, "^embeddings", "[4]"),
    case("tensor-ints", X.long(), TypeError, "^embeddings", "int64"),
    case("mask-shape", (torch.stack([X, X]), MASK[:, 1:]), ValueError, r"^embeddings\[1\], the mask", "[2, 6]"),
    case("mask-of-rows", (X, MASK[0]), TypeError, r"^embeddings\[1\], the lengths", "int"),
    case("mask-floats", (torch.stack([X, X]), MASK.float()), TypeError, r"^embeddings\[1\]", "bool", "float32"),
    case("lengths-sum", (X, torch.tensor([3, 3])), ValueError, r"^embeddings\[1\], the lengths", "7 rows", "got 6"),
    case("lengths-negative", (X, [9, -2]), ValueError, r"^embeddings\[1\], the lengths", "-2"),
    case("lengths-2d", (X, torch.tensor([[7]])), ValueError, r"^embeddings\[1\], the lengths", "[1, 1]"),
    case("lengths-floats", (X, [3.0, 4.0]), TypeError, r"^embeddings\[1\], the lengths", "int"),
    case("lengths-of-padded", (X[None], [7]), TypeError, r"^embeddings\[1\], the mask", "list"),
    # Streams
    Case("stream-options", lambda: stream_pooled([X], 2, protected=-1), ValueError, ("^protected",)),
    Case("stream-budget", lambda: stream_pooled([X]), ValueError, ("^one of",)),
    Case("stream-buffer", lambda: stream_pooled([X], 2, buffer_tokens=0), ValueError, ("^buffer_tokens", "0")),
    Case("stream-document", lambda: list(stream_pooled([X, 3], 2)), TypeError, (r"^documents\[1\]", "int")),
    Case("stream-width", lambda: list(stream_pooled([X, X, X[:, :3]], 2, buffer_tokens=7)), ValueError,
         (r"^documents\[2\]", "3")),
    Case("stream-keyword", lambda: stream_pooled([X], 2, factor=3), TypeError, ("factor",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_message_says_what_is_wrong(case: Case) -> None:
    start, *words = case.words
    with pytest.raises(case.error, match=start) as caught:
        case.call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
