"""The shape of a vision transformer: given, or read from a model by its structure, without importing its library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class ViTShape:
    """What the MACs of a plain vision transformer depend on.

    Args:
        depth: blocks.
        dim: channels of a token.
        num_patches: patch tokens that enter the first block.
        num_prefix_tokens: class, distillation and register tokens; they are never pooled.
        mlp_ratio: hidden channels of the MLP over `dim`.
        patch_dim: numbers in a patch (3 * 16 * 16 at DeiT's patch size).
        num_classes: outputs of the head, or of all heads; 0 for none.

    Raises:
        TypeError: a field that is not a number of its kind.
        ValueError: a field out of range.
    """

    depth: int
    dim: int
    num_patches: int
    num_prefix_tokens: int = 1
    mlp_ratio: float = 4.0
    patch_dim: int = 768
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "mlp_ratio":
                if isinstance(value, bool) or not isinstance(value, Real):
                    raise TypeError(f"mlp_ratio must be a positive number, got {value!r}")
                if not 0 < float(value) < math.inf:
                    raise ValueError(f"mlp_ratio must be a positive number, got {value!r}")
            else:
                least = 0 if field.name in ("num_prefix_tokens", "num_classes") else 1
                check_integer(field.name, value, least)


def check_integer(name: str, value: object, least: int) -> int:
    """Returns `value` as an int; raises where it is no integer (TypeError) or less than `least` (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}")
    return int(value)


def vit_shape(model_or_shape: Any) -> ViTShape:
    """The `ViTShape` given, or read from a vision transformer of timm, torchvision or transformers.

    - timm (and all with its names): `blocks`, `patch_embed.proj`, `patch_embed.num_patches` or `.grid_size` or
      else `pos_embed`, `num_prefix_tokens` or else `cls_token`, `dist_token`, `reg_token`, and `head` (`head_dist`).
    - torchvision: `encoder.layers`, `conv_proj`, `class_token`, `heads`.
    - transformers: the vision tower (see `vision_tower`), its layers, `embeddings` and the classifiers beside it.

    The MLP's size is that of its weight matrices, so gated MLPs count in full. Heads that attend to the tokens, and
    the text tower of a model with two, are not counted.

    Raises:
        TypeError: what is given has no such parts; the message names its class.
    """
    if isinstance(model_or_shape, ViTShape):
        return model_or_shape
    try:
        return _reader(model_or_shape)(model_or_shape)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise TypeError(
            "model_or_shape must be a ViTShape or a vision transformer with the structure of timm's (blocks, "
            "patch_embed.proj, pos_embed, cls_token, head), torchvision's (encoder.layers, conv_proj) or transformers' "
            f"(embeddings, layers), got {type(model_or_shape).__name__} ({error})"
        ) from error


def vision_tower(model: Any) -> Any:
    """The part of a transformers model that turns patches into tokens: `embeddings` with patches, and layers.

    None where there is none, or more than one.
    """
    named = getattr(model, "modules", None)
    if not callable(named):
        return None
    towers = [
        module
        for module in named()
        if has_patches(getattr(module, "embeddings", None)) and tower_layers(module) is not None
    ]
    return towers[0] if len(towers) == 1 else None


def block_in(child: Any) -> Any:
    """The block in a container's child: checkpointing, compiling and sharding wrap a block in a module of one part."""
    parts = list(child.children())
    # A list in a module of one part is a stage of several blocks.
    return block_in(parts[0]) if len(parts) == 1 and not hasattr(parts[0], "__len__") else child


def has_patches(embeddings: Any) -> bool:
    """Whether these are transformers' embeddings of an image."""
    return _patches_of(embeddings) is not None


def patch_projection(embeddings: Any) -> Any:
    """The layer that projects the patches in transformers' embeddings."""
    patches = _patches_of(embeddings)
    return _base_of(getattr(patches, "projection", patches))


def tower_layers(tower: Any) -> Any:
    """The layers of a vision tower: `layers` or `layer` of itself or of its `encoder`; None where it has none."""
    for holder in (tower, getattr(tower, "encoder", None)):
        for name in ("layers", "layer"):
            layers = getattr(holder, name, None)
            if layers is not None and hasattr(layers, "__len__"):
                return layers
    return None


def tower_prefix(tower: Any) -> int:
    """Class, distillation and register tokens of a vision tower, and others that it counts itself."""
    told = getattr(tower, "num_prefix_tokens", None)
    if isinstance(told, int):
        return told
    embeddings = tower.embeddings
    names = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
    tokens = [getattr(embeddings, name, None) for name in names]
    return sum(int(token.shape[1]) if token.dim() == 3 else 1 for token in tokens if token is not None)


def timm_prefix(model: Any) -> int:
    """Class, distillation and register tokens of a model with timm's names, and others that it counts itself."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if isinstance(prefix, int):
        return prefix
    tokens = (getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token"))
    return sum(int(token.shape[1]) for token in tokens if token is not None)


def _reader(model: Any) -> Callable[[Any], ViTShape]:
    if hasattr(model, "blocks"):
        return _read_timm
    if hasattr(model, "conv_proj"):
        return _read_torchvision
    return _read_timm if vision_tower(model) is None else _read_transformers


def _read_timm(model: Any) -> ViTShape:
    projection = _base_of(model.patch_embed.proj).weight
    dim, patch_dim = int(projection.shape[0]), math.prod(projection.shape[1:])
    prefix = timm_prefix(model)
    return ViTShape(
        depth=len(model.blocks),
        dim=dim,
        num_patches=_timm_patches(model, prefix),
        num_prefix_tokens=prefix,
        mlp_ratio=_mlp_ratio(model.blocks.children(), dim),
        patch_dim=patch_dim,
        num_classes=sum(_timm_outputs(model, name) for name in ("head", "head_dist")),
    )


def _read_torchvision(model: Any) -> ViTShape:
    dim = int(model.hidden_dim)
    return ViTShape(
        depth=len(model.encoder.layers),
        dim=dim,
        num_patches=(int(model.image_size) // int(model.patch_size)) ** 2,
        num_prefix_tokens=int(model.class_token.shape[1]),
        mlp_ratio=_mlp_ratio(model.encoder.layers.children(), dim),
        patch_dim=3 * int(model.patch_size) ** 2,
        # A head of two layers counts as one with as many weights.
        num_classes=math.ceil(_matrix_size(model.heads) / dim),
    )


def _read_transformers(model: Any) -> ViTShape:
    tower = vision_tower(model)
    patches = _patches_of(tower.embeddings)
    projection = patch_projection(tower.embeddings).weight
    dim = int(projection.shape[0])
    prefix = tower_prefix(tower)
    heads = ("classifier", "cls_classifier", "distillation_classifier", "visual_projection")
    found = [getattr(model, name, None) for name in heads]
    pooler = getattr(getattr(tower, "pooler", None), "dense", None)
    return ViTShape(
        depth=len(tower_layers(tower)),
        dim=dim,
        num_patches=_tower_patches(tower.embeddings, patches, projection, prefix),
        num_prefix_tokens=prefix,
        mlp_ratio=_mlp_ratio(tower_layers(tower).children(), dim),
        patch_dim=math.prod(projection.shape[1:]),
        num_classes=math.ceil(sum(_matrix_size(head) for head in (*found, pooler) if head is not None) / dim),
    )


def _patches_of(embeddings: Any) -> Any:
    """The module that projects the patches in transformers' embeddings; None without one."""
    for name in ("patch_embeddings", "patch_embedding"):
        found = getattr(embeddings, name, None)
        if found is not None:
            return found
    return None


def _tower_patches(embeddings: Any, patches: Any, projection: Any, prefix: int) -> int:
    for holder in (patches, embeddings):
        count = getattr(holder, "num_patches", None)
        if isinstance(count, int):
            return count
    positions = getattr(embeddings, "position_embeddings", None)
    if positions is not None and positions.dim() == 3:
        return int(positions.shape[1]) - prefix
    size = getattr(embeddings, "image_size", None)
    if not isinstance(size, int):
        raise ValueError(f"its {type(embeddings).__name__} does not say how many patches an image has")
    return (size // int(projection.shape[-1])) ** 2


def _mlp_ratio(blocks: Any, dim: int) -> float:
    weights = {_mlp_size(block) for block in blocks}
    if len(weights) != 1:
        raise ValueError(f"its blocks' MLPs have {sorted(weights)} weights, not one number")
    return weights.pop() / (2 * dim**2)


def _mlp_size(block: Any) -> int:
    if not hasattr(block, "mlp") and not hasattr(block, "intermediate"):
        # It is in a wrapper that does not pass its attributes on.
        block = block_in(block)
    if hasattr(block, "mlp"):
        return _matrix_size(block.mlp)
    # Older releases of transformers keep the two halves apart.
    return _matrix_size(block.intermediate) + _matrix_size(block.output)


def _matrix_size(module: Any) -> int:
    """Weights of the matrices in a module, adapters apart; quantised layers tell theirs by their sizes alone."""
    module = _base_of(module)
    width, height = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(width, int) and isinstance(height, int):
        return width * height
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.dim() == 2)
    return own + sum(_matrix_size(part) for part in module.children())


def _base_of(module: Any) -> Any:
    """The layer that an adapter stands for, by PEFT's names; the module itself where it is none."""
    parts = getattr(module, "_modules", {})
    base = parts.get("base_layer", parts.get("original_module"))
    return module if base is None else _base_of(base)


def _timm_patches(model: Any, prefix: int) -> int:
    count = getattr(model.patch_embed, "num_patches", None)
    if isinstance(count, int):
        return count
    grid = getattr(model.patch_embed, "grid_size", None)
    if grid is not None:
        return math.prod(grid)
    # timm's no_embed_class keeps positions for the patches alone.
    return int(model.pos_embed.shape[1]) - (0 if getattr(model, "no_embed_class", False) else prefix)


def _timm_outputs(model: Any, name: str) -> int:
    head = _base_of(getattr(model, name, None))
    if isinstance(getattr(head, "out_features", None), int):
        return int(head.out_features)
    weight = getattr(head, "weight", None)
    if weight is not None:
        return int(weight.shape[0])
    # timm's headless models have an Identity; anything else with parameters is a head that cannot be counted.
    if head is not None and any(True for _ in head.parameters()):
        raise TypeError(f"its {name} is a {type(head).__name__}, not a linear layer")
    return 0
