"""Whether a block computes what its family's structure says: names alone don't tell post-norm from pre-norm blocks."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .block import original_class, run_block, tokens_of
from .plan import Family, Unsupported
from .skeleton import NotPlain, copy_block, draw_weights

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
            taken = inspect.signature(original_class(holder).forward).parameters
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
def check_block(family: Family, block: nn.Module, dim: int) -> bool:
    """Compares `run_block` with the block's own forward, on a copy.

    With random weights in float64 on the CPU. A block that cannot be run so (weights that are quantised, attention for
    one type or device alone) is run with its own weights, type and device.

    Returns:
        whether the block returns a tuple.

    Raises:
        Unsupported: they differ, or the block does not run either way.
    """
    errors: list[Exception] = []
    for prepare in (_with_random_weights, _as_it_is):
        try:
            probe, x = prepare(block, dim)
            out = probe(x, **_absent(probe))
            own = tokens_of(out) - x
            ones = torch.ones(1, x.shape[1], device=x.device)
            ours = run_block(family, probe, x, ones, pool=None, proportional=True, position="attention")[0] - x
            far, most = float((own - ours).abs().max()), float(own.abs().max())
        except Exception as error:
            errors.append(error)
            continue
        if most == 0:
            raise Unsupported(f"its {_name(block)} adds nothing to its tokens, so that what it computes cannot be seen")
        # A tolerance of float32, in which some modules compute whatever their input's dtype; written so that NaN fails.
        if not far <= (3e-2 if x.element_size() == 2 else 1e-4) * most:
            raise Unsupported(f"its {_name(block)} computes something else than a pre-norm block")
        return isinstance(out, tuple)
    # Where weights could not be drawn, the first error only says that.
    cause = errors[1] if isinstance(errors[0], NotPlain) else errors[0]
    reason = " ".join(str(cause).split())[:300] or type(cause).__name__
    raise Unsupported(f"its {_name(block)} does not run as a pre-norm block ({reason})") from cause


def _with_random_weights(block: nn.Module, dim: int) -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(0)
    probe = copy_block(block)
    draw_weights(probe, generator)
    return probe, _draw_tokens(dim, generator).double()


def _as_it_is(block: nn.Module, dim: int) -> tuple[Any, Tensor]:
    held = next((one for one in (*block.parameters(), *block.buffers()) if one.is_floating_point()), torch.empty(0))
    # Quantised weights say of themselves that they are of the type that they stand for.
    x = _draw_tokens(dim, torch.Generator().manual_seed(0)).to(held.device, held.dtype)
    return copy_block(block), x


def _draw_tokens(dim: int, generator: torch.Generator) -> Tensor:
    # On the CPU whatever the default device is, since the generator is there.
    return torch.randn(1, 5, dim, generator=generator, device="cpu", dtype=torch.float32)


def _name(block: nn.Module) -> str:
    return original_class(block).__name__


def _absent(block: nn.Module) -> dict[str, None]:
    """None for each argument that a block requires beside its tokens, such as a mask."""
    parameters = list(inspect.signature(block.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: None for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty}
