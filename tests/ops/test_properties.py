"""What holds for every method, whatever the tokens: symmetries, clusters that are well formed, K = N."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

import tpkernels
from tests.support.marks import sized
from tests.support.pooled import (
    CASES,
    CLUSTERERS,
    ITERATED,
    PRUNERS,
    Case,
    canonical,
    each_case,
    each_clusterer,
    each_iterated,
    name,
    on_both,
    pool,
)
from tests.support.strategies import Problem, make, problems
from tests.support.tolerances import assert_values, medoid_regret, regret_limit
from tpkernels import TokenPool, reference, unpool


@on_both([Case("ward"), *(case for case in ITERATED if case.init != "strided"), Case("topk")])
def test_permutation_equivariance(case: Case, backend: str, device: torch.device) -> None:
    """Weights are all different: two members of equal weight would tie, and the lower index win."""
    for seed in range(3):
        x, k, weight, _ = make(seed, 2, 15, 4, 6, weighted=True)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        found = pool(case, x, k, weight, backend=backend, device=device)
        moved = pool(case, x[:, order], k, weight[:, order], backend=backend, device=device)
        for b in range(2):
            assert torch.equal(moved.label[b], canonical(found.label[b, order]))
        assert_values(unpool(moved.tokens, moved.label), unpool(found.tokens, found.label)[:, order])


@each_case
def test_translation_and_scale(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(11, 2, 15, 4, 6, weighted=True)
    found = pool(case, x, k, weight, backend=backend, device=device)
    for scale, shift in ((1e-3, 0.0), (1e4, 0.0), (1.0, 8.0), (100.0, -300.0)):
        if case.method == "bipartite" and shift:
            # It goes by directions.
            continue
        other = pool(case, scale * x + shift, k, weight, backend=backend, device=device)
        assert torch.equal(other.label, found.label)
        torch.testing.assert_close(other.tokens, scale * found.tokens + shift, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_weight_two_is_the_token_twice(method: str) -> None:
    """In float64, from Ward's start and from given tokens: copies start no cluster."""
    for seed in range(6):
        x = make(seed, 1, 16, 3, 5).x.double()
        generator = torch.Generator().manual_seed(seed)
        weight = 1 + (torch.rand(1, 16, generator=generator) < 0.4).double()
        rows = torch.arange(16).repeat_interleave(weight[0].long())
        start = torch.randperm(16, generator=generator)[:5]
        copied_start = torch.tensor([rows.tolist().index(i) for i in start.tolist()])
        for once, twice in (({}, {}), ({"init": start}, {"init": copied_start})):
            if method == "ward" and once:
                continue
            heavy = getattr(tpkernels, method)(x, 5, weight, **once)
            copied = getattr(tpkernels, method)(x[:, rows], 5, **twice)
            assert torch.equal(heavy.assignment[:, rows], copied.assignment)
            assert_values(heavy.centers, copied.centers)
            torch.testing.assert_close(heavy.loss, copied.loss)


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_weight_two_is_the_token_twice_on_each_backend(method: str, backend: str, device: torch.device) -> None:
    x = make(3, 1, 12, 5, 4).x.to(device)
    rows = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11])
    weight = torch.bincount(rows).float()[None].to(device)
    start = torch.tensor([0, 3, 7, 10], device=device)
    first = torch.tensor([0, 4, 9, 13], device=device)
    heavy = getattr(tpkernels, method)(x, 4, weight, init=start, backend=backend)
    # Equal weights are none, but the kernel is another.
    equal_weights = sized(None, gpu=torch.ones(1, len(rows), device=device))
    copied = getattr(tpkernels, method)(x[:, rows], 4, equal_weights, init=first, backend=backend)
    assert torch.equal(heavy.assignment[:, rows], copied.assignment)
    assert_values(heavy.centers, copied.centers)


def check_objective(case: Case, problem: Problem, backend: str, device: torch.device, turns: int) -> None:
    x, k, weight, mask = (None if tensor is None else tensor for tensor in problem)
    call = getattr(tpkernels, case.method)
    here = {"init": case.init, "backend": backend, "mask": None if mask is None else mask.to(device)}
    w = None if weight is None else weight.to(device)
    losses = [call(x.to(device), k, w, max_iter=t, **here).loss.cpu() for t in range(turns)]
    for b in range(len(x)):
        tokens, _ = problem.sample(b)
        if len(tokens) == 0:
            assert all(float(loss[b]) == 0 for loss in losses)
            continue
        slack = regret_limit(tokens) * (1 if weight is None else float(weight[b].max()))
        assert all(float(after[b]) <= float(before[b]) + slack for before, after in pairwise(losses))


@settings(max_examples=40)
@given(problem=problems())
@pytest.mark.parametrize("case", ITERATED, ids=name)
def test_objective_never_rises(case: Case, problem: Problem) -> None:
    check_objective(case, problem, "torch", torch.device("cpu"), turns=6)


@each_iterated
def test_objective_never_rises_in_any_backend(case: Case, backend: str, device: torch.device) -> None:
    problem = make(4, 2, 15, 3, 5, weighted=True, zeros=True, duplicates=True, masked=sized(True, gpu=False))
    check_objective(case, problem, backend, device, turns=4)


