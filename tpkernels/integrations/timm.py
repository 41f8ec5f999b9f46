"""Vision transformers that carry timm's names: found by structure and by what a block computes, without timm.

`model.blocks` changes its class to `PooledBlocks`, which runs each block's own submodules, and the model gets a
pre-hook that refuses calls which would pass it by. What travels between blocks, tokens and sizes, travels as arguments.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import attention
from ..macs import ViTShape, vit_shape
from ..modules import PRUNERS, TokenPool

SUPPORTED = (
    "vision transformers with timm's structure (ViT, AugReg ViT, DeiT, distilled DeiT, DeiT III, DINOv2, CLIP): "
    "`blocks`, an nn.Sequential of pre-norm blocks with norm1, attn (qkv, proj, num_heads), norm2 and mlp, "
    "and a class-token head"
)
# What would have to follow the tokens when they are pooled, by the names that timm gives it.
_POSITIONAL = ("rope", "rel_pos", "rel_pos_bias", "shared_rel_pos", "relative_position_bias_table", "window_size")


@dataclass(frozen=True)
class Plan:
    """What a patched model does: patch tokens after each block, and each block's pool (None where it pools nothing)."""

    schedule: tuple[int, ...]
    pools: tuple[TokenPool | None, ...]
    num_prefix_tokens: int
    proportional: bool


class PooledBlocks(nn.Sequential):
    """The blocks of a patched model; holds `plan`, and the modules that were there before.

    A block before the first pooling, or one that neither pools nor needs sizes, is called as it is. The others are run
    from their submodules: hooks on those fire, hooks on the block and on its `attn` do not.
    """

    plan: Plan

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan
        sizes: Tensor | None = None
        for block, pool in zip(self, plan.pools, strict=True):
            if pool is not None and pool.keep < x.shape[1] - plan.num_prefix_tokens:
                x, sizes = run_block(block, x, sizes, pool=pool, proportional=plan.proportional)
            elif sizes is not None and plan.proportional:
                x, sizes = run_block(block, x, sizes, pool=None, proportional=True)
            else:
                x = block(x)
        return x

    def __getitem__(self, index: Any) -> Any:
        part: Any = super().__getitem__(index)
        if isinstance(index, slice):
            # Sequential makes a slice of its own class; timm cuts models so.
            plan = self.plan
            part.plan = replace(plan, schedule=plan.schedule[index], pools=plan.pools[index])
        return part


def run_block(
    block: Any, x: Tensor, sizes: Tensor | None, *, pool: TokenPool | None, proportional: bool
) -> tuple[Tensor, Tensor | None]:
    """A pre-norm block from its own submodules, with pooling between attention and MLP.

    Args:
        x: tokens [B, N, D], prefix first.
        sizes: original tokens that each one stands for [B, N]; None before the first pooling.

    Returns:
        tokens [B, M, D] and their sizes [B, M], None where pooling only selects.
    """
    scores = pool is not None and pool.needs_significance
    update, significance, keys = attend(block.attn, block.norm1(x), sizes if proportional else None, scores)
    x = x + _drop_path(block, 1)(_optional(block, "ls1")(update))
    if pool is not None:
        # ToMe matches tokens by their keys, averaged over the heads.
        metric = keys.mean(1) if pool.method == "bipartite" else None
        if pool.method in PRUNERS:
            x = pool(x, significance)
        else:
            sizes = x.new_ones(x.shape[:2], dtype=torch.float32) if sizes is None else sizes
            x, sizes = pool(x, significance, sizes=sizes, metric=metric)
    x = x + _drop_path(block, 2)(_optional(block, "ls2")(block.mlp(block.norm2(x))))
    return x, sizes


