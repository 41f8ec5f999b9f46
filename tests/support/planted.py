"""Kernels with races planted in them, and their repaired twins; `python planted.py FOLDER` compiles them to TTGIR.

They exchange T values across lanes through scratch: lane i writes place i and reads place T - 1 - i. What the checker
has to say to each stands in `tests/kernels/test_races.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import triton
import triton.language as tl


@triton.jit
def missing(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def sound(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.debug_barrier()
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def one_branch(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    if n > 3:
        tl.debug_barrier()
    else:
        tl.store(p_x + o, 1.0)
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def both_branches(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    if n > 3:
        tl.debug_barrier()
    else:
        tl.store(p_x + o, 1.0)
        tl.debug_barrier()
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def back_edge(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    for _i in range(n):
        tl.store(p_s + o, b)
        tl.debug_barrier()
        b += tl.load(p_s + (T - 1 - o))
    tl.store(p_x + o, b)


@triton.jit
def back_edge_store(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    for _i in range(n):
        b += tl.load(p_s + (T - 1 - o))
        tl.debug_barrier()
        tl.store(p_s + o, b)
    tl.store(p_x + o, b)


@triton.jit
def sound_loop(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    for _i in range(n):
        tl.store(p_s + o, b)
        tl.debug_barrier()
        b += tl.load(p_s + (T - 1 - o))
        tl.debug_barrier()
    tl.store(p_x + o, b)


@triton.jit
def while_back_edge(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    while tl.load(p_s) < n:
        tl.debug_barrier()
        tl.store(p_s + o, b)
        b += 1
    tl.store(p_s + (T - 1 - o), b)


@triton.jit
def sound_while(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    while tl.load(p_s) < n:
        tl.debug_barrier()
        tl.store(p_s + o, b)
        b += 1
        tl.debug_barrier()
    tl.debug_barrier()
    tl.store(p_s + (T - 1 - o), b)


@triton.jit
def own_lane(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + o) + 1)


@triton.jit
def own_lane_replicated(p_x, p_s, p_i, n, T: tl.constexpr):
    # Several threads hold each value; one of them stores it.
    o = tl.arange(0, 16)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.debug_barrier()
    tl.store(p_s + o, tl.load(p_x + o) + 1)
    tl.store(p_x + T + o, tl.load(p_s + o))


@triton.jit
def own_tiles(p_x, p_s, p_i, n, T: tl.constexpr):
    for i in range(0, n, T):
        o = i + tl.arange(0, T)
        tl.store(p_s + o, tl.load(p_x + o))
    for i in range(0, n, T):
        o = i + tl.arange(0, T)
        tl.store(p_x + o, tl.load(p_s + o) + 1)


@triton.jit
def shifted_tiles(p_x, p_s, p_i, n, T: tl.constexpr):
    for i in range(0, n, T // 2):
        o = i + tl.arange(0, T)
        tl.store(p_s + o, tl.load(p_s + o) + 1)


@triton.jit
def other_slice(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    p_other = p_s + n * T
    tl.store(p_other + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def hidden_zero(p_x, p_s, p_i, n, T: tl.constexpr):
    # The same place, by a way that the compiler cannot see through.
    o = tl.arange(0, T)
    tl.store(p_i, 0)
    tl.debug_barrier()
    size = n + tl.load(p_i)
    tl.store(p_s + n * T + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + size * T + (T - 1 - o)))


@triton.jit
def hidden_zero_sound(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_i, 0)
    tl.debug_barrier()
    size = n + tl.load(p_i)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + size * T + (T - 1 - o)))


@triton.jit
def reaching_slice(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    p_other = p_s + T // 2
    tl.store(p_other + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def reaching_down(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + n * T + n - o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + o))


@triton.jit
def moving_pointer(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    p_row = p_s
    for _i in range(n):
        p_row += n
        tl.store(p_row + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def early_return(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    if n == 7:
        return
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)))


@triton.jit
def reduction_hides(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    b = tl.load(p_x + o)
    tl.store(p_s + o, b)
    total = tl.sum(b, 0)
    tl.store(p_x + o, tl.load(p_s + (T - 1 - o)) + total)


@triton.jit
def scalar(p_x, p_s, p_i, n, T: tl.constexpr):
    tl.store(p_s, tl.load(p_x))
    tl.store(p_x + tl.arange(0, T), tl.load(p_s) + tl.zeros((T,), tl.float32))


@triton.jit
def scalar_in_slice(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + 5) + tl.zeros((T,), tl.float32))


@triton.jit
def atomic(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.atomic_add(p_s + (T - 1 - o), tl.load(p_x + o))
    tl.store(p_x + o, tl.load(p_s + o))


@triton.jit
def scatter(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    for i in range(n):
        tl.store(p_s + tl.load(p_i + i * T + o), tl.load(p_x + o) + i)
    tl.debug_barrier()
    tl.store(p_x + o, tl.load(p_s + o))


@triton.jit
def overwritten(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.store(p_s + (T - 1 - o), tl.load(p_x + o) + 1)
    tl.debug_barrier()
    tl.store(p_x + o, tl.load(p_s + o))


@triton.jit
def pipelined(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    o_t = tl.arange(0, 32)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.debug_barrier()
    b = tl.zeros((32, 32), tl.float32)
    b_x = tl.load(p_x + o_t[:, None] * 32 + o_t[None, :])
    for i in range(n):
        b_s = tl.load(p_s + i * 1024 + o_t[:, None] * 32 + o_t[None, :])
        b = tl.dot(b_s, b_x, b, input_precision="tf32")
    tl.store(p_x + o_t[:, None] * 32 + o_t[None, :], b)


@triton.jit
def copying(p_x, p_s, p_i, n, T: tl.constexpr):
    # Sound but for being pipelined: the loop waits for its copies, and the barrier for all lanes.
    o = tl.arange(0, T)
    o_t = tl.arange(0, 32)
    b = tl.zeros((32, 32), tl.float32)
    b_x = tl.load(p_x + o_t[:, None] * 32 + o_t[None, :])
    for i in range(n):
        b_s = tl.load(p_s + i * 1024 + o_t[:, None] * 32 + o_t[None, :])
        b = tl.dot(b_s, b_x, b, input_precision="tf32")
    tl.debug_barrier()
    tl.store(p_s + o, 1.0)
    tl.store(p_x + o_t[:, None] * 32 + o_t[None, :], b)


@triton.jit
def unpipelined(p_x, p_s, p_i, n, T: tl.constexpr):
    o = tl.arange(0, T)
    o_t = tl.arange(0, 32)
    tl.store(p_s + o, tl.load(p_x + o))
    tl.debug_barrier()
    b = tl.zeros((32, 32), tl.float32)
    b_x = tl.load(p_x + o_t[:, None] * 32 + o_t[None, :])
    for i in tl.range(0, n, num_stages=1):
        b_s = tl.load(p_s + i * 1024 + o_t[:, None] * 32 + o_t[None, :])
        b = tl.dot(b_s, b_x, b, input_precision="tf32")
    tl.store(p_x + o_t[:, None] * 32 + o_t[None, :], b)


def main(folder: Path) -> None:
    """Writes a file of TTGIR for every kernel above."""
    from triton.compiler import ASTSource

    from tools.compile_gate.targets import TARGETS, gpu_ir

    signature = {"p_x": "*fp32", "p_s": "*fp32", "p_i": "*i32", "n": "i32", "T": "constexpr"}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(3)}
    for name, kernel in globals().items():
        if not isinstance(kernel, triton.JITFunction):
            continue
        source = ASTSource(kernel, signature, {(4,): 256}, aligned)
        (folder / f"{name}.ttgir").write_text(gpu_ir(source, TARGETS["sm_90"], {"num_warps": 4, "num_stages": 3}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
