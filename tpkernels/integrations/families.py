"""The families of models that can be patched, and which one a model belongs to."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..schedule.shapes import ViTShape
from .blocks import plan_of
from .plan import Family, Plan, Unsupported
from .probe import check_block, check_held_positions
from .timm import Timm
from .torchvision import Torchvision
from .transformers import Transformers

FAMILIES: tuple[Family, ...] = (Timm(), Torchvision(), Transformers())
SUPPORTED = "; ".join(family.supported for family in FAMILIES)


def find_family(model: Any) -> tuple[Family, nn.Module] | None:
    """The family that a model belongs to and the container of its blocks; None where it belongs to none."""
    if isinstance(model, nn.Module):
        for family in FAMILIES:
            if (container := family.find(model)) is not None:
                return family, container
    return None


def find_plan(model: Any) -> Plan | None:
    """The plan of a patched model; None where it is not patched."""
    found = find_family(model)
    return None if found is None else plan_of(found[1])


def read_model(model: Any) -> tuple[Family, nn.Module, ViTShape, bool]:
    """Family, container and shape of a model that can be pooled, and whether its blocks return tuples. Changes nothing.

    Raises:
        TypeError: the model cannot be pooled; the message names its class, the reason and what is supported.
    """
    found = find_family(model)
    try:
        if found is None:
            raise Unsupported(_why_not_found(model))
        family, container = found
        blocks: list[Any] = list(container.children())
        if not blocks:
            raise Unsupported("it has no blocks")
        try:
            shape = family.read(model)
        except TypeError as error:
            raise Unsupported(str(error)) from error
        # One block of each kind: blocks of one kind differ in their weights alone.
        kinds = {tuple(type(part) for part in block.modules()): block for block in blocks}
        tuples = [check_block(family, block, shape.dim) for block in kinds.values()]
    except Unsupported as reason:
        raise TypeError(
            f"model must be one of: {SUPPORTED}; got {type(model).__name__}: {reason}"
        ) from reason.__cause__
    return family, container, shape, tuples[0]


def _why_not_found(model: Any) -> str:
    if not isinstance(model, nn.Module):
        return "it is no nn.Module"
    blocks = getattr(model, "blocks", None)
    parts = list(blocks.children()) if isinstance(blocks, nn.Module) else []
    check_held_positions(model, *parts, *(getattr(part, "attn", None) for part in parts))
    if blocks is not None:
        return f"its `blocks` is a {type(blocks).__name__}, not an nn.Sequential"
    return (
        "it has neither `blocks` nor one vision tower of `embeddings`, with patch_embedding(s), and `layers` "
        "(patch before compiling or wrapping a model)"
    )
