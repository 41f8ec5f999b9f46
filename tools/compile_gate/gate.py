"""A row for each kernel, configuration and target: the resources that the compiled kernel takes, and its faults."""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tpkernels.ops.gpu.resident_tiles import program_registers

from .calls import calls
from .launches import configuration, key, launches, source
from .targets import TARGETS, family, resources

# Shared memory that a block may have on consumer GPUs, and on the oldest.
SMALL_LIMITS = {"99K": 99 << 10, "64K": 64 << 10}
# Columns of tensor memory of a multiprocessor: Triton refuses to load what takes more.
TENSOR_MEMORY = 512
WORKERS = 2


def chosen(pattern: str = "", smoke: bool = False) -> list[int]:
    """Places in `calls()` of those whose name the pattern finds; with smoke only of those marked so."""
    return [i for i, call in enumerate(calls()) if re.search(pattern, call.name) and (call.smoke or not smoke)]


def compiled(
    names: list[str], kernels: list[str], places: list[int], ttgir: Path | None = None, workers: int = WORKERS
) -> Iterator[dict[str, Any]]:
    """A row for each kernel and configuration on each target; what compiles to the same is compiled once.

    Args:
        names: targets.
        kernels: names of kernels to keep, all where there are none.
        places: calls to make, by their places in `calls()`.
        ttgir: folder that takes the TTGIR of each kernel, in a file that its row names.
        workers: processes.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("TRITON_INTERPRET: expected to be unset where kernels are compiled, got 1")
    if ttgir is not None:
        ttgir.mkdir(parents=True, exist_ok=True)
    first: dict[Any, int] = {}
    tasks: list[_Task] = []
    twins: list[tuple[int, dict[str, Any]]] = []
    for name in names:
        target = TARGETS[name]
        here = set()
        for place in places:
            for index, launch in enumerate(launches(target, [calls()[place]])):
                same = (target.backend, target.arch, key(launch))
                if same in here or (kernels and launch.kernel.__name__ not in kernels):
                    continue
                here.add(same)
                about = {
                    "kernel": launch.kernel.__name__,
                    "case": launch.case,
                    "target": name,
                    "num_warps": launch.kwargs.get("num_warps", 4),
                    "config": {key: repr(value) for key, value in configuration(launch).items()},
                }
                if same in first:
                    twins.append((first[same], about))
                else:
                    first[same] = len(tasks)
                    tasks.append(_Task(len(tasks), name, place, index, about, ttgir))

    made: dict[int, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    # An empty cache, so that every kernel is compiled.
    with tempfile.TemporaryDirectory() as cache, spawn.Pool(workers, _set_up, (cache,)) as pool:
        for number, row in pool.imap_unordered(_compile, tasks):
            made[number] = row
            yield row
    for of, about in twins:
        row = {**made[of], **about, "same_as": f"{made[of]['target']}: {made[of]['case']}", "seconds": 0.0}
        yield row | {"faults": faults(row)}


class _Task(NamedTuple):
    """A launch by its number, target and place: kernels themselves are not passed between processes."""

    number: int
    target: str
    call: int
    launch: int
    about: dict[str, Any]
    ttgir: Path | None


def _set_up(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache


def _compile(task: _Task) -> tuple[int, dict[str, Any]]:
    """One row."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    target = TARGETS[task.target]
    made, options = source(launches(target, [calls()[task.call]])[task.launch])
    began = time.perf_counter()
    row = {**task.about, "same_as": None, "error": None}
    device = GPUTarget(target.backend, target.arch, target.limits.warp)
    built = None
    try:
        built = compile(made, target=device, options=options)
    except Exception as error:
        # Whatever the compiler raises is the row's result: the gate goes on, and fails at the end.
        row["error"] = f"{type(error).__name__}: {_gist(str(error))}"
    row["seconds"] = time.perf_counter() - began
    if built is not None and task.ttgir is not None:
        row["ttgir"] = f"{task.target}.{task.number}.{task.about['kernel']}.ttgir"
        (task.ttgir / row["ttgir"]).write_text(built.asm["ttgir"])
    if built is not None:
        found = resources(built, target)
        row |= found._asdict() | {
            "num_warps": built.metadata.num_warps,
            "tensor_cores": family(found.instructions),
            # Columns of Blackwell's memory of accumulators; no other target has any.
            "tensor_memory": getattr(built.metadata, "tmem_size", 0) or 0,
            "fits": [limit for limit, most in SMALL_LIMITS.items() if found.shared <= most],
        }
    row["faults"] = faults(row)
    return task.number, row


def _gist(message: str) -> str:
    """The line that matters: the assembler's comes before the program that it repeats, the language's last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if re.search(r"\bfatal\b|\berror\s*:", line)), lines[-1])[:300]


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row."""
    if row["error"] is not None:
        return [f"does not compile: {row['error']}"]
    if "shared" not in row:
        return []
    found = []
    limits = TARGETS[row["target"]].limits
    if row["shared"] > limits.shared_bytes:
        found.append(f"shared memory: expected at most {limits.shared_bytes} bytes, got {row['shared']}")
    if row.get("tensor_memory", 0) > TENSOR_MEMORY:
        found.append(f"tensor memory: expected at most {TENSOR_MEMORY} columns, got {row['tensor_memory']}")
    held = program_registers(row["registers"], row["num_warps"], limits.warp)
    if 0 < limits.registers < held:
        most = f"at most {limits.registers} in a program, or it cannot be launched"
        found.append(f"registers: expected {most}, got {held}")
    if row["spilled"]:
        found.append(f"spills: expected none in a default configuration, got {row['spilled']} bytes a thread")
    return found
