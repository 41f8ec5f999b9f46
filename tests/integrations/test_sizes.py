"""What a patched model resolves in every call: tokens by the image; prefix, restoring and grid by the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.deit import make_model
from tests.support.models import make_timm, make_torchvision, make_transformers, mlp_tokens
from tpkernels import patch, resolve_budget, resolve_keep, save_schedule, schedule_of, summary, trace, unpatch
from tpkernels.integrations.towers import towers_in

SIDES = (16, 32, 64)


def tokens_at(model: nn.Module, side: int, **options: Any) -> list[int]:
    """Patch tokens that each block's MLP gets for images of a side, in patches of 4."""
    images = torch.randn(2, 3, side, side)
    return [n - 1 for n in mlp_tokens(model, lambda: model(images, **options))]


def dynamic(timm: Any, **options: Any) -> nn.Module:
    return make_timm(timm, dynamic_img_size=True, **options)


@pytest.mark.parametrize("side", SIDES)
def test_a_ratio_holds_at_every_size(timm: Any, transformers: Any, side: int) -> None:
    n = (side // 4) ** 2
    expected = resolve_keep(0.5, 4, n, [1, 3])
    assert tokens_at(patch(dynamic(timm), 0.5, layers=[1, 3]), side) == expected
    model, _ = make_transformers(transformers, "ViTForImageClassification")
    assert tokens_at(patch(model, 0.5, layers=[1, 3]), side, interpolate_pos_encoding=True) == expected
    # What is said is said of the model's own size.
    assert schedule_of(model) == resolve_keep(0.5, 4, 64, [1, 3]) == list(summary(model).schedule)
    assert "64 patches of an image of its own size" in str(summary(model))


@pytest.mark.parametrize("side", SIDES)
def test_a_budget_keeps_its_ratio_and_counts_stay_counts(timm: Any, tmp_path: Path, side: int) -> None:
    model, n = dynamic(timm), (side // 4) ** 2
    patch(model, budget=0.7, layers=[0, 2])
    assert schedule_of(model) == resolve_budget(model, 0.7, [0, 2])
    ratio = model.blocks.plan.keep[0]
    assert isinstance(ratio, float) and tokens_at(model, side) == resolve_keep(ratio, 4, n, [0, 2])
    save_schedule(tmp_path / "counts.json", [64, 30, 30, 10], num_patches=64)
    for keep in (tmp_path / "counts.json", [64, 30, None, 10]):
        patch(model, keep)
        assert tokens_at(model, side) == [min(count, n) for count in (64, 30, 30, 10)]
        assert schedule_of(model) == [64, 30, 30, 10]


def test_another_input_size(timm: Any) -> None:
    model = patch(make_timm(timm), 0.5, layers=[1])
    if not hasattr(model, "set_input_size"):
        pytest.skip("this release of timm keeps a model's size")
    with pytest.raises(AssertionError):
        model(torch.randn(1, 3, 64, 64))
    model.set_input_size((64, 32))
    images = torch.randn(2, 3, 64, 32)
    assert mlp_tokens(model, lambda: model(images)) == [129, 65, 65, 65]
    assert schedule_of(model) == [128, 64, 64, 64] and summary(model).num_patches == 128
    # The grid of a size that is no square.
    found = patch(model, 0.25, layers=[1], method="grid", restore=False)
    with trace(found) as seen:
        model(images)
    cells = seen.sources[0][0, 1:].reshape(16, 8) - 1
    assert torch.equal(cells, torch.arange(32).reshape(8, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("first", ["patch", "reset"])
def test_another_head(timm: Any, first: str) -> None:
    model, images = make_timm(timm), torch.randn(2, 3, 32, 32)
    if first == "patch":
        patch(model, 0.5)
        assert not summary(model).restore
        model.reset_classifier(5, global_pool="avg")
    else:
        model.reset_classifier(5, global_pool="avg")
        patch(model, 0.5)
    assert summary(model).restore
    nn.init.ones_(model.head.weight)
    with trace(model) as seen:
        logits = model(images)
    tokens = model.forward_features(images)
    assert tokens.shape[1] == 65 and seen.sources[-1].shape == (2, 65)
    torch.testing.assert_close(logits, model.head(model.fc_norm(tokens[:, 1:].mean(1))))
    # What was asked for stays.
    patch(model, 0.5, restore=False)
    assert model.forward_features(images).shape[1] == 5
    model.reset_classifier(5, global_pool="token")
    patch(model, 0.5)
    assert model.forward_features(images).shape[1] == 5


def prompted(timm: Any, tells: bool) -> nn.Module:
    """Six prompts between the class token and the patches."""

    class Prompted(timm.models.vision_transformer.VisionTransformer):
        def _pos_embed(self, x: Tensor) -> Tensor:
            x = super()._pos_embed(x)
            return torch.cat(
                [x[:, :1], torch.linspace(-1, 1, 6 * 24).reshape(1, 6, 24).expand(len(x), -1, -1), x[:, 1:]], 1
            )

    torch.manual_seed(0)
    model = Prompted(img_size=32, patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=7).eval()
    if tells:
        model.num_prefix_tokens = 7
    return model


def test_prompts_are_never_pooled(timm: Any) -> None:
    images = torch.randn(2, 3, 32, 32)
    silent = patch(prompted(timm, False), 0.5)
    with pytest.raises(
        RuntimeError, match=r"num_prefix_tokens: .* at most 64 patches and the 1 tokens .*, got 71 tokens"
    ):
        silent(images)
    for model in (patch(prompted(timm, True), 0.5), patch(prompted(timm, False), 0.5, num_prefix_tokens=7)):
        assert mlp_tokens(model, lambda model=model: model(images)) == [39, 23, 15, 11]
        with trace(model) as seen:
            model(images)
        assert seen.sources[-1][:, :7].eq(torch.arange(7)).all() and summary(model).num_prefix_tokens == 7
    # Told later, asked in every call.
    silent.num_prefix_tokens = 7
    assert mlp_tokens(silent, lambda: silent(images)) == [39, 23, 15, 11]


def test_prompts_of_transformers(transformers: Any) -> None:
    model, ask = make_transformers(transformers, "ViTForImageClassification")
    embeddings = model.vit.embeddings

    class Prompted(type(embeddings)):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            x = super().forward(*args, **kwargs)
            return torch.cat([x[:, :1], torch.ones(len(x), 6, 24), x[:, 1:]], 1)

    patch(model, 0.5)
    embeddings.__class__ = Prompted
    with pytest.raises(
        RuntimeError, match=r"num_prefix_tokens: .* at most 64 patches and the 1 tokens .*, got 71 tokens"
    ):
        ask(model)
    patch(model, 0.5, num_prefix_tokens=7)
    assert mlp_tokens(model, lambda: ask(model)) == [39, 23, 15, 11]
    unpatch(model)
    assert not embeddings._forward_hooks
    model.vit.num_prefix_tokens = 7
    patch(model, 0.5)
    assert mlp_tokens(model, lambda: ask(model)) == [39, 23, 15, 11]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "num_prefix_tokens must be at least 0, got -1"),
        (1.0, TypeError, "num_prefix_tokens must be an int, got float"),
    ],
)
def test_bad_prefixes(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        patch(make_model(), 0.5, num_prefix_tokens=value)


METHODS: tuple[dict[str, Any], ...] = (
    {}, {"method": "kmeans", "init": "topk"}, {"method": "kmedoids", "init": "topk"}, {"method": "kmedoids"},
    {"method": "topk"}, {"method": "importance"}, {"method": "random"}, {"method": "grid"}, {"method": "bipartite"},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("place", range(len(METHODS)), ids=lambda place: "-".join(METHODS[place].values()) or "ward")
def test_one_graph_for_every_method(request: pytest.FixtureRequest, place: int, dynamic: bool) -> None:
    library = ("timm", "torchvision", "transformers")[(place + dynamic) % 3]
    package, options = request.getfixturevalue(library), METHODS[place]
    if library == "transformers":
        model, _ = make_transformers(package, "ViTForImageClassification")
    else:
        model = make_timm(package) if library == "timm" else make_torchvision(package)
    # Two blocks: what takes long is tracing each with open sizes.
    del towers_in(model)[0].container[2:]
    patch(model, 0.6, layers=[0], **options)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", dynamic=dynamic, fullgraph=True)

    def ask(model: Any, images: Tensor) -> Tensor:
        out = model(images)
        return out.logits if library == "transformers" else out

    with torch.no_grad():
        for batch in (3, 5):
            images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
            torch.testing.assert_close(ask(compiled, images), ask(model, images), rtol=1e-4, atol=1e-4)
