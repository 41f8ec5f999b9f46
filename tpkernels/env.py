"""`python -m tpkernels.env`: versions, devices, and which backend "auto" chooses on each device, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def main() -> None:
    """Prints what a bug report needs. No device is queried before this is called."""
    for name, value in _versions():
        print(f"{name + ':':<12}{value}")
    print("\ndevices:")
    for name, value in _devices():
        print(f"  {name:<10}{value}")
    print('\nbackend="auto" for a DeiT-S (196 patch tokens of 384 channels):')
    for name, value in _choices():
        print(f"  {name:<24}{value}")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> list[tuple[str, str]]:
    interpreter = ", interpreted (TRITON_INTERPRET=1)" if os.environ.get("TRITON_INTERPRET", "0") == "1" else ""
    return [
        ("tpkernels", _installed("tpkernels")),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("torch", torch.__version__),
        ("triton", _installed("triton") + interpreter),
        ("numba", _installed("numba")),
        ("cuda", torch.version.cuda or "not in this build of torch"),
        ("hip", torch.version.hip or "not in this build of torch"),
        ("platform", platform.platform()),
    ]


def _devices() -> list[tuple[str, str]]:
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        parts = f"{device.multi_processor_count} multiprocessors, {device.total_memory / 2**30:.1f} GiB"
        rows.append((f"cuda:{index}", f"{device.name}, capability {device.major}.{device.minor}, {parts}"))
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU"))
    return rows


def _choices() -> list[tuple[str, str]]:
    from .ops.backends import explain_backend

    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    rows = []
    for kind in (kind for kind, available in found.items() if available):
        for method in ("ward", "kmedoids"):
            for dtype in (torch.float32, torch.bfloat16):
                backend, reason = explain_backend(kind, dtype, 384, 196, method)
                rows.append((f"{kind} {method} {str(dtype).removeprefix('torch.')}", f"{backend}: {reason}"))
    return rows


if __name__ == "__main__":
    main()
