"""What holds for every method, whatever the tokens: symmetries, masks, bad numbers, shapes, types, strides.

Most run through `TokenPool`, which all methods share, and on both backends where the backend takes the method.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from marks import CUDA, KERNELS, interpreter_marks, runs_triton, sized
from strategies import LAYOUTS, Problem, laid_out, make, problems
from tolerances import TOLERANCES, assert_values, assignment_regret, medoid_regret, regret_limit
from torch import Tensor

import tpkernels
from tpkernels import PoolInfo, TokenPool, reference, unpool

INITS = ("ward", "topk", "farthest", "strided")
PRUNERS = ("topk", "importance", "random")


class Case(NamedTuple):
    """A method and its start."""

    method: str
    init: str = "ward"

    @property
    def clusters(self) -> bool:
        return self.method in ("ward", "kmeans", "kmedoids")


ITERATED = [Case(method, init) for method in ("kmeans", "kmedoids") for init in INITS]
IN_THE_KERNEL = [Case("kmeans"), Case("kmeans", "strided"), Case("kmedoids", "topk"), Case("kmedoids", "farthest")]
# Where a kernel takes a compiler long.
ON_A_GPU = [Case("kmeans", "strided"), Case("kmedoids", "topk")]
CLUSTERERS = [Case("ward"), *ITERATED]
CASES = [*CLUSTERERS, *map(Case, (*PRUNERS, "grid", "bipartite"))]


def name(case: Case) -> str:
    return f"{case.method}-{case.init}" if case in ITERATED else case.method


def on_both(cases: list[Case], *, fewer_kernels: bool = False) -> pytest.MarkDecorator:
    """Every case on the torch backend, and on Triton's those that it has a kernel for: every start with one method.

    All pairs of them are in test_agreement.py and test_launch.py; the interpreter is slow.

    Args:
        fewer_kernels: on a GPU one case of each method, for what takes a kernel of its own.
    """
    here = [pytest.param(case, "torch", id=f"{name(case)}-torch") for case in cases]
    for case in cases:
        if case not in ITERATED or case in IN_THE_KERNEL:
            left_out = fewer_kernels and case in ITERATED and case not in ON_A_GPU
            marks = interpreter_marks("another start reads tokens in the same way") if left_out else KERNELS
            here.append(pytest.param(case, "triton", id=f"{name(case)}-triton", marks=marks))
    return pytest.mark.parametrize(("case", "backend"), here)


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


# Symmetries


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


# What clusters are


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


# K = N


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


# Batches and masks


@each_case
def test_a_sample_does_not_depend_on_its_batch(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, mask = make(9, 4, 15, 4, 6, weighted=True, masked=True)
    whole = pool(case, x, k, weight, mask, backend=backend, device=device)
    for b in range(4):
        alone = pool(case, x[b : b + 1], k, weight[b : b + 1], mask[b : b + 1], backend=backend, device=device)
        assert torch.equal(alone.label[0], whole.label[b])
        assert_values(alone.tokens[0], whole.tokens[b])
        if case.clusters:
            assert alone.info.n_iter[0] == whole.info.n_iter[b]


@each_case
def test_a_mask_is_slicing(case: Case, backend: str, device: torch.device) -> None:
    """Masked tokens hold NaN. Methods that go by a token's place are masked at the end only."""
    n = sized(19, gpu=15)
    x, k, weight, mask = make(10, 4, n, 4, 6, weighted=True, masked=True)
    if case.method in ("grid", "random", "importance"):
        # No square number is left, which a grid would take for an image.
        mask = torch.arange(n) < torch.tensor([[n], [12], [7], [3]])
        x = x.nan_to_num().masked_fill(~mask[..., None], torch.nan)
    weight = weight.masked_fill(~mask, torch.nan)
    found = pool(case, x, k, weight, mask, backend=backend, device=device)
    for b in range(4):
        valid = mask[b]
        alone = pool(case, x[b : b + 1, valid], k, weight[b : b + 1, valid], backend=backend, device=device)
        count = alone.tokens.shape[1]
        assert torch.equal(found.label[b, valid], alone.label[0])
        assert bool((found.label[b, ~valid] == -1).all())
        assert_values(found.tokens[b, :count], alone.tokens[0])
        assert bool((found.tokens[b, count:] == 0).all()) and bool((found.info.sizes[b, count:] == 0).all())
        if case.clusters:
            assert found.info.n_iter[b] == alone.info.n_iter[0]
            torch.testing.assert_close(found.info.loss[b], alone.info.loss[0], rtol=1e-4, atol=1e-5)


