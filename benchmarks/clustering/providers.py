"""Providers: this library's two backends, and the same written in eager and in compiled PyTorch.

Other packages are in `benchmarks/clustering/peers.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch

import tpkernels
from tpkernels.ops.backends import interpreting

from ..errors import Refusal
from ..rehearsal import rehearsing
from . import eager
from .cases import Case
from .inputs import Inputs
from .peers import LARGE, PEERS
from .provider import Call, Provider


class Library(Provider):
    """tpkernels with one backend."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"tpkernels {backend}"
        self.solves = f'tpkernels with backend="{backend}", pooled tokens included'
        self.options: dict[str, str] = {}

    def why_not(self, case: Case, device: torch.device) -> str | None:
        if self.backend == "triton" and device.type == "cpu" and not (interpreting() and rehearsing()):
            return (
                "Triton's interpreter checks results; its time says nothing"
                if interpreting()
                else "Triton kernels need a GPU"
            )
        # With no samples the arguments are checked and nothing runs.
        empty = torch.empty(0, case.n, case.d, dtype=getattr(torch, case.dtype), device=device)
        try:
            self.clusters(Inputs(case, empty, None, torch.empty(0, case.k, dtype=torch.int64, device=device)))
        except RuntimeError as error:
            return str(error)
        return None

    def clusters(self, inputs: Inputs) -> tpkernels.Clusters:
        """All that the library returns for a case."""
        case, weight = inputs.case, inputs.weight
        if case.method == "ward":
            return tpkernels.ward(inputs.x, case.k, weight, backend=self.backend)
        cluster = tpkernels.kmedoids if case.method == "kmedoids" else tpkernels.kmeans
        # The library finds these starts itself, which is timed; any other start is given to every provider.
        own = case.init == "ward" or (case.init == "topk" and weight is not None)
        more = {"init": case.init if own else inputs.start, "max_iter": case.iters, "backend": self.backend}
        return cluster(inputs.x, case.k, weight, **more, **self.options)

    def prepare(self, inputs: Inputs) -> Call:
        return lambda: self.clusters(inputs).assignment


class Swaps(Library):
    """The library's K-Medoids with its swaps, which are FasterPAM's."""

    methods = frozenset({"kmedoids"})
    same_path = False
    # No kernel has it: on a GPU it is N small steps a pass.
    capturable = False

    def __init__(self) -> None:
        super().__init__("torch")
        self.name = "tpkernels torch, swaps"
        self.solves = 'kmedoids(refine="swap"): a local optimum of swaps, pooled tokens included'
        self.options = {"refine": "swap"}


class Eager(Provider):
    """What a user would write in PyTorch."""

    name = "eager torch"
    solves = "cdist, argmin and scatter over the batch (benchmarks/clustering/eager.py), in float32"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        if case.method != "kmeans" and case.n > eager.QUADRATIC_TOKENS:
            return f"holds N x N matrices, for up to {eager.QUADRATIC_TOKENS} tokens here"
        return None

    def _steps(self) -> dict[str, Callable]:
        return {"ward": eager.ward_step, "kmedoids": eager.kmedoids_step, "kmeans": eager.kmeans_step}

    def prepare(self, inputs: Inputs) -> Call:
        case, x, weight, start = inputs.case, inputs.x, inputs.weight, inputs.start
        step = self._steps()[case.method]
        if case.method == "ward":
            return lambda: eager.ward(x, case.k, step)
        solve = eager.kmedoids if case.method == "kmedoids" else eager.kmeans
        return lambda: solve(x, weight, start, case.iters, step)


class Compiled(Eager):
    """The same, each iteration compiled by `torch.compile` for the case's shape."""

    name = "torch.compile"
    solves = "the eager version with each iteration compiled for the shape"

    def __init__(self) -> None:
        self._compiled: dict[str, Callable] | None = None
        self._case: Case | None = None

    def why_not(self, case: Case, device: torch.device) -> str | None:
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            return "no C++ compiler"
        return super().why_not(case, device)

    def prepare(self, inputs: Inputs) -> Call:
        if self._case != inputs.case:
            # Each case compiles anew, so that its cold time is its own and no shape is made dynamic by the one before.
            torch._dynamo.reset()
            steps = super()._steps()
            self._compiled = {name: torch.compile(step, dynamic=False) for name, step in steps.items()}
            self._case = inputs.case
        return super().prepare(inputs)

    def _steps(self) -> dict[str, Callable]:
        return self._compiled or super()._steps()


class Bipartite(Provider):
    """ToMe's matching, to compare its objective and time."""

    name = "bipartite (ToMe)"
    methods = frozenset({"ward"})
    weights = False
    same_path = False
    solves = "one round of bipartite soft matching, another problem: fewer choices, no objective"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        return f"one round halves at most, {case.n} to {case.k}" if 2 * case.k < case.n else None

    def prepare(self, inputs: Inputs) -> Call:
        return lambda: eager.bipartite(inputs.x, inputs.case.k)


OWN = (Library("torch"), Library("triton"), Eager(), Compiled())


def providers_of(group: str, only: str | None = None) -> list[Provider]:
    """The providers of a group of cases; only: those whose name contains this text.

    Raises:
        Refusal: none is left.
    """
    others = {"kernels": LARGE, "scaling": LARGE, "peers": (Swaps(), *PEERS, Bipartite())}.get(group, ())
    everyone = [*OWN, *others]
    found = [provider for provider in everyone if only is None or only in provider.name]
    if not found:
        raise Refusal(f"--provider: none of {[provider.name for provider in everyone]} contains {only!r}")
    return found
