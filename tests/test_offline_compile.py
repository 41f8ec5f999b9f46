"""Every kernel compiles for GPUs that need not be there, as `ops/launch.py` would launch it on them.

This file run as a program does the compiling, in a process where Triton interprets nothing: it calls the launchers on
tensors without data that say they are on a GPU, and takes the arguments that reach the kernels.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# The least that a block may have on the devices named: gfx942's local memory. Consumer GPUs have 99 KB.
SHARED_LIMIT = 64 * 1024
KERNELS = {"resident_kernel", "cluster_mean_kernel", "cluster_mean_backward_kernel"}


def resident_calls() -> list[dict[str, Any]]:
    """A sample of the resident kernel's flags in which each value of each meets each dtype, and the largest tiles."""
    small, large = {"n": 49, "d": 48, "k": 34}, {"n": 1000, "d": 1536, "k": 700}
    vit = {"n": 196, "d": 384, "k": 98}
    return [
        {**vit, "dtype": "bfloat16", "method": "kmedoids", "output": "mean", "weighted": True, "init": "topk"},
        {**vit, "dtype": "bfloat16", "method": "kmeans", "output": "center", "masked": True, "init": "given"},
        {**vit, "dtype": "float16", "method": "kmeans", "output": "mean", "pool_weighted": True, "init": "topk"},
        {**small, "dtype": "float16", "method": "kmedoids", "output": "center", "masked": True, "init": "given"},
        {**small, "dtype": "float32", "method": "kmeans", "output": "medoid", "weighted": True, "init": "topk"},
        {**large, "dtype": "float32", "method": "kmedoids", "output": "medoid", "init": "given"},
        {
            **large,
            "dtype": "float32",
            "method": "kmeans",
            "output": "center",
            "weighted": True,
            "pool_weighted": True,
            "masked": True,
            "init": "topk",
        },
        # Odd sizes and strides that no vector load fits.
        {
            "n": 5,
            "d": 3,
            "k": 2,
            "dtype": "float32",
            "method": "kmedoids",
            "output": "mean",
            "odd": True,
            "init": "topk",
        },
    ]


def mean_calls() -> list[dict[str, Any]]:
    return [
        {"dtype": "float32", "weighted": True},
        {"dtype": "bfloat16", "weighted": False},
        {"dtype": "float16", "weighted": True, "odd": True},
    ]


def test_the_sample_covers_the_flags() -> None:
    calls = resident_calls()
    for name, values in {
        "method": {"kmeans", "kmedoids"},
        "output": {"center", "mean", "medoid"},
        "dtype": {"float32", "float16", "bfloat16"},
        "init": {"topk", "given"},
        "weighted": {True, False},
        "pool_weighted": {True, False},
        "masked": {True, False},
    }.items():
        assert {call.get(name, False) for call in calls} == values
    pairs = {(call["method"], call["output"]) for call in calls}
    assert len(pairs) == 6


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_every_target(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    # A cache of its own: nothing compiled before stands in for compiling.
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} == KERNELS == set(every_kernel())
    assert {row["target"] for row in rows} == set(TARGETS)
    for row in rows:
        assert row["binary"] > 0, row
        assert row["shared"] <= SHARED_LIMIT, row
        assert row["num_warps"] == 4, row
    # Each target compiled each call, in the precision that launches ask for.
    count = {name: sum(row["target"] == name for row in rows) for name in TARGETS}
    assert set(count.values()) == {len(resident_calls()) + 2 * len(mean_calls())}
    dots = {(row["target"], row["precision"]) for row in rows if row["precision"]}
    assert dots == {
        *((name, "tf32x3") for name in ("sm_80", "sm_90", "sm_100")),
        ("gfx942", "ieee"),
    }


def every_kernel() -> list[str]:
    """Names of the jitted functions that `ops/launch.py` launches, by its own imports."""
    text = (ROOT / "tpkernels" / "ops" / "launch.py").read_text()
    return re.findall(r"^    from \.\.kernels\.\w+ import (\w+)$", text, flags=re.M)


