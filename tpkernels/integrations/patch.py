"""`patch` and `unpatch`: Token Pooling put into an existing model, and taken out again."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from torch import nn

from .. import checks
from ..modules import TokenPool
from ..names import POSITIONS, PRUNERS
from ..schedule.file import read_tokens
from ..schedule.keep import resolve_budget, resolve_keep
from ..schedule.shapes import ViTShape
from .blocks import install, plan_of, uninstall
from .families import find_family, read_model
from .plan import Family, Plan

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    keep: float | int | str | os.PathLike[str] | Sequence[float | int | None] | None = None,
    *,
    layers: Collection[int] | None = None,
    budget: float | None = None,
    method: str = "ward",
    init: str = "ward",
    output: str = "mean",
    weighted: bool | None = None,
    proportional: bool = True,
    position: str = "attention",
    restore: bool | None = None,
    max_iter: int = 5,
    refine: str | None = None,
    min_tokens: int = 0,
    seed: int = 0,
    backend: str = "auto",
) -> Model:
    """Makes a vision transformer of timm, torchvision or transformers pool its patch tokens; `unpatch` undoes it.

    Classes of containers change; modules and `state_dict` keys don't. Prefix tokens (class, distillation, register) are
    never pooled. Token counts are fixed here for the model's own image size: a larger image is pooled to the same
    counts, and a block that gets no more tokens than its count pools nothing. Patching again replaces the settings.
    The defaults are those that keep most of an unpooled model's answers: docs/defaults.md.

    Args:
        model: a vision transformer; its library need not be installed where only the structure is the same.
        keep: a ratio (float) or count (int) for every block in `layers`, or a list with one per block (None: none);
            or the path (str or os.PathLike) of a schedule file that `save_schedule` wrote for such a model.
        layers: 0-based blocks that pool; every block where None.
        budget: instead of `keep`, the share of the model's MACs to spend, clustering counted.
        method, init, output, max_iter, refine, min_tokens, backend: as TokenPool takes them.
        weighted: cluster with the significance as weight. None: the paper's choice, True for kmeans and kmedoids with
            `init="topk"`, False otherwise.
        proportional: attention counts a token as often as its size (ToMe's proportional attention).
        position: "attention" pools between attention and MLP, "block" after the MLP.
        restore: after the last block, copy each token to all places that it stands for, as many as the model has
            patches. None: where what follows reads the patch tokens (average-pooled and attention heads, transformers'
            `last_hidden_state`) and the method merges tokens; sizes then count as copies. Methods that drop tokens
            cannot restore them.
        seed: of "random" and "importance"; block l draws with `seed + l`.

    Returns:
        `model`, patched.

    Raises:
        TypeError: a model of unsupported structure (the message names its class and what is supported), or an argument
            of the wrong type. The model is unchanged then.
        OSError: a schedule file that cannot be read. The model is unchanged then.
        ValueError: an argument out of range, a file that is no schedule or does not fit the model, `keep` and `budget`
            both or neither given, or `restore` with a method that drops tokens. The model is unchanged then.
    """
    family, container, shape, returns_tuples = read_model(model)
    checks.one_of("position", position, POSITIONS)
    checks.flag("proportional", proportional)
    checks.integer("seed", seed)
    if restore is not None:
        checks.flag("restore", restore)
    if keep is not None and budget is None:
        if isinstance(keep, (str, os.PathLike)):
            schedule = _read_schedule(keep, shape, layers)
        else:
            schedule = resolve_keep(keep, shape.depth, shape.num_patches, layers)
    elif budget is not None and keep is None:
        options: dict[str, Any] = {"method": method, "init": init, "max_iter": max_iter, "position": position}
        schedule = resolve_budget(shape, budget, layers, **options)
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
            refine=refine,
            weighted=weighted,
            num_prefix_tokens=shape.num_prefix_tokens,
            grid_size=_grid_size(model, shape, method, before[layer]),
            seed=seed + layer,
            min_tokens=min_tokens,
            backend=backend,
        )

    # Checks the settings, also where no block pools.
    pool(shape.num_patches)
    if restore and method in PRUNERS:
        raise ValueError(f"restore must be False or None for method {method!r}, which drops tokens, got {restore!r}")
    if restore is None:
        restore = method not in PRUNERS and family.reads_patches(model)
    pools = tuple(pool(n, layer) if n < before[layer] else None for layer, n in enumerate(schedule))
    unpatch(model)
    plan = Plan(
        family, tuple(schedule), pools, shape.num_prefix_tokens, proportional, position, bool(restore), returns_tuples
    )
    install(container, plan)
    family.take_over(model)
    for module in family.guarded(model):
        module.register_forward_pre_hook(family.check_call, with_kwargs=True)
    return model


def unpatch(model: Model) -> Model:
    """Undoes `patch`: the model computes, holds and stores what it did before; one that is not patched stays as it is.

    Returns:
        `model`.
    """
    found = find_family(model)
    if found is None or plan_of(found[1]) is None:
        return model
    family, container = found
    for module in family.guarded(model):
        _remove_guards(module)
    family.give_back(model)
    uninstall(container)
    return model


def _read_schedule(path: str | os.PathLike[str], shape: ViTShape, layers: Collection[int] | None) -> list[int]:
    if layers is not None:
        raise ValueError(f"layers must be None beside a schedule file, which names its own blocks, got {layers!r}")
    return read_tokens(path, shape.depth, shape.num_patches)


def _remove_guards(module: nn.Module) -> None:
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Family)]:
        del hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _grid_size(model: Any, shape: ViTShape, method: str, tokens: int) -> tuple[int, int] | None:
    """The patch grid, for the first block that pools it: later ones have tokens in raster order, but no grid."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if method != "grid" or grid is None or tokens != shape.num_patches:
        return None
    height, width = grid
    # With None, TokenPool takes the square, at any image size.
    return None if height == width else (int(height), int(width))
