"""A small model of each family beside what it answers, unpooled and pooled: for what other libraries make of it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import make_inputs, make_timm, make_torchvision, make_transformers, mlp_tokens
from tpkernels import patch

VIT, DEIT, CLIP = "ViTForImageClassification", "DeiTForImageClassification", "CLIPForImageClassification"


def slow(name: str) -> Any:
    """A family whose cases are slow tests."""
    return pytest.param(name, marks=pytest.mark.slow)


LIBRARIES = ("timm", "torchvision", VIT)
# CLIP's layers are those of transformers, too, but for the mask that they require.
FAMILIES = (*LIBRARIES, slow(CLIP))
NUM_PATCHES, COUNTS = 64, [32, 16, 8, 4]
IMAGES = make_inputs("", 4)["pixel_values"]
LABELS = torch.tensor([0, 1, 1, 0])


class Case(NamedTuple):
    """A family by its name, how its model is made again and again, the logits without pooling and with it, and the
    tokens before the patches."""

    name: str
    make: Callable[[], nn.Module]
    plain: Tensor
    pooled: Tensor
    prefix: int

    @property
    def head(self) -> str:
        """The path of the head."""
        return {"timm": "head", "torchvision": "heads"}.get(self.name, "classifier")


def make_case(name: str, package: Any) -> Case:
    """The case of a family, `package` the library that it comes from."""

    def make() -> nn.Module:
        if name in ("timm", "torchvision"):
            return make_timm(package) if name == "timm" else make_torchvision(package)
        return make_transformers(package, name)[0]

    model = make()
    plain, whole = ask(model), mlp_tokens(model, lambda: ask(model))
    pooled = ask(patch(model, 0.5))
    assert (pooled - plain).abs().max() > 0.01 * plain.abs().max()
    return Case(name, make, plain, pooled, whole[0] - NUM_PATCHES)


def ask(model: Any, images: Tensor | None = None) -> Tensor:
    """The logits, without gradients."""
    with torch.no_grad():
        return logits(model, images)


def logits(model: Any, images: Tensor | None = None) -> Tensor:
    """The logits of a model of any library."""
    out = model(IMAGES if images is None else images)
    return out if isinstance(out, Tensor) else out["logits"]


def assert_pools(model: Any, case: Case, expected: Tensor | None = None) -> None:
    """Every block's MLP gets the tokens that pooling leaves, and the logits are those of the patched model alone."""
    assert mlp_tokens(model, lambda: ask(model)) == [case.prefix + n for n in COUNTS]
    torch.testing.assert_close(ask(model), case.pooled if expected is None else expected, rtol=1e-4, atol=1e-4)


def assert_plain(model: Any, case: Case, expected: Tensor | None = None, *, exact: bool = True) -> None:
    """No block pools, and the logits are those of the model that was never patched, to the bit where `exact`."""
    assert mlp_tokens(model, lambda: ask(model)) == [case.prefix + NUM_PATCHES] * len(COUNTS)
    expected = case.plain if expected is None else expected
    if exact:
        assert torch.equal(ask(model), expected)
    else:
        torch.testing.assert_close(ask(model), expected, rtol=1e-4, atol=1e-4)


def package(name: str) -> ModuleType:
    """A package, or a module of one; skips where it is not installed."""
    root = name.split(".")[0]
    if importlib.util.find_spec(root) is None:
        pytest.skip(f"{root} is not installed")
    return importlib.import_module(name)
