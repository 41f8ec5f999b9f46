"""`solve_schedule` against brute force on models small enough to try every schedule."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from torch import Tensor

from tpkernels import ViTShape, count_macs, resolve_keep, solve_schedule
from tpkernels.schedule.paths import all_paths, block_table
from tpkernels.schedule.search import walk

SMALL = ViTShape(depth=3, dim=8, num_patches=8, patch_dim=12, num_classes=5)
DEIT_S = ViTShape(depth=12, dim=384, num_patches=196)


def falling_errors(seed: int, depth: int, n: int) -> Tensor:
    """[L, N] float64 that fall to 0 at N, steep at first, another curve for each block."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(depth, n - 1, generator=generator, dtype=torch.float64) ** 3
    steps = steps.sort(1).values * torch.rand(depth, 1, generator=generator, dtype=torch.float64)
    return torch.nn.functional.pad(steps.cumsum(1), (1, 0)).flip(1)


def error_of(errors: Tensor, schedule: list[int]) -> float:
    return sum(float(errors[layer, count - 1]) for layer, count in enumerate(schedule))


def every_schedule(shape: ViTShape, layers: list[int] | None = None) -> list[list[int]]:
    counts = range(shape.num_patches, 0, -1)
    found = [list(one) for one in itertools.combinations_with_replacement(counts, shape.depth)]
    pooled = range(shape.depth) if layers is None else layers
    return [
        one
        for one in found
        if all(one[i] == (one[i - 1] if i else shape.num_patches) for i in range(shape.depth) if i not in pooled)
    ]


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower convex hull, by cost (Andrew's chain), as far as the error falls."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(points):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 1e-15:
                break
            corners.pop()
        corners.append((x, y))
    lowest = min(y for _, y in corners)
    return corners[: 1 + [y for _, y in corners].index(lowest)]


@pytest.mark.parametrize("position", ["attention", "block"])
@pytest.mark.parametrize(
    ("method", "init"),
    [(method, init) for method in ("ward", "kmeans", "kmedoids") for init in ("ward", "auto", "topk", "farthest")]
    + [(method, "ward") for method in ("topk", "grid", "bipartite")],
)
def test_the_table_of_a_blocks_macs_is_what_count_macs_counts(method: str, init: str, position: str) -> None:
    shape = ViTShape(depth=2, dim=6, num_patches=11, num_prefix_tokens=2, mlp_ratio=2.5)
    options = {"method": method, "init": init, "max_iter": 3, "position": position}
    table = block_table(shape, **options)
    for came, left in itertools.product(range(1, 12), repeat=2):
        if left > came:
            assert table[came - 1, left - 1] == 0
        else:
            row = count_macs(shape, [came, left], **options).per_layer[1]
            assert table[came - 1, left - 1] == row.attention + row.mlp + row.clustering, (came, left)


@pytest.mark.parametrize("layers", [None, [0, 2], [1]], ids=str)
def test_the_best_of_every_schedule_where_the_hull_has_it(layers: list[int] | None) -> None:
    schedules = every_schedule(SMALL, layers)
    costs = [count_macs(SMALL, schedule).ratio for schedule in schedules]
    constant = [resolve_keep((i + 1) / 300, SMALL.depth, SMALL.num_patches, layers) for i in range(300)]
    seen, reached, tried = 0, 0, 0
    for seed in range(6):
        errors = falling_errors(seed, SMALL.depth, SMALL.num_patches)
        points = [(cost, error_of(errors, schedule)) for cost, schedule in zip(costs, schedules, strict=True)]
        corners = hull(points)
        for budget in (0.55, 0.7, 0.8, 0.93, 1.0, corners[len(corners) // 2][0]):
            if min(costs) > budget:
                continue
            schedule = solve_schedule(errors, SMALL, budget, layers=layers)
            assert schedule in schedules
            assert count_macs(SMALL, schedule).ratio <= budget
            got = error_of(errors, schedule)
            best = min(error for cost, error in points if cost <= budget)
            on_hull = min(error for cost, error in corners if cost <= budget)
            assert best - 1e-9 <= got <= on_hull + 1e-9
            ratios = [one for one in constant if count_macs(SMALL, one).ratio <= budget]
            assert got <= min((error_of(errors, one) for one in ratios), default=math.inf) + 1e-9
            if on_hull <= best + 1e-9:
                seen += 1
                assert got <= best + 1e-9
            tried += 1
            reached += got <= best + 1e-9
    # The hull has the best often enough to have been tested, and filling the budget finds most of the rest.
    assert seen >= 6 and reached >= 0.8 * tried


@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2], [1]], ids=str)
def test_the_walk_alone_finds_the_hull(layers: list[int]) -> None:
    schedules = every_schedule(SMALL, layers)
    costs = [count_macs(SMALL, schedule).ratio for schedule in schedules]
    for seed in range(6):
        errors = falling_errors(seed, SMALL.depth, SMALL.num_patches)
        found = all_paths(errors, SMALL, layers, method="ward")
        lost = [error_of(errors, schedule) for schedule in schedules]
        for weight, price in ((0.0, 1.0), (1.0, 0.0), (1.0, 0.3), (1.0, 2.0), (1.0, 9.0)):
            least = found.schedule(found.least(weight, price))
            values = [weight * error + price * cost for error, cost in zip(lost, costs, strict=True)]
            assert values[schedules.index(least)] == pytest.approx(min(values), rel=1e-12)
        corners = hull(list(zip(costs, lost, strict=True)))
        cheapest = found.least(0.0, 1.0)
        for cost, error in corners:
            # At a corner's own cost it is affordable, and just below it the one before it is.
            assert found.error(walk(found, cheapest, cost)) == pytest.approx(error)
        for (_, error), (cost, _) in itertools.pairwise(corners):
            assert found.error(walk(found, cheapest, cost - 1e-9)) == pytest.approx(error)