@each_case
def test_a_mask_that_keeps_everything_is_none(case: Case, backend: str, device: torch.device) -> None:
    n = sized(16, gpu=15)
    x, k, weight, _ = make(12, 2, n, 4, 6, weighted=True)
    mask = torch.ones(2, n, dtype=torch.bool)
    plain = pool(case, x, k, weight, backend=backend, device=device)
    masked = pool(case, x, k, weight, mask, backend=backend, device=device)
    assert torch.equal(plain.label, masked.label)
    assert_values(masked.tokens, plain.tokens)


@each_case
def test_fully_masked_samples_give_zeros(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(13, 3, 12, sized(4, gpu=5), 5, weighted=True)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1] = False
    x[1], weight[1] = torch.nan, torch.inf
    for output in ("mean", "medoid"):
        found = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        assert bool((found.label[1] == -1).all())
        assert bool((found.tokens[1] == 0).all()) and bool((found.info.sizes[1] == 0).all())
        if case.clusters:
            assert found.info.loss[1] == 0 and found.info.n_iter[1] == 0
        assert bool(found.tokens.isfinite().all())


# Bad numbers


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@each_case
def test_bad_numbers_stay_in_their_sample(case: Case, backend: str, value: float, device: torch.device) -> None:
    x, k, weight, mask = make(14, 4, 13, 4, 5, weighted=True)
    mask = torch.ones(4, 13, dtype=torch.bool)
    mask[2, [0, 4]] = False
    clean = pool(case, x, k, weight, mask, backend=backend, device=device)
    x[1, 12, 2] = value
    x[2, 1] = value
    reads_weights = case.clusters or case.method in ("topk", "importance")
    if reads_weights:
        weight[3, 5] = abs(value)
    found = pool(case, x, k, weight, mask, backend=backend, device=device)
    assert torch.equal(found.label[0], clean.label[0]) and torch.equal(found.tokens[0], clean.tokens[0])
    bad = [1, 2, 3] if reads_weights else [1, 2]
    for b in bad:
        valid = mask[b]
        n = int(valid.sum())
        assert torch.equal(found.label[b, valid], torch.arange(n) * k // n)
        assert bool((found.label[b, ~valid] == -1).all())
        if case.clusters:
            assert found.info.n_iter[b] == 0
    # Only the bad token's own cluster shows it.
    own = int(found.label[1, 12])
    others = [slot for slot in range(k) if slot != own]
    assert bool(found.tokens[1, others].isfinite().all()) and not bool(found.tokens[1, own].isfinite().all())
    assert bool(found.tokens[3].isfinite().all())


@each_clusterer
def test_medoids_of_bad_samples_are_members(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(15, 2, 11, 4, 4, weighted=True)
    x[0, 3] = torch.nan
    found = pool(case, x, k, weight, backend=backend, device=device, output="medoid")
    assert found.label[0, found.info.medoids[0]].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [1e18, 1e25])
@each_case
def test_huge_tokens_end_in_range(case: Case, scale: float, backend: str, device: torch.device) -> None:
    """Squares of 1e18 reach float32's end, those of 1e25 pass it: clustered or split, but never out of range."""
    x, k, weight, _ = make(16, 2, 9, 3, 4, weighted=True)
    x[1] *= scale
    clean = pool(case, x[:1], k, weight[:1], backend=backend, device=device)
    found = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(found.label[0], clean.label[0])
    assert int(found.label.max()) < k and int(found.label.min()) >= -1
    assert torch.equal(found.label[1], canonical(found.label[1]))


# Degenerate samples


@pytest.mark.parametrize("zero", [False, True])
@each_case
def test_equal_tokens(case: Case, zero: bool, backend: str, device: torch.device) -> None:
    row = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(17)) * (0 if zero else 1)
    x = row.expand(2, 13, 5)
    weight = torch.rand(2, 13, generator=torch.Generator().manual_seed(18)) + 0.1
    for w in (None, weight):
        found = pool(case, x, 4, w, backend=backend, device=device)
        for b in range(2):
            assert torch.equal(found.label[b], canonical(found.label[b]))
            live = found.info.sizes[b] > 0
            assert_values(found.tokens[b, live], row[b].expand(int(live.sum()), 5))
            assert case.method in PRUNERS or float(found.info.sizes[b].sum()) == 13
            if case.method != "kmeans":
                assert bool(live.all())
        if case.clusters:
            assert float(found.info.loss.max()) <= 1e-9


