"""Packages are looked for once their drop-ins are used, and one that fails is told of."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import tpkernels
from tpkernels import retrieval

FOREIGN = ("colpali_engine", "sentence_transformers", "pylate")
Load = Callable[[str], ModuleType]


class Absent:
    """Finds none of the packages, and keeps which ones were sought."""

    def __init__(self) -> None:
        self.sought: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in FOREIGN:
            self.sought.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("name", "package"),
    [("HierarchicalTokenPooler", FOREIGN[0]), ("HierarchicalTokenPooling", FOREIGN[1]), ("patch_pylate", FOREIGN[2])],
)
def test_a_package_is_sought_once_its_drop_in_is_used(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    absent = Absent()
    monkeypatch.setattr(sys, "meta_path", [absent, *sys.meta_path])
    monkeypatch.setattr(tpkernels, "retrieval", retrieval)
    for loaded in [*FOREIGN, *(loaded for loaded in sys.modules if loaded.startswith("tpkernels.retrieval"))]:
        monkeypatch.delitem(sys.modules, loaded)
    fresh = importlib.import_module("tpkernels.retrieval")
    assert fresh is not retrieval and name in dir(fresh) and name not in vars(fresh)
    assert not absent.sought
    drop_in = getattr(fresh, name)
    if name == "patch_pylate":
        with pytest.raises(ImportError):
            drop_in()
    assert absent.sought == [package] and vars(fresh)[name] is drop_in


def test_an_unknown_name_is_none() -> None:
    names = {"HierarchicalTokenPooler", "HierarchicalTokenPooling", "patch_pylate", "unpatch_pylate", "pool_embeddings"}
    assert names <= set(dir(retrieval))
    with pytest.raises(AttributeError, match="no attribute 'HierarchicalPooler'"):
        _ = retrieval.HierarchicalPooler


def test_drop_ins_can_be_pickled() -> None:
    for drop_in in (retrieval.HierarchicalTokenPooler(distance="euclidean"), retrieval.HierarchicalTokenPooling(2)):
        again = pickle.loads(pickle.dumps(drop_in))
        assert type(again) is type(drop_in) and again.distance == drop_in.distance


STANDS_FOR = [
    ("colpali", "colpali_engine.compression.token_pooling", "BaseTokenPooler and TokenPoolingOutput"),
    ("sentence_transformers", "sentence_transformers.multi_vector_encoder.modules", "BaseTokenPooling"),
]


@pytest.mark.parametrize(("name", "module", "classes"), STANDS_FOR)
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('operator nms is missing')", "RuntimeError: operator nms is missing"),
        ("import a_package_that_is_missing", "ModuleNotFoundError: No module named 'a_package_that_is_missing'"),
        ("", "AttributeError: .*BaseTokenPool"),
    ],
)
def test_a_package_that_fails_is_told_of(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    module: str,
    classes: str,
    source: str,
    told: str,
) -> None:
    write(tmp_path, module, source, monkeypatch)
    with pytest.warns(RuntimeWarning, match=f"{module} .*import fails .{told}.*no subclasses of its {classes}"):
        assert stands_alone(load(name))


@pytest.mark.parametrize(("name", "module"), [row[:2] for row in STANDS_FOR])
def test_a_release_without_the_class_is_not_told_of(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: str
) -> None:
    write(tmp_path, module.split(".")[0], "", monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stands_alone(load(name))


def write(folder: Path, module: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a module of this source, which can be imported."""
    for part in module.split("."):
        folder = folder / part
        folder.mkdir()
        (folder / "__init__.py").touch()
    (folder / "__init__.py").write_text(source)
    root = module.split(".")[0]
    monkeypatch.syspath_prepend(folder.parents[module.count(".")])
    monkeypatch.delitem(sys.modules, root)


def stands_alone(module: ModuleType) -> bool:
    """Whether a drop-in has its base class from this library."""
    drop_in = getattr(module, "HierarchicalTokenPooler", None) or module.HierarchicalTokenPooling
    return drop_in.__base__.__module__ == "tpkernels.retrieval.stand_ins"
