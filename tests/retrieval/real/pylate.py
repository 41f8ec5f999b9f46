"""`patch_pylate` in PyLate's own model, beside the same model without it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.retrieval import FACTORS, assert_pooled, is_tie, make_documents
from tests.support.stubs import stub
from tests.support.tiny_encoder import TEXTS, save_encoder
from tools.torchvision_on_cpu import load_torchvision

load_torchvision()
stub("datasets")
ColBERT = importlib.import_module("pylate.models").ColBERT
retrieval = importlib.import_module("tpkernels.retrieval")
METHOD = "pool_embeddings_hierarchical"
REPLACED = vars(ColBERT)[METHOD]
DOCUMENTS = make_documents()


@pytest.fixture(autouse=True)
def unpatched() -> Any:
    """Nothing is patched after a test."""
    yield
    retrieval.unpatch_pylate()
    assert vars(ColBERT)[METHOD] is REPLACED


def both(documents: list[Tensor], *arguments: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What the method answers before and after patching; it takes nothing from its model."""
    expected = ColBERT.pool_embeddings_hierarchical(None, documents, *arguments)
    retrieval.patch_pylate(**options)
    return expected, ColBERT.pool_embeddings_hierarchical(None, documents, *arguments)


def assert_same(found: list[Tensor], expected: list[Tensor], protected: int = 1) -> None:
    """The same vectors in any order behind the protected ones."""
    assert type(found) is type(expected) is list
    assert_pooled(found, expected, [False] * len(found), 1e-5)
    assert all(torch.equal(one[:protected], other[:protected]) for one, other in zip(found, expected, strict=True))


def test_clusters_and_vectors() -> None:
    ours, theirs, ties = [], [], []
    for turn, factor in enumerate(FACTORS):
        part = DOCUMENTS[turn :: len(FACTORS)]
        retrieval.unpatch_pylate()
        expected, found = both(part, factor)
        ties += [is_tie(document[1:], len(one) - 1) for document, one in zip(part, found, strict=True)]
        theirs, ours = theirs + expected, ours + found
    assert_pooled(ours, theirs, ties, 1e-5)


@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("factor", [1, 2, 4, 50])
def test_short_documents(factor: int, protected: int) -> None:
    # Of every length, and none of them is made longer or shorter.
    documents = [DOCUMENTS[0][:0], *(0.8 * document for document in DOCUMENTS[:24])]
    expected, found = both(documents, factor, protected)
    assert_same(found, expected, protected)


def test_every_token_twice() -> None:
    """PyLate fails, as a distance of equal tokens may round below 0."""
    documents = [document.repeat(2, 1) for document in DOCUMENTS[20:60]]
    with pytest.raises(ValueError, match="negative distances"):
        ColBERT.pool_embeddings_hierarchical(None, documents, 3, 0)
    retrieval.patch_pylate()
    found = ColBERT.pool_embeddings_hierarchical(None, documents, 3, 0)
    expected = retrieval.pool_embeddings(documents, 3, distance="clipped", normalize=False)
    assert_same(found, expected, 0)


def test_the_arguments_and_what_they_are_by_default() -> None:
    retrieval.patch_pylate()
    patched = vars(ColBERT)[METHOD]
    assert patched is not REPLACED and patched.__doc__ == REPLACED.__doc__
    written, taken = (inspect.signature(one, follow_wrapped=False).parameters for one in (REPLACED, patched))
    assert [(name, of.default) for name, of in written.items()] == [(name, of.default) for name, of in taken.items()]
    padded = torch.stack([document[:5] for document in DOCUMENTS[10:13]])
    for documents in (padded, iter(padded), []):
        assert len(ColBERT.pool_embeddings_hierarchical(None, documents, pool_factor=2)) in (0, 3)


def test_patched_twice_and_with_other_options() -> None:
    retrieval.patch_pylate(distance="euclidean")
    documents = DOCUMENTS[40:80]
    euclidean = ColBERT.pool_embeddings_hierarchical(None, documents, 3)
    expected = retrieval.pool_embeddings(documents, 3, protected=1, normalize=False)
    assert all(torch.equal(one, other) for one, other in zip(euclidean, expected, strict=True))
    assert retrieval.patch_pylate() is None
    again = ColBERT.pool_embeddings_hierarchical(None, documents, 3)
    assert not all(torch.equal(one, other) for one, other in zip(euclidean, again, strict=True))
    for _ in range(2):
        assert retrieval.unpatch_pylate() is None
        assert vars(ColBERT)[METHOD] is REPLACED
    assert_same(again, ColBERT.pool_embeddings_hierarchical(None, documents, 3))


def test_a_subclass_that_pools_itself_is_left_alone() -> None:
    class Own(ColBERT):
        def pool_embeddings_hierarchical(self, *arguments: Any, **more: Any) -> str:
            return "own"

    class Inherited(ColBERT):
        pass

    retrieval.patch_pylate()
    assert Own.pool_embeddings_hierarchical(None) == "own"
    assert Inherited.pool_embeddings_hierarchical is vars(ColBERT)[METHOD]


def test_encode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ColBERT(model_name_or_path=save_encoder(tmp_path), device="cpu")

    def encode(pool_factor: int = 1, **arguments: Any) -> list[Any]:
        arguments = {"is_query": False, "show_progress_bar": False, "batch_size": 4, **arguments}
        return model.encode(TEXTS, pool_factor=pool_factor, **arguments)

    whole, queries = encode(), encode(is_query=True)
    expected, one = encode(2), encode(3, protected_tokens=2, convert_to_numpy=False)
    retrieval.patch_pylate()
    assert_same(*([torch.from_numpy(one) for one in found] for found in (encode(2), expected)))
    assert sum(map(len, expected)) < 0.6 * sum(map(len, whole))
    assert_same(encode(3, protected_tokens=2, convert_to_numpy=False), one, 2)
    for found, plain in ((encode(), whole), (encode(2, is_query=True), queries)):
        assert all((vectors == others).all() for vectors, others in zip(found, plain, strict=True))
