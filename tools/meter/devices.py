"""What a multiprocessor of each target holds and issues, and the clock that times are stated at."""

from __future__ import annotations

from typing import NamedTuple

from tools.compile_gate.targets import Target
from tpkernels.ops.gpu.resident_tiles import program_registers


class Device(NamedTuple):
    """Of a multiprocessor: schedulers, registers, shared memory in bytes and what a program takes beside its own,
    threads; gigahertz: the clock."""

    schedulers: int
    registers: int
    shared: int
    reserved: int
    threads: int
    gigahertz: float

    def programs(self, registers: int, shared: int, num_warps: int, warp: int) -> tuple[int, int, int]:
        """Programs that fit at once, by registers, by shared memory and by threads."""
        by_shared = self.shared // (shared + self.reserved) if shared + self.reserved else self.threads // warp
        return (
            self.registers // max(1, program_registers(registers, num_warps, warp)),
            by_shared,
            self.threads // (num_warps * warp),
        )

    def microseconds(self, instructions: float, target: Target) -> float:
        """Time at one instruction a cycle and scheduler, with all multiprocessors at work."""
        return instructions / (self.schedulers * target.limits.processors * self.gigahertz * 1e3)


# The A100, H100, B200 and MI300X; its vector registers are 512 a lane of four SIMDs of 64 lanes each.
DEVICES = {
    "sm_80": Device(4, 65536, 164 << 10, 1 << 10, 2048, 1.41),
    "sm_90": Device(4, 65536, 228 << 10, 1 << 10, 2048, 1.755),
    "sm_100": Device(4, 65536, 228 << 10, 1 << 10, 2048, 1.85),
    "gfx942": Device(4, 4 * 512 * 64, 64 << 10, 0, 2048, 2.1),
}
