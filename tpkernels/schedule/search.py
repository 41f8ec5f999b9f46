"""The schedule of least error under a budget: from what every block would lose at every number of tokens.

Block l loses `e_l(k)` where k of its tokens go on. Sought is the schedule `n >= k_1 >= ... >= k_L` of least `sum_l
e_l(k_l)` whose MACs, clustering counted, stay within a budget: a shortest path with one constraint. At a price for a
MAC the best of all schedules is found exactly, by dynamic programming over the blocks, since a block's MACs depend on
the tokens that come and that leave alone; the price is found by Handler and Zang's walk (Networks 10, 1980). That gives
the best schedule of the convex hull; the rest of the budget is filled greedily.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .keep import check_budget, check_layers, resolve_keep
from .paths import Paths, all_paths
from .shapes import ViTShape, vit_shape

# Constant ratios that are tried beside the search.
_RATIOS = 512
# A gain below this share of the value is rounding.
_ROUNDING = 1e-12


def solve_schedule(
    errors: Tensor,
    model_or_shape: Any,
    budget: float,
    *,
    layers: Collection[int] | None = None,
    method: str = "ward",
    init: str = "ward",
    max_iter: int = 5,
    position: str = "attention",
) -> list[int]:
    """The schedule of least summed error whose MACs are at most `budget` of the unpooled model's.

    A schedule on the lower convex hull of (MACs, error) is found exactly. Between two of those the error may be a
    little above the least: the budget is filled greedily, from the hull and from the best constant ratio.

    Args:
        errors: [L, N] float; `errors[l, k - 1]` is what block l loses where k of its N patch tokens go on, as
            `reconstruction_errors` measures it. Every block counts with the tokens that it works on, also one that
            does not pool itself. Multiply rows to weigh blocks; `examples/search_schedule.py` divides row l by l.
        model_or_shape: what `count_macs` takes, of L blocks and N patch tokens.
        budget: share of the unpooled model's MACs in (0, 1], clustering counted.
        layers: 0-based blocks that may pool; every block where None.
        method, init, max_iter, position: as `count_macs` takes them.

    Returns:
        Patch tokens left after each block, as `resolve_keep` returns.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: errors of another shape or not finite, an argument out of range, or a budget that no schedule meets
            (the message names the lowest that one does).
    """
    shape, budget = vit_shape(model_or_shape), check_budget(budget)
    if not isinstance(errors, Tensor) or not errors.is_floating_point():
        kind = errors.dtype if isinstance(errors, Tensor) else type(errors).__name__
        raise TypeError(f"errors must be a floating-point tensor [L, N], got {kind}")
    expected = [shape.depth, shape.num_patches]
    if list(errors.shape) != expected:
        raise ValueError(f"errors must have shape {expected}, blocks and patch tokens, got {list(errors.shape)}")
    if not bool(errors.isfinite().all()):
        raise ValueError("errors must be finite, got NaN or infinity")
    pooled = sorted(check_layers(layers, shape.depth))
    options: dict[str, Any] = {"method": method, "init": init, "max_iter": max_iter, "position": position}
    paths = all_paths(errors.detach().double().cpu(), shape, pooled, **options)

    cheapest = paths.least(weight=0.0, price=1.0)
    reached = paths.share(cheapest)
    if reached > budget:
        raise ValueError(
            f"budget must be at least {math.ceil(reached * 1e4) / 1e4:.4f}, the least that pooling at layers {pooled} "
            f"with method {method!r} reaches, got {budget}"
        )
    starts = [walk(paths, cheapest, budget), *_constant(paths, shape, pooled, budget)]
    best = min((_fill(paths, start, budget) for start in starts), key=paths.error)
    return paths.schedule(best)


def walk(paths: Paths, cheapest: Tensor, budget: float) -> Tensor:
    """The path of least error within the budget among those of the lower convex hull of (MACs, error).

    Two paths of the hull, one on each side of the budget, give the price at which they are worth the same; the best
    path at that price replaces the one on its side, until there is none below their line.
    """
    below, above = cheapest, paths.least(weight=1.0, price=0.0)
    if paths.share(above) <= budget:
        return above
    while True:
        errors, shares = paths.measure(torch.stack([below, above]))
        price = float((errors[0] - errors[1]) / (shares[1] - shares[0]))
        found = paths.least(weight=1.0, price=price)
        error, share = paths.error(found), paths.share(found)
        value, line = error + price * share, float(errors[0] + price * shares[0])
        if value >= line - _ROUNDING * (abs(error) + price * share):
            return below
        if share <= budget:
            below = found
        else:
            above = found


def _constant(paths: Paths, shape: ViTShape, pooled: list[int], budget: float) -> list[Tensor]:
    """The path of least error within the budget among those of constant ratios, alone in a list; [] without one."""
    found = [resolve_keep((i + 1) / _RATIOS, shape.depth, shape.num_patches, pooled) for i in range(_RATIOS)]
    candidates = torch.tensor([[schedule[layer] - 1 for layer in pooled] for schedule in found], dtype=torch.int64)
    errors, shares = paths.measure(candidates)
    fitting = candidates[shares <= budget]
    return [fitting[int(errors[shares <= budget].argmin())]] if len(fitting) else []


def _fill(paths: Paths, path: Tensor, budget: float) -> Tensor:
    """Raises counts where the error falls most for each MAC, as long as the budget allows."""
    while True:
        error, share = paths.error(path), paths.share(path)
        raised = _raised(path, len(paths.macs) - 1)
        if not len(raised):
            return path
        errors, shares = paths.measure(raised)
        # Rises that add no MACs come first: a block that no longer pools has no clustering.
        worth = (error - errors) / (shares - share).clamp(min=1e-15)
        worth[(shares > budget) | (errors >= error - _ROUNDING * abs(error))] = -torch.inf
        best = int(worth.argmax())
        if worth[best] == -torch.inf:
            return path
        path = raised[best]


def _raised(path: Tensor, most: int) -> Tensor:
    """Paths [M, G] with some stages in a row raised to one count, by powers of 2, up to that of the stage before."""
    counts, found = path.tolist(), []
    for first, count in enumerate(counts):
        top = counts[first - 1] if first else most
        steps = {min(count + 2**power, top) for power in range((top - count).bit_length())} | {top}
        for last in range(first, len(counts)):
            for value in sorted(steps - {count}):
                found.append(counts[:first] + [value] * (last - first + 1) + counts[last + 1 :])
    return torch.tensor(found, dtype=torch.int64).reshape(len(found), len(counts))
