"""A model of the list: built small, without memory to see whether `patch` takes it, and for real to run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from .blocks import Ask


class Candidate(NamedTuple):
    """One structure of a library's models.

    kind: the model's class; group: what stands together in the document; names: the architectures that have this
    structure; build: makes the model, on torch's default device; ask: runs it on images of a seed.
    """

    library: str
    group: str
    kind: str
    names: tuple[str, ...]
    build: Callable[[], nn.Module]
    ask: Ask


def spread(model: nn.Module) -> None:
    """Draws all weights, so that attention is far from uniform and no part of a block starts at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=generator)
            elif parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator).mul_(0.2))


def number_of(model: nn.Module) -> torch.dtype:
    """The type of a model's weights, which its images have to have."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def images(model: nn.Module, seed: int, *shape: int) -> torch.Tensor:
    """Random numbers of the model's type."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(number_of(model))
