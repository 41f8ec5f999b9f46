"""K-Means and K-Medoids against the reference on 1,000 random problems, step by step and from the same states.

A choice is compared by its regret: how much farther, or dearer, it is than the best one, in float64.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.chain import assert_chain, assert_state, pick, same_centers
from tests.support.marks import CUDA, FOR_GPU, interpreter_only, runs_triton, sized
from tests.support.pooled import IN_THE_KERNEL, ITERATED
from tests.support.strategies import Problem, make, numbered, starts
from tests.support.tolerances import (
    TOLERANCES,
    assert_same_labels,
    assert_values,
    explained_by_a_tie,
    medoid_regret,
    regret_limit,
    relative,
    total_variance,
)
from tpkernels import Clusters, reference

SAMPLES = 4
# To count kernels takes few: see compilations.py.
BATCHES = 25 if FOR_GPU and not CUDA else 250
MAX_ITER = 5
METHODS = ("kmeans", "kmedoids")
INITS = ("ward", "topk", "farthest", "strided")


@functools.cache
def problem_of(index: int, small: int) -> Problem:
    return numbered(index, SAMPLES, small=small)


def problem_has_duplicates(index: int) -> bool:
    x = problem_of(index, 4).x
    return any(len(sample.unique(dim=0)) < len(sample) for sample in x)


def run(
    method: str, problem: Problem, init: str | Tensor, max_iter: int, backend: str, device: torch.device
) -> Clusters:
    """The public function, its results on the CPU."""
    x, k, weight, mask = problem
    here = [None if tensor is None else tensor.to(device) for tensor in (weight, mask)]
    init = init.to(device) if isinstance(init, Tensor) else init
    call = getattr(tpkernels, method)
    found = call(x.to(device), k, here[0], init=init, max_iter=max_iter, mask=here[1], backend=backend)
    return Clusters(*(None if field is None else field.cpu() for field in found))


def walk(method: str, index: int, backend: str, device: torch.device, small: int) -> None:
    problem = problem_of(index, small)
    start = starts(problem, index)
    states = [run(method, problem, start, t, backend, device) for t in range(MAX_ITER + 1)]
    for b in range(SAMPLES):
        assert_chain(problem, start, states, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_step_of_1000_problems(method: str, device: torch.device) -> None:
    """On the torch backend: every state of five iterations, N uniform in 1..64."""
    for index in range(BATCHES):
        walk(method, index, "torch", device, small=1)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not FOR_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_every_step_of_1000_problems_on_the_gpu(method: str, device: torch.device) -> None:
    for index in range(BATCHES):
        walk(method, index, "triton", device, small=1)


@pytest.mark.slow
@interpreter_only("the GPU has problems as large as the torch backend's")
@pytest.mark.parametrize("method", METHODS)
def test_every_step_of_1000_problems_in_the_interpreter(method: str, device: torch.device, thorough: None) -> None:
    for index in range(BATCHES):
        walk(method, index, "triton", device, small=4)


def reference_state(method: str, problem: Problem, start: Tensor, b: int, updates: int) -> reference.ReferenceClusters:
    x, weight = problem.x[b], None if problem.weight is None else problem.weight[b]
    return getattr(reference, method)(x, problem.k, weight, init=start[b], max_iter=updates)


def by_state(problem: Problem, start: Tensor, index: int) -> Tensor:
    """K-Medoids' own state [B, K] after 0, 1 or 2 of the reference's updates: where a step is taken from."""
    return torch.stack([reference_state("kmedoids", problem, start, b, index % 3).medoids for b in range(SAMPLES)])


@pytest.mark.slow
@runs_triton
def test_a_kmedoids_step_of_1000_problems_in_triton(device: torch.device, poisoned: None) -> None:
    """One launch a problem: (assign, update, assign) from a state of the reference's, which says what it should be.

    A medoid's regret is taken in the reference's clusters; where a tie made them others, in those of a launch without
    the update.
    """
    ties = 0
    for index in range(BATCHES):
        problem = problem_of(index, 4)
        state = by_state(problem, starts(problem, index), index)
        found = run("kmedoids", problem, state, 1, "triton", device)
        for b in range(SAMPLES):
            x, weight = problem.x[b], None if problem.weight is None else problem.weight[b]
            step, limit = pick(found, b), regret_limit(x, weight)
            assert_state(x, step, weight)
            clusters = reference.assign_to_medoids(x, state[b].sort().values)
            if len(set(clusters[step.medoids].tolist())) == len(step.medoids):
                regret = medoid_regret(x, clusters, step.medoids, weight)
            else:
                regret = torch.inf
            if regret > limit:
                ties += 1
                before = pick(run("kmedoids", problem, state, 0, "triton", device), b)
                assert_state(x, before, weight)
                regret = medoid_regret(x, before.assignment, step.medoids, weight)
            assert regret <= limit
    # Ties that rounding settles are rare: more of them would mean that the step is another one.
    assert ties <= BATCHES * SAMPLES // 50


@pytest.mark.slow
@runs_triton
def test_kmeans_of_1000_problems_in_triton(device: torch.device, poisoned: None) -> None:
    """One launch of 1, 2 or 5 iterations a problem; where the result is not the reference's, all its steps are."""
    ties = 0
    for index in range(BATCHES):
        problem = problem_of(index, 4)
        start, updates = starts(problem, index), (1, 2, 5)[index % 3]
        found = run("kmeans", problem, start, updates, "triton", device)
        other = []
        for b in range(SAMPLES):
            x, weight = problem.x[b], None if problem.weight is None else problem.weight[b]
            step, expected = pick(found, b), reference_state("kmeans", problem, start, b, updates)
            assert_state(x, step, weight)
            same = torch.equal(step.assignment, expected.assignment) and step.n_iter == expected.n_iter
            if not same or not same_centers(x, step.centers, expected.centers):
                # Equal tokens are equal centers, and rounding takes the one or the other. The larger problems of a GPU
                # have near ties besides.
                assert CUDA or problem_has_duplicates(index), f"problem {index}, sample {b}"
                other.append(b)
        if other:
            ties += len(other)
            states = [run("kmeans", problem, start, t, "triton", device) for t in range(updates + 1)]
            for b in other:
                assert_chain(problem, start, states, b)
    # A third of the problems has duplicates.
    assert ties <= BATCHES * SAMPLES // 20


