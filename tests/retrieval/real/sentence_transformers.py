"""`HierarchicalTokenPooling` beside sentence-transformers' own, on the same documents and in the same models."""

from __future__ import annotations

import importlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from tests.support.retrieval import FACTORS, assert_pooled, is_tie, make_documents
from tests.support.tiny_encoder import TEXTS, save_encoder
from tools.torchvision_on_cpu import load_torchvision

load_torchvision()
package = importlib.import_module("sentence_transformers.multi_vector_encoder.modules")
retrieval = importlib.import_module("tpkernels.retrieval")
Theirs, Ours = package.HierarchicalTokenPooling, retrieval.HierarchicalTokenPooling
DOCUMENTS = make_documents()
FEW = [DOCUMENTS[0][:0], *DOCUMENTS[:24]]


def both(factor: float, **arguments: Any) -> tuple[Any, Any]:
    """Either module with the same arguments."""
    return Theirs(factor, **arguments), Ours(factor, **arguments)


def assert_same(found: list[Tensor], expected: list[Tensor], protected: int = 1) -> None:
    """The same vectors in any order behind the protected ones."""
    assert_pooled(found, expected, [False] * len(found), 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[:protected], other[:protected], rtol=0, atol=1e-6)


def test_it_is_one_of_their_modules() -> None:
    assert issubclass(Ours, package.BaseTokenPooling)
    assert repr(Ours(2.5)) == repr(Theirs(2.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clusters_and_vectors(dtype: torch.dtype) -> None:
    corpus = [document.to(dtype) for document in (DOCUMENTS if dtype == torch.float32 else DOCUMENTS[:150])]
    ours, theirs, ties = [], [], []
    for turn, factor in enumerate(FACTORS):
        part = corpus[turn :: len(FACTORS)]
        expected, found = (module.pool(part) for module in both(factor))
        ties += [is_tie(document[1:], len(one) - 1) for document, one in zip(part, found, strict=True)]
        theirs, ours = theirs + expected, ours + found
    assert {one.dtype for one in ours} == {dtype}
    # Theirs adds up clusters in half types.
    assert_pooled(ours, theirs, ties, 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.5, 2.5, 40.0])
def test_short_documents_and_fractions(factor: float) -> None:
    for protected, normalized in product((0, 1, 3), (True, False)):
        arguments = {"num_protected_tokens": protected, "normalize_embeddings": normalized}
        # Their lengths are not 1, which is seen where nothing normalises.
        documents = [1.5 * document for document in FEW] if not normalized and factor == 1 else FEW
        expected, found = (module.pool(documents) for module in both(factor, **arguments))
        assert_same(found, expected, protected)
        expected, found = (module.pool_one(documents[-1]) for module in both(factor, **arguments))
        assert_same([found], [expected], protected)


def test_vectors_of_other_lengths() -> None:
    # Below 1, where no distance is cut off at 0: those would be ties.
    documents = [torch.linspace(0.5, 1, len(document))[:, None] * document for document in DOCUMENTS[10:40]]
    for normalized in (True, False):
        expected, found = (module.pool(documents) for module in both(2, normalize_embeddings=normalized))
        assert_same(found, expected)


def test_every_token_twice() -> None:
    documents = [document.repeat(2, 1) for document in DOCUMENTS[20:60]]
    expected, found = (module.pool(documents) for module in both(3, num_protected_tokens=0))
    assert_same(found, expected, 0)


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("normalized", [True, False])
def test_forward(factor: float, normalized: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = pad_sequence(DOCUMENTS[:40:3], batch_first=True)
    # Encoders mask words in the middle, too, and one document has none left.
    mask = (embeddings != 0).any(-1) & (torch.rand(embeddings.shape[:2], generator=generator) < 0.9)
    mask[2] = False
    expected, found = (
        module({"token_embeddings": embeddings.clone(), "attention_mask": mask.long(), "input_ids": mask})
        for module in both(factor, normalize_embeddings=normalized)
    )
    assert list(found) == list(expected) and found["input_ids"] is mask
    one, other = expected["attention_mask"], found["attention_mask"]
    assert torch.equal(one, other) and one.dtype == other.dtype
    assert found["token_embeddings"].shape == expected["token_embeddings"].shape
    rows = ([x[m] for x, m in zip(of["token_embeddings"], one.bool(), strict=True)] for of in (found, expected))
    assert_same(*rows)
    if factor > 1:
        assert not found["token_embeddings"][~other].any()


def test_forward_of_no_document() -> None:
    for module in both(2):
        features = {"token_embeddings": torch.zeros(0, 5, 8), "attention_mask": torch.zeros(0, 5)}
        found = module(dict(features))
        assert all(torch.equal(found[name], features[name]) for name in features)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("masked", [False, True])
def test_pool_of_padded_batches(side: str, masked: bool) -> None:
    padded = pad_sequence(FEW, batch_first=True, padding_side=side)
    mask = (padded != 0).any(-1) if masked else None
    expected, found = (module.pool(padded, attention_mask=mask, padding_side=side) for module in both(3))
    assert found.shape == expected.shape
    assert torch.equal((found != 0).any(-1), (expected != 0).any(-1))
    assert_same(*([x[x.any(1)] for x in batch] for batch in (found, expected)), protected=1)
    assert all(module.pool(padded[:0]).shape == (0, 0, 128) for module in both(3))


def test_tasks() -> None:
    features = {"token_embeddings": normalize(torch.randn(2, 9, 8), dim=-1), "attention_mask": torch.ones(2, 9)}
    documents = list(features["token_embeddings"])
    for tasks in (None, "query", ["query", "document"]):
        for task in (None, "document", "query", "other"):
            modules = both(2, tasks=tasks)
            assert modules[0].tasks == modules[1].tasks
            applies = {module.applies_to(task) for module in modules}
            lengths = {module(dict(features), task=task)["token_embeddings"].shape[1] for module in modules}
            assert len(applies) == 1 and lengths == ({5} if applies == {True} else {9})
            same = [module.pool(documents, task=task) is documents for module in modules]
            assert same == [applies == {False}] * 2


@pytest.mark.parametrize(
    ("arguments", "embeddings"),
    [
        ({"pool_factor": 0.5}, None),
        ({"pool_factor": 2, "num_protected_tokens": -1}, None),
        ({"pool_factor": 2}, torch.zeros(3, 4)),
        ({"pool_factor": 2}, [torch.zeros(4)]),
        ({"pool_factor": 2}, (torch.zeros(3, 4),)),
    ],
)
def test_what_they_refuse(arguments: dict[str, Any], embeddings: Any) -> None:
    for module in (Theirs, Ours):
        with pytest.raises(ValueError):
            module(**arguments).pool(embeddings)
    with pytest.raises(ValueError, match="padding_side must be"):
        Ours(2.0).pool(torch.zeros(1, 2, 3), padding_side="up")
    assert all(module.pool([]) == [] for module in both(2))


def test_gradients() -> None:
    documents = DOCUMENTS[20:40]
    gradients = []
    for module in both(3):
        leaves = [document.clone().requires_grad_() for document in documents]
        # A loss that does not depend on the rows' order.
        sum((pooled**3).sum() for pooled in module.pool(leaves)).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_saved_and_loaded(tmp_path: Path) -> None:
    arguments = {"num_protected_tokens": 2, "normalize_embeddings": False, "tasks": ["query"]}
    for writer, reader in product((Theirs, Ours), repeat=2):
        writer(2.5, **arguments).save(str(tmp_path))
        loaded = reader.load(str(tmp_path))
        assert loaded.get_config_dict() == Theirs(2.5, **arguments).get_config_dict()
    Ours(2.5, distance="euclidean").save(str(tmp_path))
    assert Ours.load(str(tmp_path)).distance == "euclidean"


@pytest.mark.parametrize("module", [Theirs, Ours])
def test_a_configuration_of_before_normalisation(module: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pool_factor": 2, "num_protected_tokens": 1}))
    assert module.load(str(tmp_path)).normalize_embeddings is False
    assert module.load(str(tmp_path), init_defaults={"tasks": ["query"]}).tasks == ["query"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def encoder(folder: str, *modules: Any, **arguments: Any) -> Any:
    """A model for late interaction with modules behind its own."""
    torch.manual_seed(0)
    model = importlib.import_module("sentence_transformers").MultiVectorEncoder(folder, device="cpu", **arguments)
    for module in modules:
        model.append(module)
    return model


def test_encode_with_either(folder: str) -> None:
    model = encoder(folder)
    expected, found = (model.encode_document(TEXTS, token_pooling=module, batch_size=4) for module in both(2))
    assert_same(found, expected)
    assert sum(map(len, found)) < 0.6 * sum(map(len, model.encode_document(TEXTS)))
    plain, query = model.encode_query(TEXTS), model.encode_query(TEXTS, token_pooling=Ours(2))
    assert all(torch.equal(one, other) for one, other in zip(plain, query, strict=True))
    raw = model.encode_document(TEXTS, token_pooling=Ours(2), output_value=None)
    assert_same([item["token_embeddings"][item["attention_mask"]] for item in raw], expected)


def test_models_that_pool(folder: str, tmp_path: Path) -> None:
    expected, found = (encoder(folder, module) for module in both(3))
    vectors = expected.encode_document(TEXTS)
    assert_same(found.encode_document(TEXTS), vectors)

    found.save_pretrained(str(tmp_path / "ours"))
    again = encoder(str(tmp_path / "ours"), trust_remote_code=True)
    assert type(again[-1]) is Ours and again[-1].get_config_dict() == found[-1].get_config_dict()
    assert_same(again.encode_document(TEXTS), vectors)

    expected.save_pretrained(str(tmp_path / "theirs"))
    model = encoder(str(tmp_path / "theirs"))
    last = len(model) - 1
    model[last] = Ours.load(str(tmp_path / "theirs"), subfolder=f"{last}_HierarchicalTokenPooling")
    assert_same(model.encode_document(TEXTS), vectors)
