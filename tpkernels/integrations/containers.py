"""The containers of a patched model's blocks, which run all of them as one call.

Tokens, sizes and sources pass between blocks as arguments and results: a model keeps no state of a forward.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .plan import Plan
from .run import run_blocks
from .source_map import Trace


class Tower:
    """The model that a container belongs to; not an nn.Module, so that it is none of the container's parts."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Unscriptable:
    """What both containers tell torch.jit.script."""

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            "torch.jit.script must not be called on a model that is patched with tpkernels.patch: use torch.compile or "
            "torch.export.export"
        )


class PooledSequential(Unscriptable, nn.Sequential):
    """Blocks that are called as one: those of timm and torchvision.

    `plan` says what is pooled; `tower` is the model around; `trace` is what `tpkernels.trace` fills; `checkpointing`
    recomputes activations block by block; `waiting` names the threads in a forward that has not run the blocks yet.
    """

    plan: Plan
    tower: Tower
    trace: Trace | None
    checkpointing: bool
    waiting: set[int]

    def forward(self, x: Tensor) -> Tensor:
        # A bound forward can outlive `unpatch` in a wrapper.
        return _run_waiting(self, x) if "plan" in self.__dict__ else nn.Sequential.forward(self, x)

    def __getitem__(self, index: Any) -> Any:
        return _cut(self, super().__getitem__(index), index)


class PooledList(Unscriptable, nn.ModuleList):
    """Blocks that the model calls one after another: those of transformers.

    While a forward of that model waits for them, iterating gives one call of all blocks; otherwise the blocks, as
    indices, `len` and `children()` do. See PooledSequential.
    """

    plan: Plan
    tower: Tower
    trace: Trace | None
    checkpointing: bool
    waiting: set[int]

    def __iter__(self) -> Iterator[Any]:
        if plan_of(self) is not None and (_COMPILER in self.waiting or _thread() in self.waiting):
            return iter((partial(_run_waiting, self),))
        return super().__iter__()

    def __repr__(self) -> str:
        return repr(nn.ModuleList(self.children()))

    def __getitem__(self, index: Any) -> Any:
        return _cut(self, super().__getitem__(index), index)


CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: PooledSequential, nn.ModuleList: PooledList}
ORIGINALS = {pooled: original for original, pooled in CONTAINERS.items()}

# Stands for the thread while a compiler traces, which has no numbers of threads.
_COMPILER = 0


def begin_call(caller: nn.Module, _args: Any) -> None:
    """A forward pre-hook of the module that runs the blocks, or goes through them."""
    for blocks in _containers(caller):
        blocks.waiting.add(_thread())


def end_call(caller: nn.Module, _args: Any, out: Any) -> None:
    """The forward hook that ends what `begin_call` began, also where the forward failed.

    Raises:
        RuntimeError: the forward has a result without having run the blocks.
    """
    for blocks in _containers(caller):
        # Of a forward that failed there is none.
        if not _started(blocks) and out is not None:
            raise RuntimeError(
                f"{type(caller).__name__}: the forward of a model that is patched with tpkernels.patch must run all of "
                "its blocks by one call, got one that took their parts, which pooled nothing: tpkernels.unpatch the "
                "model, or let its forward call the blocks"
            )


def _run_waiting(blocks: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    _started(blocks)
    return run_blocks(blocks, x, *args, **kwargs)


def _started(blocks: Any) -> bool:
    """Whether the thread's call no longer waited for the blocks; it does not from now on."""
    waited = _COMPILER in blocks.waiting or _thread() in blocks.waiting
    # A forward of which a part was compiled may have begun as one thing and go on as the other.
    blocks.waiting.discard(_COMPILER)
    blocks.waiting.discard(_thread())
    return not waited


def plan_of(container: nn.Module | None) -> Plan | None:
    """The plan of a patched container; None where there is none."""
    return container.__dict__.get("plan") if isinstance(container, (PooledSequential, PooledList)) else None


def _containers(caller: nn.Module) -> list[PooledSequential | PooledList]:
    # Found anew, since a shortened model has other ones.
    found = [part for part in caller.children() if isinstance(part, (PooledSequential, PooledList))]
    return [part for part in found if plan_of(part) is not None]


def _thread() -> int:
    return _COMPILER if torch.compiler.is_compiling() else threading.get_ident()


def _cut(container: Any, part: Any, index: Any) -> Any:
    """Gives a slice of a container its part of the plan."""
    if isinstance(index, slice) and plan_of(container) is not None:
        part.plan, part.tower = container.plan.cut(index), container.tower
        part.trace, part.checkpointing, part.waiting = None, container.checkpointing, set()
    return part
