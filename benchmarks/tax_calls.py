"""A model's call, compiled and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

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
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