@each_clusterer
def test_weights_of_zero_are_equal_weights(case: Case, backend: str, device: torch.device) -> None:
    """What the reference does with them, start included; and the loss is 0."""
    x, k, _, _ = make(19, 2, 14, 4, 5)
    weight = torch.zeros(2, 14)
    found = pool(case, x, k, weight, backend=backend, device=device)
    options = {} if case.method == "ward" else {"init": case.init}
    for b in range(2):
        expected = getattr(reference, case.method)(x[b], k, weight[b], **options)
        assert torch.equal(found.label[b], expected.assignment)
    assert found.info.loss.tolist() == [0, 0]
    assert bool(found.tokens.isfinite().all())


@case_of_each_method
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3), (2, 5, 0)])
def test_empty_shapes(case: Case, shape: tuple[int, int, int], backend: str, device: torch.device) -> None:
    b, n, d = shape
    x = torch.ones(shape)
    weight = torch.ones(b, n)
    for output in sized(("mean", "medoid"), gpu=("mean",)):
        found = pool(case, x, 2, weight, backend=backend, device=device, output=output)
        width = min(2, n)
        assert found.tokens.shape == (b, width, d)
        assert found.label.shape == (b, n) and found.info.sizes.shape == (b, width)
        if found.label.numel():
            assert 0 <= int(found.label.max()) < width
        if case.clusters:
            assert found.info.n_iter.shape == found.info.loss.shape == (b,)


# Shapes and numbers as models have them


def check_state(case: Case, x: Tensor, k: int, weight: Tensor | None, backend: str, device: torch.device) -> None:
    """What a clusterer returns is a state of its own loop: the assignment is nearest, medoids and loss belong to it."""
    options = {} if case.method == "ward" else {"init": case.init}
    w = None if weight is None else weight.to(device)
    found = getattr(tpkernels, case.method)(x.to(device), k, w, backend=backend, **options)
    label, centers, loss = found.assignment.cpu(), found.centers.cpu(), found.loss.cpu()
    for b in range(len(x)):
        assert torch.equal(label[b], canonical(label[b]))
        sample_weight = None if weight is None else weight[b]
        scale = 1 if weight is None else float(weight[b].max())
        expected = float(reference.objective(x[b], centers[b], sample_weight, label[b]))
        assert abs(float(loss[b]) - expected) <= scale * regret_limit(x[b])
        if case.method == "ward":
            assert_values(centers[b], reference.cluster_mean(x[b], label[b], min(k, x.shape[1]), sample_weight))
        else:
            assert assignment_regret(x[b], centers[b], label[b]) <= regret_limit(x[b])


