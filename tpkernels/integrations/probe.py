"""Whether a block computes what its family's structure says: names alone don't tell post-norm from pre-norm blocks."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from .blocks import run_block
from .plan import Family, Unsupported

# Libraries' names for what ties tokens to their positions: pooling would have to pool it too.
_POSITIONAL = (
    "rope", "rel_pos", "rel_pos_bias", "shared_rel_pos", "relative_position_bias", "relative_position_bias_table",
    "rotary_emb", "rope_embeddings", "position_embeddings", "window_size",
)  # fmt: skip


def check_positions(*holders: Any) -> None:
    """Raises Unsupported where one of the modules takes positions inside attention: as an attribute or an argument."""
    check_held_positions(*holders)
    for holder in holders:
        if isinstance(holder, nn.Module):
            taken = inspect.signature(holder.forward).parameters
            _refuse(holder, next((name for name in _POSITIONAL if name in taken), None))


def check_held_positions(*holders: Any) -> None:
    """Raises Unsupported where one of the modules holds what ties tokens to their places inside attention."""
    for holder in holders:
        for name in _POSITIONAL:
            found = getattr(holder, name, None)
            # In transformers' layers without windows window_size is 0.
            if found is not None and found is not False and not (isinstance(found, int) and found == 0):
                _refuse(holder, name)


def _refuse(holder: Any, name: str | None) -> None:
    if name is not None:
        kind = type(holder).__name__
        raise Unsupported(f"its {kind} takes positions from `{name}` inside attention, which pooled tokens would lose")


@torch.no_grad()
def check_block(family: Family, block: Any, dim: int) -> bool:
    """Compares `run_block` with the block's own forward, on a copy with random weights.

    Random, since what a block adds may start at 0 (layer scale, gates).

    Returns:
        whether the block returns a tuple.

    Raises:
        Unsupported: they differ, or the block does not run so.
    """
    generator = torch.Generator().manual_seed(0)
    probe = _copy(block)
    for parameter in probe.parameters():
        if parameter.is_floating_point():
            parameter.normal_(std=0.3, generator=generator)
    x = torch.randn(1, 5, dim, generator=generator, dtype=torch.float64)
    try:
        out = probe(x, **_absent(probe))
        own = (out[0] if isinstance(out, tuple) else out) - x
        ones = torch.ones(1, 5)
        ours = run_block(family, probe, x, ones, pool=None, proportional=True, position="attention")[0] - x
    except Exception as error:
        raise Unsupported(f"its {type(block).__name__} does not run as a pre-norm block ({error})") from error
    # A tolerance of float32, in which some modules compute whatever their input's dtype.
    if not torch.allclose(own, ours, rtol=0, atol=1e-4 * float(own.abs().max())):
        raise Unsupported(f"its {type(block).__name__} computes something else than a pre-norm block")
    return isinstance(out, tuple)


def _absent(block: nn.Module) -> dict[str, None]:
    """None for each argument that a block requires beside its tokens, such as a mask."""
    parameters = list(inspect.signature(block.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: None for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty}


def _copy(block: nn.Module) -> Any:
    """A copy in eval mode and float64 on the CPU, without hooks: one that counts tokens must not count the probe's."""
    probe = copy.deepcopy(block)
    if any(tensor.is_meta for tensor in (*probe.parameters(), *probe.buffers())):
        probe.to_empty(device="cpu")
        for buffer in probe.buffers():
            buffer.zero_()
    probe.to(device="cpu", dtype=torch.float64).eval()
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe
