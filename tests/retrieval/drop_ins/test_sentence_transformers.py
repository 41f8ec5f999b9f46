"""`HierarchicalTokenPooling` without sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from tests.support.retrieval import make_document
from tests.support.scipys import cut, tree
from tpkernels import retrieval

LENGTHS = (2, 5, 17, 9, 40)
GENERATOR = torch.Generator().manual_seed(0)
DOCUMENTS = [make_document(n, GENERATOR) for n in LENGTHS]
Load = Callable[[str], ModuleType]


def test_module_finds_scipys_clusters(load: Load) -> None:
    module = load("sentence_transformers").HierarchicalTokenPooling(2.5)
    for document, vectors in zip(DOCUMENTS[1:], module.pool(DOCUMENTS[1:]), strict=True):
        k = max(int((len(document) - 1) // 2.5), 1)
        labels = cut(tree(document[1:], "dot"), k)
        means = [document[1:][labels == number].mean(0) for number in range(k)]
        torch.testing.assert_close(vectors, normalize(torch.stack([document[0], *means]), dim=1), rtol=0, atol=1e-6)
        torch.testing.assert_close(module.pool_one(document), vectors)


@pytest.mark.parametrize("side", ["left", "right"])
def test_module_takes_all_forms_in_one_call(load: Load, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    loaded = load("sentence_transformers")
    calls = []

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return retrieval.pool_embeddings(*arguments, **more)

    monkeypatch.setattr(loaded, "pool_embeddings", counted)
    module = loaded.HierarchicalTokenPooling(2, num_protected_tokens=2)
    padded = pad_sequence(DOCUMENTS, batch_first=True, padding_side=side)
    mask = (padded != 0).any(-1)
    features = {"token_embeddings": padded, "attention_mask": mask.long(), "other": mask}
    answers = (
        lambda: module.pool(DOCUMENTS),
        lambda: module.pool(padded, padding_side=side),
        lambda: module.pool(padded, attention_mask=mask, padding_side=side),
        lambda: module(dict(features)),
    )
    alone, detected, told, forward = (answer() for answer in answers)
    assert len(calls) == len(answers)
    assert torch.equal(detected, pad_sequence(alone, batch_first=True, padding_side=side))
    assert torch.equal(told, detected) and forward["other"] is mask
    rows, there = forward["token_embeddings"], forward["attention_mask"]
    assert there.dtype == torch.bool and there.sum(1).tolist() == [len(one) for one in alone]
    for one, x, m in zip(alone, rows, there, strict=True):
        torch.testing.assert_close(x[m], one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_module_of_factor_one_only_normalises(load: Load, dtype: torch.dtype) -> None:
    new = load("sentence_transformers").HierarchicalTokenPooling
    # Squares of these are too large for float16.
    x = (300 * torch.randn(2, 5, 8)).to(dtype)
    features = {"token_embeddings": x, "attention_mask": torch.ones(2, 5)}
    expected = normalize(x.float(), dim=-1).to(dtype)
    assert torch.equal(new()(dict(features))["token_embeddings"], expected)
    assert torch.equal(new().pool(x), expected)
    raw = new(normalize_embeddings=False)
    assert raw(dict(features))["token_embeddings"] is x and torch.equal(raw.pool(x), x)


def test_module_leaves_other_tasks_alone(load: Load) -> None:
    module = load("sentence_transformers").HierarchicalTokenPooling(2)
    features = {"token_embeddings": torch.ones(1, 4, 2), "attention_mask": torch.ones(1, 4)}
    assert module.forward_kwargs == {"task"} and module(features, task="query") is features
    assert features["token_embeddings"].shape == (1, 4, 2)
    assert module.pool(DOCUMENTS, task="query") is DOCUMENTS
    assert module.applies_to(None) and not module.applies_to("query") and module.pool([]) == []


def test_module_has_gradients(load: Load) -> None:
    module = load("sentence_transformers").HierarchicalTokenPooling(3, normalize_embeddings=False)
    leaf = DOCUMENTS[2].clone().requires_grad_()
    features = {"token_embeddings": leaf[None], "attention_mask": torch.ones(1, len(leaf))}
    vectors = module(features)["token_embeddings"][0]
    vectors.sum(1)[1:].sum().backward()
    sizes = torch.bincount(cut(tree(DOCUMENTS[2][1:], "dot"), len(vectors) - 1))
    # A token's gradient is its share of its cluster, and the protected one has none here.
    shares = leaf.grad[:, 0].sort().values
    expected = torch.cat([torch.zeros(1), *(torch.full((int(size),), 1 / int(size)) for size in sizes)]).sort().values
    torch.testing.assert_close(shares, expected)


def test_module_is_saved_and_loaded(load: Load, tmp_path: Path) -> None:
    new = load("sentence_transformers").HierarchicalTokenPooling
    module = new(2.5, num_protected_tokens=0, normalize_embeddings=False, tasks="query", distance="euclidean")
    (tmp_path / "4_Pooling").mkdir()
    module.save(str(tmp_path / "4_Pooling"))
    again = new.load(str(tmp_path), subfolder="4_Pooling")
    assert (
        again.get_config_dict()
        == module.get_config_dict()
        == json.loads((tmp_path / "4_Pooling" / "config.json").read_text())
    )
    assert again.tasks == ["query"] and again.distance == "euclidean"
    # What sentence-transformers would not understand is not written unless it is needed.
    assert set(new(2).get_config_dict()) == {"pool_factor", "num_protected_tokens", "normalize_embeddings", "tasks"}
    assert new(2).normalize_embeddings and repr(new(2)).startswith("HierarchicalTokenPooling({'pool_factor': 2")


def test_a_configuration_of_before_normalisation_does_not_normalise(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"pool_factor": 2.0}')
    new = load("sentence_transformers").HierarchicalTokenPooling
    assert new.load(str(tmp_path)).normalize_embeddings is False
    assert new.load(str(tmp_path), init_defaults={"tasks": ["query"], "pool_factor": 3}).get_config_dict() == {
        "pool_factor": 2.0, "num_protected_tokens": 1, "normalize_embeddings": False, "tasks": ["query"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "embeddings", "message"),
    [
        ({"pool_factor": 0.5}, [], "pool_factor must be at least 1, got 0.5"),
        ({"pool_factor": float("nan")}, [], "pool_factor must be at least 1, got nan"),
        ({"num_protected_tokens": -1}, [], "num_protected_tokens must be at least 0, got -1"),
        ({}, torch.ones(3, 4), r"a list of 2D tensors or a 3D tensor, got shape \(3, 4\)"),
        ({}, "text", "a list of 2D tensors or a 3D tensor, got str"),
        ({}, [torch.ones(4)], r"2D tensors in a list, got shape \(4,\)"),
    ],
)
def test_what_the_module_refuses(load: Load, arguments: dict[str, Any], embeddings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("sentence_transformers").HierarchicalTokenPooling(**arguments).pool(embeddings)


def test_the_modules_options(load: Load) -> None:
    new = load("sentence_transformers").HierarchicalTokenPooling
    module = new(3, distance="euclidean", num_protected_tokens=0, normalize_embeddings=False)
    for document, vectors in zip(DOCUMENTS, module.pool(DOCUMENTS), strict=True):
        labels = cut(tree(document), len(vectors))
        means = torch.stack([document[labels == number].mean(0) for number in range(len(vectors))])
        torch.testing.assert_close(vectors, means, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="backend must be"):
        new(3, backend="scipy").pool(DOCUMENTS)
