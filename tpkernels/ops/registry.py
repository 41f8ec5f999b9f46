"""Registering operations with PyTorch, as `torch.ops.tpkernels.*`, and under the transforms of `torch.func`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .context import untraced

LIBRARY = torch.library.Library("tpkernels", "FRAGMENT")


def operation(name: str, *, differentiable: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that writes into none of its arguments: it becomes the operation of that name.

    As `torch.library.custom_op`, which imports torch's compiler at the first call, for seconds, and costs every call
    some 15 us to look for results that share memory with arguments: the tests do that, with `opcheck`.

    Args:
        differentiable: a gradient will be registered; without it PyTorch would see constants, and this refuses.
    """

    def refuse(*_given: Any) -> None:
        raise RuntimeError(f"Trying to backward through tpkernels.{name}, which has no gradient")

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(inspect.unwrap(function), mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, untraced(function), "CompositeExplicitAutograd")
        made = getattr(torch.ops.tpkernels, name).default
        if not differentiable:
            torch.library.register_autograd(made, refuse)
        return made

    return register


def transformable(made: Any, setup: Callable[..., None], back: Callable[..., Any]) -> type[torch.autograd.Function]:
    """Registers a gradient, and returns the operation in the one wrapping that `torch.func` takes gradients from.

    Args:
        setup, back: as `setup_context` and `backward` of an autograd function.
    """
    torch.library.register_autograd(made, back, setup_context=setup)

    class Differentiable(torch.autograd.Function):
        generate_vmap_rule = True
        setup_context = staticmethod(setup)
        forward = staticmethod(lambda *given: made(*given))
        backward = staticmethod(back)

    return Differentiable


def folds(made: Any) -> None:
    """Teaches vmap an operation whose tensors all begin with the batch, those of its results too.

    What is mapped becomes part of the batch, since samples are alone.
    """

    @torch.library.register_vmap(made)
    def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Any, Any]:
        size = info.batch_size
        folded = [_fold(one, dim, size) for one, dim in zip(given, in_dims, strict=True)]
        found = made(*folded)
        one = isinstance(found, Tensor)
        parts = [tensor.view(size, len(tensor) // size, *tensor.shape[1:]) for tensor in ([found] if one else found)]
        return (parts[0], 0) if one else (tuple(parts), (0,) * len(parts))


def _fold(value: Any, dim: int | None, size: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    mapped = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])
