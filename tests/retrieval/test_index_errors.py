"""What pooling loses of each document, against sums document by document."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.indexes import documents
from tpkernels.retrieval import pool_embeddings
from tpkernels.retrieval.index.errors import document_errors


def one_by_one(x: Tensor, labels: Tensor) -> float:
    """The share of a document's sum of squares about its mean that is within its clusters."""
    x = x.double()
    within = sum(float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in set(labels.tolist()))
    return within / float((x - x.mean(0)).square().sum())


@given(
    st.lists(st.integers(0, 12), max_size=6),
    st.sampled_from([torch.float32, torch.float16, torch.float64]),
    st.integers(0, 5),
    st.booleans(),
)
def test_documents_by_sums_of_their_own(lengths: list[int], dtype: torch.dtype, seed: int, offset: bool) -> None:
    x, counts = documents(lengths, 3, seed=seed)
    # Far from the origin, where differences of sums would lose everything.
    x = (x + 100 * offset).to(dtype)
    _, after, labels = pool_embeddings((x, counts), 2, protected=1, return_labels=True)
    errors = document_errors(x, counts, labels, after)
    assert errors.dtype == torch.float64 and len(errors) == len(lengths)
    parts = zip(x.split(lengths), labels.split(lengths), errors.tolist(), strict=True) if lengths else ()
    for part, own, error in parts:
        spread = bool((part != part[:1]).any())
        assert error == pytest.approx(one_by_one(part, own) if spread else 0, abs=1e-9)


def test_equal_vectors_lose_nothing() -> None:
    x = torch.full((7, 3), 0.1)
    x[:3] = 0.7
    labels, counts = torch.tensor([0, 0, 0, 0, 0, 0, 1]), torch.tensor([1, 2])
    assert document_errors(x, torch.tensor([3, 4]), labels, counts).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_told_by_nan_and_leaves_the_others_alone(bad: float) -> None:
    x, lengths = documents([4, 5, 3])
    labels, counts = torch.tensor([0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1]), torch.tensor([2, 2, 2])
    right = document_errors(x, lengths, labels, counts)
    x[5, 1] = bad
    found = document_errors(x, lengths, labels, counts)
    assert found.isnan().tolist() == [False, True, False] and torch.equal(found[[0, 2]], right[[0, 2]])


def test_it_is_what_max_error_bounds() -> None:
    x, lengths = documents([60, 40, 80, 10])
    for most in (0.02, 0.1, 0.4):
        _, counts, labels = pool_embeddings((x, lengths), max_error=most, return_labels=True)
        errors = document_errors(x, lengths, labels, counts)
        assert float(errors.max()) <= most * (1 + 1e-4) and float(errors.max()) > most / 3
