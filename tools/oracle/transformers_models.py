"""Every model class of transformers whose configuration has to do with images."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .candidate import Candidate, images

SIDE, PATCH = 32, 4
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": PATCH,
    "intermediate_size": 96,
    "vocab_size": 50,
    # Siglip2 counts patches; videos have frames.
    "num_patches": (SIDE // PATCH) ** 2,
    "num_frames": 4,
}
# What configurations of models for images have one of.
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


def _of_images(config: Any) -> bool:
    try:
        config = config()
    except Exception:
        # Some cannot be made without arguments: their class says what they have.
        pass
    return any(hasattr(config, name) for name in OF_IMAGES)


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
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config"))):
        for field, value in SIZES.items():
            if hasattr(part, field):
                whole = getattr(part, field)
                setattr(part, field, type(whole)([value] * len(whole)) if isinstance(whole, (list, tuple)) else value)
        if hasattr(part, "tubelet_size") and not isinstance(part.tubelet_size, int):
            part.tubelet_size = [2, PATCH, PATCH]
    return config


def ask(model: Any, seed: int) -> Any:
    """Runs a model on images, and on as many image tokens in a text as it says that it needs."""
    inputs = inputs_of(model, seed)
    for _ in range(2):
        try:
            return model(**inputs)
        except ValueError as error:
            counts = re.search(r"do not match.*?tokens:? (\d+).*?features:? (\d+)", str(error))
            if counts is None or "input_ids" not in inputs:
                raise
            have, need = map(int, counts.groups())
            print(have, need, error)
            raise
    raise AssertionError


def inputs_of(model: Any, seed: int) -> dict[str, Any]:
    taken = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"pixel_values": images(model, seed, 2, 3, SIDE, SIDE)}
    if "input_ids" in taken:
        inputs["input_ids"] = torch.tensor([[1, 2, 3]] * 2)
    return inputs
