"""How many patch tokens each block leaves: from a ratio, a count, a list per block, or a budget of MACs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from .macs import count_macs
from .shapes import ViTShape, check_integer, vit_shape

# Ratios that are tried before the bisection: near 1 a layer may cost more to cluster than it saves, so the total is not
# quite monotone in the ratio.
_GRID = 256
# Enough halvings of 1/256 to separate any two ratios that give different counts below 10^9 tokens.
_HALVINGS = 48


def tokens_kept(keep: float | int, n: int) -> int:
    """How many of n patch tokens `keep` keeps: `max(1, floor(keep n + 1/2))` of a ratio, `min(keep, n)` of a count.

    Args:
        keep: a float is a ratio in (0, 1], an int a count of at least 1.
        n: number of tokens; 0 of 0 are kept.

    Raises:
        TypeError: `keep` is neither, or a bool.
        ValueError: `keep` is out of its range, or n is negative.
    """
    n = check_integer("n", n, 0)
    keep = _check_keep("keep", keep)
    if isinstance(keep, int):
        return min(keep, n)
    return min(n, max(1, math.floor(keep * n + 0.5)))


def resolve_keep(
    keep: float | int | Sequence[float | int | None],
    depth: int,
    num_patches: int,
    layers: Collection[int] | None = None,
) -> list[int]:
    """Patch tokens left after each block's pooling, which sits between its attention and its MLP.

    Args:
        keep: one ratio or count, applied at every layer in `layers` to the tokens that reach it; or a list with one
            entry per block, each a ratio (of the tokens that reach that block), a count, or None for no pooling.
        depth: blocks.
        num_patches: patch tokens that enter the first block.
        layers: 0-based blocks that pool, in any order; None for every block. Excluded by a list.

    Returns:
        `depth` counts, none above the one before it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a ratio or count out of range, a list that is not `depth` long, or a layer that is out of range,
            negative or given twice.
    """
    per_block = keep_by_block(keep, check_integer("depth", depth, 1), layers)
    left = check_integer("num_patches", num_patches, 1)
    schedule = []
    for entry in per_block:
        left = left if entry is None else tokens_kept(entry, left)
        schedule.append(left)
    return schedule


def keep_by_block(
    keep: float | int | Sequence[float | int | None], depth: int, layers: Collection[int] | None = None
) -> list[float | int | None]:
    """A ratio, a count or None for each of `depth` blocks. Arguments and errors are those of `resolve_keep`."""
    if isinstance(keep, Sequence) and not isinstance(keep, (str, bytes)):
        if layers is not None:
            raise ValueError(f"layers must be None beside a list of keep, which names its own blocks, got {layers!r}")
        if len(keep) != depth:
            raise ValueError(f"keep must have {depth} entries, one per block, got {len(keep)}")
        return [None if k is None else _check_keep(f"keep[{i}]", k) for i, k in enumerate(keep)]
    pooled = check_layers(layers, depth)
    ratio_or_count = _check_keep("keep", keep)
    return [ratio_or_count if layer in pooled else None for layer in range(depth)]


def resolve_budget(
    model_or_shape: Any,
    budget: float,
    layers: Collection[int] | None = None,
    method: str = "ward",
    init: str | Sequence[int] = "ward",
    max_iter: int = 5,
    position: str = "attention",
) -> list[int]:
    """The schedule of the constant ratio at `layers` whose MACs come closest to `budget` of the base, never above.

    The total counts the clustering (`Macs.total`). It falls with the ratio but for the first ratios below 1, where
    clustering a layer can cost more than it saves: hence a scan of 256 ratios, then bisection wherever two neighbours
    lie on both sides of the budget.

    Args:
        model_or_shape: what `count_macs` takes.
        budget: share of the unpooled model's MACs, in (0, 1].
        layers: 0-based blocks that pool; None for every block.
        method, init, max_iter, position: as `count_macs` takes them.

    Returns:
        Patch tokens left after each block, as `resolve_keep` returns.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a budget out of range, or below what every ratio takes (the message names the lowest that works).
    """
    shape = vit_shape(model_or_shape)
    ratio = resolve_budget_ratio(shape, budget, layers, method=method, init=init, max_iter=max_iter, position=position)
    return resolve_keep(ratio, shape.depth, shape.num_patches, layers)


def resolve_budget_ratio(shape: ViTShape, budget: float, layers: Collection[int] | None, **how: Any) -> float:
    """The ratio whose schedule `resolve_budget` returns; arguments and errors are the same.

    Args:
        how: method, init, max_iter and position.
    """
    budget = check_budget(budget)
    pooled = sorted(check_layers(layers, shape.depth))

    def price(ratio: float) -> float:
        schedule = resolve_keep(ratio, shape.depth, shape.num_patches, pooled)
        return count_macs(shape, schedule, **how).ratio

    # The first ratio leaves one token at every layer that pools, whatever the number of patches.
    ratios = [0.5 / max(shape.num_patches, _GRID), *(step / _GRID for step in range(1, _GRID + 1))]
    priced = [(ratio, price(ratio)) for ratio in ratios]
    least = min(share for _, share in priced)
    if least > budget:
        # Rounded up: the number in the message is one that works.
        raise ValueError(
            f"budget must be at least {math.ceil(least * 1e4) / 1e4:.4f}, the least that pooling at layers {pooled} "
            f"with method {how['method']!r} reaches, got {budget}"
        )
    fitting = [(share, ratio) for ratio, share in priced if share <= budget]
    for (low, low_share), (high, high_share) in pairwise(priced):
        if (low_share <= budget) == (high_share <= budget):
            continue
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            share = price(middle)
            if share <= budget:
                fitting.append((share, middle))
            # The half that has one end within the budget and the other outside.
            low, high = (middle, high) if (share <= budget) == (low_share <= budget) else (low, middle)
    return max(fitting, key=lambda candidate: candidate[0])[1]


def check_budget(budget: object) -> float:
    """Returns `budget`, a share of a model's MACs; TypeError where it is no number, ValueError outside (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise TypeError(f"budget must be a number in (0, 1], got {budget!r}")
    if not 0 < float(budget) <= 1:
        raise ValueError(f"budget must be a number in (0, 1], got {budget}")
    return float(budget)


def check_layers(layers: Collection[int] | None, depth: int) -> set[int]:
    """Returns the 0-based blocks that may pool, all where None; TypeError or ValueError where they are no blocks."""
    if layers is None:
        return set(range(depth))
    expected = f"distinct 0-based blocks in [0, {depth - 1}]"
    # A tensor or an array of no dimension is a Collection by its class, but has no length.
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Collection) or getattr(layers, "ndim", 1) == 0:
        raise TypeError(f"layers must be {expected}, got {layers!r}")
    pooled: set[int] = set()
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, Integral):
            raise TypeError(f"layers must be {expected}, got {layer!r}")
        if not 0 <= layer < depth or int(layer) in pooled:
            raise ValueError(f"layers must be {expected}, got {layer}{' twice' if int(layer) in pooled else ''}")
        pooled.add(int(layer))
    return pooled


def _check_keep(name: str, keep: object) -> float | int:
    """Returns an int count or a float ratio; numpy's scalars count as ints and floats."""
    expected = "a ratio (float) in (0, 1] or a count (int) of at least 1"
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"{name} must be {expected}, got {keep!r}")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"{name} must be {expected}, got {keep}")
        return int(keep)
    # Written so that NaN fails.
    if not 0 < float(keep) <= 1:
        raise ValueError(f"{name} must be {expected}, got {keep}")
    return float(keep)
