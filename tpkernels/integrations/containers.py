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
from .run import Run
from .source_map import Trace


class Tower:
    """The model that a container belongs to; not an nn.Module, so that it is none of the container's parts."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Pooled:
    """What both containers of a patched model's blocks have.

    In a call of that model iterating gives the turns of a run, one a block, until one of them is taken; otherwise the
    blocks, as indices, `len` and `children()` do. `plan` says what is pooled; `tower` is the model around; `trace` is
    what `tpkernels.trace` fills; `checkpointing` recomputes activations block by block; `calls` are the runs of the
    threads that are in a call of the model, None before they begin.
    """

    plan: Plan
    tower: Tower
    trace: Trace | None
    checkpointing: bool
    calls: dict[int, Run | None]

    def __iter__(self) -> Iterator[Any]:
        if plan_of(self) is not None and _waits(self):
            return iter(_run(self))
        return super().__iter__()  # type: ignore[misc]

    def __getitem__(self, index: Any) -> Any:
        return _cut(self, super().__getitem__(index), index)  # type: ignore[misc]

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            "torch.jit.script must not be called on a model that is patched with tpkernels.patch: use torch.compile or "
            "torch.export.export"
        )


class PooledSequential(Pooled, nn.Sequential):
    """Blocks that are called as one: those of timm and torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        # A bound forward can outlive `unpatch` in a wrapper.
        if plan_of(self) is None:
            return nn.Sequential.forward(self, x)
        for turn in _run(self):
            x = turn(x)
        return x


class PooledList(Pooled, nn.ModuleList):
    """Blocks that the model goes through: those of transformers."""

    def __repr__(self) -> str:
        return repr(nn.ModuleList(self.children()))


CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: PooledSequential, nn.ModuleList: PooledList}
ORIGINALS = {pooled: original for original, pooled in CONTAINERS.items()}

# Stands for the thread while a compiler traces, which has no numbers of threads.
_COMPILER = 0
_NO_CALL = object()


def begin_call(caller: nn.Module, _args: Any) -> None:
    """A forward pre-hook of the module that runs the blocks, or goes through them."""
    for blocks in _containers(caller):
        blocks.calls[_thread()] = None


def end_call(caller: nn.Module, _args: Any, out: Any) -> None:
    """The forward hook that ends what `begin_call` began, also where the forward failed.

    Raises:
        RuntimeError: the forward has a result without having run all the blocks.
    """
    for blocks in _containers(caller):
        run = blocks.calls.get(_thread(), blocks.calls.get(_COMPILER))
        # A forward of which a part was compiled may have begun as one thing and end as the other.
        blocks.calls.pop(_COMPILER, None)
        blocks.calls.pop(_thread(), None)
        # Of a forward that failed there is none.
        if out is not None and (run is None or not run.done):
            count = 0 if run is None else len(run.given) - 1
            raise RuntimeError(
                f"{type(caller).__name__}: the forward of a model that is patched with tpkernels.patch must run all of "
                f"its blocks, got one that ran {count} of {len(blocks)}: one that takes their parts, or stops before "
                "the last, cannot pool; tpkernels.unpatch the model, or let its forward call the blocks"
            )


def _run(blocks: Any) -> list[Any]:
    """The turns of a new run, to be called one after another."""
    run, caller = Run(blocks), _caller_of(blocks)
    # Outside of a call of the model nothing is kept.
    if caller in blocks.calls:
        blocks.calls[caller] = run
    return [partial(run.block, layer) for layer in range(len(run.children))]


def _waits(blocks: Any) -> bool:
    """Whether the thread is in a call of the model that has not begun with the blocks."""
    run = blocks.calls.get(_caller_of(blocks), _NO_CALL)
    return run is not _NO_CALL and (run is None or len(run.given) == 1)


def _caller_of(blocks: Any) -> int:
    """The thread in whose call of the model this is; a compiler may trace a part of a call that began outside of it."""
    return next(iter(blocks.calls), _COMPILER) if torch.compiler.is_compiling() else _thread()


def plan_of(container: Any) -> Plan | None:
    """The plan of a patched container; None where there is none."""
    return container.__dict__.get("plan") if isinstance(container, Pooled) else None


def _containers(caller: nn.Module) -> list[Any]:
    # Found anew, since a shortened model has other ones.
    return [part for part in caller.children() if plan_of(part) is not None]


def _thread() -> int:
    return _COMPILER if torch.compiler.is_compiling() else threading.get_ident()


def _cut(container: Any, part: Any, index: Any) -> Any:
    """Gives a slice of a container its part of the plan."""
    if isinstance(index, slice) and plan_of(container) is not None:
        part.plan, part.tower = container.plan.cut(index), container.tower
        part.trace, part.checkpointing, part.calls = None, container.checkpointing, {}
    return part
