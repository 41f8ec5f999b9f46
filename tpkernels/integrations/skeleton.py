"""A copy of a block that shares nothing that it could change: for a trial run that nobody notices."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .block import original_class


class NotPlain(TypeError):
    """A tensor whose values cannot be drawn, such as a quantised weight."""


def copy_block(block: nn.Module) -> Any:
    """A copy in eval mode, without hooks, forwards set on instances or compiled calls; tensors are the block's own.

    No tensor is copied: quantised ones and those that are computed (pruning, weight norm) often cannot be. Attention
    that asks its configuration for an implementation takes `scaled_dot_product_attention`.
    """
    return _copy(block, {})


def draw_weights(block: nn.Module, generator: torch.Generator) -> None:
    """Gives a copied block random weights in float64 on the CPU: what a block adds may start at 0 (layer scale, gates).

    Raises:
        NotPlain: a tensor that is no plain one.
    """
    drawn: dict[int, Tensor] = {}

    def draw(name: str, tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized or tensor.is_sparse:
            raise NotPlain(f"{name} is no plain tensor but a {type(tensor).__name__}")
        if id(tensor) not in drawn:
            if not tensor.is_floating_point():
                new = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu") if tensor.is_meta else tensor.cpu()
            else:
                new = torch.empty(tensor.shape, dtype=torch.float64, device="cpu").normal_(0, 0.3, generator=generator)
            drawn[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
        return drawn[id(tensor)]

    for module in block.modules():
        # Computed weights are attributes: pruning leaves its product there.
        holders: tuple[dict[str, Any], ...] = (module._parameters, module.__dict__)
        for held in holders:
            for name, value in list(held.items()):
                if isinstance(value, Tensor):
                    held[name] = draw(name, value)
        for name, buffer in list(module._buffers.items()):
            if isinstance(buffer, Tensor):
                whole = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer.detach().cpu()
                module._buffers[name] = whole.double() if whole.is_floating_point() else whole


def _copy(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    new: Any = object.__new__(original_class(module))
    made[id(module)] = new
    held = dict(module.__dict__)
    for name in ("forward", "_old_forward", "_compiled_call_impl", "tpkernels_patched"):
        held.pop(name, None)
    for name, value in held.items():
        # Hooks, parameters and buffers are kept in dictionaries.
        if isinstance(value, dict):
            held[name] = type(value)() if name.startswith(("_forward", "_backward")) else copy.copy(value)
    if hasattr(held.get("config"), "_attn_implementation"):
        held["config"] = copy.copy(held["config"])
        held["config"]._attn_implementation = "sdpa"
    held["_modules"] = {name: None if part is None else _copy(part, made) for name, part in module._modules.items()}
    held["training"] = False
    new.__dict__.update(held)
    return new
