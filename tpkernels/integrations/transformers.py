"""Vision towers of transformers (ViT, DeiT, DINOv2, CLIP, SigLIP), found by their structure, without importing it.

Releases name the parts differently: the first of a part's names that exists is taken.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule.shapes import ViTShape, block_in, has_patches, tower_layers, tower_prefix, vision_tower, vit_shape
from .attend import attend_heads, optional, probability_dropped
from .block import original_class
from .containers import PooledList
from .plan import Attended, Checkpoint, Facts, Family, Unsupported
from .probe import check_positions
from .run import refuse_jit

_NORM1 = ("layernorm_before", "norm1", "layer_norm1")
_NORM2 = ("layernorm_after", "norm2", "layer_norm2")
_ATTENTION = ("attention", "self_attn")
_LONG = ("query", "key", "value")

# Parts that a tower, its encoder and its embeddings may have. Any other may add tokens beside an image's, or call the
# blocks in another way than one after another.
_TOWER = {"embeddings", "encoder", "layers", "layer", "layernorm", "norm", "pre_layrnorm", "pre_layernorm"}
_TOWER |= {"post_layernorm", "pooler", "head", "dropout"}
_EMBEDDINGS = {"patch_embeddings", "patch_embedding", "position_embeddings", "position_embedding", "dropout", "norm"}

# Attributes of models that read the tokens between blocks, and of their configurations.
_READS_BETWEEN = ("out_indices", "extract_layers")
_CONFIG_READS_BETWEEN = ("backbone_out_indices",)


class Transformers(Family):
    """A vision tower: `embeddings` with patches, and an nn.ModuleList of pre-norm layers.

    The last layer's tokens are an output themselves, `last_hidden_state`, and so are restored to full length.
    """

    supported = (
        "vision models of transformers with the layers of ViT, DeiT, DINOv2, CLIP or SigLIP, alone, with heads or "
        "beside a text tower"
    )

    def find(self, module: nn.Module, *, inside: bool = False) -> nn.Module | None:
        # A wrapper has the attributes of the model in it, hence `_modules`.
        if not has_patches(module._modules.get("embeddings")):
            return None
        layers = tower_layers(module)
        return layers if type(layers) in (nn.ModuleList, PooledList) else None

    def check(self, tower: nn.Module, model: nn.Module) -> None:
        for block in map(block_in, tower_layers(tower).children()):
            for names in (_NORM1, _ATTENTION, _NORM2, ("mlp", "intermediate")):
                if not any(isinstance(getattr(block, name, None), nn.Module) for name in names):
                    raise Unsupported(f"its {type(block).__name__} has none of {', '.join(names)}")
            outer = optional(block, *_ATTENTION)
            check_positions(block, outer, getattr(outer, "attention", None))
            core, out = _projections(block)
            # Of any class: adapters and quantisation replace linear layers.
            if out is None or not all(isinstance(part, nn.Module) for part in _qkv(core)):
                raise Unsupported(
                    f"its {type(outer).__name__} has not one linear layer each for q, k, v and the output"
                )
        _check_tower(tower)
        for module in _around(model, tower):
            _check_outputs(module)
        self.last_read(tower, model)

    def shape(self, tower: nn.Module, model: nn.Module) -> ViTShape:
        return vit_shape(model if vision_tower(model) is tower else tower)

    def facts(self, tower: Any) -> Facts:
        return Facts(tower_prefix(tower), None, None, True)

    def last_read(self, tower: nn.Module, model: nn.Module) -> int | None:
        """LLaVA and its like read the hidden states at `vision_feature_layer`: 0 the embeddings', then the blocks'."""
        depth = len(tower_layers(tower))
        for module in _around(model, tower):
            place = getattr(module.config, "vision_feature_layer", None)
            if place is None:
                continue
            reads = f"its {type(module).__name__} reads the tokens of"
            if not isinstance(place, int):
                raise Unsupported(
                    f"{reads} several blocks (`vision_feature_layer` {place}), which would be of different numbers"
                )
            if not any(_records(one, tower) for one in _around(model, tower)):
                raise Unsupported(
                    f"{reads} one block (`vision_feature_layer` {place}) from a list that is filled block by block, "
                    "which passes pooling by; newer releases of transformers fill it by hooks"
                )
            block = place - 1 if place >= 0 else depth + place
            if not 0 <= block < depth:
                raise Unsupported(f"{reads} no block (`vision_feature_layer` {place}): pooling would not reach it")
            return block
        return None

    def attention(self, block: Any, x: Tensor, sizes: Tensor | None, scores: bool) -> Attended:
        core, project = _projections(block)
        heads = _first(core, "num_attention_heads", "num_heads")
        x = optional(block, *_NORM1)(x)
        q, k, v = (part(x).unflatten(2, (heads, -1)).transpose(1, 2) for part in _qkv(core))
        # The dropout is a number in ViT's and DINOv2's attention, a module in older releases.
        dropout = probability_dropped(core, _first(core, "attention_dropout", "dropout_prob", "dropout"))
        scale = _first(core, "scaling", "scale")
        out, significance = attend_heads(q, k, v, sizes, scores=scores, dropout=dropout, scale=scale)
        update = project(out)
        for name in ("layer_scale1", "drop_path", "dropout"):
            update = optional(block, name)(update)
        return Attended(update, significance, k)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        x = optional(block, *_NORM2)(x)
        update = block.mlp(x) if hasattr(block, "mlp") else _dense(block.output)(block.intermediate(x))
        for name in ("layer_scale2", "drop_path", "dropout"):
            update = optional(block, name)(update)
        return update

    def norm2(self, block: Any) -> nn.Module:
        return _first(block, *_NORM2)

    def guarded(self, tower: nn.Module, model: nn.Module) -> list[nn.Module]:
        """The tower, and the models around it that would collect outputs of its layers by themselves."""
        return [one for one in _around(model, tower) if one is tower or _records(one, tower)]

    def checkpoint(self, blocks: nn.Module, block: Any) -> Checkpoint | None:
        on = getattr(block, "gradient_checkpointing", False) and block.training
        return block._gradient_checkpointing_func if on else None

    def check_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_jit()
        if len(args) > 1:
            # Older releases take them by position too.
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        for name in ("output_attentions", "output_hidden_states"):
            given = kwargs.get(name)
            if name == "output_hidden_states" and given and _restored(module, given):
                continue
            # An argument goes before the configuration.
            if given is not False and (given is not None or getattr(module.config, name, False)):
                raise ValueError(
                    f"{name} must be False for a patched model: pooled layers have fewer tokens than the model's "
                    f"input, and no attention matrix; got {given if given is not None else 'True in its config'}"
                )
        for name, value in kwargs.items():
            # Elsewhere a mask is refused by the blocks, which get none where it drops nothing.
            if torch.compiler.is_compiling() and name.endswith("attention_mask") and isinstance(value, Tensor):
                raise ValueError(f"{name} must be None for a patched model that is compiled or exported, got a tensor")


def _check_tower(tower: Any) -> None:
    """Raises Unsupported where a tower does more than embed an image and run the blocks."""
    held = [(tower, _TOWER), (tower.embeddings, _EMBEDDINGS)]
    if hasattr(tower, "encoder"):
        held.append((tower.encoder, _TOWER))
    for holder, known in held:
        for name in holder._modules:
            if name not in known:
                kind = type(holder).__name__
                raise Unsupported(f"its {kind} has a part `{name}`, and what that does to tokens is not known")
    ratio = getattr(getattr(tower, "config", None), "mask_ratio", 0)
    if ratio and hasattr(tower.embeddings, "random_masking"):
        raise Unsupported(f"it leaves out patches at random (mask_ratio {ratio}), so that token counts are not known")


def _check_outputs(module: Any) -> None:
    """Raises Unsupported where a model's own forward collects the tokens of several blocks."""
    for holder, names in ((module, _READS_BETWEEN), (module.config, _CONFIG_READS_BETWEEN)):
        for name in names:
            if getattr(holder, name, None) is not None:
                raise Unsupported(
                    f"its {type(module).__name__} reads the tokens of several blocks (`{name}`), which would be of "
                    "different numbers"
                )


