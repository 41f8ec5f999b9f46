"""`HierarchicalTokenPooler` beside colpali-engine's own, on the same documents."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.support.retrieval import FACTORS, assert_pooled, is_tie, make_documents
from tools.torchvision_on_cpu import load_torchvision

load_torchvision()
package = importlib.import_module("colpali_engine.compression.token_pooling")
retrieval = importlib.import_module("tpkernels.retrieval")
THEIRS, OURS = package.HierarchicalTokenPooler(), retrieval.HierarchicalTokenPooler()
# It takes no document of one token.
DOCUMENTS = [document for document in make_documents() if len(document) > 1]

pytestmark = pytest.mark.filterwarnings("ignore::scipy.cluster.hierarchy.ClusterWarning")


def both(embeddings: Any, **arguments: Any) -> tuple[Any, Any]:
    """What either pooler answers."""
    return THEIRS.pool_embeddings(embeddings, **arguments), OURS.pool_embeddings(embeddings, **arguments)


def partition(members: dict[int, tuple[Tensor]]) -> set[tuple[int, ...]]:
    return {tuple(indices.tolist()) for (indices,) in members.values()}


def test_it_is_one_of_their_poolers() -> None:
    assert isinstance(OURS, package.BaseTokenPooler)
    assert type(OURS.pool_embeddings([], pool_factor=2)) is package.TokenPoolingOutput
    assert both([], pool_factor=2)[0] == both([], pool_factor=2)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_clusters_and_vectors(dtype: torch.dtype) -> None:
    corpus = [document.to(dtype) for document in (DOCUMENTS if dtype == torch.float32 else DOCUMENTS[:150])]
    step = len(FACTORS)
    ours, theirs, ties, wrong = [], [], [], []
    for turn, factor in enumerate(FACTORS):
        part = corpus[turn::step]
        expected, found = both(part, pool_factor=factor, return_dict=True)
        sets = zip(part, expected.cluster_id_to_indices, found.cluster_id_to_indices, strict=True)
        for document, one, other in sets:
            tie = is_tie(document, max(len(document) // factor, 1), rows=True)
            ties.append(tie)
            if not tie and partition(one) != partition(other):
                wrong.append((len(document), factor))
        theirs += expected.pooled_embeddings
        ours += found.pooled_embeddings
    assert not wrong
    assert {one.dtype for one in ours} == {dtype}
    # Half types are rounded once by either.
    assert_pooled(ours, theirs, ties, 1e-5 if dtype.itemsize > 2 else torch.finfo(dtype).eps)


def test_the_dictionary() -> None:
    documents = DOCUMENTS[3:40]
    expected, found = both(documents, pool_factor=3, return_dict=True)
    columns = expected.cluster_id_to_indices, found.cluster_id_to_indices, found.pooled_embeddings
    for document, one, other, vectors in zip(documents, *columns, strict=True):
        assert list(other) == list(one) == list(range(len(vectors)))
        for row, members in other.items():
            assert type(members) is type(one[row]) is tuple and len(members) == 1
            assert members[0].dtype == one[row][0].dtype == torch.int64 and members[0].dim() == 1
            assert torch.equal(members[0], members[0].sort().values)
            mean = torch.nn.functional.normalize(document[members].mean(0), dim=0)
            torch.testing.assert_close(vectors[row], mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(side: str) -> None:
    documents = DOCUMENTS[2:30:3]
    padded = pad_sequence(documents, batch_first=True, padding_side=side)
    for embeddings, padding in ((padded, True), (torch.stack([one[:9] for one in DOCUMENTS[10:16]]), False)):
        arguments = {"padding": padding, "padding_side": side, "pool_factor": 3}
        expected, found = both(embeddings, **arguments)
        assert_same_batch(expected, found)
        expected, found = both(embeddings, return_dict=True, **arguments)
        assert_same_batch(expected.pooled_embeddings, found.pooled_embeddings)
        pairs = zip(expected.cluster_id_to_indices, found.cluster_id_to_indices, strict=True)
        assert all(partition(one) == partition(other) for one, other in pairs)


def assert_same_batch(expected: Tensor, found: Tensor) -> None:
    """The same documents at the same places, with padding where theirs has it."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert torch.equal((found != 0).any(-1), (expected != 0).any(-1))
    rows = ([one[one.any(1)] for one in batch] for batch in (found, expected))
    assert_pooled(*rows, [False] * len(found), 1e-5)


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_factor_of_one_returns_what_came(return_dict: bool) -> None:
    documents = DOCUMENTS[:4]
    expected, found = both(documents, pool_factor=1, return_dict=return_dict)
    if return_dict:
        for one, other in zip(expected.cluster_id_to_indices, found.cluster_id_to_indices, strict=True):
            assert list(one) == list(other) == [0] and torch.equal(one[0][0], other[0][0])
        expected, found = expected.pooled_embeddings, found.pooled_embeddings
    assert all(one is other is document for one, other, document in zip(expected, found, documents, strict=True))


@pytest.mark.parametrize("workers", [None, 1, 4])
def test_workers_change_nothing(workers: int | None) -> None:
    expected, found = both(DOCUMENTS[:20], pool_factor=2, num_workers=workers)
    assert_pooled(found, expected, [False] * 20, 1e-5)


def test_vectors_of_other_lengths() -> None:
    documents = [torch.linspace(0.5, 2, len(document))[:, None] * document for document in DOCUMENTS[10:40]]
    expected, found = both(documents, pool_factor=2)
    assert_pooled(found, expected, [False] * len(found), 1e-5)


def test_every_token_twice() -> None:
    expected, found = both([document.repeat(2, 1) for document in DOCUMENTS[20:60]], pool_factor=3)
    assert_pooled(found, expected, [False] * len(found), 1e-5)


X = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)


@pytest.mark.parametrize(
    ("embeddings", "arguments"),
    [
        ([X[:1]], {"pool_factor": 2}),
        ([X, X[:1]], {"pool_factor": 1}),
        ([X[:0]], {"pool_factor": 2}),
        ((X, X), {"pool_factor": 2}),
        (X, {"pool_factor": 2}),
        ([X[0]], {"pool_factor": 2}),
        ([X, X[0]], {"pool_factor": 2}),
        ([X], {"pool_factor": 2, "num_workers": 0}),
        ([X], {"pool_factor": 2, "num_workers": -1}),
        (X[None], {"pool_factor": 2, "padding": True, "padding_side": "up"}),
    ],
)
def test_what_they_refuse(embeddings: Any, arguments: dict[str, Any]) -> None:
    for pooler in (THEIRS, OURS):
        with pytest.raises(ValueError):
            pooler.pool_embeddings(embeddings, **arguments)


@pytest.mark.parametrize("factor", [0, 2.5, "2"])
def test_factors_that_fail_there(factor: Any) -> None:
    for pooler in (THEIRS, OURS):
        with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
            pooler.pool_embeddings([X], pool_factor=factor)
    with pytest.raises(TypeError):
        OURS.pool_embeddings([X])


def test_another_distance_is_a_choice() -> None:
    euclidean = retrieval.HierarchicalTokenPooler(distance="euclidean").pool_embeddings(DOCUMENTS[300:], pool_factor=3)
    expected = retrieval.pool_embeddings(DOCUMENTS[300:], 3, distance="euclidean")
    assert all(torch.equal(one, other) for one, other in zip(euclidean, expected, strict=True))
    rows = OURS.pool_embeddings(DOCUMENTS[300:], pool_factor=3)
    assert not all(torch.equal(one, other) for one, other in zip(euclidean, rows, strict=True))
