"""`refine="swap"`: the reference's swaps, on every path, after which no swap helps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deit.model import DeiT, DeiTConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tpkernels
from tests.support.strategies import Problem, make, problems
from tpkernels import reference
from tpkernels.ops import backends
from tpkernels.ops.batches import CHUNK_ELEMENTS
from tpkernels.ops.eager.samples import prepare
from tpkernels.ops.eager.segments import product_sum
from tpkernels.ops.problem import Found

SWAP = sys.modules["tpkernels.ops.eager.swap"]
PATHS = ("loops", "twin", "twin without looking")


def small_model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(DeiTConfig(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2))


def swapped(problem: Problem, path: str = "loops", **options: object) -> tpkernels.Clusters:
    """Refined clusters of a problem, computed one way."""
    with pytest.MonkeyPatch.context() as patch:
        if path != "loops":
            patch.setattr(backends, "has_numba", lambda: False)
        if path == "twin without looking":
            patch.setattr(SWAP, "may_look", lambda x: False)
        return tpkernels.kmedoids(
            problem.x, problem.k, problem.weight, mask=problem.mask, refine="swap", backend="torch", **options
        )


def expected(problem: Problem, **options: object) -> reference.ReferenceClusters:
    x, k, weight, mask = problem
    return reference.batched(reference.kmedoids, x, k, weight, mask, refine="swap", **options)


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=40)
@given(
    problem=problems(max_n=14, max_d=5), init=st.sampled_from(["strided", "farthest", "ward"]), iters=st.integers(0, 3)
)
def test_the_objective_is_the_references(path: str, problem: Problem, init: str, iters: int) -> None:
    problem = problem._replace(x=problem.x.double(), weight=None if problem.weight is None else problem.weight.double())
    found, wanted = swapped(problem, path, init=init, max_iter=iters), expected(problem, init=init, max_iter=iters)
    assert torch.allclose(found.loss, wanted.loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_ties_are_the_references(path: str) -> None:
    """Whole numbers leave nothing to rounding: of equal swaps the lowest slot is taken, of equal medoids too."""
    generator = torch.Generator().manual_seed(3)
    for seed in range(12):
        x = torch.randint(-3, 4, (3, 6 + seed, 2), generator=generator).double()
        # Centered coordinates stay whole.
        x = torch.cat([x, -x], 1)
        weight = 2.0 ** torch.randint(-2, 1, x.shape[:2], generator=generator).double() if seed % 2 else None
        if weight is not None:
            weight[:, 0] = 1
        problem = Problem(x, 2 + seed % 5, weight, None)
        bare = {"init": "strided", "max_iter": 0}
        found, wanted = swapped(problem, path, **bare), expected(problem, **bare)
        assert torch.equal(found.assignment, wanted.assignment)
        assert torch.equal(found.medoids, wanted.medoids)
        assert torch.equal(found.n_iter, wanted.n_iter)


@settings(deadline=None, max_examples=60)
@given(problem=problems(max_n=24, max_d=6, duplicates=False), init=st.sampled_from(["strided", "ward"]))
def test_no_swap_helps_any_more(problem: Problem, init: str) -> None:
    """And the loss is never above that of the alternating updates it goes on from."""
    found = swapped(problem, init=init)
    before = tpkernels.kmedoids(problem.x, problem.k, problem.weight, init=init, mask=problem.mask)
    for b in range(len(problem.x)):
        x, weight = problem.sample(b)
        medoids = found.medoids[b][found.medoids[b] >= 0]
        assert len(set(medoids.tolist())) == len(medoids)
        if len(x) <= len(medoids):
            continue
        place = torch.arange(problem.x.shape[1]) if problem.mask is None else problem.mask[b].nonzero().flatten()
        chosen = torch.tensor([place.tolist().index(i) for i in medoids.tolist()])
        least = float(reference.objective(x, x.double()[chosen], weight))
        _, swaps = reference.swap_medoids(x.double(), chosen, weight, passes=1)
        total = float(reference.objective(x, x.double().mean(0, keepdim=True), weight))
        if swaps:
            better, _ = reference.swap_medoids(x.double(), chosen, weight)
            assert least - float(reference.objective(x, x.double()[better], weight)) <= 1e-5 * total
        assert least <= float(before.loss[b]) + 1e-5 * total


@pytest.mark.parametrize("path", PATHS)
def test_one_medoid_is_the_best_one(path: str) -> None:
    problem = make(4, 3, 20, 4, 1, weighted=True)
    found = swapped(problem, path, init="strided", max_iter=0)
    every = (problem.weight[:, None] * tpkernels.pairwise_sqdist(problem.x)).sum(-1)
    assert torch.equal(found.medoids[:, 0], every.argmin(1))


def test_swaps_lower_the_loss_that_alternating_ends_with() -> None:
    """From a poor start by far; a test of nothing otherwise."""
    x = make(0, 4, 60, 8, 20).x
    before, after = (tpkernels.kmedoids(x, 20, init="strided", refine=how) for how in (None, "swap"))
    assert bool((after.loss < 0.97 * before.loss).all())
    assert bool((after.n_iter > before.n_iter).all())


def test_a_sample_is_what_it_is_alone() -> None:
    problem = make(1, 5, 30, 6, 9, weighted=True, masked=True)
    whole = swapped(problem)
    for b in range(5):
        alone = swapped(Problem(problem.x[b : b + 1], 9, problem.weight[b : b + 1], problem.mask[b : b + 1]))
        assert torch.equal(whole.assignment[b], alone.assignment[0])
        assert torch.equal(whole.centers[b], alone.centers[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_gradient(dtype: torch.dtype) -> None:
    x = make(2, 2, 24, 6, 7).x.to(dtype).requires_grad_()
    found = tpkernels.kmedoids(x, 7, refine="swap")
    assert found.centers.dtype == dtype
    found.centers.sum().backward()
    # Centers are tokens: each takes part once.
    assert torch.equal(x.grad.sum(-1).count_nonzero(1), torch.tensor([7, 7]))


def test_a_layer_and_a_model_take_it() -> None:
    x = make(0, 2, 65, 8, 1).x
    layer = tpkernels.TokenPool(16, "kmedoids", init="strided", refine="swap", output="medoid", max_iter=2)
    assert "refine='swap'" in repr(layer)
    found = tpkernels.kmedoids(x[:, 1:], 16, init="strided", max_iter=2, refine="swap")
    assert torch.equal(layer(x)[:, 1:], found.centers)
    model = small_model()
    tpkernels.patch(model, 0.5, layers=[0], method="kmedoids", refine="swap")
    assert "refined by swaps" in str(tpkernels.summary(model))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tpkernels.kmedoids(x, 3, refine="pam"), "refine must be one of swap; got 'pam'"),
        (lambda x: tpkernels.kmedoids(x.expand(1, 4097, 2), 3, init="strided", refine="swap"), "up to 4096 tokens"),
        (lambda x: tpkernels.TokenPool(3, refine="swap"), "refine must be None for method 'ward'"),
        (lambda x: tpkernels.patch(small_model(), 0.5, method="kmeans", refine="swap"), "only kmedoids is refined"),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 2))


class Launches(TorchDispatchMode):
    """Counts the operations that launch something on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Views and the numbers of `torch.where` stay on the host.
        self.count += not func.is_view and func.overloadpacket.__name__ != "scalar_tensor"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("b", "n", "k"), [(1, 10, 3), (4, 11, 3), (2, 20, 7)])
