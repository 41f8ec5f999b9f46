"""`patch(model, distance=...)`: every image keeps what it needs, and gets what a call of its own gives it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.deit import make_model
from tests.support.models import (
    facts,
    make_timm,
    make_torchvision,
    make_transformers,
    mlp_tokens,
    spread_weights,
    watch_mlps,
)  # fmt: skip
from tpkernels import Schedule, patch, save_schedule, schedule_of, summary, trace, unpatch, ward
from tpkernels.integrations import packed

DISTANCE = [3.0, None, 4.0, None]


def draw_images(batch: int = 5, channels: int = 3, side: int = 32) -> Tensor:
    """From nearly flat to full of contrast, so that they keep from few tokens to all."""
    images = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    return images * torch.linspace(0.1, 1, batch)[:, None, None, None]


def make(request: pytest.FixtureRequest, family: str) -> nn.Module:
    """A model of a library; "average" is one of timm whose head reads the mean of the restored tokens."""
    if family == "torchvision":
        return make_torchvision(request.getfixturevalue("torchvision"))
    if family in ("timm", "average"):
        options = {"global_pool": "avg", "class_token": False, "fc_norm": True} if family == "average" else {}
        return make_timm(request.getfixturevalue("timm"), init_values=0.5, qk_norm=True, **options)
    return make_transformers(request.getfixturevalue("transformers"), family)[0]


def ask(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images)
    return out if isinstance(out, Tensor) else out.last_hidden_state if "last_hidden_state" in out else out.logits


def kept(model: nn.Module, images: Tensor) -> list[list[int]]:
    """Tokens of each image after every pooling, prefix included."""
    with torch.no_grad(), trace(model) as seen:
        model(images)
    return [(sizes > 0).sum(1).tolist() for sizes in seen.sizes]


OPTIONS: dict[str, dict[str, Any]] = {
    "ward": {},
    "plain attention": {"proportional": False},
    "kmeans": {"method": "kmeans", "proportional": False},
    "kmedoids": {"method": "kmedoids", "output": "medoid"},
    "after the MLP": {"position": "block", "distance": [6.0, None, 30.0, None]},
    "weighted": {"weighted": True, "distance": [8.0, None, 20.0, None]},
    "a ratio at most": {"keep": 0.7},
    "counts at most": {"keep": [30, None, 11, None]},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", ["timm", "average", "torchvision", "ViTForImageClassification", "SiglipVisionModel"])
def test_an_image_gets_what_a_call_of_its_own_gives_it(
    request: pytest.FixtureRequest, family: str, options: str
) -> None:
    model, images = make(request, family), draw_images()
    patch(model, **{"distance": DISTANCE, **OPTIONS[options]})
    counts = kept(model, images)
    assert len(counts) == 2 and len(set(counts[0])) > (1 if "keep" in OPTIONS[options] else 2)
    with torch.no_grad():
        together = ask(model, images)
        alone = torch.cat([ask(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert [[row[0] for row in kept(model, image[None])] for image in images] == torch.tensor(counts).T.tolist()


@pytest.mark.parametrize("family", ["timm", "torchvision", "ViTModel"])
@pytest.mark.parametrize("proportional", [True, False])
def test_packed_is_padded(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, family: str, proportional: bool
) -> None:
    model, images = make(request, family), draw_images()
    patch(model, distance=DISTANCE, proportional=proportional)
    made: list[int] = []
    pack = packed.Packed.pack
    monkeypatch.setattr(packed.Packed, "pack", lambda self, x: made.append(x.shape[1]) or pack(self, x))
    x = images.clone().requires_grad_()
    ask(model, x).sum().backward()
    assert made
    monkeypatch.setattr(packed, "_LEAST_PADDING", 1.0)
    made.clear()
    y = images.clone().requires_grad_()
    ask(model, y).sum().backward()
    assert not made and x.grad is not None and y.grad is not None
    torch.testing.assert_close(ask(model, x), ask(model, y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4 * float(y.grad.abs().max()))


def test_only_tokens_that_are_there_are_computed(timm: Any) -> None:
    model, images = make_timm(timm), draw_images()
    patch(model, distance=DISTANCE)
    counts = kept(model, images)
    rows: list[int] = []
    # Not by hooks, beside which nothing is packed.
    for block in model.blocks.children():
        linear = block.mlp.fc1
        whole = type(linear).forward
        linear.forward = lambda x, linear=linear, whole=whole: rows.append(x.shape[0] * x.shape[1]) or whole(linear, x)
    with torch.no_grad():
        model(images)
    first, last = (sum(one) for one in counts)
    assert rows == [first, first, last, last]
    # Hooks see images side by side, and no column that is padding in all of them.
    hook = model.blocks[1].norm1.register_forward_hook(lambda *_: None)
    rows.clear()
    with torch.no_grad():
        model(images[:3])
    hook.remove()
    first, last = (one[:3] for one in counts)
    assert rows == [sum(first), 3 * max(first), sum(last), sum(last)] and max(first) < 65


def test_the_distance_is_wards(timm: Any) -> None:
    """An image keeps as many tokens as Ward's dendrogram has below the distance, sizes as masses."""
    model, images = make_timm(timm), draw_images()
    found: list[Tensor] = []
    hooks = watch_mlps(model, lambda *_: None)
    norms = [block.norm2.register_forward_pre_hook(lambda _, args: found.append(args[0])) for block in model.blocks]
    patch(model, distance=[3.0, 4.0, None, None])
    with torch.no_grad(), trace(model) as seen:
        model(images)
    for hook in (*hooks, *norms):
        hook.remove()
    unpatch(model)
    with torch.no_grad():
        x = model.blocks[0].norm1.register_forward_hook(lambda _, args, out: found.append(args[0]))
        model(images)
        x.remove()
        tokens = found[-1] + model.blocks[0].attn(model.blocks[0].norm1(found[-1]))
        heights = ward(tokens[:, 1:], 1).merge_heights
    assert (seen.sizes[0] > 0).sum(1).tolist() == [65 - int((row <= 4.5).sum()) for row in heights]


