"""What `patch` is told of the tokens that each block leaves: a number, a distance, a budget or a schedule."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from .. import checks
from ..names import CLUSTERERS
from ..schedule.distance import distance_by_block
from ..schedule.file import Schedule, fitting_schedule
from ..schedule.keep import keep_by_block, resolve_budget_ratio
from ..schedule.shapes import ViTShape
from .distribution import Distribution, read_fact

Keep = tuple[float | int | None, ...]


class Wanted(NamedTuple):
    """For each block what it keeps, a ratio, a count or None, and the distance below which clusters merge, or None.

    distance is None where every image keeps the same; beside distances `keep` is the most that an image does.
    calibrated: what images kept, where a schedule says it.
    """

    keep: Keep
    distance: tuple[float | None, ...] | None = None
    calibrated: Distribution | None = None


def wanted(
    shape: ViTShape, keep: Any, distance: Any, budget: float | None, layers: Collection[int] | None,
    options: dict[str, Any],
) -> Wanted:  # fmt: skip
    """The arguments of `patch` by these names, block by block.

    Args:
        options: method, init, max_iter and position.

    Raises:
        OSError, TypeError, ValueError: as `patch` does.
    """
    if distance is not None:
        if budget is not None:
            raise ValueError(f"budget must be None beside distance, got {budget!r}")
        _check_merges(distance, shape, options["method"], options["init"])
        return _by_distance(shape, keep, distance, layers)
    if keep is not None and budget is None:
        if not isinstance(keep, (Schedule, str, os.PathLike)):
            return Wanted(tuple(keep_by_block(keep, shape.depth, layers)))
        found = _by_schedule(shape, keep, layers)
        if found.distance is not None:
            _check_merges(found.distance, shape, options["method"], options["init"])
        return found
    if budget is not None and keep is None:
        ratio = resolve_budget_ratio(shape, budget, layers, **options)
        return Wanted(tuple(keep_by_block(ratio, shape.depth, layers)))
    given = "neither, nor distance" if keep is None else f"keep={keep!r} and budget={budget!r}"
    raise ValueError(f"keep or budget must be given, and not both, got {given}")


def _by_distance(shape: ViTShape, keep: Any, distance: Any, layers: Collection[int] | None) -> Wanted:
    if isinstance(distance, (Schedule, str, os.PathLike)):
        if keep is not None:
            raise ValueError(f"keep must be None beside a schedule of distances, which has its own, got {keep!r}")
        found = _by_schedule(shape, distance, layers)
        if found.distance is None:
            raise ValueError("distance must be a schedule with distances (version 2), got one without")
        return found
    if isinstance(keep, (Schedule, str, os.PathLike)):
        raise ValueError(f"distance must be None beside a schedule, got {distance!r}")
    distances = distance_by_block(distance, shape.depth, layers)
    most = keep_by_block(1.0 if keep is None else keep, shape.depth)
    for block, (one, count) in enumerate(zip(distances, most, strict=True)):
        if isinstance(keep, Sequence) and one is None and count is not None:
            raise ValueError(f"keep[{block}] must be None where a block has no distance, got {count!r}")
    # All may remain where nothing else is said.
    return Wanted(
        tuple(None if one is None else count or 1.0 for one, count in zip(distances, most, strict=True)), distances
    )


def _by_schedule(shape: ViTShape, schedule: Any, layers: Collection[int] | None) -> Wanted:
    if layers is not None:
        kind = "Schedule" if isinstance(schedule, Schedule) else "schedule file"
        raise ValueError(f"layers must be None beside a {kind}, which names its own blocks, got {layers!r}")
    found = fitting_schedule(schedule, shape.depth, shape.num_patches)
    if found.distance is None:
        return Wanted(tuple(found.tokens))
    keep = tuple(None if one is None else most for one, most in zip(found.distance, found.tokens, strict=True))
    return Wanted(keep, tuple(found.distance), read_fact(found.facts.get("calibrated"), shape.depth))


def merges(method: str, init: str, num_patches: int) -> bool:
    """Whether a method has a dendrogram to cut: Ward, and what starts from it."""
    return method == "ward" or (method in CLUSTERERS and checks.resolve_init(init, num_patches) == "ward")


def _check_merges(distance: Any, shape: ViTShape, method: str, init: str) -> None:
    """Raises ValueError where a method has no dendrogram to cut."""
    if not merges(method, init, shape.num_patches):
        start = f" from {init!r}" if method in CLUSTERERS else ""
        raise ValueError(
            f'distance must be None but for method "ward", and "kmeans" and "kmedoids" from "ward", got {distance!r} '
            f"for {method!r}{start}"
        )
