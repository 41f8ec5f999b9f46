"""compute-sanitizer's memcheck over small launches of the kernels.

Its racecheck sees shared memory alone, and these kernels' state is in global memory: `tests/kernels/test_races.py`
reads the compiled code for that.
"""

from __future__ import annotations

import os
import re
import sys

import torch

import tpkernels

from .. import processes
from .attention import qkv_of
from .children import Run
from .problems import CHECKED, CHECKED_HEADS, device

# Its exit code where it found an error.
FOUND = 9


def tell(run: Run) -> None:
    """One row: how many errors it counted."""
    # Every tensor in an allocation of its own, whose end is then guarded.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [
        "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", str(FOUND),
        # Libraries query features that a driver lacks, which is no error of a kernel; compilers run as child processes.
        "--report-api-errors", "no", "--target-processes", "application-only",
        sys.executable, "-m", "benchmarks", "device", "--child", "launches", "--output", str(run.folder),
    ]  # fmt: skip
    how, text = processes.run(command, env, run.left())
    print(text, flush=True)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    bad = how != "ok" or set(errors) != {"0"}
    said = f"{how}, errors {errors or 'not counted'}: {' '.join(text[-300:].split())}"
    run.journal.tell(what="memcheck", errors=errors, red=said if bad else "")


def launches(run: Run) -> None:
    """One small launch of each family: odd sizes, a mask, what the type rounds."""
    b, n, d, k = CHECKED
    x = torch.randn(b, n, d, generator=torch.Generator().manual_seed(0)).to(device())
    mask = torch.arange(n, device=device()) < torch.tensor([[n], [n - 7]], device=device())
    tpkernels.ward(x, k, mask=mask, backend="triton")
    for cluster in (tpkernels.kmedoids, tpkernels.kmeans):
        cluster(x.half(), k, x[..., 0].abs(), init="topk", mask=mask, backend="triton")
    q, key, v = (tensor.requires_grad_() for tensor in qkv_of(CHECKED_HEADS, 0))
    out, _ = tpkernels.attention(q, key, v, backend="triton", need_significance=True)
    out.sum().backward()
    if device().type == "cuda":
        torch.cuda.synchronize()
