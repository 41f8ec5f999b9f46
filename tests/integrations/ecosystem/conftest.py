"""The libraries around models, each skipped where it is not installed, and the models."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.support.ecosystem import Case, make_case, package


# torchvision first: all of them load it where it is installed.
@pytest.fixture(scope="session")
def accelerate(torchvision: ModuleType | None) -> ModuleType:
    """The package accelerate; skips where it is not installed."""
    return package("accelerate")


@pytest.fixture(scope="session")
def peft(torchvision: ModuleType | None) -> ModuleType:
    """The package peft; skips where it is not installed."""
    return package("peft")


@pytest.fixture(scope="session")
def lightning(torchvision: ModuleType | None) -> ModuleType:
    """The package lightning; skips where it is not installed."""
    return package("lightning")


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    """A family by its name."""
    library = request.param if request.param in ("timm", "torchvision") else "transformers"
    return make_case(request.param, request.getfixturevalue(library))
