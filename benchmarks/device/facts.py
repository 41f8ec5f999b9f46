"""The machine: versions, limits, and the two rates from which every floor is computed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

import torch

from tpkernels.ops.gpu.limits import limits_of

from .. import environment, gpu
from ..rehearsal import rehearsing
from ..timing import quantile, wall_ms
from .children import Run
from .problems import device

# Rows and columns of the product whose rate is measured.
SIDE = 8192


def tell(run: Run) -> None:
    """Rows of versions and tools, limits, bandwidth, rate of a bfloat16 product; the driver's own table is printed."""
    where, journal = device(), run.journal
    journal.tell(
        **environment.facts(where), cpus=os.cpu_count(), triton_key=triton_key(), numpy=environment.version_of("numpy"),
        cache=os.environ.get("TRITON_CACHE_DIR", ""),
        tools=[name for name in ("gcc", "ncu", "compute-sanitizer", "nvidia-smi") if shutil.which(name)],
    )  # fmt: skip
    journal.tell(**limits_of(where)._asdict())
    if shutil.which("nvidia-smi"):
        print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30).stdout, flush=True)
    if where.type == "cuda":
        journal.tell(copy_gbs=round(gpu.bandwidth_gbs(where)))
    journal.tell(product_tflops=_product_tflops(where))


def triton_key() -> str:
    """A short form of the key of Triton's cache: equal where a cache can be shared."""
    from triton.runtime import cache

    # Its module changed with Triton 3.5.
    key = getattr(cache, "triton_key", None)
    if key is None:
        from triton.compiler.compiler import triton_key as key
    return hashlib.sha256(key().encode()).hexdigest()[:16]


def _product_tflops(where: torch.device) -> float:
    side = 64 if rehearsing() else SIDE
    x = torch.randn(side, side, device=where, dtype=torch.bfloat16)
    measure = gpu.Stopwatch(where).event_ms if where.type == "cuda" else wall_ms
    ms = [measure(lambda: x @ x) for _ in range(10)]
    return round(2 * side**3 / quantile(ms, 0.5) / 1e9, 3)
