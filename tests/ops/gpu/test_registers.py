"""Registers: no configuration asks for more than a multiprocessor has, since the driver refuses to launch it."""

from __future__ import annotations

import pytest
import torch

from tpkernels.ops.gpu import tuning, tuning_cache
from tpkernels.ops.gpu.limits import REGISTERS, Limits
from tpkernels.ops.gpu.resident_tiles import candidates, thread_registers

HOPPER = Limits(132, 227 << 10, 50 << 20, 32)
WAVEFRONTS = Limits(304, 64 << 10, 4 << 20, 64, 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_candidate_can_be_launched(dtype: torch.dtype) -> None:
    warps = set()
    for shared in (227, 163, 99, 64, 20):
        limits = HOPPER._replace(shared_bytes=shared << 10)
        for n in (5, 49, 196, 576, 1024, 1030, 4096):
            for config in candidates(n, max(1, n // 2), dtype, limits):
                warps.add(config.num_warps)
                # Programs that share a multiprocessor share its registers.
                assert config.held_registers(32) * config.per_processor <= REGISTERS
                assert config.registers >= 128
    assert 16 in warps
    assert candidates(196, 98, dtype, HOPPER)[0].registers == 255


def test_a_share_of_registers_comes_in_eights() -> None:
    assert [thread_registers(warps, 1, HOPPER) for warps in (4, 8, 16, 32)] == [255, 255, 128, 64]
    assert thread_registers(8, 3, HOPPER) == 80
    # Where compilers take no limit, none is given.
    assert thread_registers(8, 1, WAVEFRONTS) == 0
    assert all(config.registers == 0 for config in candidates(196, 98, torch.float16, WAVEFRONTS))


def test_a_stored_configuration_that_cannot_be_launched_is_refused() -> None:
    key = tuning.resident_key(196, 98, 384, torch.bfloat16, "kmeans")
    found = next(c for c in candidates(196, 98, torch.bfloat16, HOPPER) if c.num_warps == 16)
    tuning_cache.check(key, found._asdict(), HOPPER)
    with pytest.raises(ValueError, match=r"registers: expected 65536 at most in a program, got 131072"):
        tuning_cache.check(key, found._replace(registers=255)._asdict(), HOPPER)
    with pytest.raises(ValueError, match=r"registers: expected an integer from 0 to 255"):
        tuning_cache.check(key, found._replace(registers=256)._asdict(), HOPPER)