class Recorder:
    """Stands in for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, tuple, dict]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert len(grid) == 1
        return lambda *args, **kwargs: self.calls.append((self.kernel, args, kwargs))


def source_of(kernel: Any, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
    """The source and the options of a launch, specialised as the launch would be: on ones and on multiples of 16."""
    import torch
    from triton.compiler import ASTSource

    types = {
        torch.float32: "*fp32",
        torch.float16: "*fp16",
        torch.bfloat16: "*bf16",
        torch.int64: "*i64",
        torch.int32: "*i32",
        torch.uint8: "*u8",
    }
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    signature, constants, attributes = {}, {}, {}
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    assert set(given) == set(kernel.arg_names), set(kernel.arg_names) ^ set(given)
    for place, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = types[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif name in kwargs or value == 1:
            signature[name], constants[(place,)] = "constexpr", value
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def launches(hip: bool) -> list[tuple[Any, tuple, dict]]:
    """What the launchers hand to the kernels for the sampled calls on a GPU."""
    from contextlib import nullcontext

    import torch

    from tpkernels.kernels import pooling, resident
    from tpkernels.ops import launch

    calls: list[tuple[Any, tuple, dict]] = []
    kept: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    put(resident, "resident_kernel", Recorder(resident.resident_kernel, calls))
    put(pooling, "cluster_mean_kernel", Recorder(pooling.cluster_mean_kernel, calls))
    put(pooling, "cluster_mean_backward_kernel", Recorder(pooling.cluster_mean_backward_kernel, calls))
    put(launch, "_programs", lambda x, floats: 264)
    put(launch, "_on_device", lambda x: nullcontext())
    put(torch.version, "hip", "6.0" if hip else None)

    class OnGPU(torch.Tensor):
        """A tensor without data that says it is on a GPU."""

        is_cuda = True  # type: ignore[assignment]

    def tokens(call: dict[str, Any], n: int, d: int) -> torch.Tensor:
        odd = call.get("odd", False)
        x = torch.empty(8, n + 1, d + odd, dtype=getattr(torch, call["dtype"]), device="meta")
        return x[:, 1:, odd:].as_subclass(OnGPU)

    def some(wanted: bool, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        return torch.empty(8, n, dtype=dtype, device="meta") if wanted else None

    for call in resident_calls():
        n, k, init = call["n"], call["k"], call["init"]
        launch.cluster(
            tokens(call, n, call["d"]),
            some(call.get("weighted", False), n),
            some(call.get("pool_weighted", False), n),
            some(call.get("masked", False), n, torch.bool),
            some(init == "given", k, torch.int64),
            k,
            call["method"],
            init,
            call["output"],
            5,
        )
    for call in mean_calls():
        x, label, w = tokens(call, 196, 384), some(True, 196, torch.int64), some(call["weighted"], 196)
        mean = launch.cluster_mean(x, label, 98, w)
        grad = torch.empty_like(mean).as_subclass(OnGPU)
        launch.cluster_mean_backward(grad, label, *((x, mean, w) if w is not None else (None, None, None)))
    for owner, name, value in reversed(kept):
        setattr(owner, name, value)
    return calls


def main() -> None:
    """Compiles, and prints one row of JSON for each kernel, call and target."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    for name, target in TARGETS.items():
        for kernel, args, kwargs in launches(hip=target[0] == "hip"):
            precision = kwargs.get("PRECISION")
            source, options = source_of(kernel, args, dict(kwargs))
            built = compile(source, target=GPUTarget(*target), options=options)
            binary = built.asm["hsaco" if target[0] == "hip" else "cubin"]
            row = {
                "target": name,
                "kernel": kernel.__name__,
                "precision": precision,
                "shared": built.metadata.shared,
                "num_warps": built.metadata.num_warps,
                "binary": len(binary),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
