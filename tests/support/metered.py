"""Small kernels for the meter's test, whose turns are known; prints what it counts, as JSON.

    TRITON_INTERPRET=1 python -m tests.support.metered trips
    python -m tests.support.metered costs sm_90,gfx942 < trips.json
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
    for i in range(0, n):
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
        for i in range(0, n):
            b_factor = tl.exp(tl.sqrt(o.to(tl.float32)) + n)
            tl.store(p_y + o, tl.load(p_y + o) * b_factor + i)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["n"])
def unrolled_kernel(p_x, p_flag, p_y, n, T: tl.constexpr):
    o = tl.program_id(0) * T + tl.arange(0, T)
    b_sum = tl.zeros((T,), tl.float32)
    for i in range(n):
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


def costs(targets: list[str], counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each case on each target, with 4 warps and with 8, by blocks."""
    from tools.compile_gate.launches import Launch, meta
    from tools.compile_gate.targets import TARGETS
    from tools.meter.interpreted import restored
    from tools.meter.meter import measured

    found = []
    for target in targets:
        for name, (kernel, n) in CASES.items():
            for warps in (4, 8):
                tensors = meta(SIZE, dtype="float32"), meta(SAMPLES, dtype="int64"), meta(SIZE, dtype="float32")
                launch = Launch(globals()[kernel], (*tensors, n, SIZE), {"num_warps": warps}, name)
                made = measured(launch, TARGETS[target], target, restored(counts[name]), FOLDER)
                blocks = [
                    {"size": len(block.instructions), "count": count, "loop": loop}
                    for block, count, loop in zip(made.flow.blocks, made.counted.blocks, made.flow.inner, strict=True)
                ]
                rows = [(one.to, one.text) for block in made.flow.blocks for one in block.instructions]
                about = {"case": name, "target": target, "num_warps": warps, "doubts": made.doubts, "rare": made.rare}
                found.append(about | {"parts": made.parts, "blocks": blocks, "rows": rows})
    return found


if __name__ == "__main__":
    if sys.argv[1] == "trips":
        print(json.dumps(trips()))
    else:
        print(json.dumps(costs(sys.argv[2].split(","), json.load(sys.stdin))))
