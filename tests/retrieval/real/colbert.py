"""The preset "colbert" beside ColBERT's own function, on the same documents."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from tests.support.retrieval import FACTORS, assert_pooled, is_tie, make_documents
from tests.support.stubs import stub
from tools.torchvision_on_cpu import load_torchvision
from tpkernels.retrieval import pool_embeddings

load_torchvision()
stub("datasets", "git", "ujson")
package = importlib.import_module("colbert.modeling.checkpoint")
DOCUMENTS = make_documents()

pytestmark = pytest.mark.filterwarnings("ignore::scipy.cluster.hierarchy.ClusterWarning")


def both(documents: list[Tensor], factor: int, protected: int) -> tuple[list[Tensor], list[Tensor]]:
    """What either answers, a tensor for each document."""
    packed, lengths = torch.cat(documents), [len(document) for document in documents]
    expected, its_lengths = package.pool_embeddings_hierarchical(packed, lengths, factor, protected)
    found, our_lengths = pool_embeddings((packed, torch.tensor(lengths)), factor, protected=protected, preset="colbert")
    assert our_lengths.tolist() == its_lengths and len(found) == len(expected)
    return list(expected.split(its_lengths)), list(found.split(its_lengths))


@pytest.mark.parametrize("protected", [0, 1])
def test_clusters_and_vectors(protected: int) -> None:
    ours, theirs, ties = [], [], []
    # It takes no document with fewer than two tokens to cluster.
    corpus = [document for document in DOCUMENTS if len(document) - protected > 1]
    for turn, factor in enumerate(FACTORS):
        part = corpus[turn :: len(FACTORS)]
        expected, found = both(part, factor, protected)
        for document, vectors in zip(part, found, strict=True):
            ties.append(is_tie(document[protected:], len(vectors) - protected, rows=True))
        theirs, ours = theirs + expected, ours + found
    assert_pooled(ours, theirs, ties, 1e-5)


@pytest.mark.parametrize("protected", [0, 1, 3, 6])
@pytest.mark.parametrize("factor", [1, 2, 4, 50])
def test_short_documents(factor: int, protected: int) -> None:
    """Where a factor of all tokens would leave more clusters than there are unprotected ones, too."""
    documents = [1.5 * document for document in DOCUMENTS[:24] if len(document) - protected > 1]
    expected, found = both(documents, factor, protected)
    assert_pooled(found, expected, [False] * len(found), 1e-5)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[len(one) - protected :], other[len(other) - protected :])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_documents_that_fail_there(length: int) -> None:
    document, lengths = DOCUMENTS[20][:length], [length]
    with pytest.raises(ValueError):
        package.pool_embeddings_hierarchical(document, lengths, 2, 2)
    found, our_lengths = pool_embeddings((document, torch.tensor(lengths)), 2, protected=2, preset="colbert")
    assert our_lengths.tolist() == lengths
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in document.tolist()}
