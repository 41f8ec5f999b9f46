"""Pooled forwards of a model on calibration images: what they keep by given distances, and what a distance would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..functional import ward
from ..modules import Pooling, TokenPool
from ..schedule.macs import count_macs
from ..schedule.shapes import ViTShape
from .calibration import evaluated, run_batch
from .patch import patch, unpatch
from .towers import patched_in

Distances = tuple[float | None, ...]


class Trial(NamedTuple):
    """Distances, the patch tokens [M, L] that M images kept by them, and the share of the MACs in the mean."""

    distance: Distances
    counts: Tensor
    share: float


class Trials:
    """Pooled forwards of a model on the calibration images; after each the model is as it was."""

    def __init__(
        self, model: nn.Module, batches: list[Any], shape: ViTShape, tower: str | None, backend: str,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.batches, self.shape, self.tower = model, batches, shape, tower
        self.backend, self.options = backend, options

    def run(self, distance: Distances) -> Trial:
        """One forward of each image by these distances."""
        notes: list[dict[int, Tensor]] = []

        def note(layer: int, pool: Any, *args: Any, **given: Any) -> Pooling:
            found = pool(*args, **given)
            notes[-1][layer] = (found.sizes[:, self.shape.num_prefix_tokens :] > 0).sum(1).cpu()
            return found

        with self._pooled(distance, note):
            for batch in self.batches:
                notes.append({})
                run_batch(self.model, batch)
        counts = torch.cat([self._by_block(kept) for kept in notes])
        return Trial(distance, counts, float(count_macs(self.shape, counts, **self.options).ratio.double().mean()))

    def _by_block(self, kept: dict[int, Tensor]) -> Tensor:
        """Tokens [B, L] after every block, from those after the blocks that pool."""
        left = torch.full_like(next(iter(kept.values())), self.shape.num_patches)
        columns = []
        for layer in range(self.shape.depth):
            left = kept.get(layer, left)
            columns.append(left)
        return torch.stack(columns, 1)

    def distance_for(self, distance: Distances, layer: int, kept: int) -> float:
        """The distance at a block by which images keep so many tokens in the mean, given those of the blocks before."""
        prefix = self.shape.num_prefix_tokens
        mergers: list[Tensor] = []
        wanted = 0

        def price(at: int, pool: Any, x: Tensor, *args: Any, **given: Any) -> Pooling:
            nonlocal wanted
            if at < layer:
                return pool(x, *args, **given)
            sizes, mask = (None if one is None else one[:, prefix:] for one in (given["sizes"], given["mask"]))
            # What TokenPool clusters by: sizes count in Ward's own dendrogram alone.
            weight = sizes if self.options["method"] == "ward" else None
            heights = ward(x[:, prefix:], 1, weight, mask=mask, backend=self.backend).merge_heights
            assert heights is not None
            made = (2 * heights[heights.isfinite()].double()).sqrt().cpu()
            mergers.append(made)
            # An image's tokens are one more than its mergers.
            wanted += len(made) + len(x) * (1 - kept)
            raise _Seen

        with self._pooled(with_distance(distance, layer, 0.0), price):
            for batch in self.batches:
                with suppress(_Seen):
                    run_batch(self.model, batch)
        return _between(torch.cat(mergers).sort().values, wanted)

    @contextmanager
    def _pooled(self, distance: Distances, instead: Callable[..., Pooling]) -> Iterator[None]:
        """The model patched, in eval mode; `instead(layer, pool, x, ...)` runs in place of each `TokenPool.pool`."""
        patch(self.model, distance=distance, tower=self.tower, backend=self.backend, **self.options)
        try:
            container: Any = patched_in(self.model, self.tower)[0].container
            for layer, pool in enumerate(container.plan.pools):
                if pool is not None:
                    pool.pool = _bind(instead, layer, pool)
            with evaluated(self.model):
                yield
        finally:
            unpatch(self.model, tower=self.tower)


class _Seen(Exception):
    """Ends a forward whose rest is of no interest."""


def _bind(instead: Callable[..., Pooling], layer: int, pool: TokenPool) -> Callable[..., Pooling]:
    whole = pool.pool
    return lambda *args, **given: instead(layer, whole, *args, **given)


def _between(mergers: Tensor, count: int) -> float:
    """A distance that `count` of the mergers' sorted distances are below: half way to the next, safe from rounding."""
    if not len(mergers):
        return 0.0
    count = min(max(count, 0), len(mergers))
    below = mergers[count - 1] if count else mergers.new_zeros(())
    above = mergers[count] if count < len(mergers) else 2 * mergers[-1]
    return float((below + above) / 2)


def with_distance(distance: Distances, layer: int, one: float) -> Distances:
    """The distances with another one at a block."""
    return (*distance[:layer], one, *distance[layer + 1 :])
