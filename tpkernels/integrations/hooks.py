"""Forward hooks of a block that is run from its submodules: sharding (FSDP) and feature extraction rely on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def with_hooks(block: nn.Module, run: Callable[[Tensor], tuple[Any, ...]], x: Tensor) -> tuple[Any, ...]:
    """Runs `run(x)` between the forward hooks of `block`, in place of its own forward.

    Args:
        run: takes the tokens, and returns the new tokens first; what else it returns is not passed to hooks.
        x: tokens [B, N, D].
    """
    if not block._forward_pre_hooks and not block._forward_hooks:
        return run(x)
    args: Any = (x,)
    kwargs: dict[str, Any] = {}
    for key, hook in list(block._forward_pre_hooks.items()):
        if key in block._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(block, args, kwargs) or (args, kwargs)
        else:
            changed = hook(block, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    tokens, *rest = run(args[0])
    for key, after in list(block._forward_hooks.items()):
        if key in block._forward_hooks_with_kwargs:
            changed = after(block, args, kwargs, tokens)
        else:
            changed = after(block, args, tokens)
        tokens = tokens if changed is None else changed
    return (tokens, *rest)