def _projections(block: Any) -> tuple[Any, Any]:
    """The module with the projections to q, k and v, and the output projection (None where that is not found)."""
    outer = optional(block, *_ATTENTION)
    inner = getattr(outer, "attention", None)
    if inner is not None:
        # Older releases: projections inside, output beside them.
        return inner, _dense(getattr(outer, "output", None))
    return outer, _first(outer, "o_proj", "out_proj")


def _qkv(core: Any) -> tuple[Any, Any, Any]:
    query, key, value = (_first(core, f"{one}_proj", name) for one, name in zip("qkv", _LONG, strict=True))
    return query, key, value


def _first(holder: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(holder, name, None)) is not None), None)


def _dense(holder: Any) -> Any:
    """An output projection of older releases: `dense`, then `dropout`; None where there is no `dense`."""
    dense = getattr(holder, "dense", None)
    return None if dense is None else lambda x: optional(holder, "dropout")(dense(x))


def _around(model: nn.Module, tower: nn.Module) -> list[Any]:
    """The models with a configuration on the way from `model` to the tower, both included."""
    return [one for one in model.modules() if "config" in one.__dict__ and any(part is tower for part in one.modules())]


def _records(module: Any, tower: nn.Module) -> bool:
    """Whether a model collects outputs of the tower's layers by hooks on their class, as releases from 4.56 on do."""
    recorded = getattr(module, "_can_record_outputs", None) or {}
    found = recorded.get("hidden_states")
    block = original_class(block_in(next(tower_layers(tower).children())))
    for one in found if isinstance(found, (list, tuple)) else (found,):
        kind = getattr(one, "target_class", one)
        if isinstance(kind, type) and issubclass(block, kind):
            return True
    return False


def _restored(module: nn.Module, asked: Any) -> bool:
    """Whether the hidden states that are asked for, all (True) or by their places, are of full length where read."""
    blocks = next((part for part in module.modules() if isinstance(part, PooledList)), None)
    if blocks is None or blocks.plan.last_read is None:
        return False
    if asked is True:
        return True
    # 0 are the embeddings', -1 the last block's.
    depth = len(blocks)
    whole = {0, *range(blocks.plan.last_read + 1, depth + 1)}
    places = [asked] if isinstance(asked, int) else asked
    return all((place + depth + 1 if place < 0 else place) in whole for place in places)
