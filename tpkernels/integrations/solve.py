"""`solve_schedule` as users call it: one schedule for all images, or distances by which each keeps what it needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, overload

from torch import Tensor, nn

from .. import checks
from ..schedule import search
from ..schedule.file import Schedule
from .adaptive import calibrate_distances
from .calibration import Batches


@overload
def solve_schedule(
    errors: Tensor, model_or_shape: Any, budget: float, *, layers: Collection[int] | None = None, method: str = "ward",
    init: str = "ward", max_iter: int = 5, position: str = "attention", adaptive: Literal[False] = False,
    tower: str | None = None, backend: str = "auto",
) -> list[int]: ...  # fmt: skip
@overload
def solve_schedule(
    errors: Batches, model_or_shape: nn.Module, budget: float, *, layers: Collection[int] | None = None,
    method: str = "ward", init: str = "ward", max_iter: int = 5, position: str = "attention", adaptive: Literal[True],
    tower: str | None = None, backend: str = "auto",
) -> Schedule: ...  # fmt: skip
def solve_schedule(
    errors: Any,
    model_or_shape: Any,
    budget: float,
    *,
    layers: Collection[int] | None = None,
    method: str = "ward",
    init: str = "ward",
    max_iter: int = 5,
    position: str = "attention",
    adaptive: bool = False,
    tower: str | None = None,
    backend: str = "auto",
) -> list[int] | Schedule:
    """The schedule of least summed error whose MACs are at most `budget` of the unpooled model's.

    A schedule on the lower convex hull of (MACs, error) is found exactly. Between two of those the error may be a
    little above the least: the budget is filled greedily, from the hull and from the best constant ratio.

    With `adaptive=True` images keep different numbers of tokens: each merges its clusters that are closer than a
    distance, one a block. The distances are those by which the images given keep, in the mean, what such a schedule
    keeps of each (with errors divided by l in row l), scaled by one factor until the mean of the images' MACs is at
    most the budget and within 0.005 of it:

        schedule = tpkernels.solve_schedule(batches, model, 0.6, adaptive=True)
        tpkernels.patch(model, schedule)
        tpkernels.save_schedule("schedule.json", schedule)

    Args:
        errors: [L, N] float; `errors[l, k - 1]` is what block l loses where k of its N patch tokens go on, as
            `reconstruction_errors` measures it. Every block counts with the tokens that it works on, also one that
            does not pool itself. Multiply rows to weigh blocks; `examples/search_schedule.py` divides row l by l. With
            `adaptive=True` batches of images as `reconstruction_errors` takes them, held in memory: the model runs on
            them about 20 times, in eval mode without gradients, and is afterwards as it was.
        model_or_shape: what `count_macs` takes, of L blocks and N patch tokens; a model that `patch` takes, not
            patched, with `adaptive=True`.
        budget: share of the unpooled model's MACs in (0, 1], clustering counted.
        layers: 0-based blocks that may pool; every block where None.
        method, init, max_iter, position: as `count_macs` takes them; with `adaptive=True` as `patch` takes them beside
            `distance`, which is to be told the same.
        tower, backend: with `adaptive=True`, as `patch` takes them.

    Returns:
        Patch tokens left after each block, as `resolve_keep` returns. With `adaptive=True` a Schedule of the distances,
        with the most tokens that an image kept; its facts hold what `summary` shows of the images.

    Raises:
        TypeError: an argument of the wrong type, or a model that `patch` does not take.
        ValueError: errors of another shape or not finite, an argument out of range, or a budget that no schedule meets
            (the message names the lowest that one does). With `adaptive=True` also a patched model, no images, a method
            that does not merge by distance, or images so few that no distances come within 0.005 of the budget.
    """
    checks.flag("adaptive", adaptive)
    options: dict[str, Any] = {"method": method, "init": init, "max_iter": max_iter, "position": position}
    if adaptive:
        return calibrate_distances(
            errors, model_or_shape, budget, layers=layers, tower=tower, backend=backend, **options
        )
    if tower is not None or backend != "auto":
        raise ValueError("tower and backend must be left out without adaptive=True, where no model is run")
    return search.solve_schedule(errors, model_or_shape, budget, layers=layers, **options)