@pytest.mark.parametrize("method", ["ward", "kmeans", "topk", "bipartite"])
@pytest.mark.parametrize("position", ["attention", "block"])
def test_the_budget_counts_what_is_asked(method: str, position: str) -> None:
    errors = falling_errors(3, SMALL.depth, SMALL.num_patches)
    schedule = solve_schedule(errors, SMALL, 0.8, method=method, position=position)
    assert 0.6 < count_macs(SMALL, schedule, method=method, position=position).ratio <= 0.8


def test_a_block_that_loses_nothing_pools_and_one_that_loses_much_does_not() -> None:
    errors = falling_errors(0, 4, 16)
    errors[0], errors[1] = 100 * errors[0], 100 * errors[1]
    errors[2:] = 0
    shape = ViTShape(depth=4, dim=16, num_patches=16, patch_dim=1, num_classes=0)
    assert solve_schedule(errors, shape, 0.7) == [16, 16, 1, 1]


def test_a_real_size_spends_its_budget_in_a_moment() -> None:
    errors = falling_errors(1, DEIT_S.depth, DEIT_S.num_patches)
    started = time.process_time()
    schedule = solve_schedule(errors, DEIT_S, 0.58)
    assert time.process_time() - started < 5
    assert 0.579 < count_macs(DEIT_S, schedule).ratio <= 0.58
    three = solve_schedule(errors, DEIT_S, 0.65, layers=[9, 3, 6])
    assert len(set(three)) <= 4 and three[:3] == [196] * 3 and count_macs(DEIT_S, three).ratio <= 0.65
    assert error_of(errors, three) >= error_of(errors, solve_schedule(errors, DEIT_S, 0.65))


def test_the_whole_budget_pools_nothing() -> None:
    errors = falling_errors(2, SMALL.depth, SMALL.num_patches)
    assert solve_schedule(errors, SMALL, 1.0) == [8, 8, 8]
    assert solve_schedule(errors, SMALL, 1, layers=[]) == [8, 8, 8]


def test_an_unreachable_budget_names_one_that_can_be_reached() -> None:
    errors = falling_errors(2, SMALL.depth, SMALL.num_patches)
    with pytest.raises(ValueError, match=r"budget must be at least 0\.\d{4}, .* layers \[2\] .* got 0\.3") as caught:
        solve_schedule(errors, SMALL, 0.3, layers=[2])
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert count_macs(SMALL, solve_schedule(errors, SMALL, least, layers=[2])).ratio <= least


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, r"errors must be a floating-point tensor \[L, N\], got list", {"errors": [[0.0]]}),
        (TypeError, r"errors must be a floating-point .* got torch.int64", {"errors": torch.zeros(3, 8).long()}),
        (ValueError, r"errors must have shape \[3, 8\], .* got \[8, 3\]", {"errors": torch.zeros(8, 3)}),
        (ValueError, r"errors must be finite", {"errors": torch.full((3, 8), torch.nan)}),
        (ValueError, r"budget must be a number in \(0, 1\], got 0", {"budget": 0}),
        (TypeError, r"budget must be a number in \(0, 1\], got '0.5'", {"budget": "0.5"}),
        (ValueError, r"layers must be distinct .* got 3", {"layers": [3]}),
        (ValueError, r"method must be one of ward, .* got 'wards'", {"method": "wards"}),
        (ValueError, r"init must be one of auto, .* got 'best'", {"init": "best"}),
        (ValueError, r"position must be one of attention, block; got 'end'", {"position": "end"}),
        (TypeError, r"model_or_shape must be a ViTShape", {"model_or_shape": 3}),
    ],
)
def test_what_bad_input_gets(error: type[Exception], message: str, changes: dict) -> None:
    arguments = {"errors": torch.zeros(3, 8), "model_or_shape": SMALL, "budget": 0.8, **changes}
    with pytest.raises(error, match=message):
        solve_schedule(**arguments)
