"""The ways to spend a budget that are compared: what each has `tpkernels.patch` do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tpkernels


@dataclass(frozen=True)
class Way:
    """One row of the tables.

    kind: "constant" ratio, "searched" tokens per block, or "distance"; all but the last leave all images the same
    tokens. everywhere: any block may pool, instead of three. alike: of a "distance" the way that leaves all images
    alike what the distances leave in the mean.
    """

    name: str
    label: str
    kind: str
    everywhere: bool = False
    alike: str | None = None


WAYS = (
    Way("constant", "constant ratio", "constant"),
    Way("searched", "searched", "searched"),
    Way("distance", "distances", "distance", alike="searched"),
    Way("searched-all", "searched, any block", "searched", everywhere=True),
    Way("distance-all", "distances, any block", "distance", everywhere=True, alike="searched-all"),
)


CONSTANT = WAYS[0]


def depth_errors(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """What `solve_schedule` is given, as `search_schedule.py` gives it: block l's errors weigh 1 / l, l from 1."""
    errors = tpkernels.reconstruction_errors(model, batches)
    return errors / torch.arange(1, len(errors) + 1)[:, None]


def settings(
    way: Way, model: nn.Module, budget: float, layers: list[int], errors: Tensor, batches: list[Tensor]
) -> tuple[dict[str, Any], float]:
    """Arguments of `tpkernels.patch`, and the share of the MACs that they take of the calibration images in the mean.

    Args:
        layers: blocks that pool, where the way is not everywhere.
        errors, batches: of the calibration images.

    Raises:
        ValueError: the way cannot meet the budget.
    """
    if way.kind == "distance":
        allowed = None if way.everywhere else layers
        found = tpkernels.solve_schedule(batches, model, budget, layers=allowed, adaptive=True)
        calibrated = found.facts.get("calibrated")
        share = calibrated["mean_ratio"] if calibrated else tpkernels.count_macs(model, list(found.tokens)).ratio
        return {"keep": found}, share
    if way.kind == "constant":
        tokens = tpkernels.resolve_budget(model, budget, layers)
    else:
        tokens = tpkernels.solve_schedule(errors, model, budget, layers=None if way.everywhere else layers)
    macs = tpkernels.count_macs(model, tokens)
    keep = [row.tokens_out if row.tokens_out < row.tokens_in else None for row in macs.per_layer]
    return {"keep": keep}, macs.ratio
