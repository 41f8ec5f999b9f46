"""GPUs that kernels are compiled for, their limits, and the resources that a compiled kernel takes."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tpkernels.ops.gpu.limits import Limits


class Target(NamedTuple):
    """backend, arch: of Triton's GPUTarget; limits: what launchers choose configurations by; assembler: its name."""

    backend: str
    arch: int | str
    limits: Limits
    assembler: str = ""


# Limits of the A100, H100, B200 and MI300X (its L2 as each of the eight dies has it); then a consumer GPU's (GeForce
# 3090) and the oldest GPUs' shared memory, with code for sm_80, to see which configuration is chosen.
TARGETS = {
    "sm_80": Target("cuda", 80, Limits(108, 166912, 40 << 20, 32), "ptxas"),
    "sm_90": Target("cuda", 90, Limits(132, 232448, 50 << 20, 32), "ptxas"),
    "sm_100": Target("cuda", 100, Limits(148, 232448, 126 << 20, 32), "ptxas-blackwell"),
    "gfx942": Target("hip", "gfx942", Limits(304, 65536, 4 << 20, 64, 0)),
    "sm_80-99k": Target("cuda", 80, Limits(82, 101376, 6 << 20, 32), "ptxas"),
    "sm_80-64k": Target("cuda", 80, Limits(68, 65536, 5632 << 10, 32), "ptxas"),
}


class Resources(NamedTuple):
    """registers: a thread (vector registers on AMD); spilled: bytes a thread; shared: bytes a block; instructions:
    tensor-core instructions and how often each stands in the program."""

    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]


def resources(built: Any, target: Target) -> Resources:
    """The resources that a compiled kernel takes.

    Args:
        built: what `triton.compile` returned.
        target: the GPU that it was compiled for.
    """
    shared = built.metadata.shared
    if target.backend == "hip":
        assembly = built.asm["amdgcn"]
        registers, vector, scalar = (
            _number(rf"^\s*\.{name}:\s*(\d+)", assembly)
            for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        )
        # Scalar registers spill into lanes of vector registers first, which costs no memory: only what is left of
        # both counts is in the private segment.
        private = _number(r"^\s*\.private_segment_fixed_size:\s*(\d+)", assembly)
        spilled = max(4 * vector, private) if vector or (scalar and private) else 0
        return Resources(registers, spilled, shared, _count(r"\bv_(mfma_\w+)", assembly))
    tools = binaries()
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(built.asm["cubin"])
        usage = run(str(tools / "cuobjdump"), "--dump-resource-usage", str(cubin))
        registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
        spilled = 0
        if stack:
            # Spills lie on the stack, and so do arrays: only the assembler tells them apart.
            ptx.write_text(built.asm["ptx"])
            name = re.findall(r"^\.target\s+(\w+)", built.asm["ptx"], flags=re.M)[0]
            log = run(str(tools / target.assembler), "-v", f"--gpu-name={name}", str(ptx), "-o", os.devnull)
            spilled = _number(r"(\d+) bytes spill stores", log)
    pattern = r"^\s*(?:@%?!?\w+ )?((?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*)"
    return Resources(registers, spilled, shared, _count(pattern, built.asm["ptx"]))


def gpu_ir(source: Any, target: Target, options: dict[str, Any]) -> str:
    """A kernel's TTGIR, in which layouts, barriers and pipelines are decided: `triton.compile`'s first stages."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    device = GPUTarget(target.backend, target.arch, target.limits.warp)
    backend = make_backend(device)
    chosen = backend.parse_options({**options, **source.parse_options()})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, chosen, source.language)
    made = source.make_ir(device, chosen, backend.get_codegen_implementation(chosen), backend.get_module_map(), context)
    for stage in ("ttir", "ttgir"):
        made = stages[stage](made, {**chosen.__dict__})
    return str(made)


def family(instructions: dict[str, int]) -> str:
    """The kinds of tensor-core instruction among these: wgmma, mma, tcgen05 or mfma; "-" for none."""
    return "+".join(sorted({re.split(r"[._]", name)[0] for name in instructions})) or "-"


def binaries() -> Path:
    """The folder of NVIDIA's binary tools in Triton's wheel."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def run(*command: str) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it ends with anything but 0.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, flags=re.M)
    if not found:
        raise RuntimeError(f"expected {pattern!r} in the report on a kernel, got {text[-500:]!r}")
    return int(found[-1])


def _count(pattern: str, text: str) -> dict[str, int]:
    return dict(Counter(re.findall(pattern, text, flags=re.M)))
