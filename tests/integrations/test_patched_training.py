"""What a patched model survives: checkpointing, autocast, compiling, several processes, and training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tests.support.deit import make_model
from tests.support.models import facts, make_inputs, make_timm, make_torchvision, make_transformers, watch_mlps
from tpkernels import patch, trace, unpatch
from tpkernels.integrations.attend import attend_heads

KEEP = [None, 40, None, 11]
METHODS: tuple[dict[str, Any], ...] = ({}, {"method": "kmedoids", "init": "topk"})
FAMILIES = ("timm", "torchvision", "ViTForImageClassification", "Dinov2ForImageClassification", "CLIPVisionModel")


@pytest.fixture
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, Callable[..., Tensor], Tensor]:
    """A small model, how it is asked, and images."""
    name = request.param
    if name in ("timm", "torchvision"):
        package = request.getfixturevalue(name)
        model = make_timm(package) if name == "timm" else make_torchvision(package)
        ask: Callable[..., Tensor] = lambda model, images: model(images)  # noqa: E731
    else:
        model, _ = make_transformers(request.getfixturevalue("transformers"), name)

        def ask(model: nn.Module, images: Tensor) -> Tensor:
            out = model(images)
            return out.logits if "logits" in out else out.pooler_output

    images = make_inputs("")["pixel_values"]
    assert images is not None
    return model, ask, images


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> tuple[list[Tensor], list[int]]:
    """The gradients of one training step with dropout, and how often each block's MLP was run for it."""
    counts = [0] * 4
    places: dict[int, int] = {}

    def note(module: nn.Module, _inputs: Any) -> None:
        counts[places.setdefault(id(module), len(places))] += 1

    hooks = watch_mlps(model, note)
    model.zero_grad()
    torch.manual_seed(0)
    try:
        run().float().square().sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], counts


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(a, b)


DROPPED = {"drop_path_rate": 0.3, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("first", ["patched", "checkpointing"])
def test_timm_recomputes_block_by_block(timm: Any, options: dict[str, Any], first: str) -> None:
    model, images = make_timm(timm, **DROPPED).train(), torch.randn(3, 3, 32, 32)
    plain = facts(model)
    expected, once = gradients(patch(model, KEEP, **options), lambda: model(images))
    unpatch(model)
    if first == "patched":
        patch(model, KEEP, **options).set_grad_checkpointing()
    else:
        model.set_grad_checkpointing()
        patch(model, KEEP, **options)
    found, twice = gradients(model, lambda: model(images))
    assert once == [1] * 4 and twice == [2] * 4
    assert_same(found, expected)
    model.set_grad_checkpointing(False)
    assert gradients(model, lambda: model(images))[1] == once
    model.set_grad_checkpointing(True)
    unpatch(model)
    assert model.grad_checkpointing is True and facts(model) == plain
    assert gradients(model, lambda: model(images))[1] == [2] * 4


def test_timm_checkpointing_set_by_hand_is_refused(timm: Any) -> None:
    model = patch(make_timm(timm), 0.5)
    model.grad_checkpointing = True
    with pytest.raises(ValueError, match=r"set by set_grad_checkpointing\(\) in a patched model, got True"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification", "CLIPVisionModel"])
def test_transformers_recomputes(transformers: Any, name: str, options: dict[str, Any], reentrant: bool) -> None:
    model, ask = make_transformers(transformers, name)
    patch(model, KEEP, **options).train()
    expected, once = gradients(model, lambda: ask(model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with trace(model) as seen:
        found, twice = gradients(model, lambda: ask(model))
    assert once == [1] * 4 and twice == [2] * 4
    assert_same(found, expected)
    assert seen.layers == [1, 3] and seen.sources[0].shape == (3, 65)
    model.gradient_checkpointing_disable()
    assert gradients(model, lambda: ask(model))[1] == once


def test_sizes_never_ask_for_a_gradient(transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ask = make_transformers(transformers, "ViTForImageClassification")
    asked: list[bool] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, **options: Any) -> Any:
        asked.append(sizes is not None and sizes.requires_grad)
        return attend_heads(q, k, v, sizes, **options)

    monkeypatch.setattr("tpkernels.integrations.transformers.attend_heads", spy)
    patch(model, KEEP).train().gradient_checkpointing_enable({"use_reentrant": True})
    gradients(model, lambda: ask(model))
    assert asked and not any(asked)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_checkpoint_of_the_whole_model(family: Any, reentrant: bool) -> None:
    model, ask, images = family
    patch(model, KEEP).train()
    images = images.requires_grad_()
    expected, _ = gradients(model, lambda: ask(model, images))
    found, _ = gradients(model, lambda: checkpoint(ask, model, images, use_reentrant=reentrant))
    assert_same(found, expected)


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_autocast(family: Any, options: dict[str, Any]) -> None:
    model, ask, images = family
    patch(model, KEEP, **options).train()

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ask(model, images)

    found, counts = gradients(model, run)
    assert counts == [1] * 4
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in found)
    assert sum(bool(gradient.any()) for gradient in found) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("options", "dynamic"), [(METHODS[0], True), (METHODS[1], False)])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_compiles_in_one_graph(family: Any, options: dict[str, Any], dynamic: bool) -> None:
    model, ask, images = family
    patch(model, KEEP, **options)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        if dynamic:
            torch._dynamo.mark_dynamic(images, 0)
        torch.testing.assert_close(ask(compiled, images), ask(model, images), atol=1e-4, rtol=1e-4)
        if dynamic:
            with torch._dynamo.config.patch(error_on_recompile=True):
                other = torch.cat([images, images]).flip(2)
                torch.testing.assert_close(ask(compiled, other), ask(model, other), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_is_traced_and_trains() -> None:
    model, images = patch(make_model(), KEEP).train(), torch.randn(3, 1, 16, 16)
    expected, _ = gradients(model, lambda: model(images))
    with trace(model) as known:
        model(images)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, _ = gradients(model, lambda: compiled(images))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    with trace(model) as seen, torch.no_grad():
        compiled(images)
    assert seen.layers == known.layers == [1, 3]
    assert all(map(torch.equal, seen.sources, known.sources))


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_training_lowers_the_loss(family: Any) -> None:
    model, ask, images = family
    twin = copy.deepcopy(model)
    patch(model, KEEP).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = ask(model, images).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    # The trained weights are the model's own, pooled or not.
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(ask(patch(twin, KEEP), images), ask(model.eval(), images))
        assert torch.equal(ask(unpatch(twin), images), ask(unpatch(model), images))


def step_of_one_process(rank: int, folder: str, images: Tensor) -> None:
    """Writes the gradients that a process of two has after a step on its half of the images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(patch(make_model(), KEEP).train())
    model(images[2 * rank : 2 * rank + 2]).square().sum().div(2).backward()
    torch.save([parameter.grad for parameter in model.module.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.multiprocessing.spawn(step_of_one_process, (str(tmp_path), images), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = patch(make_model(), KEEP).train()
    model(images).square().sum().div(4).backward()
    for parameter, a, b in zip(model.parameters(), first, second, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, parameter.grad, rtol=1e-4, atol=1e-4)
