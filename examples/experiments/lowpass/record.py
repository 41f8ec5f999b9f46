"""What goes through every block of a vision transformer in one forward: q, k, v and the tokens on their way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Layer(NamedTuple):
    """One block, for B images, H heads of d channels and N tokens, prefix first.

    queries, keys, values: [B, H, N, d]; attended: [B, N, H d], the heads' softmax(q k^T / sqrt d) v side by side;
    before, after_attention, after_mlp: [B, N, D], the tokens before the block, between its halves and after it.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    attended: Tensor
    before: Tensor
    after_attention: Tensor
    after_mlp: Tensor


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks.

    Raises:
        TypeError: they are no pre-norm blocks as DeiT has them, or scale their logits otherwise than by 1 / sqrt d.
    """
    blocks = list(getattr(model, "blocks", []))
    parts = ("norm2", "attn.qkv", "attn.proj")
    if not blocks or not all(part in dict(block.named_modules()) for block in blocks for part in parts):
        raise TypeError(f"expected blocks with {', '.join(parts)}, as DeiT has them, got {type(model).__name__}")
    for number, block in enumerate(blocks):
        expected = (block.attn.qkv.out_features / (3 * block.attn.num_heads)) ** -0.5
        if abs(block.attn.scale / expected - 1) > 1e-6:
            raise TypeError(f"block {number} scales its logits by {block.attn.scale:g}, expected {expected:g}")
    return blocks


def split_heads(attention: nn.Module, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, N, d] of qkv [B, N, 3 H d], normalised where the model normalises them."""
    b, n, width = qkv.shape
    heads = attention.num_heads
    q, k, v = qkv.reshape(b, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return getattr(attention, "q_norm", nn.Identity())(q), getattr(attention, "k_norm", nn.Identity())(k), v


@torch.inference_mode()
def record(model: nn.Module, images: Tensor) -> list[Layer]:
    """Runs the model on images [B, C, S, S] and returns what went through each block.

    Raises:
        TypeError: `find_blocks` refuses the model.
    """
    blocks = find_blocks(model)
    seen: list[dict[str, Tensor]] = [{} for _ in blocks]
    with ExitStack() as hooks:
        for block, found in zip(blocks, seen, strict=True):
            # The hooks only note; the model runs as it always does.
            watched = (
                block.register_forward_pre_hook(lambda _, args, found=found: found.update(before=args[0])),
                block.attn.qkv.register_forward_hook(lambda _, args, out, found=found: found.update(qkv=out)),
                block.attn.proj.register_forward_pre_hook(lambda _, args, found=found: found.update(attended=args[0])),
                block.norm2.register_forward_pre_hook(
                    lambda _, args, found=found: found.update(after_attention=args[0])
                ),
                block.register_forward_hook(lambda _, args, out, found=found: found.update(after_mlp=out)),
            )
            for handle in watched:
                hooks.callback(handle.remove)
        model(images)
        layers = []
        for block, found in zip(blocks, seen, strict=True):
            layers.append(Layer(*split_heads(block.attn, found.pop("qkv")), **found))
    return layers
