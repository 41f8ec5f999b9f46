"""What images kept where each keeps what it needs: tokens after each block, and shares of the MACs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from ..schedule.macs import Macs


@dataclass(frozen=True)
class Distribution:
    """Over a number of images.

    mean, least, most: patch tokens after each block. mean_ratio, least_ratio, most_ratio: MACs of an image, its
    clustering counted, over those of the unpooled model.
    """

    images: int
    mean: tuple[float, ...]
    least: tuple[int, ...]
    most: tuple[int, ...]
    mean_ratio: float
    least_ratio: float
    most_ratio: float

    def as_fact(self) -> dict[str, Any]:
        """JSON values, for a schedule's facts."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def distribution_of(counts: Tensor, macs: Macs) -> Distribution:
    """Of the patch tokens [M, L] that M images kept after each block, and `count_macs` of them."""
    ratios = macs.total.double() / macs.base
    least, most = counts.aminmax(dim=0)
    return Distribution(
        len(counts),
        tuple(counts.double().mean(0).tolist()),
        tuple(least.tolist()),
        tuple(most.tolist()),
        *(float(one) for one in (ratios.mean(), ratios.min(), ratios.max())),
    )


def read_fact(fact: Any, depth: int) -> Distribution | None:
    """The distribution that `as_fact` wrote; None where a file that others wrote has something else there."""
    if not isinstance(fact, dict) or set(fact) != {one.name for one in fields(Distribution)}:
        return None
    rows = [fact[name] for name in ("mean", "least", "most")]
    single = [fact[name] for name in ("images", "mean_ratio", "least_ratio", "most_ratio")]
    if not all(isinstance(row, list) and len(row) == depth for row in rows):
        return None
    if not all(type(one) in (int, float) for one in [*single, *rows[0], *rows[1], *rows[2]]):
        return None
    mean, least, most = map(tuple, rows)
    return Distribution(single[0], mean, least, most, *single[1:])
