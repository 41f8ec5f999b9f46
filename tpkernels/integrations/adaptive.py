"""Distances for a budget: every image keeps what it needs, and in the mean they cost what may be spent.

First the tokens per block that lose least within the budget, the same for all images, block l weighing 1 / l. Then,
block after block, the distance by which the images keep so many in the mean. What is off by then, since the search did
not see how blocks act on one another, one factor of all distances takes away, found by bisection on pooled forwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule.file import Schedule
from ..schedule.keep import check_budget, check_layers
from ..schedule.macs import count_macs
from ..schedule.search import solve_schedule
from .calibration import Batches, reconstruction_errors
from .distribution import distribution_of
from .towers import read_tower
from .trials import Distances, Trial, Trials, with_distance
from .wanted import merges

# How far below the budget the images' mean may stay, as a share of the unpooled model's MACs: the bisection ends within
# the first, or after some trials within the second.
_NEAR, _FAR = 0.001, 0.005
_PATIENCE, _TRIALS = 8, 24
# The first step of the common factor; steps grow until the budget lies between two.
_STEP = 1.1


def calibrate_distances(
    batches: Batches, model: nn.Module, budget: float, *, layers: Collection[int] | None, tower: str | None,
    backend: str, **options: Any,
) -> Schedule:  # fmt: skip
    """`solve_schedule` with adaptive=True; arguments and errors are the same.

    Args:
        options: method, init, max_iter and position.
    """
    budget = check_budget(budget)
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(
            f"errors must be an iterable of batches of images with adaptive=True, got {type(batches).__name__}"
        )
    found, shape, _ = read_tower(model, tower, "tpkernels.solve_schedule")
    # Checks the options before the images are run.
    count_macs(shape, **options)
    if not merges(options["method"], options["init"], shape.num_patches):
        raise ValueError(
            'method must be "ward", or "kmeans" or "kmedoids" from "ward", with adaptive=True, got '
            f"{options['method']!r} from {options['init']!r}"
        )
    last = found.family.last_read(found.tower, model)
    allowed = [layer for layer in sorted(check_layers(layers, shape.depth)) if last is None or layer <= last]
    # Every trial needs the same images.
    held = list(batches)
    errors = reconstruction_errors(model, held, tower=tower, backend=backend)
    # What is lost early is lost to all blocks that follow.
    errors /= torch.arange(1, shape.depth + 1)[:, None]
    tokens = solve_schedule(errors, shape, budget, layers=allowed, **options)

    trials = Trials(model, held, shape, tower, backend, options)
    distance: Distances = (None,) * shape.depth
    for layer, (came, kept) in enumerate(zip((shape.num_patches, *tokens), tokens, strict=False)):
        if kept < came:
            distance = with_distance(distance, layer, trials.distance_for(distance, layer, kept))
    facts = {**options, "budget": budget}
    if all(one is None for one in distance):
        return Schedule(tuple(tokens), shape.num_patches, facts, distance)
    best = _spend(trials, distance, budget)
    calibrated = distribution_of(best.counts, count_macs(shape, best.counts, **options))
    return Schedule(calibrated.most, shape.num_patches, {**facts, "calibrated": calibrated.as_fact()}, best.distance)


def _spend(trials: Trials, distance: Distances, budget: float) -> Trial:
    """The trial of scaled distances that spends most of a budget, without spending more."""
    factor, step = 1.0, _STEP
    within, beyond, best = None, None, None
    for count in range(1, _TRIALS + 1):
        trial = trials.run(tuple(None if one is None else one * factor for one in distance))
        if trial.share > budget:
            beyond = factor
        else:
            within = factor
            best = trial if best is None or trial.share > best.share else best
        if best is not None and best.share >= budget - (_NEAR if count < _PATIENCE else _FAR):
            return best
        if within is not None and beyond is not None:
            factor = (within * beyond) ** 0.5
        else:
            factor, step = factor * step if within is None else factor / step, step**2
    nearest = "none" if best is None else f"{best.share:.4f}"
    raise ValueError(
        f"budget must be one that distances meet to {_FAR} in the mean of the images, got {budget}: the nearest below "
        f"it is {nearest}; give more images, or another budget"
    )
