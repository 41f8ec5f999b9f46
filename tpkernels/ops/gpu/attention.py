"""Launches of the attention kernels: whole rows of logits where a program can hold them, else keys that stream by."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .attention_tiles import Rows, Tiles, rows_config, tiles_config
from .launch import interpreting, on_device, power_of_two, strides
from .limits import limits_of
from .resident import precision
from .resident_tiles import MOST_REGISTERS

# Channels that one load takes at most.
VECTOR = 8
# Heads per processor from which one program takes all query blocks of a head and reads its keys once.
PROGRAMS = 4
# A float32 whose inverse is finite, too.
LEAST_SCALE = 1e-30


def heads_beside(x: Tensor, channels: int | torch.SymInt) -> Tensor:
    """An empty [B, H, N, channels] in x's dtype, in memory as [B, N, H, channels]: joining the heads is a view."""
    b, h, n, _ = x.shape
    return x.new_empty(b, n, h, channels).transpose(1, 2)


def outputs(q: Tensor, v: Tensor, need_significance: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `attend` writes to."""
    b, h, n, _ = q.shape
    significance = q.new_empty(b, n if need_significance else 0, dtype=torch.float32)
    return heads_beside(q, v.shape[3]), significance, q.new_empty(b, h, n, dtype=torch.float32)


def gradients(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `attend_backward` writes to, for q, k and v."""
    return heads_beside(q, q.shape[3]), heads_beside(q, q.shape[3]), heads_beside(q, v.shape[3])


class _Call:
    """What every kernel of a call is handed: sizes and mask, constants, and how it is launched.

    Args:
        rows: q, k, v and what else is read or written by rows, in which channels lie side by side.
    """

    def __init__(self, rows: tuple[Tensor, ...], e: int, key_size: Tensor | None, mask: Tensor | None) -> None:
        q = rows[0]
        _, h, n, d = q.shape
        flags = None if mask is None else mask.view(torch.uint8)
        self.tensors = q if key_size is None else key_size, q if flags is None else flags
        self.steps = *strides(key_size, 2), *strides(flags, 2)
        self.limits = limits_of(q.device)
        # Triton knows multiples of 16 only, but a vector load is 8 channels: heads of 72 would load one by one.
        self.unit = math.gcd(VECTOR, d, e, *(step for x in rows for step in x.stride()[:3]))
        self.sizes = n, h, d // self.unit, e // self.unit
        # Without a limit ptxas spills registers to fit one more program per multiprocessor.
        self.registers = {"maxnreg": MOST_REGISTERS} if q.is_cuda and self.limits.registers else {}
        self.widths = {"BD": power_of_two(d, 16), "BE": power_of_two(e, 16)}
        self.kinds: dict[str, Any] = {
            "SIZED": key_size is not None,
            "MASKED": mask is not None,
            "PRECISION": precision(),
            "WIDEN": interpreting(),
            "UNIT": self.unit,
        }

    def strides(self, *rows: Tensor) -> tuple[int, ...]:
        """Steps of batch, head and token of each tensor, in units."""
        return tuple(step // self.unit for x in rows for step in x.stride()[:3])

    def options(self, config: Rows | Tiles) -> dict[str, Any]:
        """Constants of a kernel, and how it is launched."""
        options = self.kinds | self.registers | {"BM": config.queries}
        options |= {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if isinstance(config, Rows):
            options |= {"maxnreg": config.registers} if self.registers else {}
            # In the layout of products a lane has two of eight columns, and warps stand side by side.
            return options | {"PARTS": config.parts, "APART": 8 * config.num_warps}
        return options | {"BN": config.keys, "BC": config.channels}


def _by_rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where channels do not lie side by side."""
    return [x if x.stride(3) == 1 else x.contiguous() for x in tensors]


def attend(
    q: Tensor, k: Tensor, v: Tensor, key_size: Tensor | None, mask: Tensor | None, scale: float, need_significance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Out [B, H, N, e] in q's dtype, significance [B, N] float32 ([B, 0] where not needed), lse [B, H, N] float32.

    Two launches for short rows, three for long ones; one where no significance is needed.

    Args:
        q, k: [B, H, N, d]. v: [B, H, N, e]. Any strides.
        key_size: [B, N] or None. mask: bool [B, N] or None.
    """
    b, h, n, d = q.shape
    out, significance, lse = outputs(q, v, need_significance)
    if 0 in (b, h, n):
        return out, significance.zero_(), lse
    q, k, v = _by_rows(q, k, v)
    call = _Call((q, k, v, out), v.shape[3], key_size, mask)
    # Whole rows take the maximum before they scale, and divide biases by the scale.
    config = rows_config(n, d, v.shape[3], q.dtype, call.limits) if scale > LEAST_SCALE else None
    with on_device(q):
        if config is not None:
            partial = _rows(q, k, v, out, lse, scale, need_significance, config, call)
        else:
            _stream(q, k, v, out, lse, scale, call)
            partial = _received(q, k, lse, scale, call) if need_significance else lse
        if need_significance:
            _sum_parts(partial, significance, call)
    return out, significance, lse


def _rows(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, received: bool, config: Rows, call: _Call
) -> Tensor:
    """Whole rows of logits: one launch; returns what keys received [B, H, parts, N], lse where nobody asks."""
    from ...kernels.attention.rows import attend_rows_kernel

    b, h, n, _ = q.shape
    blocks = -(-n // config.queries)
    # One program per head; where heads are few, one per query block. The bits are the same.
    turns = blocks if b * h >= PROGRAMS * call.limits.processors else 1
    programs = -(-blocks // turns)
    partial = lse.new_empty(b, h, programs, n) if received else lse
    attend_rows_kernel[(b * h * programs,)](
        q, k, v, *call.tensors, out, lse, partial, *call.sizes, turns, scale,
        *call.strides(q, k, v, out), *call.steps,
        RECEIVED=received, **(call.widths | {"BE": config.values}), **call.options(config),
    )  # fmt: skip
    return partial


def _stream(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, call: _Call) -> None:
    """Keys that stream by: one launch."""
    from ...kernels.attention.stream import attend_stream_kernel

    b, h, n, d = q.shape
    config = tiles_config("forward", d, v.shape[3], q.dtype, call.limits)
    attend_stream_kernel[(b * h * -(-n // config.queries),)](
        q, k, v, *call.tensors, out, lse, *call.sizes, scale, *call.strides(q, k, v, out), *call.steps,
        **call.widths, **call.options(config),
    )  # fmt: skip


def _received(q: Tensor, k: Tensor, lse: Tensor, scale: float, call: _Call) -> Tensor:
    """What keys received from each head [B, H, 1, N]: one launch."""
    from ...kernels.attention.stream import received_kernel

    b, h, n, d = q.shape
    config = tiles_config("received", d, d, q.dtype, call.limits)
    partial = lse.new_empty(b, h, 1, n)
    received_kernel[(b * h * -(-n // config.keys),)](
        q, k, *call.tensors, lse, partial, *call.sizes[:3], scale, *call.strides(q, k), *call.steps,
        BD=call.widths["BD"], **call.options(config),
    )  # fmt: skip
    return partial


def _sum_parts(partial: Tensor, significance: Tensor, call: _Call) -> None:
    """Adds heads and parts of partial [B, H, parts, N] in their order: one launch."""
    from ...kernels.attention.rows import sum_parts_kernel

    b, h, parts, n = partial.shape
    tile = power_of_two(n, 16, 64)
    sum_parts_kernel[(b * -(-n // tile),)](
        partial, call.tensors[1], significance, n, h, parts, *call.steps[2:],
        R=power_of_two(h, 4, 16), BN=tile, MASKED=call.kinds["MASKED"], num_warps=4, **call.registers,
    )  # fmt: skip


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_size: Tensor | None,
    mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients to q, k [B, H, N, d] and v [B, H, N, e] from grad [B, H, N, e] of any strides; two launches."""
    from ...kernels.attention.backward import key_gradient_kernel, query_gradient_kernel

    b, h, n, d = q.shape
    e = v.shape[3]
    dq, dk, dv = gradients(q, v)
    if 0 in (b, h, n):
        return dq, dk, dv
    grad, q, k, v, out = _by_rows(grad, q, k, v, out)
    call = _Call((q, k, v, out, grad, dq, dk, dv), e, key_size, mask)
    delta = torch.empty_like(lse)
    with on_device(q):
        config = tiles_config("query", d, e, q.dtype, call.limits)
        query_gradient_kernel[(b * h * -(-n // config.queries),)](
            grad, q, k, v, out, *call.tensors, lse, delta, dq, *call.sizes, scale,
            *call.strides(grad, q, k, v, out, dq), *call.steps, **call.widths, **call.options(config),
        )  # fmt: skip
        config = tiles_config("key", d, e, q.dtype, call.limits)
        key_gradient_kernel[(b * h * -(-n // config.keys),)](
            grad, q, k, v, *call.tensors, lse, delta, dk, dv, *call.sizes, scale,
            *call.strides(grad, q, k, v, dk, dv), *call.steps, **call.widths, **call.options(config),
        )  # fmt: skip
    return dq, dk, dv
