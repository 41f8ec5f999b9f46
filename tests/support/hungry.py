"""Kernels that need more than there is, for the gate's readers; prints what each takes, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any

import triton
import triton.language as tl


@triton.jit
def product(p_x, p_y, T: tl.constexpr):
    o = tl.arange(0, T)
    b_x = tl.load(p_x + o[:, None] * T + o[None, :])
    tl.store(p_y + o[:, None] * T + o[None, :], tl.dot(b_x, tl.trans(b_x)))


@triton.jit
def copy(p_x, p_y, T: tl.constexpr):
    o = tl.arange(0, T)
    tl.store(p_y + o, tl.load(p_x + o).to(tl.float32))


@triton.jit
def mirror(p_x, p_y, T: tl.constexpr):
    o = tl.arange(0, T)
    b_x = tl.load(p_x + o[:, None] * T + o[None, :]).to(tl.float32)
    tl.store(p_y + o[:, None] * T + o[None, :], b_x / (1 + tl.trans(b_x)))


# Kernel, T, options by backend: a tile of 128 x 128 does not fit 32 registers a thread, nor a quarter of a warp's.
CASES: dict[str, tuple[Any, int, dict[str, dict[str, int]]]] = {
    "product": (product, 64, {"cuda": {}, "hip": {}}),
    "copy": (copy, 256, {"cuda": {}, "hip": {}}),
    "spills": (mirror, 128, {"cuda": {"maxnreg": 32}, "hip": {"num_warps": 1, "waves_per_eu": 4}}),
}


def main() -> None:
    """Compiles each case for each target."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tools.compile_gate.targets import TARGETS, resources

    for name, (kernel, size, options) in CASES.items():
        signature = {"p_x": "*fp16", "p_y": "*fp32", "T": "constexpr"}
        source = ASTSource(kernel, signature, {(2,): size}, {(0,): [["tt.divisibility", 16]]})
        for label in ("sm_80", "sm_90", "sm_100", "gfx942"):
            target = TARGETS[label]
            device = GPUTarget(target.backend, target.arch, target.limits.warp)
            built = compile(source, target=device, options=options[target.backend])
            print(json.dumps({"case": name, "target": label, **resources(built, target)._asdict()}))


if __name__ == "__main__":
    main()
