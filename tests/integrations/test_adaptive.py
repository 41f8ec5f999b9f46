"""`solve_schedule(..., adaptive=True)`: distances that cost what was asked, and a model left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpkernels
from tests.support.deit import make_model
from tests.support.models import facts, make_timm, make_transformers
from tpkernels import Schedule, ViTShape, count_macs, patch, schedule_of, solve_schedule, summary, trace
from tpkernels.integrations import adaptive
from tpkernels.integrations.distribution import Distribution, read_fact


def draw_images(batch: int = 12, channels: int = 1, side: int = 16) -> Tensor:
    images = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    return images * torch.linspace(0.1, 1, batch)[:, None, None, None]


def kept(model: nn.Module, images: Tensor) -> Tensor:
    """Patch tokens [M, 4] after every block, from the trace of a forward."""
    with torch.no_grad(), trace(model) as seen:
        model(images)
    found = dict(zip(seen.layers, seen.sizes, strict=True))
    counts, left = [], torch.full((len(images),), 64)
    for layer in range(4):
        left = (found[layer][:, 1:] > 0).sum(1) if layer in found else left
        counts.append(left)
    return torch.stack(counts, 1)


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (0.8, {}),
        (0.6, {"layers": [1, 2]}),
        (0.45, {}),
        (0.7, {"position": "block"}),
        pytest.param(0.6, {"method": "kmeans", "max_iter": 2}, marks=pytest.mark.slow),
        pytest.param(0.7, {"method": "kmedoids"}, marks=pytest.mark.slow),
    ],
)
def test_the_mean_of_the_images_costs_what_was_asked(budget: float, options: dict[str, Any]) -> None:
    model, images = make_model(), draw_images()
    found = solve_schedule([images[:5], images[5:]], model, budget, adaptive=True, **options)
    assert found.distance is not None and found.num_patches == 64
    pooled = [layer for layer, one in enumerate(found.distance) if one is not None]
    assert pooled and set(pooled) <= set(options.pop("layers", range(4)))
    patch(model, found, **options)
    # Counted anew, from sizes.
    counts = kept(model, images)
    shares = count_macs(make_model(), counts, **options).ratio
    assert budget - 0.005 <= float(shares.double().mean()) <= budget
    assert found.tokens == tuple(counts.amax(0).tolist()) == tuple(schedule_of(model))
    assert len(set(counts[:, -1].tolist())) > 2
    told = summary(model).calibrated
    assert told is not None and told.images == 12 and told.most == found.tokens
    assert told.least == tuple(counts.amin(0).tolist()) and told.mean == tuple(counts.double().mean(0).tolist())
    assert told.least_ratio == pytest.approx(float(shares.min())) and told.most_ratio == pytest.approx(
        float(shares.max())
    )


def test_where_nothing_is_off_an_image_keeps_what_the_search_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first factor is 1: by then the mean of the tokens is the search's at the first block that pools."""
    model, images = make_model(), draw_images()
    tried: list[Any] = []
    run = adaptive.Trials.run
    monkeypatch.setattr(adaptive.Trials, "run", lambda self, d: tried.append(run(self, d)) or tried[-1])
    errors = tpkernels.reconstruction_errors(model, [images]) / torch.tensor([[1], [2], [3], [4]])
    for layers in ([0], [1, 2, 3]):
        tokens = solve_schedule(errors, model, 0.6, layers=layers)
        solve_schedule([images], model, 0.6, layers=layers, adaptive=True)
        means = tried[0].counts.double().mean(0)
        assert [abs(float(mean) - count) < 0.5 for mean, count in zip(means, tokens, strict=True)] == [True] * 4
        tried.clear()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_afterwards_as_it_was(fails: bool) -> None:
    model, images = make_model(), draw_images()
    model.train()
    model.blocks[1].eval()
    before, modes = facts(model), [module.training for module in model.modules()]
    plain = model(images)
    if fails:
        calls = []

        def stop(*_: Any) -> None:
            calls.append(1)
            # In a pooled forward, after that for the errors and that for the distance.
            if len(calls) > 2:
                raise KeyboardInterrupt

        hook = model.blocks[0].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            solve_schedule([images], model, 0.6, adaptive=True)
        hook.remove()
    else:
        solve_schedule([images], model, 0.6, adaptive=True)
    assert facts(model) == before and [module.training for module in model.modules()] == modes
    assert torch.equal(model(images), plain)


