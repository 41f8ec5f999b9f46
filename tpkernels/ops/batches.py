"""How a batch is taken apart where it is computed sample by sample: parts that fit a cache, without their padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .context import may_look
from .eager.lloyd import GRAM_LIMIT
from .problem import Tensors

# Numbers in the centered tokens and Gram matrices of samples that are taken together; on a CPU they fit its cache.
CHUNK_ELEMENTS = 1 << 22
CPU_CHUNK_ELEMENTS = 1 << 21
# Samples are cut to a multiple of so many tokens, by their own length alone: what is computed for a sample, to the last
# bit, must not depend on the others.
WIDTH = 16


class Part(NamedTuple):
    """Samples that are taken together: their places in the batch, and how many tokens hold all their valid ones."""

    rows: slice | Tensor
    width: int

    def of(self, tensors: Tensors) -> Tensors:
        """The part's tensors."""
        # Starts too: those beyond a sample's tokens do not count.
        return Tensors._make(None if one is None else self._rows(one) for one in tensors)

    def _rows(self, tensor: Tensor) -> Tensor:
        tensor = tensor if tensor.dim() == 1 else tensor[:, : self.width]
        return tensor[self.rows] if isinstance(self.rows, slice) else tensor.index_select(0, self.rows)


def parts(tensors: Tensors) -> list[Part]:
    """The parts of a batch [B, N, D]; where it may be looked at, samples of like lengths, without what is only padding.

    Valid tokens keep their places, since ties go by those.
    """
    groups = None if tensors.mask is None or not may_look(tensors.mask) else _by_width(tensors.mask)
    if groups is None:
        return [Part(rows, tensors.x.shape[1]) for rows in slices(tensors.x)]
    order, widths = groups
    pieces, start = [], 0
    for width, count in widths:
        for piece in slices(tensors.x[:count, :width]):
            rows = slice(start + piece.start, start + piece.stop)
            pieces.append(Part(rows if order is None else order[rows], width))
        start += count
    return pieces


def slices(x: Tensor) -> list[slice]:
    """Samples of x [B, N, D] that are taken together, evenly many each time."""
    b, n, d = x.shape
    elements = CPU_CHUNK_ELEMENTS if x.device.type == "cpu" else CHUNK_ELEMENTS
    size = max(1, elements // (n * (min(n, GRAM_LIMIT) + d)))
    count = -(-b // size)
    return [slice(b * i // count, b * (i + 1) // count) for i in range(count)]


def _by_width(mask: Tensor) -> tuple[Tensor | None, list[tuple[int, int]]] | None:
    """Samples by how many tokens hold all their valid ones: their order, None where they stand in it, and the widths,
    each with its number of samples. None where that is all tokens for all samples.
    """
    n = mask.shape[1]
    length = (torch.arange(1, n + 1) * mask).amax(1)
    width = ((length + (WIDTH - 1)) // WIDTH * WIDTH).clamp(WIDTH, max(n, WIDTH)).clamp(max=n)
    widths, counts = width.unique(return_counts=True)
    if widths.tolist() == [n]:
        return None
    order = None if bool((width.diff() >= 0).all()) else width.argsort(stable=True)
    return order, list(zip(widths.tolist(), counts.tolist(), strict=True))


def of_rows(values: Any, rows: slice) -> Any:
    """A tuple of tensors, of which some may be None, for some samples."""
    return values._make(None if one is None else one[rows] for one in values)