def test_the_trace_is_that_of_each_image(timm: Any) -> None:
    model, images = make_timm(timm, global_pool="avg"), draw_images()
    patch(model, distance=DISTANCE)
    with torch.no_grad(), trace(model) as seen:
        model(images)
    whole = seen.sources, seen.sizes
    for place, image in enumerate(images):
        with torch.no_grad(), trace(model) as seen:
            model(image[None])
        for source, sizes, one, single in zip(*whole, seen.sources, seen.sizes, strict=True):
            assert torch.equal(source[place], one[0]) and source[place].min() >= 0
            assert torch.equal(sizes[place, : single.shape[1]], single[0]) and not sizes[place, single.shape[1] :].any()


@pytest.mark.parametrize("family", ["timm", "torchvision", "ViTForImageClassification"])
def test_training_reaches_every_weight(request: pytest.FixtureRequest, family: str) -> None:
    model, images = make(request, family).train(), draw_images()
    patch(model, distance=DISTANCE)
    ask(model, images).square().sum().backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in model.parameters())
    alone = copy.deepcopy(model)
    alone.zero_grad()
    for image in images:
        ask(alone, image[None]).square().sum().backward()
    most = max(float(one.grad.abs().max()) for one in model.parameters())
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5 * most)


def test_checkpointing_changes_nothing(timm: Any) -> None:
    model, images = make_timm(timm, global_pool="avg").train(), draw_images()
    patch(model, distance=DISTANCE)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([one.grad.clone() for one in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_in_one_graph_the_width_is_that_of_keep(timm: Any, dynamic: bool) -> None:
    model = make_timm(timm, depth=2, global_pool="avg")
    patch(model, 0.7, distance=3.0, layers=[0])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 4) if dynamic else (3,):
            images = draw_images(batch)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_exported(timm: Any) -> None:
    model, images = make_timm(timm, depth=2), draw_images()
    patch(model, 0.7, distance=3.0, layers=[0])
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
    # What is said of the model is the most.
    assert schedule_of(model) == [45, 45]


def test_unpatched_it_is_as_it_was(timm: Any) -> None:
    model, images = make_timm(timm), draw_images()
    before, plain = facts(model), model(images)
    once = patch(model, distance=DISTANCE)(images)
    twice = patch(patch(model, 0.5), distance=DISTANCE)(images)
    assert torch.equal(once, twice) and not torch.allclose(once, plain, rtol=1e-3)
    assert torch.equal(unpatch(model)(images), plain) and facts(model) == before
    # Nothing is nearer than 0 but what is equal: every token stays.
    torch.testing.assert_close(patch(model, distance=0.0)(images), plain)


def test_a_schedule_brings_its_own(timm: Any, tmp_path: Path) -> None:
    model, images, path = make_timm(timm), draw_images(), tmp_path / "schedule.json"
    schedule = Schedule((40, 40, 20, 20), 64, {}, tuple(DISTANCE))
    save_schedule(path, schedule)
    outs = [patch(model, [40, None, 20, None], distance=DISTANCE)(images)]
    outs += [patch(model, keep=one)(images) for one in (schedule, path, str(path))]
    assert schedule_of(model) == [40, 40, 20, 20]
    outs += [patch(model, distance=one)(images) for one in (schedule, path, str(path))]
    assert all(torch.equal(outs[0], out) for out in outs)
    same = Schedule((40, 40, 20, 20), 64)
    assert torch.equal(patch(model, same)(images), patch(model, [40, 40, 20, 20])(images))


def test_what_the_summary_says(timm: Any) -> None:
    model = make_timm(timm)
    found = summary(patch(model, 0.5, distance=3.0, layers=[1, 2]))
    assert found.schedule == (64, 32, 16, 16) and found.distance == (None, 3.0, 3.0, None)
    assert found.calibrated is None and "not calibrated" in str(found) and "by distance" in str(found)
    assert "for an image that keeps the most" in str(found).splitlines()[-2]
    # By distance a block pools also where all may remain.
    assert "nothing pooled" not in str(summary(patch(model, distance=3.0)))


def test_fewer_tokens_than_the_minimum_pass(timm: Any) -> None:
    model, images = make_timm(timm), draw_images()
    patch(model, distance=DISTANCE, min_tokens=5 * 64)
    assert mlp_tokens(model, lambda: model(images[:2])) == [65] * 4
    assert len(set(kept(model, images)[0])) > 2


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "budget": ({"distance": 1.0, "budget": 0.5}, ValueError, "budget must be None beside distance, got 0.5"),
    "topk": (
        {"distance": 1.0, "method": "topk"},
        ValueError,
        "distance must be None but for method \"ward\", .*'topk'",
    ),
    "start": (
        {"distance": 1.0, "method": "kmeans", "init": "topk"},
        ValueError,
        "distance must be None but for method .*, got 1.0 for 'kmeans' from 'topk'",
    ),
    "grid": (
        {"keep": Schedule((64, 9, 9, 9), 64, {}, (None, 1.0, None, None)), "method": "grid"},
        ValueError,
        "distance must be None but for method .* for 'grid'",
    ),
    "true": ({"distance": True}, TypeError, "distance must be a finite number of at least 0, got True"),
    "tensor": ({"distance": torch.ones(4)}, TypeError, "distance must be a finite number of at least 0, got tensor"),
    "negative": ({"distance": -1}, ValueError, "distance must be a finite number of at least 0, got -1"),
    "nan": ({"distance": [1, math.nan, 1, 1]}, ValueError, r"distance\[1\] must be a finite number .* got nan"),
    "infinite": ({"distance": math.inf}, ValueError, "distance must be a finite number of at least 0, got inf"),
    "length": ({"distance": [1.0]}, ValueError, "distance must have 4 entries, one per block, got 1"),
    "layers": ({"distance": DISTANCE, "layers": [1]}, ValueError, "layers must be None beside a list of distance, "),
    "no layer": ({"distance": 1.0, "layers": [4]}, ValueError, "layers must be distinct 0-based blocks"),
    "keep": ({"distance": DISTANCE, "keep": [1, 1, 1, 1]}, ValueError, r"keep\[1\] must be None where a block has no "),
    "keep too large": ({"distance": DISTANCE, "keep": 1.5}, ValueError, "keep must be a ratio"),
    "schedule": ({"distance": 1.0, "keep": Schedule((9,) * 4, 64)}, ValueError, "distance must be None beside a sched"),
    "two schedules": (
        {"distance": Schedule((64,) * 4, 64, {}, (None,) * 4), "keep": 0.5},
        ValueError,
        "keep must be None beside a schedule of distances, which has its own, got 0.5",
    ),
    "no distances": ({"distance": Schedule((9,) * 4, 64)}, ValueError, "distance must be a schedule with distances"),
    "misfit": ({"keep": Schedule((9,) * 3, 64)}, ValueError, "the Schedule must fit a model of 4 blocks and 64 patch"),
    "nothing": ({}, ValueError, "keep or budget must be given, and not both, got neither, nor distance"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_bad_input_gets(kind: str) -> None:
    model = make_model()
    before, (options, error, message) = facts(model), BAD[kind]
    with pytest.raises(error, match=message):
        patch(model, **options)
    assert facts(model) == before


def test_a_nan_image_stays_alone(timm: Any) -> None:
    model, images = make_timm(timm), draw_images()
    patch(model, distance=DISTANCE)
    with torch.no_grad():
        expected = model(images)
        images[1, 0, 3, 3] = torch.nan
        found = model(images)
    others = torch.arange(5) != 1
    torch.testing.assert_close(found[others], expected[others], rtol=1e-5, atol=1e-5)


def test_other_sizes_and_heads_that_read_all(timm: Any) -> None:
    model = make_timm(timm, dynamic_img_size=True, class_token=False, global_pool="map")
    spread_weights(model)
    patch(model, 0.6, distance=DISTANCE[0], layers=[0, 1])
    for side in (16, 48):
        images = draw_images(side=side)
        with torch.no_grad():
            alone = torch.cat([model(image[None]) for image in images])
            torch.testing.assert_close(model(images), alone, rtol=1e-5, atol=1e-5)
