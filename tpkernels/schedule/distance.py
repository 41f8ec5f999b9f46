"""The distances below which blocks merge clusters: one for all, or one per block."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any

from .keep import check_layers


def check_distance(name: str, value: object) -> float:
    """Returns a distance; TypeError where it is no number, ValueError where it is negative or not finite."""
    expected = f"{name} must be a finite number of at least 0, got {value!r:.80}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(expected)
    # Written so that NaN fails, and integers of hundreds of digits.
    if not 0 <= value <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(expected)
    return float(value)


def distance_by_block(
    distance: float | Sequence[float | None], depth: int, layers: Collection[int] | None = None
) -> tuple[float | None, ...]:
    """A distance or None for each of `depth` blocks.

    Args:
        distance: one for every block in `layers`, or one per block, None for no pooling.
        layers: 0-based blocks that pool; every block where None. Excluded by a list.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a distance that is negative or not finite, a list that is not `depth` long, or layers that are no
            blocks or stand beside a list.
    """
    if isinstance(distance, Sequence) and not isinstance(distance, (str, bytes)):
        if layers is not None:
            raise ValueError(
                f"layers must be None beside a list of distance, which names its own blocks, got {layers!r}"
            )
        return check_distances(distance, depth)
    pooled = check_layers(layers, depth)
    one = check_distance("distance", distance)
    return tuple(one if layer in pooled else None for layer in range(depth))


def check_distances(distance: Any, depth: int) -> tuple[float | None, ...]:
    """Returns one distance or None per block; TypeError or ValueError where they are none, or not `depth` of them."""
    if isinstance(distance, (str, bytes)) or not isinstance(distance, Sequence):
        raise TypeError(f"distance must list a number or None for each block, got {distance!r}")
    if len(distance) != depth:
        raise ValueError(f"distance must have {depth} entries, one per block, got {len(distance)}")
    return tuple(None if one is None else check_distance(f"distance[{i}]", one) for i, one in enumerate(distance))
