"""How the resident kernels are launched: block sizes and warps from a problem's shape and a device's limits.

Nothing here depends on the batch: a sample's numbers are the same whatever batch it is in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .launch import power_of_two
from .limits import Limits

# Shared memory of devices whose tensor cores read both factors from it.
LARGE_SHARED = 200 << 10
# Registers are allocated to a thread in units of eight; an instruction can name 255.
REGISTER_UNIT, MOST_REGISTERS = 8, 255
# Rows of a matrix at a time by its width above 1,024, with 32 lanes: vectors of all tokens take registers, too.
WIDE_ROWS = {2048: 32, 4096: 4}


class ResidentConfig(NamedTuple):
    """tile, block_d: rows and channels of a tile of the Gram matrix; rows: rows of N x N held at a time;
    segment, pooled: clusters and channels averaged at a time; num_warps, num_stages: Triton's; per_processor:
    programs on one; registers: of a thread at most, 0 where the compiler chooses."""

    tile: int
    block_d: int
    rows: int
    segment: int
    pooled: int
    num_warps: int
    num_stages: int
    per_processor: int
    registers: int

    def shared_bytes(self, element: int) -> int:
        """Shared memory that the tiles of the Gram matrix may take, in a type of so many bytes."""
        return self.num_stages * 2 * self.tile * self.block_d * element + self.tile * self.tile * 4

    def held_registers(self, warp: int) -> int:
        """Registers that a program of warps of so many lanes may hold."""
        return program_registers(self.registers, self.num_warps, warp)


def program_registers(registers: int, num_warps: int, warp: int) -> int:
    """What a program takes of a multiprocessor's registers, with so many a thread and lanes a warp."""
    return -(-registers // REGISTER_UNIT) * REGISTER_UNIT * num_warps * warp


def thread_registers(num_warps: int, per_processor: int, limits: Limits) -> int:
    """All registers that a thread may have where so many programs share a multiprocessor; 0 where none are counted."""
    share = limits.registers // (num_warps * limits.warp * per_processor)
    return min(MOST_REGISTERS, share // REGISTER_UNIT * REGISTER_UNIT)


def resident_config(n: int, k: int, dtype: torch.dtype, limits: Limits, *, interpreted: bool = False) -> ResidentConfig:
    """The configuration for N tokens and K clusters."""
    width = power_of_two(n, 16)
    if interpreted:
        # The interpreter pays for every operation, not for what it holds.
        held = max(2, min(width, 16384 // width)) if width <= 1024 else 128
        return ResidentConfig(min(64, width), 64, held, 16, 64, 4, 1, 2, 0)
    return candidates(n, k, dtype, limits)[0]


def candidates(n: int, k: int, dtype: torch.dtype, limits: Limits) -> list[ResidentConfig]:
    """Configurations that fit the device, the heuristic choice first: what autotuning measures."""
    width = power_of_two(n, 16)
    element = torch.empty(0, dtype=dtype).element_size()
    large = limits.shared_bytes >= LARGE_SHARED
    channels = (64 if large else 32) * 2 // element
    stages = 3 if element == 2 else 2
    # Warps, rows of the matrix at a time, tile, programs on a processor.
    if width < 128:
        # Small samples leave most lanes of many warps idle.
        shapes = [(4, 8, 32, 2), (2, 8, 32, 4), (4, 8, 64, 2)]
    else:
        # Tensor cores that read their factors from registers leave none for a tile of 64.
        first, other = (64, 32) if large and element == 2 else (32, 64)
        shapes = [(4, 8, first, 2), (4, 16, first, 2), (8, 8, first, 1), (8, 16, first, 1), (4, 8, other, 2)]
        shapes += [(16, 16, first, 1)]
    if width in WIDE_ROWS:
        # Few such samples have scratch at once, so that each has a processor, and its registers, for itself.
        held = WIDE_ROWS[width] * 32 // limits.warp
        shapes = [(8, held, first, 1), (16, held, first, 1), (8, max(2, held // 2), first, 1), (8, held, other, 1)]
    found = []
    for warps, rows, tile, per_processor in shapes:
        config = ResidentConfig(
            min(tile, width), channels, min(rows, width), 16, 128, warps, stages, per_processor,
            thread_registers(warps, per_processor, limits),
        )  # fmt: skip
        if config.shared_bytes(element) * per_processor <= limits.shared_bytes and config not in found:
            found.append(config)
    return found or [ResidentConfig(16, 16, min(8, width), 16, 64, 4, 1, 1, thread_registers(4, 1, limits))]
