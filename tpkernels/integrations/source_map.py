"""The trace of a forward of a patched model: which token holds each input token after each pooling."""

from __future__ import annotations

import torch
from torch import Tensor

# A block that pooled, the token after it that holds each input token, and the sizes.
Step = tuple[int, Tensor, Tensor | None]


class Trace:
    """What `tpkernels.trace` returns: one entry for each block that pooled, in order, of the last forward.

    layers: the 0-based blocks; sources: [B, P + N] int64 each, the token after that block that holds each token of the
    model's input, prefix first, -1 where it was dropped; sizes: [B, P + K] float32 each, how many input tokens each
    token stands for (None where pooling only selects), 0 for the padding of images that keep fewer than others.
    """

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.sources: list[Tensor] = []
        self.sizes: list[Tensor | None] = []

    def hold(self, steps: list[Step]) -> None:
        """Replaces the entries by those of a new forward."""
        self.layers = [layer for layer, _, _ in steps]
        self.sources = [source.detach() for _, source, _ in steps]
        self.sizes = [None if sizes is None else sizes.detach() for _, _, sizes in steps]


def compose(source: Tensor, label: Tensor) -> Tensor:
    """Where the model's input tokens are after one more pooling.

    Args:
        source: [B, N] token that holds each input token now, -1 for none.
        label: [B, M] where each of those tokens goes, -1 for nowhere.
    """
    return torch.where(source < 0, source, label.gather(1, source.clamp(min=0)))