def test_a_file_says_what_it_was_calibrated_on(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "schedule.json"
    found = solve_schedule([draw_images()], model, 0.6, layers=[1, 2], adaptive=True)
    tpkernels.save_schedule(path, found)
    assert tpkernels.load_schedule(path) == found and json.loads(path.read_bytes())["version"] == 2
    patch(model, path)
    lines = str(summary(model)).splitlines()
    assert "% in the mean of the 12 images that it was calibrated on" in lines[-1]
    told = summary(model).calibrated
    assert (
        f"{told.mean[1]:.1f}, {told.least[1]} to {told.most[1]}" in lines[3] and f"{found.distance[1]:.4g}" in lines[3]
    )


@pytest.mark.slow
def test_models_of_other_families(timm: ModuleType, transformers: ModuleType) -> None:
    images = draw_images(channels=3, side=32)
    model = make_timm(timm, global_pool="avg")
    found = solve_schedule([images], model, 0.6, adaptive=True)
    assert 0.595 <= found.facts["calibrated"]["mean_ratio"] <= 0.6
    model, _ = make_transformers(transformers, "ViTForImageClassification")
    found = solve_schedule([{"pixel_values": images}], model, 0.6, layers=[0, 2], adaptive=True)
    assert 0.595 <= found.facts["calibrated"]["mean_ratio"] <= 0.6


def test_a_budget_of_all_pools_nothing() -> None:
    found = solve_schedule([draw_images()], make_model(), 1.0, adaptive=True)
    assert found.tokens == (64,) * 4 and found.distance == (None,) * 4


def test_what_bad_input_gets() -> None:
    model, images = make_model(), draw_images()

    def solve(errors: Any = (images,), of: Any = model, budget: float = 0.6, **options: Any) -> Any:
        return solve_schedule(errors, of, budget, **{"adaptive": True, **options})

    with pytest.raises(TypeError, match="adaptive must be a bool, got int"):
        solve(adaptive=1)
    with pytest.raises(
        TypeError, match=r"errors must be an iterable of batches of images with adaptive=True, got Tensor"
    ):
        solve(torch.zeros(4, 64))
    with pytest.raises(TypeError, match=r"errors must be an iterable of batches .* got float"):
        solve(0.5)
    with pytest.raises(TypeError, match=r"tpkernels.solve_schedule: model must be one of: .* got ViTShape"):
        solve(of=ViTShape(4, 24, 64))
    with pytest.raises(ValueError, match=r"batches must give every block the same images, at least one, got \[0, 0, 0"):
        solve([])
    with pytest.raises(TypeError, match="batches must hold tensors or mappings of arguments, got tuple"):
        solve([(images, 1)])
    with pytest.raises(ValueError, match=r"budget must be at least 0\.\d+, the least that pooling at layers \[3\]"):
        solve(budget=0.2, layers=[3])
    with pytest.raises(ValueError, match=r"budget must be a number in \(0, 1\], got 0"):
        solve(budget=0)
    with pytest.raises(ValueError, match="layers must be distinct 0-based blocks"):
        solve(layers=[4])
    with pytest.raises(ValueError, match=r"method must be .ward., .* with adaptive=True, got 'topk' from 'ward'"):
        solve(method="topk")
    with pytest.raises(ValueError, match=r"method must be .ward., .* got 'kmeans' from 'topk'"):
        solve(method="kmeans", init="topk")
    with pytest.raises(ValueError, match="method must be one of"):
        solve(method="wards")
    with pytest.raises(ValueError, match="tower and backend must be left out without adaptive=True"):
        solve(torch.zeros(4, 64), backend="torch", adaptive=False)
    with pytest.raises(ValueError, match=r"budget must be one that distances meet to 0.005 in the mean of the images"):
        solve([images[5:6]], layers=[0], budget=0.701)
    patch(model, 0.5)
    with pytest.raises(ValueError, match=r"model must not be patched, .* got a patched DeiT"):
        solve()


def test_facts_of_others_are_no_distribution() -> None:
    good = Distribution(3, (2.0, 1.5), (2, 1), (2, 2), 0.5, 0.4, 0.6)
    fact = json.loads(json.dumps(good.as_fact()))
    assert read_fact(fact, 2) == good
    for changes in (
        {"images": "3"},
        {"mean": [2.0]},
        {"mean": 2.0},
        {"most": [2, None]},
        {"least_ratio": [0.4]},
        {"x": 1},
    ):
        assert read_fact({**fact, **changes}, 2) is None
    assert read_fact(None, 2) is None and read_fact(fact, 3) is None
    model = make_model()
    patch(model, Schedule((64, 9, 9, 9), 64, {"calibrated": 7}, (None, 1.0, None, None)))
    assert "not calibrated" in str(summary(model))
