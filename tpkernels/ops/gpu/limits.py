"""What a device can hold: the limits that configurations are chosen by, never its name."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Of every multiprocessor that NVIDIA has made since 2012.
REGISTERS = 64 << 10
# Device memory for the scratch of all resident programs together, for any batch.
SCRATCH_BYTES = 384 << 20


class Limits(NamedTuple):
    """processors: multiprocessors (compute units); shared_bytes: shared memory that one block may ask for;
    l2_bytes: second-level cache; warp: lanes of a warp; registers: of a multiprocessor, of 32 bits, 0 where compilers
    take no limit on them."""

    processors: int
    shared_bytes: int
    l2_bytes: int
    warp: int
    registers: int = REGISTERS


# Off the GPU kernels run in Triton's interpreter: one processor, so that tests walk the persistent loops.
INTERPRETER = Limits(1, 64 << 10, 4 << 20, 32)


def limits_of(device: torch.device | str) -> Limits:
    """The limits of a CUDA or ROCm device, the interpreter's for any other; the runtime is asked once a device."""
    device = torch.device(device)
    if device.type != "cuda":
        return INTERPRETER
    return _limits_of_gpu(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _limits_of_gpu(index: int) -> Limits:
    found = torch.cuda.get_device_properties(index)
    # Old releases of torch do not tell the opt-in limit: then what every block gets without asking.
    shared = getattr(found, "shared_memory_per_block_optin", 0) or getattr(found, "shared_memory_per_block", 48 << 10)
    return Limits(
        found.multi_processor_count,
        shared,
        getattr(found, "L2_cache_size", 0) or 4 << 20,
        getattr(found, "warp_size", 32),
        0 if torch.version.hip is not None else getattr(found, "regs_per_multiprocessor", 0) or REGISTERS,
    )
