"""The shapes that the steps run and that `--prebuild` compiles for; tiny ones for a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from tools.compile_gate.calls import Call
from tools.compile_gate.targets import TARGETS
from tpkernels.ops.backends import regime

from ..clustering.cases import GROUPS, Case
from ..rehearsal import rehearsing


def device() -> torch.device:
    """The GPU, in a rehearsal the CPU."""
    return torch.device("cpu" if rehearsing() else "cuda")


# Samples, tokens, channels, clusters. Beside each a tiny one for a rehearsal, on the same path.
VIT, TINY_VIT = (256, 196, 384, 98), (3, 24, 20, 12)
# Three launches, and streaming ones.
VIDEO, TINY_VIDEO = (4, 576, 64, 288), (2, 272, 8, 136)
LONG, TINY_LONG = (2, 8192, 128, 256), (2, 1040, 8, 6)


def case_of(method: str, shape: tuple[int, ...] = VIT, tiny: tuple[int, ...] = TINY_VIT, **more: object) -> Case:
    """A case in bfloat16; more: of Case's fields."""
    fields = {"iters": 0, "weighted": False} if method == "ward" else {}
    return Case(method, *(tiny if rehearsing() else shape), **{**fields, "dtype": "bfloat16", **more})


def smoke_cases() -> dict[str, list[Case]]:
    """What is compared with the torch backend, by step: every method, start and way to launch."""
    large = partial(case_of, shape=VIDEO, tiny=TINY_VIDEO)
    long = partial(case_of, shape=LONG, tiny=TINY_LONG, init="strided", weighted=False, iters=1 if rehearsing() else 3)
    return {
        "ward": [case_of("ward"), case_of("ward", tokens="random"), case_of("ward", dtype="float32")],
        "kmedoids": [case_of("kmedoids"), case_of("kmedoids", init="ward")],
        "kmeans": [case_of("kmeans"), case_of("kmeans", init="ward")],
        "three": [large("ward"), large("kmedoids"), large("kmeans")],
        "streaming": [long("kmedoids"), long("kmeans")],
    }


@dataclass(frozen=True)
class Heads:
    """Attention of B samples, H heads of N tokens and D channels, in bfloat16; tiny: tokens in a rehearsal."""

    b: int
    h: int
    n: int
    d: int = 64
    tiny: int = 17

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, N, D]; in a rehearsal a tiny one."""
        return (2, 2, self.tiny, 16) if rehearsing() else (self.b, self.h, self.n, self.d)


# Whole rows of logits, and streaming keys.
SMOKE_HEADS = (Heads(4, 6, 197), Heads(2, 12, 1024, tiny=300))
# Tokens of a `TokenPool` with its gradient, and of `cluster_mean` with its own.
POOLED, AVERAGED = (8, *VIT[1:]), LONG
# Shapes for the memory checker: masked, of odd sizes.
CHECKED, CHECKED_HEADS = (2, 50, 24, 20), Heads(2, 3, 50, 16, tiny=50)
# A block of DeiT-S at full length and after one and two poolings at 0.7.
TIMED_HEADS = (Heads(256, 6, 197), Heads(256, 6, 138), Heads(256, 6, 97))


def calls() -> list[Call]:
    """Calls of the launchers that the steps make, to be compiled ahead."""
    cases = [case for found in smoke_cases().values() for case in found]
    cases += [case for group in ("sweep", "large", "kernels") for case in GROUPS[group]("cuda")]
    found = [_cluster_call(case) for case in cases]
    found += [Call(kind, AVERAGED, "float32", {"weighted": True}) for kind in ("mean", "backward")]
    found.append(Call("resident", POOLED, options={"method": "ward", "init": "ward", "output": "mean"}))
    found.append(Call("backward", POOLED))
    for heads in (*SMOKE_HEADS, *TIMED_HEADS, CHECKED_HEADS):
        shape = heads.b, heads.n, heads.d, heads.h
        found += [Call("attention", shape), Call("attention", shape, options={"without significance": True})]
        found += [Call("attention", shape, options={"sized": True})]
    for heads in (*SMOKE_HEADS, CHECKED_HEADS):
        shape = heads.b, heads.n, heads.d, heads.h
        found += [Call("attention_backward", shape), Call("attention_backward", shape, options={"sized": True})]
    flags = {"output": "center", "masked": True}
    found.append(Call("resident", CHECKED, "float32", {"method": "ward", "init": "ward", **flags}))
    flags |= {"weighted": True, "pool_weighted": True}
    for method in ("kmedoids", "kmeans"):
        found.append(Call("resident", CHECKED, "float16", {"method": method, "init": "topk", **flags}))
    return list({call.name: call for call in found}.values())


def _cluster_call(case: Case) -> Call:
    """The launcher's call of `Library.clusters`, which hands over a start that the library does not find itself."""
    kind = regime(case.n, case.d, case.method, TARGETS["sm_90"].limits) or "resident"
    init = (
        "ward" if "ward" in (case.method, case.init) else "topk" if case.init == "topk" and case.weighted else "given"
    )
    options = {"method": case.method, "init": init, "output": "center"}
    options |= {"weighted": case.weighted, "pool_weighted": case.weighted}
    return Call(kind, (case.b, case.n, case.d, case.k), case.dtype, options)
