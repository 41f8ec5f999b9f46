"""Drop-ins as they are where no package is there that they stand in for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tpkernels import retrieval

FOREIGN = ("colpali_engine", "sentence_transformers", "pylate")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of tpkernels.retrieval anew, where no package is there."""
    for name in [name for name in sys.modules if name.split(".")[0] in FOREIGN]:
        monkeypatch.delitem(sys.modules, name)
    for name in FOREIGN:
        monkeypatch.setitem(sys.modules, name, None)

    def fresh(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, f"tpkernels.retrieval.{name}", raising=False)
        return importlib.import_module(f"tpkernels.retrieval.{name}")

    had = dict(vars(retrieval))
    yield fresh
    for name in [name for name in sys.modules if name.split(".")[0] in FOREIGN]:
        del sys.modules[name]
    for name in set(vars(retrieval)) - set(had):
        delattr(retrieval, name)
    vars(retrieval).update(had)
