"""From methods to models under test: one twin of the model per row, patched to the same tokens per layer."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import tpkernels
from tpkernels.schedule.file import read_tokens
from tpkernels.schedule.keep import resolve_budget, resolve_keep

from .distances import mean_macs, tokens_seen
from .methods import BASE_LABEL, Method


@dataclass
class Row:
    """A model under test, the patch tokens it keeps after each block, what it costs, and what was counted.

    by_distance: the method that merges by distance; images keep different numbers of tokens then, `tokens` are the
    most, and `spend` makes of macs the mean of the images that were seen.
    """

    name: str
    label: str
    family: str
    model: nn.Module
    tokens: list[int]
    macs: tpkernels.Macs
    correct: int = 0
    agree: int = 0
    timed: list[tuple[int, float]] = field(default_factory=list)
    images_per_second: float = 0.0
    by_distance: Method | None = None
    spent: list[int] = field(default_factory=lambda: [0, 0])

    def watched(self) -> AbstractContextManager[tpkernels.Trace | None]:
        """Around a forward, what `note` is given after it."""
        return nullcontext() if self.by_distance is None else tpkernels.trace(self.model)

    def note(self, trace: tpkernels.Trace | None, images: int) -> None:
        """Adds what a batch's images cost, where that differs from image to image."""
        if trace is None or self.by_distance is None:
            return
        told, method = tpkernels.summary(self.model), self.by_distance
        counts = tokens_seen(trace, images, told.num_patches, len(told.schedule), told.num_prefix_tokens)
        macs = tpkernels.count_macs(self.model, counts, method=method.method, init=method.init)
        self.spent = [self.spent[0] + int(macs.model.sum()), self.spent[1] + int(macs.clustering.sum())]

    def spend(self, spent: Sequence[int], images: int) -> None:
        """Makes of macs the mean of images, given what they cost in all processes."""
        if self.by_distance is not None and images:
            self.macs = mean_macs(self.macs, spent[0], spent[1], images)

    def median_speed(self) -> float:
        """Images/s, the median over the full batches; the first one, which warms up, counts only where it is alone."""
        full = max((count for count, _ in self.timed), default=0)
        rates = [count / seconds for count, seconds in self.timed if count == full]
        return statistics.median(rates[1:] or rates or [0.0])


def tokens_per_block(
    model: nn.Module,
    keep: Sequence[float] | None,
    budget: float | None,
    layers: Sequence[int] | None,
    schedule: Path | None = None,
) -> list[int]:
    """Patch tokens left after each block, the same for every row.

    Args:
        model: a vision transformer that `tpkernels.patch` takes.
        keep: one ratio or count for all layers, or one for each; None for 0.7.
        budget: share of the base model's MACs instead of `keep`, with Ward's clustering counted.
        layers: 0-based blocks that pool; None for those at a quarter, a half and three quarters of the depth.
        schedule: a file that says it all, in place of the other three.

    Raises:
        OSError: the schedule file cannot be read.
        ValueError: an argument is out of range, or there are not as many `keep` as layers.
        TypeError: the model is none that can be pooled.
    """
    shape = tpkernels.count_macs(model).per_layer
    depth, patches = len(shape), shape[0].tokens_in
    if schedule is not None:
        return read_tokens(schedule, depth, patches)
    if layers is None:
        layers = sorted({depth * quarter // 4 for quarter in (1, 2, 3)})
    if budget is not None:
        return resolve_budget(model, budget, layers)
    keep = keep or [0.7]
    if len(keep) == 1:
        return resolve_keep(keep[0], depth, patches, layers)
    if len(keep) != len(layers):
        raise ValueError(f"--keep expects one number, or one for each of the {len(layers)} layers, got {len(keep)}")
    resolve_keep(keep[0], depth, patches, layers)
    per_layer = dict(zip(layers, keep, strict=True))
    return resolve_keep([per_layer.get(block) for block in range(depth)], depth, patches)


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the weights, so that each row is patched once and none takes memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def pool_like(model: nn.Module, method: Method, tokens: Sequence[int]) -> None:
    """Patches a model, in place, so that `tokens` patch tokens are left after each block."""
    before = [tpkernels.count_macs(model).per_layer[0].tokens_in, *tokens]
    keep = [left if left < came else None for left, came in zip(tokens, before, strict=False)]
    tpkernels.patch(model, keep, **method.arguments)


def build_rows(
    model: nn.Module,
    methods: Sequence[Method],
    tokens: list[int],
    compiled: bool,
    distances: tpkernels.Schedule | None = None,
) -> list[Row]:
    """The base model's row, then one per method.

    Args:
        tokens: patch tokens left after each block; the most, where there are distances.
        distances: by which all methods merge, instead of to `tokens`.
    """
    base = tpkernels.count_macs(model)
    patches = [row.tokens_in for row in base.per_layer]
    rows = [Row("base", BASE_LABEL, BASE_LABEL, model, patches, base)]
    for method in methods:
        pooled = twin(model)
        if distances is None:
            pool_like(pooled, method, tokens)
        else:
            tpkernels.patch(pooled, distances, **method.arguments)
        macs = tpkernels.count_macs(model, tokens, method=method.method, init=method.init)
        by_distance = None if distances is None else method
        rows.append(Row(method.name, method.label, method.family, pooled, tokens, macs, by_distance=by_distance))
    if compiled:
        # Imported here, for it takes seconds. Every row compiles the same forward under guards of its own; beyond the
        # limit of eight they would quietly run eagerly.
        from torch._dynamo import config

        config.recompile_limit = max(64, config.recompile_limit)
        for row in rows:
            row.model = torch.compile(row.model)
    return rows
