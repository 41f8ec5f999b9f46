"""Modules that a turn does not call: what is set on them is run around their parts, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

OWN_FORWARD = "a forward of its own, set on the instance"


def own_forward(module: nn.Module) -> bool:
    """Whether a forward is set on the module itself that does more than call its class', or accelerate's way to it."""
    own = module.__dict__.get("forward")
    return not (own is None or is_bound(own, module) or is_bound(module.__dict__.get("_old_forward"), module))


def is_bound(method: Any, module: nn.Module) -> bool:
    """Whether a method is the module's own, as its class has it."""
    return isinstance(method, MethodType) and method.__self__ is module and method.__func__ is type(module).forward


def passed_by(module: nn.Module) -> str | None:
    """What is set on a module that would not be heard where only its parts are called; None where nothing is."""
    if own_forward(module):
        return OWN_FORWARD
    return "a backward hook" if module._backward_hooks or module._backward_pre_hooks else None


def kind_of(module: nn.Module) -> tuple[str, Any]:
    """What tells a module that computes something else: the name of its class, and the forward that it has there."""
    return type(module).__name__, type(module).forward


def check_uncalled(modules: Sequence[nn.Module], kinds: Sequence[tuple[str, Any]]) -> None:
    """Raises RuntimeError where modules, of these kinds when `patch` saw them, have changed unheard."""
    for module, (name, forward) in zip(modules, kinds, strict=True):
        whole = f"{type(module).__module__}.{type(module).__name__}"
        got: str | None = f"{whole} in place of a {name}, or another forward of it"
        # Classes that are made of one, such as FSDP's and those of parametrizations, have its forward.
        if type(module).forward is forward:
            got = None if torch.compiler.is_compiling() else passed_by(module)
        if got is not None:
            raise RuntimeError(
                f"{type(module).__name__}: a patched model's blocks run the parts of their attention, which passes by "
                f"what was set on it since tpkernels.patch, got {got}: tpkernels.unpatch the model, or merge adapters"
            )


def between_hooks(
    module: nn.Module, run: Callable[[Tensor], tuple[Any, ...]], x: Tensor, copies: int = 1, wraps: bool = False
) -> tuple[Any, ...]:
    """Runs `run(x)`, which returns the module's output first, between the module's forward hooks in place of its call.

    Args:
        copies: how often the module's own call takes x.
        wraps: its own call returns the output in a tuple, with the attention's probabilities, which are None here.
    """
    if not module._forward_pre_hooks and not module._forward_hooks:
        return run(x)
    args: Any = (x,) * copies
    kwargs: dict[str, Any] = {}
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(module, args, kwargs) or (args, kwargs)
        else:
            changed = hook(module, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    update, *rest = run(args[0])
    out = (update, None) if wraps else update
    for key, after in list(module._forward_hooks.items()):
        if key in module._forward_hooks_with_kwargs:
            changed = after(module, args, kwargs, out)
        else:
            changed = after(module, args, out)
        out = out if changed is None else changed
    return (out[0] if wraps else out, *rest)
