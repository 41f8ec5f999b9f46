"""`patch` and `unpatch`: Token Pooling put into an existing model, and taken out again."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from .. import checks
from ..modules import TokenPool
from ..names import POSITIONS, PRUNERS
from ..schedule.file import Schedule
from .containers import plan_of
from .install import give_back, install, uninstall
from .plan import Plan
from .towers import patched_in, read_tower
from .wanted import wanted

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    keep: float | int | str | os.PathLike[str] | Schedule | Sequence[float | int | None] | None = None,
    *,
    distance: float | str | os.PathLike[str] | Schedule | Sequence[float | None] | None = None,
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
    num_prefix_tokens: int | None = None,
    tower: str | None = None,
    backend: str = "auto",
) -> Model:
    """Makes a vision transformer of timm, torchvision or transformers pool its patch tokens; `unpatch` undoes it.

    Classes of containers and blocks change; modules and `state_dict` keys don't. Prefix tokens (class, distillation,
    register) are never pooled. Ratios hold at every image size; counts stay counts, and a block that gets no more
    tokens than its count pools nothing. A block that is called by anything but the model's own call of all its blocks
    raises RuntimeError. Patching again replaces the settings. The defaults are those that keep most of an unpooled
    model's answers: docs/defaults.md. Which models pool, by name: docs/models.md.

    Args:
        model: a vision transformer, or a module that holds one (torch.compile, DataParallel, PEFT, a model of images
            and text); its library need not be installed where only the structure is the same.
        keep: a ratio (float) or count (int) for every block in `layers`, or a list with one per block (None: none);
            or a Schedule for such a model, or the path (str or os.PathLike) of a file of it that `save_schedule` wrote.
        distance: instead of the same number for every image: clusters closer than this merge, so that each image keeps
            what it needs. A number for every block in `layers`, or a list with one per block (None: none); or a
            Schedule with distances or the path of its file, here or as `keep`. The distance of two clusters is
            `sqrt(2 m_a m_b / (m_a + m_b)) ||c_a - c_b||`, m how many patches they stand for. `keep` beside it is the
            most that an image keeps; all where None. For "ward", and "kmeans" and "kmedoids" from "ward".
            `solve_schedule(..., adaptive=True)` finds distances for a budget. A batch is padded where its images keep
            different numbers: with `restore=False` what follows the blocks gets the padding too.
        layers: 0-based blocks that pool; every block where None.
        budget: instead of `keep`, the share of the model's MACs to spend at its own image size, clustering counted: the
            ratio that this takes is kept at every size.
        method, init, output, max_iter, refine, min_tokens, backend: as TokenPool takes them.
        weighted: cluster with the significance as weight. None: the paper's choice, True for kmeans and kmedoids with
            `init="topk"`, False otherwise.
        proportional: attention counts a token as often as its size (ToMe's proportional attention).
        position: "attention" pools between attention and MLP, "block" after the MLP.
        restore: after the last block, copy each token to all places that it stands for, as many as the model has
            patches. None: where what follows reads the patch tokens (average-pooled and attention heads, transformers'
            `last_hidden_state`) and the method merges tokens; sizes then count as copies. Methods that drop tokens
            cannot restore them. Where a model reads an earlier block (LLaVA's `vision_feature_layer`), that one's
            tokens are restored, and later blocks pool nothing.
        seed: of "random" and "importance"; block l draws with `seed + l`.
        num_prefix_tokens: tokens before the patches, where the model adds some that it does not tell of (prompts).
            None: as many as it tells of in every call.
        tower: path of the vision tower, such as "vision_tower", where a model holds several.

    Returns:
        `model`, patched.

    Raises:
        TypeError: a model of unsupported structure (the message names its class and what is supported), or an argument
            of the wrong type. The model is unchanged then.
        OSError: a schedule file that cannot be read. The model is unchanged then.
        ValueError: an argument out of range, a file that is no schedule or does not fit the model, `keep` and `budget`
            both or neither given, `distance` beside `budget` or a method that does not merge by it, or `restore` with a
            method that drops tokens. The model is unchanged then.
    """
    found, shape, returns_tuples = read_tower(model, tower)
    family = found.family
    checks.one_of("position", position, POSITIONS)
    checks.flag("proportional", proportional)
    checks.integer("seed", seed)
    if restore is not None:
        checks.flag("restore", restore)
    if num_prefix_tokens is not None:
        checks.count("num_prefix_tokens", num_prefix_tokens, 0)
        shape = replace(shape, num_prefix_tokens=num_prefix_tokens)
    options: dict[str, Any] = {"method": method, "init": init, "max_iter": max_iter, "position": position}
    if weighted is None:
        weighted = method in ("kmeans", "kmedoids") and init == "topk"

    def pool(entry: float | int, one: float | None = None, layer: int = 0) -> TokenPool:
        return TokenPool(
            entry,
            method,
            init=init,
            output=output,
            max_iter=max_iter,
            refine=refine,
            weighted=weighted,
            num_prefix_tokens=shape.num_prefix_tokens,
            seed=seed + layer,
            min_tokens=min_tokens,
            distance_threshold=one,
            backend=backend,
        )

    # Checks the settings, also where no block pools.
    pool(shape.num_patches)
    kept, distances, calibrated = wanted(shape, keep, distance, budget, layers, options)
    last_read = family.last_read(found.tower, model)
    read = shape.depth if last_read is None else last_read + 1
    kept = kept[:read] + (None,) * (shape.depth - read)
    if restore and method in PRUNERS:
        raise ValueError(f"restore must be False or None for method {method!r}, which drops tokens, got {restore!r}")
    pools = tuple(
        None if entry is None or _is_never(entry, one) else pool(entry, one, layer)
        for layer, (entry, one) in enumerate(zip(kept, distances or (None,) * shape.depth, strict=True))
    )
    plan = Plan(
        family, kept, pools, shape.num_prefix_tokens, proportional, num_prefix_tokens is not None, position,
        False if method in PRUNERS else restore, last_read, returns_tuples, distances, calibrated,
    )  # fmt: skip
    guarded = family.guarded(found.tower, model)
    if plan_of(found.container) is not None:
        uninstall(model, found.container)
    install(found.tower, found.container, plan, guarded)
    return model


def unpatch(model: Model, *, tower: str | None = None) -> Model:
    """Undoes `patch`: the model computes, holds and stores what it did before; one that is not patched stays as it is.

    Args:
        model: what was patched, or a module that holds it or wraps it by now.
        tower: path of the one tower to give back; all of the model's where None.

    Returns:
        `model`.

    Raises:
        TypeError: no nn.Module, or a graph that was made from a patched model, which pools for ever.
        ValueError: the model has no part of that path.
    """
    if not isinstance(model, nn.Module) or isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise TypeError(
            "tpkernels.unpatch: model must be the nn.Module that was patched, or one that holds it; got "
            f"{type(model).__name__}"
        )
    for found in patched_in(model, tower):
        uninstall(model, found.container)
    if tower is None:
        # Blocks that were taken out of their container.
        give_back(model)
    return model


def _is_never(keep: float | int, distance: float | None) -> bool:
    """Whether a block pools at no size: at a ratio of 1, but for a distance, beside which that is the most."""
    return distance is None and isinstance(keep, float) and keep == 1
