"""Problems for the launcher of the resident kernels, and what two of its answers have in common."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.launches import Spy
from tests.support.marks import CUDA, DEVICE, FOR_GPU
from tests.support.tolerances import assert_same_labels, assert_values, regret_limit
from tpkernels.ops.gpu import resident, resident_tiles
from tpkernels.ops.problem import Results, Spec, Tensors

RESIDENT = (
    "resident_kernel",
    "center_kernel",
    "gram_kernel",
    "cluster_kernel",
    "pool_kernel",
    "linkage_kernel",
    "merge_kernel",
    "tree_kernel",
)
RESULTS = Results._fields
INITS = ("ward", "topk", "farthest", "strided", "given")
# Every method from every start.
PAIRS = [("ward", "ward"), *((method, init) for method in ("kmeans", "kmedoids") for init in INITS)]


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every kernel that a clustering and its gradient launch; without `run` they are only counted."""
    from tpkernels.kernels.resident import launch as kernels
    from tpkernels.kernels.streaming import means

    launches: list[Spy.Launch] = []
    for module, name in (*((kernels, name) for name in RESIDENT), (means, "cluster_mean_backward_kernel")):
        monkeypatch.setattr(module, name, Spy(getattr(module, name), launches, run))
    return launches


# Several tiles of the Gram matrix and blocks of channels.
SMALL = resident_tiles.ResidentConfig(16, 16, 16, 16, 16, 4, 1, 2, 0)
NAMES = {1: ["resident_kernel"], 4: ["center_kernel", "gram_kernel", "cluster_kernel", "pool_kernel"]}
# Of merge heights, and shares of the error.
BOUNDS = {"count": 0.0, "distance": 2.0, "error": 0.3}


class Problem:
    """Tokens [B, N, D] with weights, masks and a start, and the options of resident.cluster.

    Flags: weighted, pool_weighted, masked, bad (a NaN), half (float16, a channel with an offset and a token that has
    none of it), a start (topk where none is named), counted (a number of clusters for each sample, from 1 on), a
    metric, and a cut by value.
    """

    def __init__(self, b: int, n: int, d: int, k: int, method: str, output: str, *flags: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(b, n, d, generator=generator)
        if "half" in flags:
            x[..., 0] += 50
            # The pivot is made of the tokens i n // 16 for i in 0..15: for n above 16 one of the others has no offset.
            others = sorted(set(range(n)) - {i * n // 16 for i in range(16)})
            x[0, others[:1], 0] -= 49.97
        self.x = x.to(DEVICE, torch.float16 if "half" in flags else torch.float32)
        weight = torch.rand(b, n, generator=generator).to(DEVICE)
        self.weight = weight if "weighted" in flags else None
        self.pool_weight = weight + 1 if "pool_weighted" in flags else None
        valid = torch.rand(b, n, generator=generator) < 0.8
        # A sample with fewer tokens than clusters, one without any, and one with a bad number.
        valid[0], valid[1:2] = torch.arange(n) < k // 2, False
        self.mask = valid.to(DEVICE) if "masked" in flags else None
        if "bad" in flags:
            self.x[-1, n // 2, d // 2] = torch.nan
        self.init = next((init for init in INITS if init in flags), "ward" if method == "ward" else "topk")
        self.start = None
        if self.init == "given":
            # Tokens that are there come first.
            score = torch.rand(b, n, generator=generator) + (valid if "masked" in flags else 0)
            self.start = score.argsort(1, descending=True)[:, :k].to(DEVICE)
        self.k, self.method, self.output = k, method, output
        self.counts = (1 + torch.arange(b) * 5 % k).to(DEVICE) if "counted" in flags else None
        self.metric = next((metric for metric in ("cosine", "dot") if metric in flags), "euclidean")
        self.cut = next((cut for cut in ("distance", "error") if cut in flags), "count")

    def run(self, max_iter: int = 2) -> tuple[Tensor, ...]:
        tensors = Tensors(self.x, self.weight, self.pool_weight, self.mask, self.start, self.counts)
        how = self.metric, self.cut, BOUNDS[self.cut]
        return resident.cluster(tensors, Spec(self.k, self.method, self.init, self.output, max_iter, False, *how))


CALLS = [
    ("ward", "center", "half"),
    ("ward", "center", "weighted", "pool_weighted", "masked"),
    ("ward", "mean", "weighted", "pool_weighted"),
    ("ward", "medoid", "masked", "bad"),
    *(
        (method, output, *flags)
        for method in ("kmeans", "kmedoids")
        for output, flags in (
            ("center", ("half",)),
            ("mean", ("weighted", "pool_weighted", "ward")),
            ("medoid", ("masked", "farthest")),
            ("mean", ("masked", "given", "bad")),
            ("center", ("weighted", "pool_weighted", "masked", "strided", "bad")),
        )
    ),
    ("ward", "center", "weighted", "masked", "bad", "counted", "distance"),
    ("ward", "mean", "half", "counted", "dot"),
    ("kmeans", "center", "counted", "given"),
    ("kmedoids", "medoid", "weighted", "ward", "counted", "error"),
]


each_call = pytest.mark.parametrize("call", CALLS, ids="-".join)
# In one launch and in four by turns: test_one_launch_and_four_give_the_same compares them. On a GPU in both.
each_call_by_turns = pytest.mark.parametrize(
    ("call", "way"),
    [
        pytest.param(call, way, id="-".join((way, *call)))
        for place, call in enumerate(CALLS)
        for way in (("one", "four") if FOR_GPU else (("one", "four")[place % 2],))
    ],
    indirect=["way"],
)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, one, two in zip(RESULTS, found, expected, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype, name
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True), name


def assert_alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], problem: Problem) -> None:
    """What two kernels make of a problem: the same bits in the interpreter, the same up to ties on a GPU."""
    if not CUDA:
        assert_same(found, expected)
        return
    found, expected = (tuple(result.cpu() for result in results) for results in (found, expected))
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in expected]
    x = problem.x.cpu()
    same = assert_same_labels(found[2], expected[2], x, problem.weight)
    tokens, source, _, medoids, loss, _, heights, total, n_clusters = zip(found, expected, strict=True)
    for one, two in (source, medoids, n_clusters):
        assert torch.equal(one[same], two[same])
    for b in same:
        good = slice(None) if x[b].isfinite().all() else tokens[1][b].isfinite()
        assert torch.equal(tokens[0][b].isfinite(), tokens[1][b].isfinite())
        assert_values(tokens[0][b][good], tokens[1][b][good], of=x[b])
        assert_values(total[0][b], total[1][b])
        if x[b].isfinite().all():
            valid = x[b] if problem.mask is None else x[b][problem.mask[b].cpu()]
            scale = 1.0 if problem.weight is None else float(problem.weight[b].max())
            atol = scale * regret_limit(valid)
            for one, two in (loss, heights):
                if len(one):
                    torch.testing.assert_close(one[b], two[b], rtol=1e-5, atol=atol)
