"""torchvision's VisionTransformer, found by its structure, without importing torchvision."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..schedule.shapes import block_in
from .attend import attend_heads, probability_dropped
from .containers import PooledSequential
from .forwards import between_hooks
from .packed import Packed
from .plan import Attended, Facts, Family, Unsupported


class Torchvision(Family):
    """`encoder.layers`, an nn.Sequential of pre-norm blocks with MultiheadAttention; the head reads the class token."""

    supported = "torchvision's VisionTransformer (vit_b_16 and its like)"

    def find(self, module: nn.Module, *, inside: bool = False) -> nn.Module | None:
        encoder = module._modules.get("encoder")
        layers = None if encoder is None or "conv_proj" not in module._modules else encoder._modules.get("layers")
        return layers if type(layers) is nn.Sequential or isinstance(layers, PooledSequential) else None

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

    def attention(self, block: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> Attended:
        attn = block.self_attention

        def attend(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
            return _attend(attn, x, sizes, scores)

        update, significance, keys = between_hooks(attn, attend, block.ln_1(x), copies=3, wraps=True)
        return Attended(block.dropout(update), significance, keys)

    def uncalled(self, block: Any) -> tuple[nn.Module, ...]:
        return (block.self_attention,)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.mlp(block.ln_2(x))

    def norm2(self, block: Any) -> nn.Module:
        return block.ln_2


def _attend(
    attn: nn.MultiheadAttention, x: Tensor, sizes: Tensor | Packed | None, scores: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What torch's attention returns, from its weights; the significance, and the keys."""
    weight = attn.in_proj_weight
    assert weight is not None
    if weight.is_meta and not x.is_meta:
        raise RuntimeError(
            f"{type(attn).__name__}: a patched model's attention must hold its weights in memory, got offloaded "
            "ones: dispatch it to devices without offloading"
        )
    b, n, _ = x.shape
    qkv = F.linear(x, weight, attn.in_proj_bias)
    q, k, v = qkv.reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    dropout = probability_dropped(attn, attn.dropout)
    out, significance = attend_heads(q, k, v, sizes, scores=scores, dropout=dropout)
    project = attn.out_proj
    if not isinstance(project, nn.Linear):
        # As torch does, which reads the weights of what stands for the layer, and passes by adapters in it.
        return F.linear(out, project.weight, project.bias), significance, k
    return project(out), significance, k
