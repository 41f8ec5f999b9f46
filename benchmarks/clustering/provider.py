"""The interface of a provider: which cases it solves, why it cannot run, and the call that is timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import Case
from .inputs import Inputs

Call = Callable[[], Tensor]


class Provider:
    """One way to solve cases.

    name; package: what has to be installed, by its name on PyPI, and module: what is imported; methods: of the cases it
    takes; weights: whether it takes weights (without, it solves the case with equal ones); same_path: whether it takes
    the reference's steps from the same start (or is an exact Ward), so that its objective must be the reference's;
    half_centers: whether it rounds centers to the tokens' dtype; on_cpu: whether it always runs on the CPU;
    capturable: whether a CUDA graph can hold it; solves: a line for tables.
    """

    name = ""
    package: str | None = None
    module: str | None = None
    methods: frozenset[str] = frozenset({"ward", "kmedoids", "kmeans"})
    weights = True
    same_path = True
    half_centers = False
    on_cpu = False
    capturable = True
    solves = "the case as it stands"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """Why this case cannot run on this device; None if it can."""
        return None

    def prepare(self, inputs: Inputs) -> Call:
        """The call that is timed; returns labels [B, N]."""
        raise NotImplementedError

    def weighted(self, case: Case) -> bool:
        """Whether the clustering that this provider makes of the case counts weights."""
        return case.weighted and self.weights