def attend(attn: Any, x: Tensor, sizes: Tensor | None, scores: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Runs timm's `Attention` from its submodules.

    Args:
        x: normed tokens [B, N, D].
        sizes: [B, N] for proportional attention, None for the plain one.
        scores: whether the significance is wanted; without it this is `scaled_dot_product_attention`.

    Returns:
        what `attn(x)` returns, the significance [B, N] or None, and the keys [B, H, N, d].
    """
    b, n, _ = x.shape
    qkv = attn.qkv(x)
    qkv = qkv.reshape(b, n, 3, attn.num_heads, qkv.shape[2] // (3 * attn.num_heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = _optional(attn, "q_norm")(q), _optional(attn, "k_norm")(k)
    scale = getattr(attn, "scale", None)
    dropout = float(getattr(getattr(attn, "attn_drop", None), "p", 0.0)) if attn.training else 0.0

    significance = None
    if scores and dropout == 0:
        out, significance = attention(q, k, v, key_size=sizes, scale=scale)
    else:
        if scores:
            # Scores are those before dropout.
            with torch.no_grad():
                _, significance = attention(q, k, v, key_size=sizes, scale=scale)
        bias = None if sizes is None else sizes.log().to(q.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)

    out = _optional(attn, "norm")(out.transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(x).sigmoid()
    return _optional(attn, "proj_drop")(attn.proj(out)), significance, k


def read_model(model: Any) -> ViTShape:
    """The shape of a model that can be pooled; changes nothing.

    Raises:
        TypeError: the model's structure is not supported.
        ValueError: its structure is, but its head or its gradient checkpointing is not.
    """
    blocks = _blocks(model)
    if blocks is None or len(blocks) == 0:
        raise _unsupported(model, "it has no `blocks` in an nn.Sequential (patch before compiling or wrapping a model)")
    for holder in (model, *blocks, *(getattr(block, "attn", None) for block in blocks)):
        if (name := _positional(holder)) is not None:
            raise _unsupported(model, f"its {type(holder).__name__} takes positions from `{name}` inside attention")
    for block in blocks:
        if (lack := _lacking(block)) is not None:
            raise _unsupported(model, f"its {type(block).__name__} has no {lack}")
    try:
        shape = vit_shape(model)
    except TypeError as error:
        raise _unsupported(model, str(error)) from error
    _check_head(model, shape.num_prefix_tokens)
    if getattr(model, "grad_checkpointing", False):
        raise ValueError(_CHECKPOINTING)
    # One block of a kind: those differ in their weights alone.
    for block in {(type(block), type(block.attn), type(block.mlp)): block for block in blocks}.values():
        _check_block(model, block, shape.dim)
    return shape


def install(model: nn.Module, plan: Plan) -> None:
    """Changes the class of `model.blocks`; a model that is patched already gets the new plan."""
    uninstall(model)
    blocks: Any = model.blocks
    blocks.__class__ = PooledBlocks
    blocks.plan = plan
    model.register_forward_pre_hook(refuse_bypass, with_kwargs=True)


def uninstall(model: nn.Module) -> None:
    """Undoes `install`; leaves a model alone that is not patched."""
    blocks: Any = _blocks(model)
    if not isinstance(blocks, PooledBlocks):
        return
    del blocks.plan
    blocks.__class__ = nn.Sequential  # type: ignore[assignment]
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is refuse_bypass]:
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)


def plan_of(model: Any) -> Plan | None:
    """The plan of a patched model, None where it is not patched."""
    blocks = _blocks(model)
    return blocks.plan if isinstance(blocks, PooledBlocks) else None


def refuse_bypass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook of a patched model: raises where timm would call the blocks one by one, and so not pool.

    Raises:
        ValueError: gradient checkpointing is on, or an attention mask is passed.
    """
    if getattr(model, "grad_checkpointing", False):
        raise ValueError(_CHECKPOINTING)
    passed = [*args[1:], kwargs.get("attn_mask"), kwargs.get("is_causal")]
    if any(value is not None and value is not False for value in passed):
        raise ValueError("attn_mask and is_causal must not be given to a patched model: pooled tokens have no mask")


_CHECKPOINTING = (
    "grad_checkpointing must be off in a patched model, got True: timm then calls the blocks one by one, which passes "
    "pooling by; call model.set_grad_checkpointing(False), or checkpoint the whole model with torch.utils.checkpoint"
)


def _blocks(model: Any) -> nn.Sequential | None:
    """The blocks, where they can be patched or are. A wrapper's attributes are not its own, hence `_modules`."""
    blocks = model._modules.get("blocks") if isinstance(model, nn.Module) else None
    # No other subclass: its forward may do more than run the blocks in order.
    return blocks if isinstance(blocks, nn.Sequential) and type(blocks) in (nn.Sequential, PooledBlocks) else None


def _unsupported(model: Any, reason: str) -> TypeError:
    return TypeError(f"model must be one of: {SUPPORTED}; got {type(model).__name__}: {reason}")


def _optional(module: nn.Module, name: str) -> Any:
    """A submodule that not every version or configuration has."""
    found = getattr(module, name, None)
    return _same if found is None else found


def _same(x: Tensor) -> Tensor:
    return x


def _drop_path(block: nn.Module, place: int) -> Any:
    # Older versions have one module for both places.
    return _optional(block, f"drop_path{place}" if hasattr(block, f"drop_path{place}") else "drop_path")


def _positional(holder: Any) -> str | None:
    """The name of what ties the tokens to their places inside attention; None where nothing does."""
    for name in _POSITIONAL:
        if getattr(holder, name, None) is not None:
            return name
    if isinstance(holder, nn.Module):
        taken = inspect.signature(holder.forward).parameters
        return next((name for name in _POSITIONAL if name in taken), None)
    return None


def _lacking(block: Any) -> str | None:
    for name in ("norm1", "attn", "norm2", "mlp"):
        if not isinstance(getattr(block, name, None), nn.Module):
            return name
    for name in ("qkv", "proj"):
        if not isinstance(getattr(block.attn, name, None), nn.Module):
            return f"attn.{name}"
    return None if isinstance(getattr(block.attn, "num_heads", None), int) else "attn.num_heads"


def _check_head(model: Any, num_prefix_tokens: int) -> None:
    pooling = getattr(model, "global_pool", "token")
    if pooling != "token" or getattr(model, "attn_pool", None) is not None:
        raise ValueError(
            f"model must read its class token (global_pool='token'): other heads are not supported yet, "
            f"got {type(model).__name__} with global_pool={pooling!r}"
        )
    if num_prefix_tokens < 1:
        raise ValueError(
            f"model must have a class token: other heads are not supported yet, got {type(model).__name__} without one"
        )


@torch.no_grad()
def _check_block(model: nn.Module, block: Any, dim: int) -> None:
    """Compares `run_block` with the block's own forward: names alone don't tell post-norm from pre-norm blocks.

    On a copy with random weights, since what a block adds may start at 0 (layer scale, gates).
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(block)
    if any(tensor.is_meta for tensor in (*probe.parameters(), *probe.buffers())):
        probe.to_empty(device="cpu")
        for buffer in probe.buffers():
            buffer.zero_()
    probe.to(device="cpu", dtype=torch.float64).eval()
    for parameter in probe.parameters():
        if parameter.is_floating_point():
            parameter.normal_(std=0.3, generator=generator)
    for module in probe.modules():
        # Whoever counts tokens with hooks must not see the probe's.
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    x = torch.randn(1, 5, dim, generator=generator, dtype=torch.float64)
    try:
        own = probe(x) - x
        ours = run_block(probe, x, torch.ones(1, 5), pool=None, proportional=True)[0] - x
    except Exception as error:
        raise _unsupported(model, f"its {type(block).__name__} does not run as a pre-norm block ({error})") from error
    # Room for modules that compute in float32 whatever they are given.
    if not torch.allclose(own, ours, rtol=0, atol=1e-4 * float(own.abs().max())):
        raise _unsupported(model, f"its {type(block).__name__} computes something else than a pre-norm block")
