"""In which kernels a product is fused into the first sum over lanes: a JSON line for each launch.

A lane then adds its own product unrounded to its neighbor's rounded one, and the neighbor the other way round: copies
of one sum differ in the last bit. Run by tests/kernels/test_contraction.py in a process that interprets nothing.
"""

from __future__ import annotations

import json
import re

from triton.backends.compiler import GPUTarget
from triton.compiler import compile

from tools.compile_gate.calls import calls
from tools.compile_gate.launches import key, launches, source
from tools.compile_gate.targets import TARGETS

# Calls in which a lane has one element of a sum, and the kernels that hand sums from lane to lane.
CALLS = (
    "backward weighted float32 B8 N49 D24 K34",
    "streaming kmeans strided center bfloat16 B8 N32768 D128 K1000",
    "streaming kmedoids strided center masked odd float32 B2 N1100 D3 K2",
    "attention_backward sized masked odd float16 B2 N300 D20 K3",
)
KERNELS = ("cluster_mean_backward_kernel", "segment_mean_kernel", "member_cost_kernel", "query_gradient_kernel")
PATTERNS = {
    "exchanged": re.compile(r"shfl\.sync\.bfly\.b32\s+(%\w+)(?:\|%\w+)?,\s*(%\w+)"),
    "product": re.compile(r"mul(?:\.\w+)*\.f32\s+(%\w+),\s*(%\w+),\s*(%\w+)"),
    "fused": re.compile(r"fma(?:\.\w+)*\.f32\s+%\w+,\s*(%\w+),\s*(%\w+),\s*(%\w+)"),
}


def fused_sums(ptx: str) -> int:
    """Fused operations that add a neighbor's product to a lane's own, of the same factors."""
    found = {name: pattern.findall(ptx) for name, pattern in PATTERNS.items()}
    exchanged = dict(found["exchanged"])
    products = {result: {one, two} for result, one, two in found["product"]}
    return sum(products.get(exchanged.get(added)) == {one, two} for one, two, added in found["fused"])


def main() -> None:
    """Every chosen kernel for sm_90, as shipped and with contraction allowed."""
    target = TARGETS["sm_90"]
    chosen = [call for call in calls() if call.name in CALLS]
    found = {key(launch): launch for launch in launches(target, chosen) if launch.kernel.__name__ in KERNELS}
    for launch in found.values():
        name = launch.kernel.__name__
        for allowed in (False, True):
            kwargs = {**launch.kwargs, "enable_fp_fusion": True} if allowed else launch.kwargs
            made, options = source(launch._replace(kwargs=kwargs))
            device = GPUTarget(target.backend, target.arch, target.limits.warp)
            ptx = compile(made, target=device, options=options).asm["ptx"]
            print(json.dumps({"kernel": name, "case": launch.case, "allowed": allowed, "fused": fused_sums(ptx)}))


if __name__ == "__main__":
    main()
