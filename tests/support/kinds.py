"""Variants of kernels that the steps of `benchmarks device` launch, and those that `--prebuild` compiles: a line each.

    python -m tests.support.kinds launched   # with TRITON_INTERPRET=1: what a rehearsal's checks launch
    python -m tests.support.kinds compiled   # without it: what is compiled ahead, for sm_90

A variant is a kernel with those of its constants that do not depend on sizes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FLAGS = (
    "METHOD", "INIT", "OUTPUT", "WEIGHTED", "POOL_WEIGHTED", "MASKED", "HALVES", "SIZED", "RECEIVED", "MEDOIDS",
    "GRAD_WEIGHT", "CENTERED", "GATED",
)  # fmt: skip


def variant(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A kernel's name and flags, those in tuples too."""
    for part in args:
        if isinstance(part, tuple) and hasattr(part, "_asdict"):
            kwargs = kwargs | part._asdict()
    flags = {name: str(getattr(kwargs[name], "value", kwargs[name])) for name in FLAGS if name in kwargs}
    name = getattr(kernel, "__name__", None) or kernel.fn.__name__
    return json.dumps([name, dict(sorted(flags.items()))])


def launched(folder: Path) -> set[str]:
    """Of the checks and the profiled launches."""
    from triton.runtime.interpreter import InterpretedFunction

    from benchmarks.device import children
    from benchmarks.device.plan import SMOKES
    from benchmarks.rehearsal import quickened

    found = set()
    before = InterpretedFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.add(variant(self, args, kwargs))
        return before(self, *args, **kwargs)

    InterpretedFunction.run = run
    with quickened():
        for name in [*(f"smoke-{part}" for part in SMOKES), "once-ward+kmedoids+kmeans+attention", "launches"]:
            if children.run(name, folder, 600.0):
                raise RuntimeError(f"{name} was red")
    return found


def compiled() -> set[str]:
    """Of the calls that are compiled ahead."""
    from benchmarks.device.problems import calls
    from tools.compile_gate.launches import launches
    from tools.compile_gate.targets import TARGETS

    return {variant(launch.kernel, launch.args, launch.kwargs) for launch in launches(TARGETS["sm_90"], calls())}


if __name__ == "__main__":
    print("\n".join(sorted(launched(Path(sys.argv[2])) if sys.argv[1] == "launched" else compiled())))
