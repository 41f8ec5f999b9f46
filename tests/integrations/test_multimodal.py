"""Vision towers in models of images and text: the tower pools, everything else is the model's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import facts, mlp_tokens, spread_weights
from tpkernels import patch, schedule_of, trace, unpatch
from tpkernels.integrations.towers import towers_in

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3}
TEXT |= {"intermediate_size": 48, "vocab_size": 120, "head_dim": 8}
VISION = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48}
VISION |= {"image_size": 32, "patch_size": 4, "projection_dim": 24}
IMAGE = 99


def need(transformers: Any, *names: str) -> list[Any]:
    found = [getattr(transformers, name, None) for name in names]
    if None in found:
        pytest.skip(f"transformers {transformers.__version__} has not all of {', '.join(names)}")
    return found


def words(tokens: int, batch: int = 2) -> dict[str, Tensor]:
    ids = torch.tensor([[IMAGE] * tokens + [2, 5, 6]] * batch)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def make_paligemma(transformers: Any) -> Any:
    """The configuration of a small PaliGemma, whose tower has no prefix."""
    vision, text, whole = need(transformers, "SiglipVisionConfig", "GemmaConfig", "PaliGemmaConfig")
    config = whole(
        vision_config=vision(**VISION),
        text_config=text(**TEXT),
        image_token_index=IMAGE,
        projection_dim=24,
        hidden_size=24,
    )
    # 4.50 takes it under the first name.
    config.image_token_id = IMAGE
    return config


def make_llava(transformers: Any, layer: int | list[int]) -> Any:
    clip, llama, whole, model = need(
        transformers, "CLIPVisionConfig", "LlamaConfig", "LlavaConfig", "LlavaForConditionalGeneration"
    )
    config = whole(
        vision_config=clip(**VISION), text_config=llama(**TEXT), image_token_index=IMAGE, image_seq_length=64,
        vision_feature_layer=layer, vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    made = model(config).eval()
    spread_weights(made)
    return made


def test_colpali_pools_pages_and_takes_queries(transformers: Any) -> None:
    config, model = need(transformers, "ColPaliConfig", "ColPaliForRetrieval")
    torch.manual_seed(0)
    model = model(config(vlm_config=make_paligemma(transformers), embedding_dim=16)).eval()
    spread_weights(model)

    def page() -> Tensor:
        return model(pixel_values=IMAGES, **words(64)).embeddings

    def query() -> Tensor:
        return model(input_ids=torch.tensor([[2, 5, 6]]), attention_mask=torch.ones(1, 3)).embeddings

    with torch.no_grad():
        plain = page(), query()
        # After a call: transformers leaves hooks of its own at the first one.
        before = facts(model)
        patch(model, 0.5)
        assert mlp_tokens(model, page) == [32, 16, 8, 4]
        assert page().shape == plain[0].shape and not torch.allclose(page(), plain[0], rtol=1e-3)
        assert torch.equal(query(), plain[1])
        # As the tower alone does.
        expected = page()
        unpatch(model)
        assert facts(model) == before and torch.equal(page(), plain[0])
        tower = towers_in(model)[0]
        patch(model, 0.5, tower=tower.path)
        assert torch.equal(page(), expected)


def test_hidden_states_of_the_language_model(transformers: Any) -> None:
    (model,) = need(transformers, "PaliGemmaForConditionalGeneration")
    model = patch(model(make_paligemma(transformers)).eval(), 0.5)
    asked = {**words(64), "pixel_values": IMAGES}
    out = model(**asked, token_type_ids=torch.zeros_like(asked["input_ids"]), output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [(2, 67, 24)] * 3


def test_llava_reads_a_layer_restored_from_tokens_by_distance(transformers: Any) -> None:
    model = make_llava(transformers, -2)
    if not hasattr(type(towers_in(model)[0].tower), "_can_record_outputs") and not hasattr(
        model, "_can_record_outputs"
    ):
        pytest.skip("this release reads the layer from a list that it fills block by block")
    images = IMAGES * torch.linspace(0.1, 1, len(IMAGES))[:, None, None, None]
    patch(model, distance=7.0)
    with torch.no_grad(), trace(model) as seen:
        together = model(pixel_values=images, **words(64, len(images))).logits
        assert seen.layers == [0, 1, 2] and len(set((seen.sizes[0] > 0).sum(1).tolist())) > 1
        alone = torch.cat([model(pixel_values=image[None], **words(64, 1)).logits for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, 3, 2])
def test_llava_reads_a_restored_layer(transformers: Any, layer: int) -> None:
    model = make_llava(transformers, layer)
    depth = 5 + layer if layer < 0 else layer
    with torch.no_grad():
        plain = model(pixel_values=IMAGES, **words(64)).logits
        tower = towers_in(model)[0]
        if not hasattr(type(tower.tower), "_can_record_outputs") and not hasattr(model, "_can_record_outputs"):
            with pytest.raises(TypeError, match=r"reads the tokens of one block \(`vision_feature_layer`"):
                patch(model, 0.5)
            return
        # A tower that ends with the layer that is read.
        short = copy.deepcopy(model.get_submodule(tower.path))
        layers = towers_in(short)[0].container
        for place in range(len(layers) - 1, depth - 1, -1):
            del layers[place]
        patch(short, 0.5)
        expected: list[Tensor] = []
        layers[-1].register_forward_hook(lambda _m, _a, out: expected.append(out[0] if isinstance(out, tuple) else out))
        short(IMAGES)
        read: list[Tensor] = []
        projector = next(part for name, part in model.named_modules() if name.endswith("multi_modal_projector"))
        projector.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))

        patch(model, 0.5)
        assert schedule_of(model) == [32, 16, 8, 4][:depth] + [[32, 16, 8, 4][depth - 1]] * (4 - depth)
        with trace(model) as seen:
            logits = model(pixel_values=IMAGES, **words(64)).logits
        assert seen.layers == list(range(depth))
        assert torch.equal(read[0], expected[0][:, 1:]) and logits.shape == plain.shape
        assert len(read[0][0].unique(dim=0)) == [32, 16, 8, 4][depth - 1]
        # Layers behind the one that is read have all tokens again.
        assert mlp_tokens(model, lambda: model(pixel_values=IMAGES, **words(64)))[depth:] == [65] * (4 - depth)
        assert torch.equal(unpatch(model)(pixel_values=IMAGES, **words(64)).logits, plain)


def test_llava_reading_other_layers_is_refused(transformers: Any) -> None:
    model = make_llava(transformers, [-2, -1])
    with pytest.raises(TypeError, match=r"reads the tokens of several blocks \(`vision_feature_layer` \[-2, -1\]\)"):
        patch(model, 0.5)
    with pytest.raises(TypeError, match=r"reads the tokens of no block \(`vision_feature_layer` 0\)|one block"):
        patch(make_llava(transformers, 0), 0.5)


def test_llava_asked_for_another_layer(transformers: Any) -> None:
    model = make_llava(transformers, -2)
    if not hasattr(getattr(transformers.utils, "output_capturing", None), "select_hidden_states"):
        pytest.skip("this release collects all layers for one")
    patch(model, 0.5)
    with pytest.raises(ValueError, match="output_hidden_states must be False for a patched model"):
        model(pixel_values=IMAGES, vision_feature_layer=-4, **words(64))
    model(pixel_values=IMAGES, vision_feature_layer=-1, **words(64))


def test_a_tower_alone_does_not_know_who_reads_it(transformers: Any) -> None:
    model = make_llava(transformers, -2)
    tower: nn.Module = towers_in(model)[0].tower
    patch(tower, 0.5)
    with pytest.raises(ValueError, match="output_hidden_states must be False for a patched model"):
        model(pixel_values=IMAGES, **words(64))
