"""What training and serving put around a model: sharding, loss scaling, threads, processes of a data loader."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deit.model import DeiT, DeiTConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import tpkernels
from tests.support.marks import DEVICE
from tpkernels import TokenPool, patch

KEEP = [40, None, 20, None]
METHODS = ("ward", "kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite")


def make_model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(DeiTConfig(img_size=16, patch_size=2, embed_dim=24, depth=4, num_heads=3))


def make_images() -> Tensor:
    return torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))


def sharded_step(rank: int, folder: str, images: Tensor) -> None:
    """Writes the whole gradients that a process of two has after a step of the sharded model on its half."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = patch(make_model(), KEEP).train()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(images[2 * rank : 2 * rank + 2]).square().sum().div(2).backward()
    whole = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(whole, f"{folder}/gradients.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Threads that torch began may still want the interpreter while it ends, and abort the process.
    os._exit(0)


@pytest.mark.slow
def test_a_sharded_model_has_the_gradients_of_one_process(tmp_path: Path) -> None:
    """FSDP2 over gloo: `patch` first, `fully_shard` then."""
    pytest.importorskip("torch.distributed.fsdp").__dict__.get("fully_shard") or pytest.skip("torch before 2.6")
    torch.multiprocessing.spawn(sharded_step, (str(tmp_path), make_images()), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model = patch(make_model(), KEEP).train()
    model(make_images()).square().sum().div(4).backward()
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_hooks_on_a_block_fire_and_may_change_its_tokens(block: int) -> None:
    """On blocks that pool, and on those that do not but have sizes to count."""
    model, images = patch(make_model(), KEEP), make_images()
    shapes: list[tuple[torch.Size, torch.Size]] = []
    hooked = model.blocks[block]
    expected = model(images)
    handles = [
        hooked.register_forward_hook(lambda _, args, out: shapes.append((args[0].shape, out.shape))),
        hooked.register_forward_hook(lambda _, args, kwargs, out: 3 * out, with_kwargs=True),
        hooked.register_forward_pre_hook(lambda _, args: args[0] / 2),
        hooked.register_forward_pre_hook(lambda _, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True),
    ]
    changed = model(images)
    before = 64 if block == 0 else 40
    assert shapes == [((4, 1 + before, 24), (4, 1 + (KEEP[block] or before), 24))]
    assert not torch.allclose(changed, expected)
    handles[1].remove()
    torch.testing.assert_close(model(images), expected)
    handles[2].remove()
    assert not torch.allclose(model(images), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaled_step_under_autocast(method: str, dtype: torch.dtype) -> None:
    """A scale that the model itself bears overflows nothing in its pooling, and goes out again."""
    options = {"init": "strided"} if method in ("kmeans", "kmedoids") else {}
    model = patch(make_model(), KEEP, method=method, **options).train().to(DEVICE)
    wide = copy.deepcopy(model)
    images = make_images().to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast(DEVICE, dtype):
        loss = model(images).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**8, "a step was skipped"
    expected = wide(images).square().mean()
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.05)


def test_channels_of_300_overflow_no_half() -> None:
    """1,024 of them have a squared norm of 9e7, where float16 ends at 65,504."""
    x = torch.randn(2, 20, 1024, generator=torch.Generator().manual_seed(0)) + 300
    for method in METHODS:
        pool = TokenPool(8, method, num_prefix_tokens=0)
        score = x[..., 0] if pool.needs_significance else None
        half, info = pool(x.half(), score, return_info=True)
        wide, expected = pool(x.half().float(), score, return_info=True)
        assert bool(half.isfinite().all()), method
        assert torch.equal(info.assignment, expected.assignment), method
        torch.testing.assert_close(half.float(), wide, rtol=1e-3, atol=0.2)


def test_threads_that_call_at_once_get_their_own_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, 30 + 5 * i, 8, generator=generator) for i in range(6)]
    expected = [[TokenPool(0.5, method)(x, x[..., 0].abs()) for method in METHODS] for x in inputs]
    found: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(len(inputs))

    def run(i: int) -> None:
        barrier.wait()
        for _ in range(5):
            found[i] = [TokenPool(0.5, method)(inputs[i], inputs[i][..., 0].abs()) for method in METHODS]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(found[i], wanted, strict=True))


class Pooled(Dataset):
    """Samples that a worker pools: a collection of token sets made smaller before they are sent."""

    def __init__(self) -> None:
        self.tokens = torch.randn(6, 25, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return tpkernels.ward(self.tokens[index : index + 1], 7).centers[0]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_pool(start: str) -> None:
    """Also where the parent has used its threads already, which a forked child does not inherit."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this platform")
    data = Pooled()
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        expected = tpkernels.ward(data.tokens.repeat(40, 1, 1), 7).centers[:6]
    finally:
        torch.set_num_threads(threads)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=start, timeout=120)
    torch.testing.assert_close(torch.cat(list(loader)), expected)


def test_a_pooled_model_in_a_container_moves_with_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), TokenPool(0.5), nn.Linear(4, 2)).double()
    assert model(torch.randn(2, 9, 4).double()).dtype == torch.float64
    assert not list(TokenPool(0.5).state_dict())
