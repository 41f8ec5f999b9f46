"""Every method with every start on each backend, through `TokenPool`, and how its answers are compared."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor

from tests.support.marks import FOR_GPU, KERNELS, interpreter_marks
from tpkernels import PoolInfo, TokenPool

INITS = ("ward", "topk", "farthest", "strided")
PRUNERS = ("topk", "importance", "random")
Test = TypeVar("Test", bound=Callable[..., object])


class Case(NamedTuple):
    """A method and its start."""

    method: str
    init: str = "ward"

    @property
    def clusters(self) -> bool:
        return self.method in ("ward", "kmeans", "kmedoids")


ITERATED = [Case(method, init) for method in ("kmeans", "kmedoids") for init in INITS]
# Each half has both methods.
IN_THE_KERNEL = [Case("kmeans"), Case("kmeans", "strided"), Case("kmedoids", "topk"), Case("kmedoids", "farthest")]
# Where a kernel takes a compiler long.
ON_A_GPU = [Case("kmeans", "strided"), Case("kmedoids", "topk")]
CLUSTERERS = [Case("ward"), *ITERATED]
CASES = [*CLUSTERERS, *map(Case, (*PRUNERS, "grid", "bipartite"))]


def name(case: Case) -> str:
    return f"{case.method}-{case.init}" if case in ITERATED else case.method


def on_both(cases: list[Case], *, fewer_kernels: bool = False) -> Callable[[Test], Test]:
    """Parametrizes a test by every case on the torch backend, and on Triton's by those that it has a kernel for.

    Starts take turns by the test's name, since the interpreter is slow: each method with half of its own here. All
    pairs are in tests/ops/gpu/, and with the slow ones in tests/ops/test_agreement.py.

    Args:
        fewer_kernels: on a GPU one case of each method, for what takes a kernel of its own.
    """

    def decorate(test: Test) -> Test:
        turn = zlib.crc32(test.__name__.encode()) % 2
        in_turn = IN_THE_KERNEL if FOR_GPU else IN_THE_KERNEL[turn::2]
        here = [pytest.param(case, "torch", id=f"{name(case)}-torch") for case in cases]
        for case in cases:
            if case not in ITERATED or case in in_turn:
                left_out = fewer_kernels and case in ITERATED and case not in ON_A_GPU
                marks = interpreter_marks("another start reads tokens in the same way") if left_out else KERNELS
                here.append(pytest.param(case, "triton", id=f"{name(case)}-triton", marks=marks))
        return pytest.mark.parametrize(("case", "backend"), here)(test)

    return decorate


each_case, each_clusterer, each_iterated = on_both(CASES), on_both(CLUSTERERS), on_both(ITERATED)


case_of_each_method, clusterer_of_each_method = (
    on_both(CASES, fewer_kernels=True),
    on_both(CLUSTERERS, fewer_kernels=True),
)


class Pooled(NamedTuple):
    """Tokens [B, K, D] and what became of them, on the CPU."""

    tokens: Tensor
    info: PoolInfo

    @property
    def label(self) -> Tensor:
        return self.info.assignment


def pool(
    case: Case,
    x: Tensor,
    k: int,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    backend: str = "torch",
    device: torch.device | None = None,
    **options,
) -> Pooled:
    """Pools without prefix; the weight is the clusterers' significance, and whatever else a method needs it for."""
    weighted = weight is not None and case.clusters
    layer = TokenPool(
        k, case.method, init=case.init, weighted=weighted, num_prefix_tokens=0, backend=backend, **options
    )
    if weight is None and layer.needs_significance:
        weight = torch.ones(x.shape[:2])
    given = [None if tensor is None else tensor.to(device or "cpu") for tensor in (x, weight, mask)]
    tokens, info = layer(given[0], given[1], mask=given[2], return_info=True)
    return Pooled(tokens.cpu(), PoolInfo(*(None if field is None else field.cpu() for field in info)))


def canonical(label: Tensor) -> Tensor:
    """Labels [N] renumbered by first appearance; -1 stays."""
    names: dict[int, int] = {-1: -1}
    for value in label.tolist():
        names.setdefault(value, len(names) - 1)
    return torch.tensor([names[value] for value in label.tolist()])


def equal(found: Pooled, other: Pooled) -> bool:
    """To the last bit, NaN included."""
    left, right = (found.tokens, *found.info), (other.tokens, *other.info)
    return all(
        (a is None and b is None) or torch.equal(a.nan_to_num(nan=7.25), b.nan_to_num(nan=7.25))
        for a, b in zip(left, right, strict=True)
    )
