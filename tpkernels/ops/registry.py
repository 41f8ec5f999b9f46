"""Registering operations with PyTorch under the names `torch.ops.tpkernels.*`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("tpkernels", "FRAGMENT")


def operation(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that writes into none of its arguments: it becomes the operation of that name.

    As `torch.library.custom_op`, which imports torch's compiler at the first call, for seconds, and costs every call
    some 15 us to look for results that share memory with arguments: the tests do that, with `opcheck`.
    """

    def register(function: Callable[..., Any]) -> Any:
        untraced = functools.cache(lambda: torch.compiler.disable(function))

        def kernel(*given: Any) -> Any:
            # A compiler that is there could be at work around this call, and take the function's own lines up.
            return untraced()(*given) if "torch._dynamo" in sys.modules else function(*given)

        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        return getattr(torch.ops.tpkernels, name).default

    return register


def fake(of: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates the function that makes an operation's results without their values, for compilers."""
    return torch.library.register_fake(of, lib=LIBRARY)


def autograd(of: Any, setup: Callable[..., None] | None = None, back: Callable[..., Any] | None = None) -> None:
    """Registers an operation's gradient; without one, a backward pass through it is an error and not a zero.

    Args:
        setup, back: as `setup_context` and `backward` of an autograd function.
    """

    def refuse(*_given: Any) -> None:
        raise RuntimeError(f"Trying to backward through {of}, which has no gradient")

    torch.library.register_autograd(of, back or refuse, setup_context=setup, lib=LIBRARY)


def vmap(of: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates what `torch.vmap` makes of an operation, as `torch.library.register_vmap` has it."""
    return torch.library.register_vmap(of, lib=LIBRARY)
