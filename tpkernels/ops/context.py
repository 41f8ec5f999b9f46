"""What surrounds a call: the numbers to compute in, autocast, and whether values may be looked at."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# What torch's autocast knows in every release that this library takes.
AUTOCASTS = ("cpu", "cuda", "xpu", "mps", "hpu", "xla")


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays float64, every other type computes in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager:
    """Keeps autocast from turning the products inside an operation into half precision."""
    kind = x.device.type
    # Entering a context takes microseconds: outside a trace only where autocast is on.
    wanted = _has_autocast(kind) and (torch.compiler.is_compiling() or torch.is_autocast_enabled(kind))
    return torch.autocast(kind, enabled=False) if wanted else nullcontext()


def _has_autocast(kind: str) -> bool:
    # torch 2.11 cannot trace is_autocast_available, so compiled code asks the list alone.
    return kind in AUTOCASTS or (not torch.compiler.is_compiling() and torch.amp.is_autocast_available(kind))


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, hidden from torch's compiler where that is loaded: it could trace what runs around a graph."""
    hidden = functools.cache(lambda: torch.compiler.disable(function))

    def call(*given: Any) -> Any:
        # To hide it would load the compiler, which takes seconds.
        return hidden()(*given) if "torch._dynamo" in sys.modules else function(*given)

    return call


def may_look(x: Tensor) -> bool:
    """Whether what is computed may depend on the values of x.

    On an accelerator that would wait for the device; a trace of a compiler or of `torch.func` has no values.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed(x)


def transformed(x: Tensor) -> bool:
    """Whether x stands for a tensor in a transform of `torch.func`, such as vmap and grad."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)
