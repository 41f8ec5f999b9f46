"""Weights that are quantised, pruned or computed, in a model that is patched before or after."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.support.ecosystem import COUNTS, FAMILIES, LIBRARIES, Case, ask, assert_plain, assert_pools, package
from tpkernels import patch, schedule_of, summary, unpatch

pytestmark = pytest.mark.slow


def int8_weights(model: nn.Module) -> nn.Module:
    """torchao's weights of 8 bits."""
    quantization = package("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def quantize_dynamic(model: nn.Module) -> nn.Module:
    """torch's weights of 8 bits, whose layers quantise what they get."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def each(change: Callable[[nn.Linear], object]) -> Callable[[nn.Module], nn.Module]:
    """A change of every linear layer."""

    def changed(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                change(module)
        return model

    return changed


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "int8 weights": int8_weights,
    "quantize_dynamic": quantize_dynamic,
    "pruned": each(lambda linear: prune.l1_unstructured(linear, "weight", 0.3)),
    "weight_norm": each(parametrizations.weight_norm),
    "spectral_norm": each(parametrizations.spectral_norm),
    "bfloat16": nn.Module.bfloat16,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_changed_before_and_after(torchvision: ModuleType | None, case: Case, change: str) -> None:
    plain_model = CHANGES[change](case.make())
    if change == "bfloat16":
        plain_model = Widened(plain_model)
    plain = ask(plain_model)
    model = patch(plain_model, 0.5)
    pooled = ask(model)
    assert change == "weight_norm" or (plain - case.plain).abs().max() > 1e-4
    assert_pools(model, case, expected=pooled)
    assert (pooled - plain).abs().max() > 1e-3
    late = CHANGES[change](patch(case.make(), 0.5))
    if change == "bfloat16":
        late = Widened(late)
    for changed in (late, model):
        # Bit-equal: the same blocks, whichever came first.
        assert torch.equal(ask(changed), pooled)
        assert_pools(changed, case, expected=pooled)
        assert schedule_of(changed) == COUNTS and summary(changed).schedule == tuple(COUNTS)
        assert_plain(unpatch(changed), case, expected=plain)


class Widened(nn.Module):
    """A model of bfloat16 as one that takes and gives float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.model(images.bfloat16())
        return (out if isinstance(out, torch.Tensor) else out["logits"]).float()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("case", LIBRARIES, indirect=True)
def test_pruned_layers_train(case: Case, order: str) -> None:
    change, model = CHANGES["pruned"], case.make()
    model = patch(change(model), 0.5) if order == "before" else change(patch(model, 0.5))
    descent = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        descent.zero_grad()
        out = model.train()(torch.randn(2, 3, 32, 32))
        (out if isinstance(out, torch.Tensor) else out["logits"]).square().mean().backward()
        descent.step()
    for module in model.modules():
        if prune.is_pruned(module) and isinstance(module, nn.Linear):
            prune.remove(module, "weight")
    pooled = ask(model.eval())
    twin = case.make()
    twin.load_state_dict(model.state_dict())
    assert_pools(model, case, expected=ask(patch(twin, 0.5)))
    assert_pools(model, case, expected=pooled)
