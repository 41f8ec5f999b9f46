"""The vision towers in a model: which family one belongs to, and whether it can be pooled."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn

from ..schedule.shapes import ViTShape, block_in
from .block import original_class
from .containers import plan_of
from .forwards import OWN_FORWARD, own_forward, passed_by
from .plan import Family, Unsupported
from .probe import check_block, check_held_positions
from .timm import Timm
from .torchvision import Torchvision
from .transformers import Transformers

FAMILIES: tuple[Family, ...] = (Timm(), Torchvision(), Transformers())
SUPPORTED = "; ".join(family.supported for family in FAMILIES)


class Found(NamedTuple):
    """A tower in a model: its path there ("" where it is the model), its family, and the container of its blocks."""

    path: str
    tower: nn.Module
    family: Family
    container: nn.Module


class Read(NamedTuple):
    """A tower that can be pooled: where it was found, its shape, and whether its blocks return tuples."""

    found: Found
    shape: ViTShape
    returns_tuples: bool


def towers_in(model: nn.Module) -> list[Found]:
    """Every tower in a model: itself, or in what it wraps or holds."""
    found = []
    for path, module in model.named_modules():
        for family in FAMILIES:
            container = family.find(module, inside=bool(path))
            if container is not None:
                found.append(Found(path, module, family, container))
                break
    return found


def patched_in(model: Any, tower: str | None = None) -> list[Found]:
    """The towers in a model, or in its part `tower`, that are patched: by their containers, whatever wraps these."""
    if not isinstance(model, nn.Module):
        return []
    part = model if tower is None else submodule(model, tower)
    paths = {module: path for path, module in part.named_modules()}
    found = []
    container: Any
    for container in part.modules():
        plan = plan_of(container)
        if plan is not None:
            whole = container.tower.model
            found.append(Found(paths.get(whole, ""), whole, plan.family, container))
    return found


def submodule(model: nn.Module, tower: str) -> nn.Module:
    """The part of a model at a path.

    Raises:
        TypeError: a path that is no str.
        ValueError: the model has no such part.
    """
    if not isinstance(tower, str):
        raise TypeError(f"tower must be the path of a part of the model (str), got {type(tower).__name__}")
    try:
        return model.get_submodule(tower)
    except AttributeError as error:
        raise ValueError(
            f"tower must be the path of a part of {type(model).__name__}, got {tower!r}: {error}"
        ) from None


def read_tower(model: Any, tower: str | None = None, name: str = "tpkernels.patch") -> Read:
    """The tower in a model, or in its part `tower`, that can be pooled. Changes nothing.

    Raises:
        TypeError: no tower that can be pooled, or several; the message names the function, the model's class, the
            reason and what is supported.
        ValueError: the model has no part of that path.
    """
    whose, where = type(model).__name__, ""
    try:
        part = model if tower is None or not isinstance(model, nn.Module) else submodule(model, tower)
        found = _one_tower(part)
        where = f"its {found.path} is a {type(found.tower).__name__}: " if found.path else ""
        return _read(found, model)
    except Unsupported as reason:
        raise TypeError(
            f"{name}: model must be one of: {SUPPORTED}; got {whose}: {where}{reason}"
        ) from reason.__cause__


def _one_tower(model: Any) -> Found:
    if not isinstance(model, nn.Module):
        raise Unsupported("it is no nn.Module")
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise Unsupported("it is a graph that was made from a model: patch that model, then make the graph")
    found = towers_in(model)
    if len(found) > 1:
        paths = ", ".join(f"{one.path or 'itself'} ({type(one.tower).__name__})" for one in found)
        raise Unsupported(f'it holds several towers, {paths}: name one with tower="..."')
    if not found:
        raise Unsupported(_why_not_found(model))
    return found[0]


def _read(found: Found, model: nn.Module) -> Read:
    family, container = found.family, found.container
    children = list(container.children())
    if not children:
        raise Unsupported("it has no blocks")
    blocks = [block_in(child) for child in children]
    for child, block in zip(children, blocks, strict=True):
        taken = inspect.signature(type(child).forward).parameters.values()
        if child is not block and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken):
            raise Unsupported(
                f"its {type(child).__name__}, around a {original_class(block).__name__}, passes no keyword arguments "
                "(**kwargs) on"
            )
    try:
        family.check(found.tower, model)
        shape = family.shape(found.tower, model)
    except TypeError as error:
        raise Unsupported(str(error)) from error
    found_on = [(module, OWN_FORWARD if own_forward(module) else None) for module in (container, *blocks)]
    found_on += [(part, passed_by(part)) for block in blocks for part in family.uncalled(block)]
    for module, own in found_on:
        if own is not None:
            raise Unsupported(
                f"its {original_class(module).__name__} has {own}, which patching would pass by: patch the model first"
            )
    if any(type(parameter).__name__ == "DTensor" for block in blocks for parameter in block.parameters()):
        raise Unsupported("its weights are sharded (DTensor): patch it before fully_shard or tensor parallelism")
    # One block of each kind: blocks of one kind differ in their weights alone.
    kinds = {tuple(original_class(part) for part in block.modules()): block for block in blocks}
    tuples = [check_block(family, block, shape.dim) for block in kinds.values()]
    return Read(found, shape, tuples[0])


def _why_not_found(model: nn.Module) -> str:
    blocks = getattr(model, "blocks", None)
    parts = list(blocks.children()) if isinstance(blocks, nn.Module) else []
    check_held_positions(model, *parts, *(getattr(part, "attn", None) for part in parts))
    if blocks is not None:
        return f"its `blocks` is a {type(blocks).__name__}, not an nn.Sequential"
    return "it has neither `blocks` nor one vision tower of `embeddings`, with patch_embedding(s), and `layers`"
