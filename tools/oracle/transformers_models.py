"""Every model class of transformers whose configuration has to do with images."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .candidate import Candidate, images

SIDE, PATCH, FRAMES = 32, 4, 4
PATCHES = (SIDE // PATCH) ** 2
IMAGE_TOKEN = 49
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "image_size": SIDE,
    "patch_size": PATCH,
    "intermediate_size": 96,
    "vocab_size": 50,
    "pad_token_id": 0,
    "image_token_id": IMAGE_TOKEN,
    "image_token_index": IMAGE_TOKEN,
    # Widths that have to be the others'.
    "projection_dim": 24,
    "projection_size": 24,
    "pooler_output_size": 24,
    # Siglip2 counts patches, Gemma3 what it makes of them; videos have frames.
    "num_patches": PATCHES,
    "mm_tokens_per_image": 16,
    "num_frames": FRAMES,
    "resampler_n_heads": 3,
}
# By the start of a model's name: a text has several images.
SEVERAL_IMAGES = ("Idefics", "SmolVLM", "ModernVBert", "ColModernVBert", "UltraVBert")
# What configurations of models for images have one of, themselves or in their parts.
OF_IMAGES = ("vision_config", "backbone_config", "image_size", "patch_size", "tubelet_size")


def classes(transformers: Any) -> Iterator[type]:
    """The model classes, by the module that they stand in."""
    modules = set()
    for kind in transformers.CONFIG_MAPPING.values():
        if _of_images(kind):
            modules.add(kind.__module__.replace(".configuration_", ".modeling_"))
    for name in sorted(modules):
        try:
            module = importlib.import_module(name)
        except ImportError:
            # A configuration whose model is another's, or needs a package that is not there.
            continue
        for kind in vars(module).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, transformers.PreTrainedModel)
                and kind.__module__ == name
                and not kind.__name__.endswith("PreTrainedModel")
                and _of_images(kind.config_class)
            ):
                yield kind


@cache
def _of_images(kind: Any) -> bool:
    try:
        parts = parts_of(kind())
    except Exception:
        # Some cannot be made without arguments: their class says what they have.
        parts = [kind]
    return any(hasattr(part, name) for part in parts for name in OF_IMAGES)


def parts_of(config: Any) -> list[Any]:
    """A configuration and those in it."""
    inner = [value for value in vars(config).values() if hasattr(value, "model_type")]
    return [config, *(part for value in inner for part in parts_of(value))]


def candidates(transformers: Any) -> list[Candidate]:
    """One for each class."""
    return [
        Candidate("transformers", kind.__module__.split(".")[-2], kind.__name__, (), _builder(kind), ask)
        for kind in classes(transformers)
    ]


def _builder(kind: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            return kind(shrunk(kind.config_class()))
        except Exception:
            # Not all go together with these sizes: as the class has it, without memory.
            with torch.device("meta"):
                return kind(kind.config_class())

    return build


def shrunk(config: Any) -> Any:
    """The configuration with small sizes, in its parts too."""
    for part in parts_of(config):
        for field, value in SIZES.items():
            if hasattr(part, field):
                whole = getattr(part, field)
                setattr(part, field, type(whole)([value] * len(whole)) if isinstance(whole, (list, tuple)) else value)
        if hasattr(part, "tubelet_size") and not isinstance(part.tubelet_size, int):
            part.tubelet_size = [2, PATCH, PATCH]
        if hasattr(part, "num_mel_bins") and hasattr(part, "max_length"):
            part.num_mel_bins, part.max_length = SIDE, 3 * SIDE
        # Read with a default beyond these vocabularies.
        part.yes_token_index, part.no_token_index = 3, 4
    return config


# How a model is asked, once it has been: image tokens in its text, or -1 for its image features alone.
_ways: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
FEATURES = -1


def ask(model: Any, seed: int) -> Any:
    """Runs a model on images, and on as many image tokens in a text as it says that it needs.

    Where it wants more than that, its image features are all that is asked for.
    """
    inputs = inputs_of(model, seed)
    way = _ways.get(model)
    if way == FEATURES:
        return model.get_image_features(pixel_values=inputs["pixel_values"])
    if way:
        inputs["input_ids"] = torch.tensor([[1, *[IMAGE_TOKEN] * way, 2]] * 2)
    try:
        out = model(**inputs)
        _ways.setdefault(model, 0)
        return out
    except Exception as error:
        needed = re.search(r"do not match.*features:? (\d+)", str(error))
        if way is None and needed is not None:
            # Models count tokens, or the numbers in them, of the whole batch.
            count = int(needed[1]) // 2
            _ways[model] = count if count <= PATCHES else count // SIZES["hidden_size"]
        elif way is None and hasattr(model, "get_image_features"):
            _ways[model] = FEATURES
        else:
            raise
    return ask(model, seed)


def inputs_of(model: Any, seed: int) -> dict[str, Any]:
    """What a model is given: two images, and two short texts where it takes texts."""
    taken = inspect.signature(model.forward).parameters
    name = type(model).__name__
    if "input_values" in taken:
        return {"input_values": images(model, seed, 2, model.config.max_length, model.config.num_mel_bins)}
    text = torch.tensor([[1, 2, 3]] * 2)
    shape: tuple[int, ...] = (3, SIDE, SIDE)
    inputs: dict[str, Any] = {}
    if "spatial_shapes" in taken:
        mask = torch.ones(2, PATCHES, dtype=torch.long) if name.startswith("Lfm2Vl") else None
        inputs |= {"spatial_shapes": torch.tensor([[SIDE // PATCH] * 2] * 2), "pixel_attention_mask": mask}
        shape = (PATCHES, 3 * PATCH**2)
    elif name.startswith(("VideoMAE", "Vivit")):
        shape = (FRAMES, *shape)
    elif name.startswith(SEVERAL_IMAGES) and "input_ids" in taken:
        shape = (1, *shape)
    if name == "VideoMAEForPreTraining":
        inputs["bool_masked_pos"] = (torch.arange(FRAMES // 2 * PATCHES) % 2 == 0).expand(2, -1)
    if "high_res_pixel_values" in taken:
        inputs["high_res_pixel_values"] = images(model, seed, 2, 3, SIDE, SIDE)
    if "image_embeds_position_mask" in taken:
        latent = model.config.latent_query_num
        text = torch.ones(2, latent + 2, dtype=torch.long)
        inputs["image_embeds_position_mask"] = (torch.arange(latent + 2) < latent).long().expand(2, -1)
    if "input_ids" in taken:
        inputs["input_ids"] = text
    if "image_attention_mask" in taken and name.startswith("Idefics"):
        inputs["image_attention_mask"] = torch.ones(2, text.shape[1], 1, dtype=torch.long)
    if "use_cache" in taken:
        # A cache would remember what a block was called with.
        inputs["use_cache"] = False
    if "decoder_input_ids" in taken:
        inputs["decoder_input_ids"] = text
    return {"pixel_values": images(model, seed, 2, *shape), **inputs}
