"""What an operation costs on a target: instructions by part, resources, and the time that they bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.compile_gate.launches import Launch, launches, source
from tools.compile_gate.targets import TARGETS, Target, resources

from . import parts
from .chains import Files
from .code import code
from .counts import Counted, counts
from .devices import DEVICES
from .executions import Statements
from .flow import Flow, flow
from .operations import FOLDER, OPERATIONS
from .trips import Trips
from .waits import KINDS, LOADS, alone


@dataclass
class Launched:
    """One launch: its kernel, warps, resources, programs that fit (by registers, shared memory, threads), instructions
    of a warp for a unit by part; cycles of a warp that no other delays, by what they are spent on (`waits.py`); rare:
    instructions that no way leads to; doubts: what was taken without proof."""

    kernel: str
    num_warps: int
    registers: int
    spilled: int
    shared: int
    fits: tuple[int, int, int]
    parts: dict[str, float]
    cycles: dict[str, float]
    size: int
    rare: int
    doubts: list[str]
    flow: Flow = field(repr=False)
    counted: Counted = field(repr=False)


@dataclass
class Cost:
    """An operation on a target: its launches, and instructions by part over `Operation.warps`, by unit; cycles that a
    warp takes for a unit by what they are spent on, one launch after the other."""

    operation: str
    target: str
    launches: list[Launched]
    parts: dict[str, float]
    cycles: dict[str, float]
    microseconds: float
    exact: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def planned(name: str, target_name: str) -> list[Launch]:
    """An operation's launches on a target."""
    return launches(TARGETS[target_name], [OPERATIONS[name].call])


def cost(name: str, target_name: str, made: list[Launch], found: Trips) -> Cost:
    """The cost of an operation.

    Args:
        made: its launches.
        found: its counts in the interpreter, as this target or one with the same launches runs it.
    """
    operation, target = OPERATIONS[name], TARGETS[target_name]
    kernels = {launch.kernel.__name__ for launch in made}
    if kernels != set(found.calls):
        raise RuntimeError(f"{name}: expected {sorted(kernels)} as on {target_name}, interpreted {sorted(found.calls)}")
    launched = [measured(launch, target, target_name, found) for launch in made]
    total: Counter[str] = Counter()
    cycles: Counter[str] = Counter()
    instructions = 0.0
    for one in launched:
        cycles.update(one.cycles)
        for part, count in one.parts.items():
            total[part] += count * one.num_warps / operation.warps(one.num_warps)
            instructions += count * one.num_warps * operation.units
    split = {part: total[part] for part in parts.ORDER if part in total}
    time = DEVICES[target_name].microseconds(instructions, target)
    spent = {kind: cycles[kind] for kind in KINDS if kind in cycles}
    return Cost(name, target_name, launched, split, spent, time, exact_share(found))


def exact_share(found: Trips) -> float:
    """The share of tiles of the Gram matrix that take the low halves."""
    shares = [0.0]
    for chain, count in found.counts.items():
        line = parts.condition(chain[0], FOLDER)
        if line is not None:
            taken = found.entries.get(chain, count)
            shares.append(taken / found.counts[((chain[0][0], line), *chain[1:])])
    return max(shares)


def measured(launch: Launch, target: Target, target_name: str, found: Trips, folder: Path = FOLDER) -> Launched:
    """Compiles a launch and counts it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    made, options = source(launch)
    built = compile(made, target=GPUTarget(target.backend, target.arch, target.limits.warp), options=options)
    kernel = launch.kernel
    files = Files(Path(kernel.fn.__code__.co_filename), folder)
    seen = flow(code(built, target, files, options, made))
    programs = found.calls[kernel.__name__]
    counted = counts(seen, Statements(found, files), programs)
    split: Counter[str] = Counter()
    for block, count in zip(seen.blocks, counted.blocks, strict=True):
        for one in block.instructions:
            split[parts.part(one.chain, files)] += count
    warps, used = built.metadata.num_warps, resources(built, target)
    fits = DEVICES[target_name].programs(used.registers, used.shared, warps, target.limits.warp)
    size = sum(len(block.instructions) for block in seen.blocks)
    rare = sum(len(block.instructions) for block, above in zip(seen.blocks, seen.above, strict=True) if not above)
    return Launched(
        kernel.__name__, warps, used.registers, used.spilled, used.shared, fits, dict(split),
        dict(alone(seen, counted.blocks)), size, rare, counted.doubts, seen, counted,
    )  # fmt: skip


def row(found: Cost) -> dict[str, Any]:
    """A cost as a flat row."""
    main = max(found.launches, key=lambda one: sum(one.parts.values()) * one.num_warps)
    about = {
        "operation": found.operation, "target": found.target, "launches": len(found.launches),
        "kernel": main.kernel, "num_warps": main.num_warps, "registers": main.registers, "spilled": main.spilled,
        "shared": main.shared, "fit_registers": main.fits[0], "fit_shared": main.fits[1], "fit_threads": main.fits[2],
        "exact": round(found.exact, 3), "total": round(found.total, 1), "microseconds": round(found.microseconds, 1),
        "alone": round(sum(found.cycles.values())), "alone_loads": round(found.cycles.get(LOADS, 0.0)),
    }  # fmt: skip
    return about | {part: round(found.parts.get(part, 0.0), 1) for part in parts.ORDER}
