"""accelerate around a patched model: prepared for training, and dispatched with weights at hand or offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.ecosystem import FAMILIES, LABELS, LIBRARIES, Case, assert_plain, assert_pools, logits
from tpkernels import patch, unpatch

pytestmark = pytest.mark.slow

# What is done one after another with a dispatched model: patch, dispatch, unpatch, remove the hooks.
ORDERS = ("pd", "dp", "pdu", "dpu", "pdr", "dpr", "pdur", "pdru", "dpur", "dpru", "pudp", "dpup")
PLACES = ("dispatched", "in memory", "on disk")


def dispatcher(accelerate: Any, place: str, folder: Path) -> Callable[[nn.Module], nn.Module]:
    """Hooks every module of a model, with its weights on the CPU, there but outside of the model, or on the disk."""
    cpu = torch.device("cpu")
    if place == "dispatched":
        return lambda model: accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    if place == "in memory":
        return lambda model: accelerate.cpu_offload(model, execution_device=cpu, offload_buffers=True)
    return lambda model: accelerate.disk_offload(model, str(folder), execution_device=cpu)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_dispatched_in_every_order(accelerate: Any, tmp_path: Path, case: Case, place: str) -> None:
    steps: dict[str, Callable[[nn.Module], Any]] = {
        "p": lambda model: patch(model, 0.5),
        "u": unpatch,
        "d": dispatcher(accelerate, place, tmp_path),
        "r": lambda model: accelerate.hooks.remove_hook_from_module(model, recurse=True),
    }
    for order in ORDERS:
        model = case.make()
        names = list(model.state_dict())
        for step in order:
            steps[step](model)
        hooked, pools = "d" in order and "r" not in order, order.rfind("p") > order.rfind("u")
        assert list(model.state_dict()) == names
        if hooked and place != "dispatched":
            assert any(parameter.is_meta for parameter in model.parameters())
            if case.name == "torchvision":
                if pools:
                    with pytest.raises(RuntimeError, match="attention must hold its weights in memory, got offloaded"):
                        logits(model)
                # Nor does accelerate run the unpatched one.
                continue
        if pools:
            assert_pools(model, case)
        else:
            assert_plain(model, case)


@pytest.fixture
def make_accelerator(accelerate: Any) -> Iterator[Callable[..., Any]]:
    """Makes an Accelerator, whose state is that of the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_prepared(make_accelerator: Any, case: Case, order: str) -> None:
    def step(model: Any, backward: Callable[[torch.Tensor], Any]) -> list[torch.Tensor]:
        backward(nn.functional.cross_entropy(logits(model), LABELS))
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    expected = step(patch(case.make(), 0.5), torch.Tensor.backward)
    accelerator, model = make_accelerator(), case.make()
    if order == "after":
        patch(model, 0.5)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    if order == "before":
        patch(model, 0.5)
    assert_pools(model, case)
    for found, gradient in zip(step(model, accelerator.backward), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    assert_plain(unpatch(model), case)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    assert not all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("case", LIBRARIES, indirect=True)
def test_prepared_with_autocast(make_accelerator: Any, case: Case, order: str) -> None:
    model = case.make()
    accelerator = make_accelerator(mixed_precision="bf16")
    if order == "after":
        model = accelerator.prepare(patch(model, 0.5))
    else:
        patch(model := accelerator.prepare(model), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(patch(case.make(), 0.5))
    assert_pools(model, case, expected=expected.float().detach())
    # What accelerate set on the model is its own to take away.
    unpatch(model)
    assert_plain(accelerator.unwrap_model(model, keep_fp32_wrapper=False), case)


@pytest.mark.parametrize("case", LIBRARIES, indirect=True)
def test_regions_compiled(accelerate: Any, case: Case) -> None:
    torch._dynamo.reset()
    model = accelerate.utils.compile_regions(patch(case.make(), 0.5), backend="eager")
    if case.name in ("timm", "torchvision"):
        assert_pools(model, case)
    else:
        # transformers' list is made anew, without what pools.
        with pytest.raises(RuntimeError, match="must be run by the model's own call of all its blocks"):
            logits(model)
    assert_plain(unpatch(model), case)
