"""`patch_pylate` with a model in the place of PyLate's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.retrieval import make_document
from tests.support.scipys import cut, tree
from tpkernels import retrieval

LENGTHS = (2, 5, 17, 9, 40)
GENERATOR = torch.Generator().manual_seed(0)
DOCUMENTS = [make_document(n, GENERATOR) for n in LENGTHS]
Load = Callable[[str], ModuleType]


def pylate(monkeypatch: pytest.MonkeyPatch) -> type:
    """A package in PyLate's place, with a model that pools nothing."""

    class ColBERT:
        def pool_embeddings_hierarchical(
            self, documents_embeddings: Any, pool_factor: int = 1, protected_tokens: int = 1
        ) -> Any:
            """As it was."""
            return documents_embeddings

    monkeypatch.setitem(sys.modules, "pylate", SimpleNamespace(models=SimpleNamespace(ColBERT=ColBERT)))
    monkeypatch.setitem(sys.modules, "pylate.models", SimpleNamespace(ColBERT=ColBERT))
    return ColBERT


def test_pylate_is_patched_and_restored(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module, colbert = load("pylate"), pylate(monkeypatch)
    replaced = colbert.pool_embeddings_hierarchical
    for _ in range(2):
        assert module.patch_pylate() is None
        found = colbert().pool_embeddings_hierarchical(documents_embeddings=DOCUMENTS, pool_factor=2)
        expected = retrieval.pool_embeddings(DOCUMENTS, 2, distance="dot", protected=1, normalize=False)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert colbert().pool_embeddings_hierarchical([]) == []
        assert colbert.pool_embeddings_hierarchical.__doc__ == "As it was."
    for _ in range(2):
        assert module.unpatch_pylate() is None
        assert vars(colbert)["pool_embeddings_hierarchical"] is replaced


def test_the_patchs_options(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module, colbert = load("pylate"), pylate(monkeypatch)
    module.patch_pylate()
    module.patch_pylate(distance="euclidean")
    for document, vectors in zip(DOCUMENTS, colbert().pool_embeddings_hierarchical(DOCUMENTS, 3, 0), strict=True):
        labels = cut(tree(document), len(vectors))
        means = torch.stack([document[labels == number].mean(0) for number in range(len(vectors))])
        torch.testing.assert_close(vectors, means, rtol=0, atol=1e-6)
    module.patch_pylate(backend="scipy")
    with pytest.raises(ValueError, match="backend must be"):
        colbert().pool_embeddings_hierarchical(DOCUMENTS, 3)


def test_another_replacement_stays(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module, colbert = load("pylate"), pylate(monkeypatch)
    module.patch_pylate()
    colbert.pool_embeddings_hierarchical = other = lambda self, documents_embeddings: []
    module.unpatch_pylate()
    assert vars(colbert)["pool_embeddings_hierarchical"] is other


def test_without_pylate(load: Load) -> None:
    module = load("pylate")
    assert module.unpatch_pylate() is None
    with pytest.raises(
        ImportError, match=r"patch_pylate\(\) needs pylate, whose import fails: ModuleNotFoundError"
    ) as one:
        module.patch_pylate()
    assert one.value.name == "pylate" and one.value.__cause__ is not None


def test_a_pylate_without_the_method(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module, colbert = load("pylate"), pylate(monkeypatch)
    del colbert.pool_embeddings_hierarchical
    with pytest.raises(ImportError, match="needs a pylate whose ColBERT has a method pool_embeddings_hierarchical"):
        module.patch_pylate()
    assert module.unpatch_pylate() is None
