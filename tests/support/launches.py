"""Kernels that are counted instead of run, or beside it, and what a call allocates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.support.marks import FOR_GPU

# What makes room or looks at it another way: none of it is work for a device.
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
VIEWS = {"view", "slice", "detach", "alias", "as_strided", "select", "expand", "t", "transpose"}


def named(kernel: Any, args: tuple) -> dict[str, Any]:
    """Arguments of a kernel by name, those in tuples as "tuple.part"."""
    found = {}
    for name, value in zip(kernel.arg_names, args, strict=False):
        if isinstance(value, tuple):
            found |= {f"{name}.{part}": one for part, one in value._asdict().items()}
        else:
            found[name] = value
    return found


class Spy:
    """Stands in for a kernel: counts and keeps its launches, and runs them outside the modes of a test."""

    def __init__(self, kernel: Any, launches: list[Spy.Launch], run: bool) -> None:
        self.kernel, self.launches, self.run = kernel, launches, run

    class Launch:
        """args: by name, those in tuples as "tuple.part"; kwargs: compile-time arguments and options."""

        def __init__(self, kernel: Any, grid: Any, args: tuple, kwargs: dict) -> None:
            self.name, self.grid, self.kwargs = kernel.__name__, grid, dict(kwargs)
            self.args = named(kernel, args)
            for name in [name for name, one in self.args.items() if hasattr(one, "value")]:
                self.kwargs[name.split(".")[-1]] = self.args.pop(name).value

    def __getitem__(self, grid: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            self.launches.append(Spy.Launch(self.kernel, grid, args, kwargs))
            if self.run:
                with _disable_current_modes():
                    self.kernel[grid](*args, **kwargs)

        return call


class Allocations(TorchDispatchMode):
    """Keeps the name of every operation and the size in bytes of every allocation; fills new memory where asked."""

    def __init__(self, poison: bool = False) -> None:
        super().__init__()
        self.poison, self.operations, self.sizes = poison, set(), []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations.add(name)
        if name in ALLOCATIONS:
            self.sizes.append(out.untyped_storage().nbytes())
            if self.poison:
                # More than every label, token and iteration here, but near enough not to point out of the process.
                out.fill_(torch.nan if out.is_floating_point() else 97)
        return out


def alone(tensor: Tensor, b: int) -> Tensor:
    """One sample of a batch; on a GPU where a whole batch would begin, which is the same kernel's case."""
    part = tensor[b : b + 1]
    return part.clone() if FOR_GPU else part
