"""`reconstruction_errors`: what Ward gives one k at a time, at the tokens that blocks would pool; models left alone."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpkernels
from tests.support.models import facts, make_timm, make_torchvision, make_transformers
from tpkernels.integrations.calibration import price_all
from tpkernels.integrations.towers import towers_in


def make_images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens_to_pool(model: nn.Module, run: Any) -> list[Tensor]:
    """The tokens after each block's attention, from the block's input and its own submodules."""
    _, _, family, container = towers_in(model)[0]
    found: list[Tensor] = []

    def note(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0] + family.attention(block, inputs[0], None, False).update)

    hooks = [block.register_forward_pre_hook(note) for block in container.children()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", ["timm", "torchvision", "ViTModel", "SiglipVisionModel"])
def test_every_k_in_one_pass_is_ward_one_k_at_a_time(request: pytest.FixtureRequest, family: str) -> None:
    if family in ("timm", "torchvision"):
        make = {"timm": make_timm, "torchvision": make_torchvision}[family]
        model, images = make(request.getfixturevalue(family)), make_images()
        batches: list[Any] = [images[:2], images[2:]]
    else:
        model, _ = make_transformers(request.getfixturevalue("transformers"), family)
        images = make_images()
        batches = [{"pixel_values": images[:2]}, {"pixel_values": images[2:]}]
    name = "pixel_values" if isinstance(batches[0], dict) else None
    tokens = tokens_to_pool(model, lambda: model(**{name: images}) if name else model(images))
    patches = tpkernels.count_macs(model).per_layer[0].tokens_in
    relative = tpkernels.reconstruction_errors(model, batches)
    absolute = tpkernels.reconstruction_errors(model, iter(batches), relative=False)
    assert relative.shape == absolute.shape == (4, 64) and relative.dtype == absolute.dtype == torch.float64
    for layer, x in enumerate(tokens):
        x = x[:, -patches:]
        whole = (x - x.mean(1, keepdim=True)).double().square().sum((1, 2))
        for k in (1, 7, 40, 63, 64):
            loss = tpkernels.ward(x, k).loss.double()
            torch.testing.assert_close(absolute[layer, k - 1], loss.mean(), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(relative[layer, k - 1], (loss / whole).mean(), rtol=1e-4, atol=1e-6)
    assert bool((relative.diff(dim=1) <= 0).all()) and bool((relative[:, -1] == 0).all())


def test_the_errors_are_those_of_distinct_blocks(timm: ModuleType) -> None:
    errors = tpkernels.reconstruction_errors(make_timm(timm), [make_images()])
    assert len({round(float(row[20]), 9) for row in errors}) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_afterwards_as_it_was(timm: ModuleType, fails: bool) -> None:
    model = make_timm(timm)
    model.train()
    model.blocks[1].eval()
    before, modes = facts(model), [module.training for module in model.modules()]

    def batches() -> Any:
        # Dropout and the like are off while it runs.
        assert not any(module.training for module in model.modules())
        yield make_images()
        if fails:
            raise RuntimeError("no more images")

    if fails:
        with pytest.raises(RuntimeError, match="no more images"):
            tpkernels.reconstruction_errors(model, batches())
    else:
        assert not tpkernels.reconstruction_errors(model, batches()).requires_grad
    assert facts(model) == before and [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_equal_tokens_lose_nothing_and_one_token_is_itself() -> None:
    assert torch.equal(price_all(torch.ones(2, 5, 3), relative=True), torch.zeros(2, 5, dtype=torch.float64))
    assert torch.equal(price_all(torch.randn(2, 1, 3), relative=True), torch.zeros(2, 1, dtype=torch.float64))
    two = torch.tensor([[[0.0], [1.0], [5.0]]])
    assert price_all(two, relative=False)[0].tolist() == pytest.approx([14.0, 0.5, 0.0])


def test_a_searched_schedule_loses_less_than_a_constant_ratio(timm: ModuleType) -> None:
    model = make_timm(timm)
    errors = tpkernels.reconstruction_errors(model, [make_images()])
    searched = tpkernels.solve_schedule(errors, model, 0.7)
    constant = tpkernels.resolve_budget(model, 0.7)
    lost = [sum(float(errors[i, k - 1]) for i, k in enumerate(schedule)) for schedule in (searched, constant)]
    assert lost[0] < 0.99 * lost[1]


def test_what_bad_input_gets(timm: ModuleType) -> None:
    model, images = make_timm(timm), make_images()
    with pytest.raises(TypeError, match=r"model must be one of: .* got Linear"):
        tpkernels.reconstruction_errors(nn.Linear(3, 3), [images])
    with pytest.raises(TypeError, match=r"batches must hold tensors or mappings of arguments, got tuple"):
        tpkernels.reconstruction_errors(model, [(images, 1)])
    with pytest.raises(ValueError, match=r"batches must give every block the same images, at least one, got \[0, 0, 0"):
        tpkernels.reconstruction_errors(model, [])
    images[1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"batches must give finite tokens, got NaN or infinity after .* block 0"):
        tpkernels.reconstruction_errors(model, [images])
    larger = make_timm(timm, dynamic_img_size=True)
    with pytest.raises(ValueError, match=r"batches must give 64 patch tokens, the model's own, got 100"):
        tpkernels.reconstruction_errors(larger, [torch.randn(1, 3, 40, 40)])
    tpkernels.patch(model, 0.5)
    with pytest.raises(ValueError, match=r"model must not be patched, .* got a patched VisionTransformer"):
        tpkernels.reconstruction_errors(model, [make_images()])
    assert tpkernels.schedule_of(model) == [32, 16, 8, 4]
