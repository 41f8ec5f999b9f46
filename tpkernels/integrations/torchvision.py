"""torchvision's VisionTransformer, found by its structure, without importing torchvision."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..schedule.shapes import block_in
from .attend import attend_heads, probability_dropped
from .containers import PooledSequential
from .plan import Attended, Facts, Family, Unsupported


class Torchvision(Family):
    """`encoder.layers`, an nn.Sequential of pre-norm blocks with MultiheadAttention; the head reads the class token."""

    supported = "torchvision's VisionTransformer (vit_b_16 and its like)"

    def find(self, module: nn.Module, *, inside: bool = False) -> nn.Module | None:
        encoder = module._modules.get("encoder")
        layers = None if encoder is None or "conv_proj" not in module._modules else encoder._modules.get("layers")
        return layers if type(layers) in (nn.Sequential, PooledSequential) else None

    def check(self, tower: Any, model: nn.Module) -> None:
        for block in map(block_in, tower.encoder.layers.children()):
            lacks = [name for name in ("ln_1", "self_attention", "dropout", "ln_2", "mlp") if not hasattr(block, name)]
            if lacks:
                raise Unsupported(f"its {type(block).__name__} has no {lacks[0]}")
            attn = block.self_attention
            if not isinstance(attn, nn.MultiheadAttention) or attn.in_proj_weight is None or not attn.batch_first:
                raise Unsupported(
                    "its self_attention is no nn.MultiheadAttention with batch_first and one projection for q, k and v"
                )
            if attn.bias_k is not None or attn.add_zero_attn:
                raise Unsupported("its self_attention adds keys of its own")

    def facts(self, tower: Any) -> Facts:
        side = int(tower.image_size) // int(tower.patch_size)
        return Facts(int(tower.class_token.shape[1]), (side, side), side * side, False)

    def guarded(self, tower: nn.Module, model: nn.Module) -> list[nn.Module]:
        return []

    def attention(self, block: Any, x: Tensor, sizes: Tensor | None, scores: bool) -> Attended:
        attn = block.self_attention
        if not isinstance(attn, nn.MultiheadAttention):
            kind = type(attn)
            raise RuntimeError(
                "self_attention of a patched model's block must be an nn.MultiheadAttention, as it was when the model "
                f"was patched, got {kind.__module__}.{kind.__qualname__}, which pooling would pass by: merge adapters "
                "into it, or tpkernels.unpatch the model"
            )
        if attn.in_proj_weight.is_meta and not x.is_meta:
            raise RuntimeError(
                f"{type(attn).__name__}: a patched model's attention must hold its weights in memory, got offloaded "
                "ones: dispatch it to devices without offloading"
            )
        x = block.ln_1(x)
        b, n, _ = x.shape
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = qkv.reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = probability_dropped(attn, attn.dropout)
        out, significance = attend_heads(q, k, v, sizes, scores=scores, dropout=dropout)
        return Attended(block.dropout(attn.out_proj(out)), significance, k)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.mlp(block.ln_2(x))

    def norm2(self, block: Any) -> nn.Module:
        return block.ln_2