def check_clusters(case: Case, problem: Problem, backend: str, device: torch.device) -> None:
    """Labels in range, numbered by the lowest token, sizes that add up, means that are means."""
    x, k, weight, mask = problem
    n = x.shape[1]
    found = pool(case, x, k, weight, mask, backend=backend, device=device)
    width = min(k, n)
    assert found.tokens.shape == (len(x), width, x.shape[2])
    assert found.info.sizes.shape == (len(x), width) and found.label.shape == (len(x), n)
    for b in range(len(x)):
        label = found.label[b]
        valid = torch.ones(n, dtype=torch.bool) if mask is None else mask[b]
        count = int(valid.sum())
        members = torch.tensor([int((label == slot).sum()) for slot in range(width)])
        assert bool((label[~valid] == -1).all())
        assert int(label.max()) < width
        # By their lowest token, which also puts empty ones last.
        assert torch.equal(label, canonical(label))
        assert torch.equal(found.info.sizes[b], members.float())
        if case.method in PRUNERS:
            assert int(members.sum()) == min(width, count) and int(members.max()) <= 1
        else:
            assert bool((label[valid] >= 0).all())
            assert int(members.sum()) == count
        if case.method != "kmeans":
            assert int((members > 0).sum()) == min(width, count)
        assert_values(found.tokens[b], reference.cluster_mean(x[b].nan_to_num(), label, width), of=x[b])
        assert bool((found.tokens[b][members == 0] == 0).all())


@settings(max_examples=40)
@given(problem=problems())
@pytest.mark.parametrize("case", CASES, ids=name)
def test_clusters_are_well_formed(case: Case, problem: Problem) -> None:
    check_clusters(case, problem, "torch", torch.device("cpu"))


@pytest.mark.usefixtures("poisoned")
@each_case
def test_clusters_are_well_formed_in_any_backend(case: Case, backend: str, device: torch.device) -> None:
    for seed, n, d, k, masked in (
        (0, sized(17, gpu=15), 3, 5, True),
        (1, 13, sized(1, gpu=2), 1, False),
        (2, 9, 17, 8, False),
    ):
        problem = make(seed, 3, n, d, k, weighted=True, zeros=True, duplicates=True, masked=masked)
        check_clusters(case, problem, backend, device)


def check_medoids(case: Case, problem: Problem, backend: str, device: torch.device) -> None:
    """A medoid is the best member of its own cluster, and its token comes out to the last bit."""
    x, k, weight, mask = problem
    found = pool(case, x, k, weight, mask, backend=backend, device=device, output="medoid")
    for b in range(len(x)):
        medoids, label = found.info.medoids[b], found.label[b]
        live = medoids >= 0
        assert label[medoids[live]].tolist() == list(range(int(live.sum())))
        assert bool((medoids[int(label.max()) + 1 :] == -1).all())
        assert torch.equal(found.tokens[b][live], x[b, medoids[live]])
        assert bool((found.tokens[b][~live] == 0).all())
        valid = label >= 0
        if int(valid.sum()) <= k or case.method == "kmedoids":
            # Alternating medoids belong to the assignment before the last.
            continue
        w = None if weight is None else weight[b, valid]
        position = valid.cumsum(0) - 1
        regret = medoid_regret(x[b, valid], label[valid], position[medoids[live]], w)
        assert regret <= regret_limit(x[b, valid])


@settings(max_examples=40)
@given(problem=problems())
@pytest.mark.parametrize("case", CLUSTERERS, ids=name)
def test_medoids(case: Case, problem: Problem) -> None:
    check_medoids(case, problem, "torch", torch.device("cpu"))


@pytest.mark.usefixtures("poisoned")
@each_clusterer
def test_medoids_in_any_backend(case: Case, backend: str, device: torch.device) -> None:
    problem = make(5, 3, sized(17, gpu=15), 4, 6, weighted=True, zeros=True, duplicates=True, masked=True)
    check_medoids(case, problem, backend, device)
    check_medoids(case, make(6, 2, 14, 3, 5, weighted=sized(False, gpu=True)), backend, device)


@each_case
def test_sizes_add_up_over_layers(case: Case, backend: str, device: torch.device) -> None:
    n = sized(20, gpu=15)
    x, _, weight, _ = make(7, 2, n, 4, 9, weighted=True)
    x, weight = x.to(device), weight.to(device)
    sizes = torch.ones(2, n, device=device)
    for keep in (sized(12, gpu=13), 5):
        layer = TokenPool(keep, case.method, init=case.init, num_prefix_tokens=0, backend=backend)
        before = (x, sizes)
        x, sizes, info = layer(x, weight[:, : x.shape[1]], sizes=sizes, return_info=True)
        if case.method not in PRUNERS:
            assert sizes.sum(1).tolist() == [float(n), float(n)]
            total = torch.einsum("bn,bnd->bd", before[1], before[0])
            torch.testing.assert_close(torch.einsum("bn,bnd->bd", sizes, x), total, rtol=1e-4, atol=1e-4)
        else:
            kept = info.assignment >= 0
            assert torch.equal(sizes, before[1][kept].view(2, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@each_case
def test_as_many_clusters_as_tokens(case: Case, backend: str, dtype: torch.dtype, device: torch.device) -> None:
    problem = make(8, 2, 11, 5, 11, weighted=True, zeros=True, duplicates=True)
    x = problem.x.to(dtype)
    for k in (11, 14):
        for output in ("mean", "medoid"):
            found = pool(case, x, k, problem.weight, backend=backend, device=device, output=output)
            assert torch.equal(found.tokens, x)
            assert torch.equal(found.label, torch.arange(11).expand(2, 11))
            assert bool((found.info.sizes == 1).all())
            if case.clusters:
                assert found.info.n_iter.tolist() == [0, 0] and found.info.loss.tolist() == [0, 0]
