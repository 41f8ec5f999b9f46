"""Vision transformers with timm's names: found by structure and by what a block computes, without importing timm."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..schedule.shapes import block_in, timm_prefix
from .attend import attend_heads, optional, probability_dropped
from .containers import PooledSequential
from .forwards import between_hooks
from .packed import Packed
from .plan import Attended, Checkpoint, Facts, Family, Unsupported
from .probe import check_positions
from .run import refuse_jit

# Methods that call the blocks one by one, which bypasses pooling; their name depends on the release.
_INTERMEDIATES = ("forward_intermediates", "_intermediate_layers")


class Timm(Family):
    """`blocks`, an nn.Sequential of pre-norm blocks; the head may read tokens, their average or maximum, or attend."""

    supported = (
        "vision transformers with timm's structure (ViT, AugReg ViT, DeiT, distilled DeiT, DeiT III, DINOv2 with and "
        "without registers, CLIP, SigLIP): `blocks`, an nn.Sequential of pre-norm blocks with norm1, attn (qkv, proj, "
        "num_heads), norm2 and mlp"
    )

    def find(self, module: nn.Module, *, inside: bool = False) -> nn.Module | None:
        # A wrapper has the attributes of the model in it, hence `_modules`.
        blocks = module._modules.get("blocks")
        if inside and "patch_embed" not in module._modules:
            return None
        # No other subclass: its forward may do more than run the blocks in order.
        return blocks if type(blocks) is nn.Sequential or isinstance(blocks, PooledSequential) else None

    def check(self, tower: nn.Module, model: nn.Module) -> None:
        blocks = [block_in(child) for child in tower.blocks.children()]  # type: ignore[union-attr]
        check_positions(tower, *blocks, *(getattr(block, "attn", None) for block in blocks))
        for block in blocks:
            if (lack := _lacking(block)) is not None:
                raise Unsupported(f"its {type(block).__name__} has no {lack}")
        _check_embedding(tower)

    def facts(self, tower: Any) -> Facts:
        prefix = timm_prefix(tower)
        reads = getattr(tower, "attn_pool", None) is not None
        reads = reads or prefix == 0 or getattr(tower, "global_pool", "token") != "token"
        embed = tower.patch_embed
        grid = getattr(embed, "grid_size", None)
        grid = None if grid is None else (int(grid[0]), int(grid[1]))
        # Other sizes are an error of the patch embedding itself then.
        fixed = grid is not None and getattr(embed, "strict_img_size", False)
        return Facts(prefix, grid, grid[0] * grid[1] if grid is not None and fixed else None, reads)

    def attention(self, block: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> Attended:
        attn = block.attn

        def attend(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
            return _attend(attn, x, sizes, scores)

        update, significance, keys = between_hooks(attn, attend, block.norm1(x))
        return Attended(_drop_path(block, 1)(optional(block, "ls1")(update)), significance, keys)

    def uncalled(self, block: Any) -> tuple[nn.Module, ...]:
        return tuple(
            part for part in (block.attn, getattr(block.attn, "attn_drop", None)) if isinstance(part, nn.Module)
        )

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return _drop_path(block, 2)(optional(block, "ls2")(block.mlp(block.norm2(x))))

    def norm2(self, block: Any) -> nn.Module:
        return block.norm2

    def check_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_jit()
        if getattr(module, "grad_checkpointing", False):
            raise ValueError(
                "grad_checkpointing must be set by set_grad_checkpointing() in a patched model, got True as an "
                "attribute: timm then calls the blocks one by one, which passes pooling by"
            )
        passed = [*args[1:], kwargs.get("attn_mask"), kwargs.get("is_causal")]
        if any(value is not None and value is not False for value in passed):
            raise ValueError("attn_mask and is_causal must not be given to a patched model: pooled tokens have no mask")

    def checkpoint(self, blocks: Any, block: nn.Module) -> Checkpoint | None:
        # In training or not, as timm does it.
        return partial(checkpoint, use_reentrant=False) if blocks.checkpointing and torch.is_grad_enabled() else None

    def take_over(self, model: Any) -> None:
        # With its own checkpointing on, timm calls the blocks one by one, so the container checkpoints instead.
        if hasattr(model, "grad_checkpointing"):
            model.blocks.checkpointing = bool(model.grad_checkpointing)
            model.grad_checkpointing = False
            model.set_grad_checkpointing = partial(_set_checkpointing, model)
        for name in _INTERMEDIATES:
            if hasattr(model, name):
                setattr(model, name, partial(_refuse, name))

    def give_back(self, model: Any) -> None:
        if "set_grad_checkpointing" in model.__dict__:
            del model.set_grad_checkpointing
            model.grad_checkpointing = model.blocks.checkpointing
        for name in _INTERMEDIATES:
            model.__dict__.pop(name, None)


def _refuse(name: str, *args: Any, **kwargs: Any) -> None:
    """Replaces timm's methods that return the tokens of several blocks, while a model is patched."""
    raise ValueError(f"{name} must not be called on a patched model: it calls the blocks one by one, without pooling")


def _set_checkpointing(model: Any, enable: bool = True) -> None:
    """Replaces timm's `set_grad_checkpointing` while a model is patched."""
    type(model).set_grad_checkpointing(model, enable)
    model.blocks.checkpointing, model.grad_checkpointing = bool(enable), False


def _check_embedding(tower: nn.Module) -> None:
    """Raises Unsupported where the tokens are not one projection of an image's patches."""
    embed = tower._modules.get("patch_embed")
    if embed is None:
        raise Unsupported(
            "it has no `patch_embed`: such models (NaFlex) take patches in any number, with their places and a mask, "
            "which do not follow pooled tokens"
        )
    if isinstance(getattr(embed, "proj", None), nn.Identity):
        raise Unsupported(
            f"its {type(embed).__name__} has no projection of patches (`proj`): a network of its own makes the tokens, "
            "whose number and cost cannot be read"
        )


def _drop_path(block: nn.Module, place: int) -> Any:
    # Older versions have one module for both places.
    return optional(block, f"drop_path{place}", "drop_path")


def _attend(attn: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """What timm's attention returns, from its parts; the significance, and the keys."""
    b, n, _ = x.shape
    qkv = attn.qkv(x)
    qkv = qkv.reshape(b, n, 3, attn.num_heads, qkv.shape[2] // (3 * attn.num_heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = optional(attn, "q_norm")(q), optional(attn, "k_norm")(k)
    dropout = probability_dropped(attn, getattr(attn, "attn_drop", None))
    scale = getattr(attn, "scale", None)
    out, significance = attend_heads(q, k, v, sizes, scores=scores, dropout=dropout, scale=scale)
    out = optional(attn, "norm")(out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(x).sigmoid()
    update = optional(attn, "proj_drop")(attn.proj(out))
    return update, significance, k


def _lacking(block: Any) -> str | None:
    for name in ("norm1", "attn", "norm2", "mlp"):
        if not isinstance(getattr(block, name, None), nn.Module):
            return name
    for name in ("qkv", "proj"):
        if not isinstance(getattr(block.attn, name, None), nn.Module):
            return f"attn.{name}"
    return None if isinstance(getattr(block.attn, "num_heads", None), int) else "attn.num_heads"
