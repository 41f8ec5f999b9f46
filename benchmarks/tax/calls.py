"""A model's call, compiled and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from .. import gpu

Call = Callable[[], Tensor]


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's call compiled for the shapes that it gets.

    Each has code of its own: torch keeps what it compiled by code object, and models that take turns in one would be
    searched through at every call, and be dropped beyond eight.
    """

    def call(images: Tensor) -> Tensor:
        return module(images)

    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def captured(call: Call, device: torch.device) -> Call:
    """The call as a CUDA graph: each replay gives the logits of the same images, launched as one."""
    held: list[Tensor] = []
    graph = gpu.capture(device, call, lambda: held.append(call()))

    def replay() -> Tensor:
        graph.replay()
        return held[0]

    return replay
