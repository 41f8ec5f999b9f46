"""`patch` on real models of timm, torchvision and transformers, with random weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpkernels import count_macs, patch, schedule_of, summary, unpatch
from tpkernels.integrations.families import find_family

# Prefix tokens by model.
TIMM_MODELS = {
    "deit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "deit3_small_patch16_224": 1,
    "vit_tiny_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_base_patch16_clip_224": 1,
    "vit_medium_patch16_gap_240": 0,
    "vit_base_patch16_siglip_224": 0,
}
SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 32, "patch_size": 4}
TRANSFORMERS_MODELS = {
    "ViTModel": 1,
    "ViTForImageClassification": 1,
    "DeiTForImageClassification": 2,
    "DeiTForImageClassificationWithTeacher": 2,
    "Dinov2ForImageClassification": 1,
    "Dinov2WithRegistersForImageClassification": 5,
    "CLIPVisionModel": 1,
    "CLIPVisionModelWithProjection": 1,
    "CLIPModel": 1,
    "SiglipVisionModel": 0,
    "SiglipForImageClassification": 0,
}


def facts(model: nn.Module) -> tuple[Any, ...]:
    """What unpatching must bring back."""
    return (
        [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()],
        list(model.state_dict()),
        [dict(module._forward_pre_hooks) for module in model.modules()],
    )


def make_transformers(transformers: Any, name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A small model with attention far from uniform, and how it is asked."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    config = cls.config_class()
    for part in (config, *(getattr(config, part, None) for part in ("vision_config", "text_config"))):
        for field, value in {**SIZES, "intermediate_size": 96, "vocab_size": 50}.items():
            if hasattr(part, field):
                setattr(part, field, value)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    text = {"input_ids": torch.tensor([[1, 2, 3]])} if name == "CLIPModel" else {}

    def ask(model: nn.Module, **options: Any) -> Tensor:
        out = model(pixel_values=images, **text, **options)
        for field in ("logits", "logits_per_image", "image_embeds", "pooler_output"):
            if getattr(out, field, None) is not None:
                return out[field]
        return out.last_hidden_state

    return model, ask


def mlp_tokens(model: nn.Module, run: Callable[[], Any]) -> list[int]:
    """Tokens that each block's MLP gets, prefix included."""
    counts: list[int] = []
    _, container = find_family(model)
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _module, inputs: counts.append(inputs[0].shape[1]))
        for block in container.children()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def check_model(model: nn.Module, prefix: int, ask: Callable[[nn.Module], Tensor]) -> None:
    """Pooled to its schedule and finite; bit-identical with nothing pooled and after unpatching."""
    before = facts(model)
    with torch.no_grad():
        expected = ask(model)
        assert torch.equal(ask(patch(model, 1.0)), expected)
        patch(model, 0.7, layers=[1, 3])
        counts = [prefix + n for n in schedule_of(model)]
        assert counts[0] > counts[1] == counts[2] > counts[3]
        assert mlp_tokens(model, lambda: ask(model)) == counts
        pooled = ask(model)
        assert pooled.shape == expected.shape and pooled.isfinite().all()
        assert not torch.allclose(pooled, expected, rtol=1e-3)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(ask(twin), pooled)
        for options in ({"method": "kmedoids", "init": "topk"}, {"method": "topk"}, {"position": "block"}):
            assert ask(patch(model, 0.9, **options)).isfinite().all()
        unpatch(model)
        assert torch.equal(ask(model), expected)
    after = facts(model)
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm(timm: Any, name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, img_size=112, num_classes=7, depth=5).eval()
    images = torch.randn(2, 3, 112, 112)
    check_model(model, TIMM_MODELS[name], lambda model: model(images))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("eva02_tiny_patch14_224", "Eva: it takes positions from `rope`"),
        ("beit_base_patch16_224", "Beit"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("cait_xxs24_224", "Cait"),
        ("resnet18", "ResNet"),
    ],
)
def test_timm_refused(timm: Any, name: str, reason: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    before = facts(model)
    with pytest.raises(TypeError, match=reason):
        patch(model, 0.7)
    assert facts(model) == before


@pytest.mark.parametrize("representation", [None, 20])
def test_torchvision(torchvision: Any, representation: int | None) -> None:
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        32, 4, 4, 3, 24, 96, num_classes=10, representation_size=representation
    ).eval()
    nn.init.normal_(model.heads[-1].weight)
    images = torch.randn(3, 3, 32, 32)
    check_model(model, 1, lambda model: model(images))
    base = count_macs(model).base
    assert base == count_macs(patch(model, 0.5)).base == summary(model).macs.base


@pytest.mark.parametrize("name", TRANSFORMERS_MODELS)
def test_transformers(transformers: Any, name: str) -> None:
    model, ask = make_transformers(transformers, name)
    check_model(model, TRANSFORMERS_MODELS[name], ask)


def test_transformers_last_hidden_state_keeps_its_length(transformers: Any) -> None:
    model, _ = make_transformers(transformers, "ViTModel")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = model(images).last_hidden_state
        pooled = patch(model, 0.5, layers=[1])(images).last_hidden_state
        assert pooled.shape == whole.shape
        # Pooled to half: no more than half of the places hold tokens of their own.
        assert len(pooled[0, 1:].unique(dim=0)) == 32
        assert patch(model, 0.5, layers=[1], restore=False)(images).last_hidden_state.shape[1] == 33


@pytest.mark.parametrize("name", ["ViTForImageClassification", "CLIPModel", "Dinov2ForImageClassification"])
@pytest.mark.parametrize("output", ["output_attentions", "output_hidden_states"])
def test_transformers_refuses_what_pooling_breaks(transformers: Any, name: str, output: str) -> None:
    model, ask = make_transformers(transformers, name)
    patch(model, 0.5)
    with pytest.raises(ValueError, match=f"{output} must be False"):
        ask(model, **{output: True})
    config = getattr(model.config, "vision_config", model.config)
    config._attn_implementation = "eager"
    setattr(config, output, True)
    with pytest.raises(ValueError, match=f"{output} must be False"):
        ask(model)
    unpatch(model)


@pytest.mark.parametrize("name", ["BeitModel", "DINOv3ViTModel", "SwinModel", "BertModel", "CLIPTextModel"])
def test_transformers_refused(transformers: Any, name: str) -> None:
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
    with pytest.raises(TypeError, match=f"got {name}: "):
        patch(model, 0.5)
