"""How the attention kernels are launched: tiles and warps from a problem's shape and a device's limits.

Nothing here depends on the batch: a sample's numbers are the same whatever batch it is in. The choices are those that
no compiler spills registers for; `python -m benchmarks compile` holds that, docs/kernels.md says which do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .launch import power_of_two
from .limits import Limits
from .resident_tiles import LARGE_SHARED, MOST_REGISTERS

# Most keys whose logits a program holds as a row, with warps of 32 lanes and of 64.
ROW_KEYS, WIDE_WARP_ROW_KEYS = 288, 128
# Registers a thread with which three programs of four warps fit a multiprocessor, and the most keys that they do for.
THREE_PROGRAMS, THREE_PROGRAMS_KEYS = 168, 224


class Rows(NamedTuple):
    """queries: of a block; values: channels of its outputs, padded; parts: where each part of a row begins, and its
    keys; registers: most of a thread."""

    queries: int
    values: int
    parts: tuple[tuple[int, int], ...]
    registers: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """queries, keys: of a tile; channels: of a product at a time, 0 for all; num_stages: loads in flight."""

    queries: int
    keys: int
    channels: int
    num_warps: int
    num_stages: int


# By the kernel and the widest head's channels; the first that fits the shared memory is taken.
HALF = {
    ("forward", 64): (Tiles(128, 64, 0, 8, 2), Tiles(64, 32, 0, 4, 2)),
    ("forward", 128): (Tiles(128, 32, 0, 8, 2), Tiles(64, 32, 0, 4, 1)),
    ("forward", 256): (Tiles(64, 32, 0, 8, 2), Tiles(32, 32, 0, 8, 1)),
    ("received", 64): (Tiles(64, 64, 0, 4, 2),),
    ("received", 128): (Tiles(64, 64, 0, 4, 2),),
    ("received", 256): (Tiles(64, 32, 0, 8, 2), Tiles(32, 32, 0, 8, 1)),
    ("query", 64): (Tiles(64, 64, 0, 4, 2),),
    ("query", 128): (Tiles(128, 32, 0, 8, 2), Tiles(32, 32, 0, 4, 2)),
    ("query", 256): (Tiles(64, 32, 0, 8, 2), Tiles(32, 16, 0, 8, 1)),
    ("key", 64): (Tiles(32, 64, 0, 4, 2),),
    ("key", 128): (Tiles(64, 32, 0, 8, 2), Tiles(32, 32, 0, 8, 2)),
    ("key", 256): (Tiles(64, 32, 0, 8, 2), Tiles(16, 32, 0, 8, 1)),
}
# Tensor cores that read both factors from shared memory leave registers for larger tiles.
LARGE = {("forward", 128): Tiles(128, 64, 0, 8, 2)}
# float32 takes three products of split factors: fewer channels fit the registers at a time.
FULL = {64: Tiles(32, 32, 32, 8, 2), 128: Tiles(32, 32, 32, 8, 2), 256: Tiles(16, 16, 32, 8, 1)}


def split_row(n: int) -> tuple[tuple[int, int], ...]:
    """Where up to three parts begin that N keys fit in, and their keys, which are powers of two, at least 16."""
    whole = power_of_two(n, 16)
    half, rest = whole // 2, power_of_two(n - whole // 2, 16)
    if rest < half:
        return (0, half), (half, rest)
    # A third part of less than 32 keys would be copied among four warps.
    if half >= 128 and n <= whole - half // 4:
        return (0, half), (half, half // 2), (half + half // 2, half // 4)
    return ((0, whole),)


def rows_config(n: int, d: int, e: int, dtype: torch.dtype, limits: Limits) -> Rows | None:
    """The configuration that holds whole rows of N logits, None where a program cannot."""
    parts = split_row(n)
    keys = sum(parts[-1])
    block_d, values = power_of_two(d, 16), power_of_two(e, 32)
    # Warps share out the keys of a row only where a block of outputs has fewer rows than channels.
    queries = min(32, values // 2)
    # Shared memory for keys, values, probabilities and the next queries.
    need = 2 * (keys * (block_d + values) + queries * (parts[0][1] + block_d))
    most = ROW_KEYS if limits.warp == 32 else WIDE_WARP_ROW_KEYS
    fits = keys <= most and block_d + values <= 256 and need <= limits.shared_bytes
    if dtype == torch.float32 or not fits:
        return None
    wide = block_d + values > 128 and limits.warp == 32
    # The queries of the next block are loaded ahead where there are registers left for it.
    ahead = limits.warp == 32 and (wide or keys <= 256)
    three = not wide and keys <= THREE_PROGRAMS_KEYS and 3 * need <= limits.shared_bytes
    registers = THREE_PROGRAMS if three else MOST_REGISTERS
    return Rows(queries, values, parts, registers, 8 if wide else 4, 2 if ahead else 1)


def tiles_config(kernel: str, d: int, e: int, dtype: torch.dtype, limits: Limits) -> Tiles:
    """Tiles of a kernel that streams: "forward", "received", or the gradient to "query" or "key"."""
    width = power_of_two(max(d, e), 64)
    chosen = FULL[width] if dtype == torch.float32 else _half_tiles(kernel, width, limits)
    if dtype == torch.float32 and kernel in ("query", "key"):
        chosen = chosen._replace(channels=16)
    if kernel == "key" and limits.warp == 64:
        # Two accumulators: eight wavefronts would leave each lane too few registers.
        chosen = chosen._replace(num_warps=4)
    return chosen


def _half_tiles(kernel: str, width: int, limits: Limits) -> Tiles:
    """The first tiles that the shared memory holds: queries (keys) that stay, keys (queries) that pass by."""
    if limits.shared_bytes >= LARGE_SHARED and (kernel, width) in LARGE:
        return LARGE[kernel, width]
    found = HALF[kernel, width]
    channels = width if kernel == "received" else 2 * width
    for tiles in found:
        held, passing = (tiles.queries, tiles.keys) if kernel in ("forward", "query") else (tiles.keys, tiles.queries)
        if 2 * channels * (held + tiles.num_stages * passing) <= limits.shared_bytes:
            return tiles
    return found[-1]
