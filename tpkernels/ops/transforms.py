"""Operations under the transforms of `torch.func`: vmap, and gradients of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import registry


def differentiable(
    operation: Any, setup: Callable[..., None], back: Callable[..., Any]
) -> type[torch.autograd.Function]:  # fmt: skip
    """An operation with its gradient in the one wrapping that `torch.func` takes gradients from.

    Args:
        setup, back: what the operation's own autograd is registered with.
    """

    class Differentiable(torch.autograd.Function):
        generate_vmap_rule = True
        setup_context = staticmethod(setup)
        backward = staticmethod(back)

        @staticmethod
        def forward(*given: Any) -> Any:
            return operation(*given)

    return Differentiable


def folds(operation: Any) -> None:
    """Teaches vmap an operation whose tensors all begin with the batch, those of its results too.

    What is mapped becomes part of the batch, since samples are alone.
    """

    @registry.vmap(operation)
    def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Any, Any]:
        size = info.batch_size
        folded = [_fold(one, dim, size) for one, dim in zip(given, in_dims, strict=True)]
        found = operation(*folded)
        one = isinstance(found, Tensor)
        parts = [tensor.view(size, len(tensor) // size, *tensor.shape[1:]) for tensor in ([found] if one else found)]
        return (parts[0], 0) if one else (tuple(parts), (0,) * len(parts))


def _fold(value: Any, dim: int | None, size: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])
