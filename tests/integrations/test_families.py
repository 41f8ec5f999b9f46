"""`patch` on real models of timm, torchvision and transformers, with random weights."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.support.models import (
    facts,
    make_config,
    make_inputs,
    make_timm,
    make_torchvision,
    make_transformers,
    mlp_tokens,
)
from tpkernels import count_macs, patch, schedule_of, summary, unpatch
from tpkernels.integrations.transformers import Transformers

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
    "Siglip2VisionModel": 0,
    "CLIPSegModel": 1,
    "ViTMSNForImageClassification": 1,
    "IJepaForImageClassification": 0,
    "VideoMAEForVideoClassification": 0,
    "VivitForVideoClassification": 1,
}


def check_model(model: nn.Module, prefix: int, ask: Callable[[nn.Module], Tensor]) -> None:
    """Pooled to its schedule and finite; bit-identical with nothing pooled and after unpatching."""
    before = facts(model)
    with torch.no_grad():
        printed, expected = str(model), ask(model)
        assert torch.equal(ask(patch(model, 1.0)), expected)
        patch(model, 0.7, layers=[1, 3])
        counts = [prefix + n for n in schedule_of(model)]
        assert counts[0] > counts[1] == counts[2] > counts[3]
        assert mlp_tokens(model, lambda: ask(model)) == counts
        pooled = ask(model)
        assert str(model).count("\n") == printed.count("\n")
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


# Not on the meta device, where older releases cannot build all of them.
OF_ANY_SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PLAIN = {**OF_ANY_SIZE, "img_size": 64}


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 1)}, "SwinTransformer: "),
        ("eva02_tiny_patch14_224", PLAIN | {"img_size": 56}, "Eva: its Eva takes positions from `rope`"),
        ("eva_giant_patch14_224", PLAIN | {"img_size": 56}, "Eva: its `blocks` is a ModuleList, not an nn.Sequential"),
        ("vit_small_patch16_dinov3", PLAIN, "Eva: its Eva takes positions from `rope`"),
        ("vit_small_patch16_rope_224", PLAIN, "Eva: its Eva takes positions from `rope`"),
        (
            "naflexvit_base_patch16_gap",
            {"embed_dim": 24, "depth": 2, "num_heads": 2},
            "NaFlexVit: it has no `patch_embed`: such models .NaFlex. take patches in any number",
        ),
        (
            "vit_base_mci_224",
            {},
            r"its HybridEmbed has no projection of patches \(`proj`\): a network of its own makes",
        ),
        (
            "vitamin_small_224",
            {},
            r"its HybridEmbed has no projection of patches \(`proj`\): a network of its own makes",
        ),
        ("beit_base_patch16_224", PLAIN, "Beit: its Attention takes positions from `relative_position_bias_table`"),
        ("vit_relpos_small_patch16_224", PLAIN, "its RelPosAttention takes positions from `rel_pos`"),
        ("samvit_base_patch16", OF_ANY_SIZE, "takes positions from `window_size`"),
        ("vit_small_patch16_18x2_224", PLAIN, "its ParallelThingsBlock has no norm1"),
        ("vit_dlittle_patch16_reg1_gap_256", PLAIN, "its Block computes something else than a pre-norm block"),
        ("cait_xxs24_224", PLAIN, "Cait: its LayerScaleBlock computes something else"),
        ("mixer_s16_224", {}, "MlpMixer: its MixerBlock has no attn"),
        ("resnet18", {}, "ResNet: it has neither `blocks` nor"),
    ],
)
def test_timm_refused(timm: Any, name: str, changes: dict[str, Any], reason: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = timm.create_model(name, pretrained=False, **changes)
    before = facts(model)
    with pytest.raises(TypeError, match=f"got {type(model).__name__}: ") as caught:
        patch(model, 0.7)
    assert re.search(reason, str(caught.value))
    assert facts(model) == before


def test_timm_intermediates_are_refused_while_patched(timm: Any) -> None:
    model = make_timm(timm)
    images = torch.randn(2, 3, 32, 32)
    names = [name for name in ("forward_intermediates", "_intermediate_layers") if hasattr(model, name)]
    assert names
    before = [tree_leaves(getattr(model, name)(images)) for name in names]
    patch(model, 0.5)
    for name in (*names, "get_intermediate_layers"):
        with pytest.raises(ValueError, match="must not be called on a patched model"):
            getattr(model, name)(images)
    unpatch(model)
    for name, expected in zip(names, before, strict=True):
        assert all(map(torch.equal, tree_leaves(getattr(model, name)(images)), expected))


@pytest.mark.parametrize("representation", [None, 20])
def test_torchvision(torchvision: Any, representation: int | None) -> None:
    model = make_torchvision(torchvision, representation_size=representation)
    images = torch.randn(3, 3, 32, 32)
    check_model(model, 1, lambda model: model(images))
    base = count_macs(model).base
    assert base == count_macs(patch(model, 0.5)).base == summary(model).macs.base


@pytest.mark.parametrize("name", TRANSFORMERS_MODELS)
def test_transformers(transformers: Any, name: str) -> None:
    model, ask = make_transformers(transformers, name)
    if any(key.endswith("q_bias") for key in model.state_dict()):
        # VideoMAE before release 5 keeps biases beside its linear layers.
        with pytest.raises(TypeError, match="computes something else than a pre-norm block"):
            patch(model, 0.5)
    else:
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
    # Releases differ in whose configuration counts.
    for config in {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }.values():
        config._attn_implementation = "eager"
        setattr(config, output, True)
    with pytest.raises(ValueError, match=f"{output} must be False"):
        ask(model)
    unpatch(model)


REFUSED = {
    "DINOv3ViTModel": "takes positions from `(rope|position)_embeddings` inside attention",
    "Data2VecVisionModel": "takes positions from `relative_position_bias` inside attention",
    "BeitModel": "its BeitLayer (computes something else than|does not run as|takes positions)",
    "CLIPSegForImageSegmentation": "reads the tokens of several blocks \\(`extract_layers`\\)",
    "Dinov2Backbone": "reads the tokens of several blocks \\(`out_indices`\\)",
    "DepthAnythingForDepthEstimation": "its Dinov2Backbone reads the tokens of several blocks",
    "DPTForSemanticSegmentation": "reads the tokens of several blocks \\(`backbone_out_indices`\\)",
    "VipLlavaModel": "reads the tokens of several blocks \\(`vision_feature_layers?`",
    "ViTMAEModel": "leaves out patches at random \\(mask_ratio 0.75\\)",
    "EomtForUniversalSegmentation": "has a part `query`, and what that does to tokens is not known",
    "YolosModel": "has a part `.*interpolation`, and what that does",
    "ViltModel": "has a part `text_embeddings`, and what that does",
    "Aimv2VisionModel": "it has neither `blocks` nor one vision tower",
    "BlipVisionModel": "its BlipAttention has not one linear layer each for q, k, v and the output",
    "SwinModel": "",
    "BertModel": "it has neither `blocks` nor one vision tower",
    "CLIPTextModel": "it has neither `blocks` nor one vision tower",
}


@pytest.mark.parametrize("name", REFUSED)
def test_transformers_refused(transformers: Any, name: str) -> None:
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if name == "SwinModel":
        model = cls(cls.config_class(embed_dim=12, depths=[1, 1], num_heads=[1, 1]))
    else:
        model = cls(make_config(cls))
    before = facts(model)
    with pytest.raises(TypeError, match=f"got {name}: ") as caught:
        patch(model, 0.5)
    assert re.search(REFUSED[name], str(caught.value))
    assert facts(model) == before


def test_siglip2_takes_no_padding(transformers: Any) -> None:
    model, _ = make_transformers(transformers, "Siglip2VisionModel")
    inputs = make_inputs("Siglip2VisionModel")
    inputs["pixel_attention_mask"] = torch.ones(3, 64, dtype=torch.long)
    inputs["pixel_attention_mask"][0, 60:] = 0
    patch(model, 0.5)
    with pytest.raises(ValueError, match="attention_mask must be None in a patched model"):
        model(**inputs)


def test_outputs_asked_for_by_position_are_refused() -> None:
    class Older(nn.Module):
        """A model as releases before 5 have them."""

        config = None

        def forward(self, pixel_values: Tensor, head_mask: Any = None, output_hidden_states: Any = None) -> None: ...

    images = torch.zeros(1)
    family = Transformers()
    family.check_call(Older(), (images, None, False), {})
    with pytest.raises(ValueError, match="output_hidden_states must be False for a patched model"):
        family.check_call(Older(), (images, None, True), {})
