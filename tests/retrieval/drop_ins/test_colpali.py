"""`HierarchicalTokenPooler` without colpali-engine."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from tests.support.pooled import canonical
from tests.support.retrieval import make_document
from tests.support.scipys import cut, tree

LENGTHS = (2, 5, 17, 9, 40)
GENERATOR = torch.Generator().manual_seed(0)
DOCUMENTS = [make_document(n, GENERATOR) for n in LENGTHS]
Load = Callable[[str], ModuleType]


def labels_of(members: dict[int, tuple[Tensor]], n: int) -> Tensor:
    labels = torch.full((n,), -1)
    for number, (indices,) in members.items():
        labels[indices] = number
    return labels


def test_pooler_finds_scipys_clusters(load: Load) -> None:
    module = load("colpali")
    found = module.HierarchicalTokenPooler().pool_embeddings(DOCUMENTS, pool_factor=3, return_dict=True)
    assert type(found) is module.TokenPoolingOutput and type(found.pooled_embeddings) is list
    columns = found.pooled_embeddings, found.cluster_id_to_indices
    for document, vectors, members in zip(DOCUMENTS, *columns, strict=True):
        k = max(len(document) // 3, 1)
        assert list(members) == list(range(k)) == list(range(len(vectors)))
        labels = labels_of(members, len(document))
        assert torch.equal(canonical(labels), cut(tree(document, "rows"), k))
        for row, indices in members.items():
            torch.testing.assert_close(vectors[row], normalize(document[indices].mean(0), dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooler_of_padded_batches(load: Load, side: str) -> None:
    pooler = load("colpali").HierarchicalTokenPooler()
    padded = pad_sequence(DOCUMENTS, batch_first=True, padding_side=side)
    found = pooler.pool_embeddings(padded, padding=True, padding_side=side, pool_factor=2)
    alone = pooler.pool_embeddings(DOCUMENTS, pool_factor=2)
    assert torch.equal(found, pad_sequence(alone, batch_first=True, padding_side=side))
    # Padding that is not told of is tokens.
    assert pooler.pool_embeddings(padded, pool_factor=2).shape == (5, 20, 128)


def test_pooler_of_one_and_of_none(load: Load) -> None:
    module = load("colpali")
    pooler = module.HierarchicalTokenPooler()
    assert pooler.pool_embeddings([], pool_factor=2) == module.TokenPoolingOutput([], [])
    found = pooler.pool_embeddings(DOCUMENTS, pool_factor=1, return_dict=True, num_workers=3)
    assert all(one is other for one, other in zip(found.pooled_embeddings, DOCUMENTS, strict=True))
    assert [
        labels_of(members, n).tolist() for members, n in zip(found.cluster_id_to_indices, LENGTHS, strict=True)
    ] == [[0] * n for n in LENGTHS]


@pytest.mark.parametrize(
    ("embeddings", "arguments", "message"),
    [
        ([torch.ones(1, 4)], {"pool_factor": 1}, "more than one token each, got one of shape"),
        ([torch.ones(3, 4), torch.ones(4)], {"pool_factor": 2}, "2D tensors of more than one"),
        ((torch.ones(3, 4),), {"pool_factor": 2}, "a list of 2D tensors or a 3D tensor, got tuple"),
        (torch.ones(3, 4), {"pool_factor": 2}, "got a 2D tensor"),
        ([torch.ones(4)], {"pool_factor": 2}, "got a list of 1D tensors"),
        (torch.ones(1, 3, 4), {"pool_factor": 2, "padding": True, "padding_side": "up"}, "padding_side must be"),
        ([torch.ones(3, 4)], {"pool_factor": 2, "num_workers": 0}, "num_workers must be None or at least 1, got 0"),
        ([torch.ones(3, 4)], {"pool_factor": 0}, "pool_factor must be at least 1"),
    ],
)
def test_what_the_pooler_refuses(load: Load, embeddings: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("colpali").HierarchicalTokenPooler().pool_embeddings(embeddings, **arguments)


def test_the_poolers_options(load: Load) -> None:
    new = load("colpali").HierarchicalTokenPooler
    found = new(distance="euclidean").pool_embeddings(DOCUMENTS, pool_factor=3, return_dict=True)
    for document, members in zip(DOCUMENTS, found.cluster_id_to_indices, strict=True):
        labels = cut(tree(document), max(len(document) // 3, 1))
        assert torch.equal(labels_of(members, len(document)), labels)
    with pytest.raises(ValueError, match="backend must be"):
        new(backend="scipy").pool_embeddings(DOCUMENTS, pool_factor=3)
