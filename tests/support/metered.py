"""Small kernels for the meter's test, whose turns are known; prints what it counts, as JSON.

TRITON_INTERPRET=1 python -m tests.support.metered trips
python -m tests.support.metered costs < trips.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

FOLDER = Path(__file__).resolve().parent
SAMPLES, SIZE = 4, 512
# Kernel, turns of its loop.
CASES = {
    "straight": ("straight_kernel", 0),
    "looped": ("looped_kernel", 5),
    "looped twice as often": ("looped_kernel", 10),
    "chosen": ("chosen_kernel", 6),
    "unrolled": ("unrolled_kernel", 9),
}
# Target, case, warps.
COMPILED = [
    *(("sm_90", name, 4) for name in CASES),
    ("sm_90", "looped", 8),
    ("gfx942", "looped", 4),
    ("gfx942", "looped twice as often", 4),
    ("gfx942", "chosen", 4),
]


@triton.jit
def shared_product(p_x, p_y, o):
    b_x = tl.load(p_x + o)
    return b_x * tl.load(p_y + o)


@triton.jit(do_not_specialize=["n"])
def straight_kernel(p_x, p_flag, p_y, n, T: tl.constexpr):
    o = tl.program_id(0) * T + tl.arange(0, T)
    tl.store(p_y + o, shared_product(p_x, p_y, o))


@triton.jit(do_not_specialize=["n"])
def looped_kernel(p_x, p_flag, p_y, n, T: tl.constexpr):
    o = tl.program_id(0) * T + tl.arange(0, T)
    for i in range(n):
        b_y = shared_product(
            p_x + i,
            p_y, o
        )  # fmt: skip
        tl.debug_barrier()
        tl.store(p_y + o, b_y)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["n"])
def chosen_kernel(p_x, p_flag, p_y, n, T: tl.constexpr):
    o = tl.program_id(0) * T + tl.arange(0, T)
    if tl.load(p_flag + tl.program_id(0)) > 0:
        # The factor does not change from turn to turn, so it is worked out before the loop.
        for i in range(n):
            b_factor = tl.exp(tl.sqrt(o.to(tl.float32)) + n)
            tl.store(p_y + o, tl.load(p_y + o) * b_factor + i)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["n"])
def unrolled_kernel(p_x, p_flag, p_y, n, T: tl.constexpr):
    o = tl.program_id(0) * T + tl.arange(0, T)
    b_sum = tl.zeros((T,), tl.float32)
    for _ in range(n):
        b_sum += tl.load(p_x + o)
        p_x += n
    tl.store(p_y + o, b_sum)


def trips() -> dict[str, Any]:
    """Counts of each case; the flag of `chosen_kernel` is set in one sample of four."""
    from tools.meter.interpreted import plain
    from tools.meter.trips import trips

    found = {}
    for name, (kernel, n) in CASES.items():
        x, y, flag = torch.zeros(SAMPLES * SIZE + 100), torch.zeros(SAMPLES * SIZE), torch.tensor([0, 1, 0, 0])
        call = globals()[kernel][(SAMPLES,)]
        found[name] = plain(trips(lambda call=call, n=n, of=(x, flag, y): call(*of, n, SIZE), FOLDER, SAMPLES))
    return found


def costs(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of `COMPILED` costs, by blocks in the order of the code."""
    from tools.compile_gate.launches import Launch, meta
    from tools.compile_gate.targets import TARGETS
    from tools.meter.interpreted import restored
    from tools.meter.meter import measured

    found = []
    for target, name, warps in COMPILED:
        kernel, n = CASES[name]
        tensors = meta(SIZE, dtype="float32"), meta(SAMPLES, dtype="int64"), meta(SIZE, dtype="float32")
        launch = Launch(globals()[kernel], (*tensors, n, SIZE), {"num_warps": warps}, name)
        made = measured(launch, TARGETS[target], target, restored(counts[name]), FOLDER)
        blocks = [
            {"rows": [one.text for one in block.instructions], "count": count, "loop": loop, "reached": bool(above)}
            for block, count, loop, above in zip(
                made.flow.blocks, made.counted.blocks, made.flow.inner, made.flow.above, strict=True
            )
        ]
        about = {"case": name, "target": target, "num_warps": warps, "doubts": made.doubts}
        found.append(about | {"parts": made.parts, "cycles": made.cycles, "blocks": blocks})
    return found


if __name__ == "__main__":
    print(json.dumps(trips() if sys.argv[1] == "trips" else costs(json.load(sys.stdin))))