def assert_results(method: str, init: str, backend: str, device: torch.device, count: int, small: int) -> None:
    """The public function's last state is the reference's, or a tie of the reference's explains why not."""
    ties = 0
    # On a GPU those with weights: without them each is another kernel.
    for index in [index for index in range(1000, 1000 + 2 * count) if index % 3 or not FOR_GPU][:count]:
        problem = problem_of(index, small)
        if method == "ward":
            x, k, weight, _ = problem
            found = tpkernels.ward(x.to(device), k, None if weight is None else weight.to(device), backend=backend)
            found = Clusters(*(None if field is None else field.cpu() for field in found))
        else:
            found = run(method, problem, init, MAX_ITER, backend, device)
        for b in range(SAMPLES):
            x, weight = problem.x[b].double(), None if problem.weight is None else problem.weight[b].double()
            options = {} if method == "ward" else {"init": init, "max_iter": MAX_ITER}
            expected = getattr(reference, method)(x, problem.k, weight, **options)
            # Weights that are all 0 would make every loss 0: equal ones stand in, as they do in the clustering.
            w = None if weight is None else relative(weight)
            loss = float(reference.objective(x, found.centers[b], w, found.assignment[b]))
            best = float(reference.objective(x, expected.centers, w, expected.assignment))
            if abs(loss - best) <= TOLERANCES[torch.float32].regret * total_variance(x) + 1e-12:
                continue
            assert explained_by_a_tie(method, x, problem.k, weight, init, MAX_ITER), f"problem {index}, sample {b}"
            ties += 1
    # Duplicates and clusters of two tie often; both then end at another result only where rounding decided.
    assert ties <= count * SAMPLES // 10


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", METHODS)
def test_results_are_the_references(method: str, init: str, device: torch.device) -> None:
    assert_results(method, init, "torch", device, count=15, small=2)


def test_wards_results_are_the_references(device: torch.device) -> None:
    assert_results("ward", "ward", "torch", device, count=25, small=2)


@runs_triton
@pytest.mark.parametrize(
    ("method", "init"),
    [pytest.param(*case, marks=[] if case in IN_THE_KERNEL else pytest.mark.slow) for case in ITERATED],
)
def test_results_in_triton_are_the_references(method: str, init: str, device: torch.device) -> None:
    assert_results(method, init, "triton", device, count=sized(4, gpu=8), small=4)


@runs_triton
def test_wards_results_in_triton_are_the_references(device: torch.device) -> None:
    assert_results("ward", "ward", "triton", device, count=8, small=4)


@pytest.mark.parametrize("method", METHODS)
def test_the_starts_are_the_references(method: str, backend: str, device: torch.device) -> None:
    """Without an update, the centers are the start."""
    for seed in range(6):
        problem = make(seed, 2, sized(13, gpu=33), 5, 6, weighted=True)
        for init in INITS:
            found = run(method, problem, init, 0, backend, device)
            for b in range(2):
                expected = getattr(reference, method)(problem.x[b], 6, problem.weight[b], init=init, max_iter=0)
                assert_values(found.centers[b], expected.centers)
                assert_same_labels(found.assignment[b : b + 1], expected.assignment[None], problem.x[b : b + 1])


def test_farthest_is_greedy(device: torch.device) -> None:
    """Each of the chosen tokens is, at some turn, as far from those before as any other, up to rounding."""
    for index in range(40):
        problem = problem_of(2000 + index, 2)
        found = run("kmedoids", problem, "farthest", 0, "torch", device)
        for b in range(SAMPLES):
            x = problem.x[b].double()
            w = x.new_ones(len(x)) if problem.weight is None else problem.weight[b].double()
            weight = relative(w) if w.max() > 0 else w
            pending = set(found.medoids[b].tolist())
            if len(pending) == len(x):
                continue
            mean = reference.cluster_mean(x, torch.zeros(len(x), dtype=torch.int64), 1, w)
            least = reference.pairwise_sqdist(x, mean)[:, 0]
            chosen: list[int] = []
            while pending:
                score = weight * least
                score[chosen] = -1
                best = max(pending, key=lambda i: float(score[i]))
                assert score[best] >= score.max() - regret_limit(problem.x[b])
                pending.remove(best)
                chosen.append(best)
                least = reference.pairwise_sqdist(x, x[chosen]).amin(1)
