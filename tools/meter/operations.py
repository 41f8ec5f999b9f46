"""The operations that are metered, and how one is run: the main cases of the benchmarks, and attention of a ViT-S."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tpkernels
from benchmarks.clustering.cases import Case
from tools.compile_gate.calls import Call
from tools.compile_gate.targets import TARGETS, Target

from .trips import Trips, trips

FOLDER = Path(tpkernels.__file__).parent / "kernels"
# Samples whose counts are averaged.
SAMPLES = 8
# Warps of a program that instructions are counted for.
WARPS = 8
SHAPE = {"b": 256, "n": 196, "d": 384, "k": 98, "dtype": "bfloat16"}


@dataclass(frozen=True)
class Operation:
    """case: of the benchmarks, None for attention; call: of the compile gate, the same problem."""

    name: str
    call: Call
    case: Case | None = None

    @property
    def units(self) -> int:
        """What counts are for: samples, or heads of samples."""
        b, _, _, h = self.call.shape
        return b * h if self.case is None else b

    def warps(self, num_warps: int) -> int:
        """The warps that instructions are divided by."""
        return num_warps if self.case is None else WARPS


def _clustering(name: str, method: str, tokens: str = "structured") -> Operation:
    ward = method == "ward"
    case = Case(method, **SHAPE, iters=0 if ward else 5, weighted=not ward, tokens=tokens)
    options = {"method": method, "init": "ward" if ward else "topk", "output": "mean" if ward else "center"}
    shape = case.b, case.n, case.d, case.k
    return Operation(name, Call("resident", shape, case.dtype, options | {"weighted": case.weighted}), case)


OPERATIONS = {
    one.name: one
    for one in (
        _clustering("ward", "ward"),
        _clustering("ward random", "ward", "random"),
        _clustering("ward outlying", "ward", "outlying"),
        _clustering("kmedoids", "kmedoids"),
        _clustering("kmeans", "kmeans"),
        Operation("attention", Call("attention", (256, 197, 64, 6), "bfloat16")),
    )
}


def run(name: str, target: str, samples: int) -> Trips:
    """Runs samples of an operation in the interpreter as the target would, and counts."""
    import torch

    operation = OPERATIONS[name]
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if operation.case is None:
            units = samples * operation.call.shape[3]
            call = _attention(operation.call, samples)
        else:
            units = samples
            call = _clusters(operation.case, TARGETS[target], samples, stack)
        _as_on(TARGETS[target], samples / operation.call.shape[0], stack)
        return trips(call, FOLDER, units)


def _as_on(target: Target, share: float, stack: ExitStack) -> None:
    """Launchers read the target's limits, with as many samples for a multiprocessor as in the whole batch."""
    from tpkernels.ops.gpu import attention, resident

    limits = target.limits._replace(processors=max(1, round(target.limits.processors * share)))
    for module in (attention, resident):
        stack.enter_context(patch.object(module, "limits_of", lambda device: limits))


def _clusters(case: Case, target: Target, samples: int, stack: ExitStack) -> Any:
    import torch

    from benchmarks.clustering.inputs import make_inputs
    from benchmarks.clustering.providers import Library
    from tpkernels.ops.gpu import tuning
    from tpkernels.ops.gpu.resident_tiles import resident_config

    inputs = make_inputs(case, "cpu")
    weight = None if inputs.weight is None else inputs.weight[:samples]
    few = replace(inputs, x=inputs.x[:samples], weight=weight, start=inputs.start[:samples])
    dtype = getattr(torch, case.dtype)
    config = resident_config(case.n, case.k, dtype, target.limits)
    key = tuning.resident_key(case.n, case.k, case.d, dtype, case.method)
    forced = stack.enter_context(tuning.override(key, config._asdict()))

    def call() -> None:
        Library("triton").clusters(few)
        if not forced.used:
            raise RuntimeError(f"{key}: expected the launcher to look it up, another configuration ran")

    return call


def _attention(call: Call, samples: int) -> Any:
    import torch

    _, n, d, h = call.shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(samples, n, 3, h, d, generator=generator).to(getattr(torch, call.dtype)).permute(2, 0, 3, 1, 4)
    return lambda: tpkernels.attention(*qkv, backend="triton", need_significance=True)
