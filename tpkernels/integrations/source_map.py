"""Where the tokens went: a forward of a patched model, watched."""

from __future__ import annotations

import torch
from torch import Tensor


class Trace:
    """What `tpkernels.trace` gives: one entry for each block that pooled, in order, of the last forward.

    layers: the 0-based blocks; sources: [B, P + N] int64 each, the token after that block that holds each token of the
    model's input, prefix first, -1 where it was dropped; sizes: [B, P + K] float32 each, how many input tokens each
    token stands for (None where pooling only selects).
    """

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.sources: list[Tensor] = []
        self.sizes: list[Tensor | None] = []

    def begin(self) -> None:
        """Forgets an earlier forward."""
        self.__init__()  # type: ignore[misc]

    def add(self, layer: int, source: Tensor, sizes: Tensor | None) -> None:
        """Notes what a block left."""
        self.layers.append(layer)
        self.sources.append(source.detach())
        self.sizes.append(None if sizes is None else sizes.detach())


def compose(source: Tensor, label: Tensor) -> Tensor:
    """Where the model's input tokens are after one more pooling.

    Args:
        source: [B, N] token that holds each input token now, -1 for none.
        label: [B, M] where each of those tokens goes, -1 for nowhere.
    """
    return torch.where(source < 0, source, label.gather(1, source.clamp(min=0)))