@pytest.mark.parametrize("d", [1, 3, 17, 1536])
@clusterer_of_each_method
def test_channels(case: Case, d: int, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(d, 2, 14, d, 5, weighted=True)
    check_state(case, x, k, weight, backend, device)


@pytest.mark.parametrize("n", [197, 577])
@pytest.mark.parametrize("case", CLUSTERERS, ids=name)
def test_many_tokens(case: Case, n: int, device: torch.device) -> None:
    x, k, weight, _ = make(n, 2, n, 17, int(0.7 * n), weighted=True)
    check_state(case, x, k, weight, "torch", device)


@runs_triton
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_many_tokens_in_triton(method: str, device: torch.device) -> None:
    x, k, weight, _ = make(1, 1, 197, 17, 137, weighted=True)
    check_state(Case(method, "topk"), x, k, weight, "triton", device)


@each_clusterer
def test_channels_with_an_offset(case: Case, backend: str, device: torch.device) -> None:
    """One channel at 100, as trained models have them: not a digit of the others' distances may go."""
    x, k, weight, _ = make(20, 2, 14, sized(8, gpu=7), 5, weighted=True)
    x[..., 5] = 100 + 0.01 * x[..., 5]
    check_state(case, x, k, weight, backend, device)
    flat = x.clone()
    flat[..., 5] = 0
    found = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(found.label, pool(case, flat, k, weight, backend=backend, device=device).label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@case_of_each_method
def test_half_types_compute_in_float32(case: Case, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """The same tokens in float32 give the same labels, and the same means but for their last rounding."""
    x, k, weight, _ = make(21, 2, sized(16, gpu=15), 6, 6, weighted=True)
    x = x.to(dtype)
    found = pool(case, x, k, weight, backend=backend, device=device)
    wide = pool(case, x.float(), k, weight, backend=backend, device=device)
    assert found.tokens.dtype == dtype
    assert torch.equal(found.label, wide.label)
    assert_values(found.tokens, wide.tokens)
    if case.clusters:
        assert found.info.loss.dtype == torch.float32
        torch.testing.assert_close(found.info.loss, wide.info.loss, rtol=20 * TOLERANCES[dtype].value, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@case_of_each_method
def test_weights_of_half_types(case: Case, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    # On a GPU each method with one type: another is another kernel of the same lines.
    dtype = sized(dtype, gpu=torch.float16 if case.method == "kmeans" else torch.bfloat16)
    x, k, weight, _ = make(22, 2, 14, 5, 5, weighted=True)
    weight = weight.to(dtype)
    found = pool(case, x, k, weight, backend=backend, device=device)
    wide = pool(case, x, k, weight.float(), backend=backend, device=device)
    assert torch.equal(found.label, wide.label)
    assert_values(found.tokens, wide.tokens)
    # Another kernel on a GPU.
    assert torch.equal(found.tokens, wide.tokens) or (CUDA and backend == "triton")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@case_of_each_method
def test_strides_do_not_count(case: Case, layout: str, backend: str, device: torch.device) -> None:
    # Rows of 16 bytes: a token further on is another token, not another kernel. A copy to a device has its own strides.
    x, k, weight, mask = make(23, 3, 13, sized(5, gpu=4), 5, weighted=True, masked=True)
    x, weight, mask = x.to(device), weight.to(device), mask.to(device)
    strided = laid_out(x, layout)
    assert strided.stride() != x.stride()
    wide = torch.stack([weight, weight], 2)[..., 0]
    turned = mask.mT.contiguous().mT
    plain = pool(case, x, k, weight, mask, backend=backend, device=device)
    found = pool(case, strided, k, wide, turned, backend=backend, device=device)
    assert torch.equal(found.label, plain.label)
    assert_values(found.tokens, plain.tokens)


@each_case
def test_prefix_tokens_pass_through(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(24, 2, sized(14, gpu=15), sized(5, gpu=4), 5, weighted=True)
    layer = TokenPool(k, case.method, init=case.init, num_prefix_tokens=2, backend=backend)
    tokens, info = layer(x.to(device), weight.to(device), return_info=True)
    alone = TokenPool(k, case.method, init=case.init, num_prefix_tokens=0, backend=backend)
    patches, alone_info = alone(x[:, 2:].to(device), weight[:, 2:].to(device), return_info=True)
    assert torch.equal(tokens[:, :2].cpu(), x[:, :2]) and torch.equal(tokens[:, 2:], patches)
    label = alone_info.assignment
    assert info.assignment[:, :2].tolist() == [[0, 1], [0, 1]]
    assert torch.equal(info.assignment[:, 2:], torch.where(label < 0, -1, label + 2))


# State


@each_case
def test_runs_repeat_to_the_last_bit(
    case: Case, backend: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    """Whatever stood in the buffers before; and the arguments stay as they were."""
    x, k, weight, mask = make(25, 3, sized(17, gpu=15), 5, 6, weighted=True, duplicates=True, masked=True)
    before = x.clone(), weight.clone(), mask.clone()
    for output in ("mean", "medoid"):
        first = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        again = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        assert equal(first, again)
    request.getfixturevalue("poisoned")
    assert equal(first, pool(case, x, k, weight, mask, backend=backend, device=device, output="medoid"))
    assert torch.equal(x.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(weight, before[1]) and torch.equal(mask, before[2])


@each_case
def test_no_random_state_is_touched(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(26, 1, 12, 3, 4, weighted=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
    first = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert bool((np.random.get_state()[1] == states[2]).all())
    assert cuda is None or torch.equal(torch.cuda.get_rng_state(), cuda)
    # And none is read.
    torch.manual_seed(1)
    assert equal(first, pool(case, x, k, weight, backend=backend, device=device))
    torch.set_rng_state(states[0])
