"""What a pooled model returns, from the unpatched model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Ask, Tower, place_of, replaced, tokens_of, with_tokens
from .clusters import kept, pool_patches
from .program import Pooling


def run_pooled(model: nn.Module, ask: Ask, tower: Tower, keep: float, layers: Collection[int]) -> Any:
    """`ask(model, 0)` with the blocks in `layers` pooling their patch tokens to a share between attention and MLP.

    Attention is proportional: log sizes are added to its logits. Blocks hand pooled tokens to each other; whatever else
    reads a block's result gets each token copied to all places that it stands for. That changes nothing for a head that
    reads prefix tokens alone.

    Raises:
        RuntimeError: the model changes tokens between blocks.
    """
    order = {call.block: layer for layer, call in enumerate(tower.calls)}
    state = _State(tower.prefix)

    def make(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        layer = order[module]
        pools = layer in layers and keep < 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if layer == 0:
                state.begin()
            elif state.source is not None:
                if not torch.equal(tokens_of(args, kwargs), state.whole):
                    raise RuntimeError("tokens change between blocks")
                args, kwargs = with_tokens((args, kwargs), state.tokens)
            # Found anew: other numbers of tokens can take other operations.
            place = place_of(own, args, kwargs)[0] if pools else None
            with Pooling(state.sizes, place, lambda x: state.pool(x, keep)):
                out = own(*args, **kwargs)
            return out if state.source is None else with_tokens(out, state.copied(tokens_of(out)))

        return forward

    with replaced(order, make):
        return ask(model, 0)


class _State:
    """Tokens on their way through the blocks: pooled and as many as there were, their sizes, and where each went."""

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.begin()

    def begin(self) -> None:
        """Forgets an earlier forward."""
        self.tokens: Tensor | None = None
        self.whole: Tensor | None = None
        self.sizes: Tensor | None = None
        self.source: Tensor | None = None

    def pool(self, x: Tensor, keep: float) -> Tensor:
        """Pools the patch tokens of x [B, N, D]."""
        p = self.prefix
        sizes = torch.ones(x.shape[:2], dtype=torch.float64) if self.sizes is None else self.sizes
        means, totals, label = pool_patches(x[:, p:], sizes[:, p:], kept(keep, x.shape[1] - p))
        self.sizes = torch.cat([sizes[:, :p], totals.double()], 1)
        self.source = label if self.source is None else label.gather(1, self.source)
        return torch.cat([x[:, :p], means], 1)

    def copied(self, x: Tensor) -> Tensor:
        """Copies pooled tokens to all places that they stand for."""
        p = self.prefix
        self.tokens = x
        self.whole = torch.cat([x[:, :p], x[:, p:].gather(1, self.source[..., None].expand(-1, -1, x.shape[2]))], 1)
        return self.whole
