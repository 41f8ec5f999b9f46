"""Batches whose images keep different numbers of tokens: padded to one width, or packed without the padding.

Tokens that are not there have size 0. A packed batch is one sample of all tokens that are there, [1, T, D]: what works
token by token (norms, products, MLPs) takes it as it takes any other. Attention alone has to know, and pads it again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..modules import Pooling
from ..ops.context import may_look

# The share of padding in a batch above which leaving it out saves more than the copies cost.
_LEAST_PADDING = 0.05


class Padded:
    """All rows of a batch [B, N, D], computed whether a token is there or not.

    keys: how often attention counts each token [B, N], 0 where it is not there; None where it counts all alike. mask:
    bool [B, N], which tokens are there; None where all are.
    """

    def __init__(self, keys: Tensor | None, mask: Tensor | None = None) -> None:
        self.keys: Tensor | Packed | None = keys
        self.mask = mask

    def pack(self, x: Tensor) -> Tensor:
        """What is computed of x [B, N, ...]."""
        return x

    def pad(self, x: Tensor) -> Tensor:
        """The inverse of `pack`."""
        return x


class Packed(Padded):
    """The tokens of a batch that are there, as one sample [1, T, D]; `keys` is itself, for attention to unpack."""

    def __init__(self, sizes: Tensor, mask: Tensor) -> None:
        super().__init__(sizes, mask)
        self.sizes, self.shape = sizes, mask.shape
        self.keys = self
        self.places = mask.flatten().nonzero()[:, 0]
        # Each row's packed token. Padding takes its sample's first: a NaN stays in its sample, and gathering is one
        # copy, where to scatter into zeros is two.
        ranks = (mask.flatten().cumsum(0) - 1).view(self.shape)
        self.rows = torch.where(mask, ranks, ranks[:, :1]).flatten()

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def pad(self, x: Tensor) -> Tensor:
        return x[0].index_select(0, self.rows).unflatten(0, self.shape)


def lay(sizes: Tensor | None, *, proportional: bool, ragged: bool, packs: bool) -> Padded:
    """How a batch's tokens are laid out, by their sizes [B, N].

    Args:
        proportional: attention counts a token as often as its size.
        ragged: some tokens may not be there.
        packs: padding may be left out, where that is worth it and can be seen.
    """
    if sizes is None or not ragged:
        return Padded(sizes if proportional else None)
    there = sizes > 0
    missing = there.numel() - int(there.sum()) if may_look(sizes) else None
    if missing == 0:
        return Padded(sizes if proportional else None)
    keys = sizes if proportional else there.to(sizes.dtype)
    if packs and missing is not None and missing > _LEAST_PADDING * there.numel():
        return Packed(keys, there)
    return Padded(keys, there)


def may_pack(block: nn.Module) -> bool:
    """Whether a block's parts can be given the tokens of all samples as one: none draws by sample, or is watched."""
    if torch.compiler.is_compiling() or block.training:
        return False
    return not any(map(_minds, (part for part in block.modules() if part is not block)))


def _minds(part: nn.Module) -> bool:
    hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    return part.training or bool(hooks)


def trimmed(found: Pooling, prefix: int) -> tuple[Tensor, Tensor]:
    """Pooled tokens and sizes without the columns where no sample of the batch has a token, if that can be seen."""
    x, sizes, counts = found.tokens, found.sizes, found.n_clusters
    assert sizes is not None
    if not may_look(counts) or not len(counts):
        return x, sizes
    width = prefix + int(counts.max())
    return x[:, :width], sizes[:, :width]
