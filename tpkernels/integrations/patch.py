"""`patch` and `unpatch`: Token Pooling in a model that exists, and the way back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from torch import nn

from ..macs import ViTShape
from ..modules import TokenPool
from ..schedules import resolve_budget, resolve_keep
from . import timm

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    keep: float | int | Sequence[float | int | None] | None = None,
    *,
    layers: Collection[int] | None = None,
    budget: float | None = None,
    method: str = "ward",
    init: str = "ward",
    output: str = "mean",
    weighted: bool | None = None,
    proportional: bool = True,
    max_iter: int = 5,
    seed: int = 0,
    backend: str = "auto",
) -> Model:
    """Makes a vision transformer pool its patch tokens between attention and MLP; `unpatch` undoes it.

    Classes change, modules and `state_dict` keys don't. Prefix tokens (class, distillation, register) are never pooled.
    Token counts are fixed here for the model's own image size: a larger image is pooled to the same counts, and a block
    that gets no more tokens than its count pools nothing. Patching again replaces the settings.

    Args:
        model: a vision transformer with timm's structure and a class-token head; timm itself is not needed.
        keep: a ratio (float) or count (int) for every block in `layers`, or a list with one per block (None: none).
        layers: 0-based blocks that pool; every block where None.
        budget: instead of `keep`, the share of the model's MACs to spend, clustering counted.
        method, init, output, max_iter, backend: as TokenPool takes them.
        weighted: cluster with the significance as weight. None: the paper's choice, True for kmeans and kmedoids with
            `init="topk"`, False otherwise.
        proportional: attention counts a token as often as its size (ToMe's proportional attention).
        seed: of "random" and "importance"; block l draws with `seed + l`.

    Returns:
        `model`, patched.

    Raises:
        TypeError: a model of unsupported structure (the message names its class and what is supported), or an argument
            of the wrong type. The model is unchanged then.
        ValueError: an argument out of range, `keep` and `budget` both or neither given, a head that does not read the
            class token, or gradient checkpointing that is on. The model is unchanged then.
    """
    shape = timm.read_model(model)
    if keep is not None and budget is None:
        schedule = resolve_keep(keep, shape.depth, shape.num_patches, layers)
    elif budget is not None and keep is None:
        schedule = resolve_budget(shape, budget, layers, method=method, init=init, max_iter=max_iter)
    else:
        given = "neither" if keep is None else f"keep={keep!r} and budget={budget!r}"
        raise ValueError(f"keep or budget must be given, and not both, got {given}")
    if weighted is None:
        weighted = method in ("kmeans", "kmedoids") and init == "topk"
    before = [shape.num_patches, *schedule[:-1]]

    def pool(count: int, layer: int = 0) -> TokenPool:
        return TokenPool(
            count,
            method,
            init=init,
            output=output,
            max_iter=max_iter,
            weighted=weighted,
            num_prefix_tokens=shape.num_prefix_tokens,
            grid_size=_grid_size(model, shape, method, before[layer]),
            seed=seed + layer,
            backend=backend,
        )

    # Wrong settings are wrong even where nothing is pooled.
    pool(shape.num_patches)
    pools = tuple(pool(n, layer) if n < before[layer] else None for layer, n in enumerate(schedule))
    timm.install(model, timm.Plan(tuple(schedule), pools, shape.num_prefix_tokens, proportional))
    return model


def unpatch(model: Model) -> Model:
    """Undoes `patch`: the model computes, holds and stores what it did before; one that is not patched stays as it is.

    Returns:
        `model`.
    """
    timm.uninstall(model)
    return model


def schedule_of(model: nn.Module) -> list[int]:
    """Patch tokens that a patched model leaves after each block, at its own image size.

    Raises:
        ValueError: the model is not patched.
    """
    plan = timm.plan_of(model)
    if plan is None:
        raise ValueError(f"model must be patched with tpkernels.patch, got an unpatched {type(model).__name__}")
    return list(plan.schedule)


def _grid_size(model: nn.Module, shape: ViTShape, method: str, tokens: int) -> tuple[int, int] | None:
    """The patch grid, for the first block that pools it; later ones get no grid but tokens in raster order."""
    grid = getattr(model.patch_embed, "grid_size", None)
    if method != "grid" or grid is None or tokens != shape.num_patches:
        return None
    height, width = grid
    # A square is what TokenPool takes by itself, at any image size.
    return None if height == width else (int(height), int(width))