def test_launches_on_a_gpu_are_as_documented(
    b: int, n: int, k: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/results.md: 62 operations a token and pass, with a mask 63, whatever B and K."""

    def as_on_a_gpu(values: Tensor, label: Tensor, k: int) -> Tensor:
        return product_sum(values[..., None], label, k).squeeze(-1)

    monkeypatch.setattr(SWAP, "may_look", lambda x: False)
    monkeypatch.setattr(SWAP, "segment_sum", as_on_a_gpu)
    x = torch.randn(b, n, 6, generator=torch.Generator().manual_seed(0))
    samples = prepare(x, None, torch.arange(n).expand(b, n) < n - 1 if masked else None, k)
    gram, start = torch.bmm(samples.x, samples.x.mT), torch.arange(k).expand(b, k)
    with Launches() as seen:
        SWAP.swap(samples, gram, Found(torch.zeros(b, n, dtype=torch.int64), torch.zeros(b)), start)
    assert SWAP.PASSES == 8 and CHUNK_ELEMENTS == 1 << 22
    # Releases of torch take some apart otherwise.
    assert 55 * 8 * n < seen.count < 66 * 8 * n + 100


def test_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r'refine="swap" has no kernel'):
        tpkernels.kmedoids(torch.zeros(1, 5, 2), 3, refine="swap", backend="triton")
