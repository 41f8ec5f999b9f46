"""What a pooled model returns, from the unpatched model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Ask, Tower, replaced, tokens_of, with_tokens
from .clusters import kept, pool_patches
from .program import Pooling


def run_pooled(model: nn.Module, ask: Ask, tower: Tower, keep: float, layers: Collection[int]) -> Any:
    """`ask(model, 0)` with the blocks in `layers` pooling their patch tokens to a share between attention and MLP.

    Attention is proportional: log sizes are added to its logits. After the last block each token is copied to all
    places that it stands for, which changes nothing for a head that reads prefix tokens alone.
    """
    order = {call.block: layer for layer, call in enumerate(tower.calls)}
    prefix = tower.prefix
    sizes: Tensor | None = None
    source: Tensor | None = None

    def pool(x: Tensor) -> Tensor:
        nonlocal sizes, source
        size = torch.ones(x.shape[:2], dtype=torch.float64) if sizes is None else sizes
        means, totals, label = pool_patches(x[:, prefix:], size[:, prefix:], kept(keep, x.shape[1] - prefix))
        sizes = torch.cat([size[:, :prefix], totals.double()], 1)
        source = label if source is None else label.gather(1, source)
        return torch.cat([x[:, :prefix], means], 1)

    def make(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        layer = order[module]
        pools = layer in layers and keep < 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            with Pooling(sizes, tower.calls[layer].place if pools else None, pool):
                out = own(*args, **kwargs)
            if layer < len(order) - 1 or source is None:
                return out
            x = tokens_of(out)
            whole = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, source[..., None].expand(-1, -1, x.shape[2]))], 1)
            return with_tokens(out, whole)

        return forward

    with replaced(order, make):
        return ask(model, 0)
