"""Vision towers of transformers (ViT, DeiT, DINOv2, CLIP, SigLIP), found by their structure, without importing it.

Releases name the parts differently: the first of a part's names that exists is taken.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule.shapes import (
    ViTShape,
    block_in,
    has_patches,
    patch_projection,
    tower_layers,
    tower_prefix,
    vision_tower,
    vit_shape,
)
from .attend import attend_heads, optional, probability_dropped
from .collected import around, check_outputs, last_read, records, restored
from .containers import PooledList
from .forwards import between_hooks
from .packed import Packed
from .plan import Attended, Checkpoint, Facts, Family, Unsupported
from .probe import check_positions
from .run import check_count, plan_now, refuse_jit

_NORM1 = ("layernorm_before", "norm1", "layer_norm1")
_NORM2 = ("layernorm_after", "norm2", "layer_norm2")
_ATTENTION = ("attention", "self_attn")
_LONG = ("query", "key", "value")

# transformers' softmax attentions; others may be registered that compute something else.
_SOFTMAX = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")

# Parts that a tower, its encoder and its embeddings may have. Any other may add tokens beside an image's, or call the
# blocks in another way than one after another.
_TOWER = {"embeddings", "encoder", "layers", "layer", "layernorm", "norm", "pre_layrnorm", "pre_layernorm"}
_TOWER |= {"post_layernorm", "pooler", "head", "dropout"}
_EMBEDDINGS = {"patch_embeddings", "patch_embedding", "position_embeddings", "position_embedding", "dropout", "norm"}


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
        return layers if type(layers) is nn.ModuleList or isinstance(layers, PooledList) else None

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
            if (kind := _unknown_attention(core)) is not None:
                raise Unsupported(f"its attention is {kind!r}, and what that computes is not known")
        _check_tower(tower)
        for module in around(model, tower):
            check_outputs(module)
        self.last_read(tower, model)

    def shape(self, tower: nn.Module, model: nn.Module) -> ViTShape:
        return vit_shape(model if vision_tower(model) is tower else tower)

    def facts(self, tower: Any) -> Facts:
        return Facts(tower_prefix(tower), None, None, True)

    def last_read(self, tower: nn.Module, model: nn.Module) -> int | None:
        return last_read(tower, model)

    def attention(self, block: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> Attended:
        outer = optional(block, *_ATTENTION)

        def attend(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
            return _attend(block, x, sizes, scores)

        update, significance, keys = between_hooks(outer, attend, optional(block, *_NORM1)(x), wraps=True)
        for name in ("layer_scale1", "drop_path", "dropout"):
            update = optional(block, name)(update)
        return Attended(update, significance, keys)

    def uncalled(self, block: Any) -> tuple[nn.Module, ...]:
        outer = optional(block, *_ATTENTION)
        # Older releases: projections inside, output beside them, and the MLP's second half in a module of its own.
        parts = [outer, getattr(outer, "attention", None), getattr(outer, "output", None)]
        parts += [] if hasattr(block, "mlp") else [getattr(block, "output", None)]
        return tuple(part for part in parts if isinstance(part, nn.Module))

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
        return [one for one in around(model, tower) if one is tower or records(one, tower)]

    def take_over(self, tower: Any) -> None:
        tower.embeddings.register_forward_hook(Counts(tower_layers(tower)), with_kwargs=True)

    def give_back(self, tower: Any) -> None:
        hooks = tower.embeddings._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, Counts)]:
            del hooks[key]
            tower.embeddings._forward_hooks_with_kwargs.pop(key, None)

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
            if name == "output_hidden_states" and given and restored(module, given):
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


class Counts:
    """A forward hook of embeddings that counts an image's tokens: a model may add some that it does not tell of."""

    def __init__(self, blocks: nn.Module) -> None:
        self.blocks = blocks

    def __call__(self, embeddings: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        images = args[0] if args else kwargs.get("pixel_values")
        stride = getattr(patch_projection(embeddings), "stride", None)
        # Frames and patches that are given as such have counts of their own.
        if isinstance(images, Tensor) and images.dim() == 4 and isinstance(stride, tuple):
            patches = (images.shape[2] // stride[0]) * (images.shape[3] // stride[1])
            check_count(plan_now(self.blocks)[0].num_prefix_tokens, patches, out)


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


def _attend(block: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the attention of a layer returns, from its parts; the significance, and the keys."""
    core, project = _projections(block)
    if (kind := _unknown_attention(core)) is not None:
        raise RuntimeError(
            f"_attn_implementation: expected softmax attention ({', '.join(_SOFTMAX)}) in a patched model, which "
            f"computes it by itself, got {kind!r}"
        )
    heads = _first(core, "num_attention_heads", "num_heads")
    q, k, v = (part(x).unflatten(2, (heads, -1)).transpose(1, 2) for part in _qkv(core))
    # The dropout is a number in ViT's and DINOv2's attention, a module in older releases.
    dropout = probability_dropped(core, _first(core, "attention_dropout", "dropout_prob", "dropout"))
    scale = _first(core, "scaling", "scale")
    out, significance = attend_heads(q, k, v, sizes, scores=scores, dropout=dropout, scale=scale)
    return project(out), significance, k


def _unknown_attention(core: Any) -> str | None:
    """The name of an attention that need not be softmax; None where it is one of transformers' own."""
    kind = getattr(getattr(core, "config", None), "_attn_implementation", None)
    if not isinstance(kind, str) or kind.removeprefix("paged|").startswith("kernels-community/"):
        return None
    return None if kind.removeprefix("paged|") in _SOFTMAX else kind


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
