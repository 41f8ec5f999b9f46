"""Schedules as paths through the blocks: errors and MACs of many at once, and the best path at a price of MACs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .macs import block_macs, count_macs
from .shapes import ViTShape


@dataclass(frozen=True)
class Paths:
    """All schedules of a model: a path [G] holds, for each block that may pool, the patch tokens it leaves, less 1.

    Such a block and those after it, up to the next one that may pool, are a stage.

    macs: [N, N] float64 (whole numbers below 2^53) of a block that takes i + 1 patch tokens and leaves j + 1, 0 where
    j > i; forbidden: [N, N], infinite where j > i, else 0; losses: [G, N] float64, errors summed over each stage's
    blocks; lengths: blocks of each stage; first: blocks before the first stage; fixed: MACs of those and of all but
    the blocks; base: the unpooled model's.
    """

    macs: Tensor
    forbidden: Tensor
    losses: Tensor
    lengths: tuple[int, ...]
    first: int
    fixed: float
    base: float

    def least(self, weight: float, price: float) -> Tensor:
        """The path of least `weight * error + price * share of the base's MACs`, by dynamic programming."""
        n = len(self.macs)
        step = price / self.base * self.macs + self.forbidden
        stay = price / self.base * self.macs.diagonal()
        total = torch.full((n,), torch.inf, dtype=torch.float64)
        total[n - 1] = 0.0
        before = []
        for loss, length in zip(self.losses, self.lengths, strict=True):
            value, index = (total[:, None] + step).min(0)
            before.append(index)
            total = value + weight * loss + (length - 1) * stay
        last, path = int(total.argmin()), []
        for index in reversed(before):
            path.append(last)
            last = int(index[last])
        return torch.tensor(path[::-1], dtype=torch.int64)

    def measure(self, paths: Tensor) -> tuple[Tensor, Tensor]:
        """Errors [M] and shares of the base's MACs [M] of paths [M, G]."""
        entering = torch.cat([paths.new_full((len(paths), 1), len(self.macs) - 1), paths], 1)[:, :-1]
        stays = torch.tensor(self.lengths, dtype=torch.float64) - 1
        macs = (self.macs[entering, paths] + stays * self.macs.diagonal()[paths]).sum(1) + self.fixed
        return self.losses.gather(1, paths.T).sum(0), macs / self.base

    def error(self, path: Tensor) -> float:
        """The summed error of a path [G]."""
        return float(self.measure(path[None])[0])

    def share(self, path: Tensor) -> float:
        """The share of the base's MACs of a path [G]."""
        return float(self.measure(path[None])[1])

    def schedule(self, path: Tensor) -> list[int]:
        """Patch tokens left after each block."""
        counts = [len(self.macs)] * self.first
        for index, length in zip(path.tolist(), self.lengths, strict=True):
            counts += [index + 1] * length
        return counts


def all_paths(errors: Tensor, shape: ViTShape, pooled: list[int], **options: Any) -> Paths:
    """The schedules of a model whose blocks lose `errors` [L, N] float64.

    Args:
        pooled: 0-based blocks that may pool, in ascending order.
        options: method, init, max_iter and position, as `count_macs` takes and checks them.
    """
    base = count_macs(shape, None, **options).base
    macs = block_table(shape, **options).double()
    ends = [*pooled, shape.depth]
    stages = [errors[start:end].sum(0) for start, end in pairwise(ends)]
    return Paths(
        macs,
        torch.full_like(macs, torch.inf).triu(1),
        torch.stack(stages) if stages else errors[:0],
        tuple(end - start for start, end in pairwise(ends)),
        first=ends[0],
        fixed=float(base - (shape.depth - ends[0]) * macs[-1, -1]),
        base=float(base),
    )


def block_table(shape: ViTShape, **options: Any) -> Tensor:
    """MACs [N, N] int64 of a block that takes i + 1 patch tokens and leaves j + 1; 0 where j > i."""
    n = shape.num_patches
    table = torch.zeros(n, n, dtype=torch.int64)
    counts = torch.arange(1, n + 1)
    for n_in in range(1, n + 1):
        table[n_in - 1, :n_in] = block_macs(shape, n_in, counts[:n_in], **options)
    return table
