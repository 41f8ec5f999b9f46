"""The float32 operations of Ward's kernels by source line: a JSON line for each launch.

Run by tests/kernels/test_contraction.py in a process that interprets nothing:

    python -m tests.support.contraction TARGET [TARGET ...]
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict

from triton.backends.compiler import GPUTarget
from triton.compiler import compile

from tools.compile_gate.calls import calls
from tools.compile_gate.launches import launches, source
from tools.compile_gate.targets import TARGETS

FILE = "/tpkernels/kernels/resident/costs.py"
ARITHMETIC = re.compile(r"\s*(?:@%?!?\w+\s+)?((?:add|sub|mul|fma)(?:\.\w+)*\.f32(?:x2)?\s.*);")


def operations(ptx: str, file: str) -> dict[int, list[str]]:
    """Float32 additions, products and fused ones, with their operands, by lines of the file whose path ends so."""
    names = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', ptx))
    found: dict[int, list[str]] = defaultdict(list)
    here = None
    for line in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            here = int(place[2]) if names[place[1]].endswith(file) else None
        elif here is not None and (operation := ARITHMETIC.match(line)):
            found[here].append(operation[1])
    return dict(found)


def main(names: list[str]) -> None:
    """Every launch of Ward that the gate makes with one sample a program and its own first costs."""
    chosen = [
        call
        for call in calls()
        if call.options.get("method") == "ward" and call.shape[1] == 196 and not {"counted", "cut"} & set(call.options)
    ]
    for name in names:
        target = TARGETS[name]
        for launch in launches(target, chosen):
            made, options = source(launch)
            device = GPUTarget(target.backend, target.arch, target.limits.warp)
            ptx = compile(made, target=device, options=options).asm["ptx"]
            print(json.dumps({"target": name, "case": launch.case, "operations": operations(ptx, FILE)}))


if __name__ == "__main__":
    main(sys.argv[1:])
