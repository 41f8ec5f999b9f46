"""torch's own ways to train on several devices: FSDP2, DistributedDataParallel, replicate and DataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tests.support.deit import make_model
from tests.support.ecosystem import COUNTS, FAMILIES, LIBRARIES, Case, ask, assert_plain, assert_pools, logits
from tests.support.models import mlp_tokens
from tpkernels import patch, schedule_of, summary, unpatch
from tpkernels.integrations.towers import towers_in
from tpkernels.schedule.shapes import block_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/meeting", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def shard(model: nn.Module, **options: Any) -> nn.Module:
    """Shards every block by itself, then what is left."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in towers_in(model)[0].container.children():
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def gradients(model: nn.Module, run: Callable[[nn.Module], Tensor] = logits) -> dict[str, Tensor]:
    """A gradient for each parameter, whole, by the names of a model that nobody wrapped."""
    model.zero_grad()
    run(model).square().sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            name = name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")
            found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_sharded_after_patch(case: Case, checkpointing: bool) -> None:
    expected = gradients(patch(case.make(), 0.5))
    model = patch(case.make(), 0.5)
    if checkpointing:
        blocks = set(map(block_in, towers_in(model)[0].container.children()))
        apply_activation_checkpointing(model, check_fn=lambda module: module in blocks)
    shard(model)
    assert_pools(model, case)
    assert_same(gradients(model), expected)
    assert schedule_of(model) == COUNTS and summary(model).schedule == tuple(COUNTS)
    assert_plain(unpatch(model), case)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_sharded_before_patch_is_refused(case: Case) -> None:
    for model in (shard(case.make()), shard(patch(case.make(), 0.5))):
        unpatch(model)
        with pytest.raises(TypeError, match=r"weights are sharded \(DTensor\): patch it before fully_shard"):
            patch(model, 0.5)
        assert_plain(model, case)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("part", ["container", "attention"])
@pytest.mark.parametrize("case", LIBRARIES, indirect=True)
def test_sharded_by_other_parts(case: Case, part: str) -> None:
    model, mesh = patch(case.make(), 0.5), init_device_mesh("cpu", (1,))
    found = towers_in(model)[0]
    if part == "container" and isinstance(found.container, nn.ModuleList):
        pytest.skip("fully_shard takes no lists")
    blocks = list(found.container.children())
    for module in [found.container] if part == "container" else [found.family.uncalled(block)[0] for block in blocks]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_pools(model, case)
    assert schedule_of(model) == COUNTS
    assert_plain(unpatch(model), case)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("case", LIBRARIES, indirect=True)
def test_sharded_in_bfloat16(case: Case) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(patch(case.make(), 0.5), mp_policy=policy)
    assert mlp_tokens(model, lambda: ask(model)) == [case.prefix + n for n in COUNTS]
    found, expected = gradients(model), gradients(patch(case.make(), 0.5))
    assert found.keys() == expected.keys() and all(one.dtype == torch.float32 for one in found.values())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("wrap", [DistributedDataParallel, DataParallel])
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_wrapped(case: Case, wrap: Callable[[nn.Module], Any], order: str) -> None:
    expected = gradients(patch(case.make(), 0.5))
    model = patch(wrap(case.make()), 0.5) if order == "before" else wrap(patch(case.make(), 0.5))
    for part in (model, model.module):
        assert_pools(part, case)
    assert_same(gradients(model), expected)
    assert_plain(unpatch(model), case)
    assert_plain(model.module, case)


def step_of_one_process(rank: int, folder: str, images: Tensor) -> None:
    """Writes the gradients that a process of two has after a step of a sharded model on its half of the images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = shard(patch(make_model(), 0.5).train())
    counts = mlp_tokens(model, lambda: model(images[:1]))
    found = gradients(model, lambda model: model(images[2 * rank : 2 * rank + 2]))
    torch.save((counts, found, type(next(model.parameters())).__name__), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.multiprocessing.spawn(step_of_one_process, (str(tmp_path), images), nprocs=2)
    model = patch(make_model(), 0.5).train()
    expected = gradients(model, lambda model: model(images))
    for rank in (0, 1):
        counts, found, kind = torch.load(tmp_path / f"{rank}.pt")
        assert kind == "DTensor" and counts == [1 + n for n in COUNTS]
        # Of the mean over the processes.
        assert_same({name: 2 * gradient for name, gradient in found.items()}, expected)
