"""The resident kernels' numbers: exact Ward at every edge of its buckets, half types, tokens far from the origin.

What a tree is worth is asked of float64: clusters of K + 1 and of K tell which pair merged, and no pair may have been
cheaper. Scratch is read where no result shows what matters: the Gram matrix and Ward's costs.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.launches import Spy
from tests.support.marks import CUDA, DEVICE, KERNELS, sized
from tests.support.strategies import make
from tests.support.tolerances import (
    TOLERANCES,
    assert_same_labels,
    assert_values,
    explained_by_a_tie,
    medoid_regret,
    regret_limit,
    total_variance,
)
from tpkernels import reference
from tpkernels.ops.problem import Results

cluster = torch.ops.tpkernels.cluster.default

pytestmark = KERNELS
METHODS = ("ward", "kmeans", "kmedoids")
HALVES = (torch.float16, torch.bfloat16)


def run(
    x: Tensor,
    k: int,
    method: str = "ward",
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    init: str = "ward",
    output: str = "center",
    max_iter: int = 3,
    backend: str = "triton",
) -> Results:
    """Clusters and pools with one weight; the results on the CPU."""
    x, weight, mask = (None if tensor is None else tensor.to(DEVICE) for tensor in (x, weight, mask))
    found = cluster(x, weight, weight, mask, None, k, method, init, output, max_iter, backend)
    return Results._make(result.cpu() for result in found)


class Scratch:
    """Stands in for the resident kernel and reads the first program's scratch after each launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        from tpkernels.kernels.resident.scratch import SLOT_FLOATS, TOKEN_FLOATS, TOKEN_INTS, lines

        def call(*args: Any, **kwargs: Any) -> None:
            self.kernel[grid](*args, **kwargs)
            launch = Spy.Launch(self.kernel, grid, args, kwargs)
            np, kp, block = (launch.kwargs[name] for name in ("NP", "KP", "BD"))
            n, d = launch.args["n"], launch.args["shape.d"]
            ld = lines(n)
            floats, ints = (launch.args[f"p_room.{name}"].cpu() for name in ("floats", "ints"))
            pivot = TOKEN_FLOATS.value * np + SLOT_FLOATS.value * kp
            matrix = floats[pivot + lines(d, block) :]
            self.pivot = floats[pivot : pivot + d]
            self.matrices = [
                matrix[i * n * ld : (i + 1) * n * ld].view(n, ld)[:, :n] for i in range(len(matrix) // (n * ld))
            ]
            # The last of the tokens' vectors.
            self.live = ints[(TOKEN_INTS.value - 1) * np :][:n] == 0

        return call


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Scratch:
    from tpkernels.kernels.resident import launch

    found = Scratch(launch.resident_kernel)
    monkeypatch.setattr(launch, "resident_kernel", found)
    return found


# Ward


@pytest.mark.parametrize("n", [2, 3, 15, 16, 17, 31, 33, 65])
def test_ward_is_the_twins(n: int) -> None:
    """Labels, rounds and heights, at the edges of the buckets; plain, weighted and masked by turns."""
    # On a GPU each would be a kernel of its own: weighted and masked ones, up to half of the tokens.
    kinds = itertools.islice(itertools.cycle(sized([(0, 0), (1, 1), (1, 0)], gpu=[(1, 1)])), n % 3, None)
    for k, (weighted, masked) in zip((1, max(1, n // 2), sized(n - 1, gpu=1)), kinds, strict=False):
        x, _, weight, mask = make(n + k, 2, n, 5, k, weighted=bool(weighted), zeros=n % 2 == 0, masked=bool(masked))
        found, twin = run(x, k, "ward", weight, mask), run(x, k, "ward", weight, mask, backend="torch")
        same = assert_same_labels(found[2], twin[2], x, weight)
        assert torch.equal(found[1][same], twin[1][same]) and (CUDA or torch.equal(found[5], twin[5]))
        assert_values(found[0][same], twin[0][same])
        scale = max(total_variance(sample.nan_to_num()) for sample in x) * (
            1 if weight is None else float(weight.max())
        )
        torch.testing.assert_close(found[6], twin[6], rtol=1e-4, atol=1e-6 * scale)
        torch.testing.assert_close(found[4], twin[4], rtol=1e-4, atol=1e-6 * scale)


def merge_costs(x: Tensor, mass: Tensor, label: Tensor, k: int) -> Tensor:
    """`m_a m_b / (m_a + m_b) ||c_a - c_b||^2` [K, K] of clusters of one sample, in float64; +inf on the diagonal."""
    m = torch.zeros(k, dtype=torch.float64).index_add(0, label, mass)
    c = torch.zeros(k, x.shape[1], dtype=torch.float64).index_add(0, label, mass[:, None] * x.double()) / m[:, None]
    cost = m[:, None] * m / (m[:, None] + m) * reference.pairwise_sqdist(c)
    return cost.fill_diagonal_(torch.inf)


def merged(before: Tensor, after: Tensor, k: int) -> list[int]:
    """The clusters of `before` (k + 1 of them) that are one in `after` (k of them); the others stand as they were."""
    parts = [sorted(set(before[after == slot].tolist())) for slot in range(k)]
    assert sorted(map(len, parts)) == [1] * (k - 1) + [2]
    return max(parts, key=len)


@pytest.mark.parametrize("kind", ["normal", "grid", "weighted grid", "zero weights", "duplicates"])
def test_every_merger_is_the_cheapest(kind: str) -> None:
    """Also where many pairs tie and the order is rounding's: each step from K + 1 clusters to K is a greedy one."""
    n = 9
    generator = torch.Generator().manual_seed(len(kind))
    x = torch.randn(2, n, 3, generator=generator)
    if "grid" in kind:
        x = torch.randint(0, 3, (2, n, 2), generator=generator).float()
    if kind == "duplicates":
        x = x[:, torch.arange(n) // 2 * 2]
    weight = torch.randint(1, 4, (2, n), generator=generator).float() if "weight" in kind else None
    if kind == "zero weights":
        weight[:, ::3] = 0
    before, heights = torch.arange(n).expand(2, n), run(x, 1, "ward", weight)[6]
    for k in range(n - 1, 0, -1):
        label = run(x, k, "ward", weight)[2]
        for b in range(2):
            mass = torch.ones(n).double() if weight is None else (weight[b] / weight[b].max()).clamp(min=1e-6).double()
            cost = merge_costs(x[b], mass, before[b], k + 1)
            first, second = merged(before[b], label[b], k)
            slack = 1e-5 * total_variance(x[b])
            assert cost[first, second] <= cost.min() + slack
            scale = 1 if weight is None else float(weight[b].max())
            assert abs(float(heights[b, n - k - 1]) / scale - float(cost[first, second])) <= slack
        before = label


def test_heights_add_up_to_the_objective() -> None:
    n = sized(21, gpu=33)
    x, _, weight, _ = make(3, 3, n, 4, 1, weighted=True)
    for k in (1, 7, sized(20, gpu=16)):
        found = run(x, k, "ward", 50 * weight)
        heights, paid = found[6], found[6][:, : n - k]
        assert bool((heights[:, n - k :] == torch.inf).all()) and bool((paid.diff(dim=1) >= 0).all())
        torch.testing.assert_close(paid.double().sum(1), found[4].double(), rtol=1e-4, atol=0)
        for b in range(3):
            loss = reference.objective(x[b], found[0][b], 50 * weight[b], found[2][b])
            assert float(found[4][b]) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("n", [7, 33, 64])
def test_equal_tokens_merge_in_few_rounds(n: int) -> None:
    """Ties by `i XOR j` are symmetric: every round merges half of what is left."""
    n = sized(n, gpu=min(n, 63))
    for row in (torch.zeros(5), torch.randn(5, generator=torch.Generator().manual_seed(n))):
        found = run(row.expand(2, n, 5), 1)
        assert int(found[5].max()) <= (n - 1).bit_length() + 1
        assert_values(found[0], row.expand(2, 1, 5))
        assert float(found[6].max()) <= TOLERANCES[torch.float32].regret * float(row.square().sum())


@pytest.mark.parametrize("flip", [False, True])
def test_a_chain_takes_many_rounds(flip: bool) -> None:
    """Gaps of 1.5, 1.5^2, ...: most tokens' nearest neighbour is the chain before them."""
    x = 1.5 ** torch.arange(17.0)
    x = (x.flip(0) if flip else x)[None, :, None]
    for k in (1, 8, 16):
        found, expected = run(x, k), reference.ward(x[0].double(), k)
        assert_same_labels(found[2], expected.assignment[None], x)
        assert CUDA or torch.equal(found[5], run(x, k, backend="torch")[5])
        assert int(found[5]) <= 17 - k
    assert int(run(x, 1)[5]) > 2 * (17).bit_length()


def test_masses_of_any_size_leave_a_complete_tree() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 40, 3, generator=generator) * 10.0 ** torch.randint(-3, 4, (2, 40, 1), generator=generator)
    weight = 10.0 ** (12 * torch.rand(2, 40, generator=generator) - 9)
    for k in (1, 9):
        found = run(x, k, "ward", weight)
        assert [sorted(set(label.tolist())) for label in found[2]] == [list(range(k))] * 2
        assert int(found[5].max()) <= 40 - k and bool(found[6][:, : 40 - k].isfinite().all())


def test_a_bad_sample_is_split_in_order_and_stays_alone() -> None:
    x, k, weight, _ = make(0, 3, 17, 4, 5, weighted=True)
    spoilt = x.clone()
    spoilt[1, 3, 2] = torch.inf
    found, clean = run(spoilt, k, "ward", weight), run(x, k, "ward", weight)
    assert found[2][1].tolist() == [i * 5 // 17 for i in range(17)]
    assert int(found[5][1]) == 0 and bool((found[6][1] == torch.inf).all())
    for one, two in zip(found, clean, strict=True):
        assert torch.equal(one[::2], two[::2])


@pytest.mark.parametrize("weighted", [False, True])
def test_wards_costs_are_symmetric_to_the_last_bit(weighted: bool, scratch: Scratch) -> None:
    """Whatever the rounds did: without it two clusters might each wait for the other to be nearer, for ever."""
    for seed, n in sized(((0, 33), (1, 17), (2, 48)), gpu=((0, 33), (1, 35), (2, 49))):
        x, _, weight, _ = make(seed, 1, n, 6, 1, weighted=weighted, duplicates=seed == 1)
        for k in (sized(2 * n // 3, gpu=16), n // 3):
            found = run(x, k, "ward", weight)
            assert int(found[5]) >= 2
            gram, distances = scratch.matrices[:2]
            assert torch.equal(gram, gram.T)
            # A cluster lies in the row and column of its lowest token.
            live = scratch.live
            assert 2 <= int(live.sum()) <= k
            distances = distances[live][:, live]
            assert bool(distances.diag().isinf().all())
            distances = distances.fill_diagonal_(0)
            assert torch.equal(distances, distances.T) and bool((distances >= 0).all())
            assert float(distances.max()) > 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [2.0**-50, 2.0**58])
def test_costs_overflow_no_sooner_than_norms(weighted: bool, scale: float) -> None:
    """A cost times the mass of many tokens is beyond float32 where the squares of these tokens are just within it."""
    n = sized(60, gpu=49)
    x, _, weight, _ = make(3, 1, n, 4, 1, weighted=weighted)
    # Three groups far from each other, of which the last two to merge are as far from the third.
    corners = torch.tensor([[1.0, 1, 1, 1], [-1, -1, 1, 1], [1, -1, -1, 1]])
    x = corners[torch.arange(n) % 3] + 0.01 * x
    found, expected = run(x * scale, 1, "ward", weight)[6], run(x, 1, "ward", weight)[6]
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double() / scale**2, expected.double(), rtol=1e-4, atol=0)


# Half types


def offset_tokens(dtype: torch.dtype, kind: str) -> Tensor:
    """Tokens [1, 20, 24] with two offset channels. The pivot is made of tokens i 20 // 16 for i in 0..15: not of 4."""
    x = torch.randn(1, 20, 24, generator=torch.Generator().manual_seed(4))
    x[..., 3] += 100
    x[..., 7] -= 30
    if kind == "outlier":
        x[0, 4, 3] = 0.03
    return x.to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_pivots_leave_exact_factors(dtype: torch.dtype, scratch: Scratch) -> None:
    """One product of halves: the pivot is of their type, and tokens without it are, too."""
    x = offset_tokens(dtype, "plain")
    run(x, 10)
    assert scratch.pivot[3] == pytest.approx(100, abs=2) and scratch.pivot[7] == pytest.approx(-30, abs=2)
    assert scratch.pivot[[0, 1, 2, 4]].tolist() == [0] * 4
    left = x[0].double() - scratch.pivot.double()
    assert torch.equal(left.to(dtype).double(), left)
    assert_values(scratch.matrices[0], left @ left.T)
    gram = scratch.matrices[0].double()
    sqdist = gram.diag()[:, None] + gram.diag() - 2 * gram
    # Without a pivot cancellation would leave a hundred times as much.
    torch.testing.assert_close(sqdist, reference.pairwise_sqdist(x[0].double()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_an_inexact_factor_is_split_in_two(dtype: torch.dtype, scratch: Scratch) -> None:
    x = offset_tokens(dtype, "outlier")
    run(x, 10)
    left = x[0].double() - scratch.pivot.double()
    exact = left @ left.T
    halves = left.to(dtype).double()
    # The interpreter cuts where a GPU rounds to bfloat16: two parts hold 14 bits there, and 16 here.
    limit = 2.0 ** (-16 if CUDA else -14) * float(exact.diag().max())
    assert float((scratch.matrices[0] - exact).abs().max()) <= limit
    # One half of each factor is not enough: the case is one.
    assert not torch.equal(halves, left) and float((halves @ halves.T - exact).abs().max()) > limit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["plain", "outlier"])
def test_halves_are_clustered_as_the_float64_tokens_that_they_are(dtype: torch.dtype, method: str, kind: str) -> None:
    x = offset_tokens(dtype, kind)
    found = run(x, 9, method, max_iter=5)
    options = {} if method == "ward" else {"init": "ward", "max_iter": 5}
    expected = getattr(reference, method)(x[0].double(), 9, **options)
    loss = float(reference.objective(x[0].double(), expected.centers, None, found[2][0]))
    assert loss <= float(expected.loss) + regret_limit(x[0])
    if kind == "plain":
        assert_same_labels(found[2], expected.assignment[None], x)
    assert_values(found[0][0], expected.centers, dtype)
    assert found[0].dtype == dtype


@pytest.mark.parametrize(
    ("d", "size", "offset"), [(768, 10.0, 0.0), (768, 1.0, 10.0), (1024, 300.0, 0.0), (1024, 1.0, 300.0)]
)
def test_many_channels_of_large_halves(d: int, size: float, offset: float, scratch: Scratch) -> None:
    """Norms of 10^8 and products of 10^5: beyond float16, within its factors and a float32 sum."""
    x = (size * torch.randn(1, 20, d, generator=torch.Generator().manual_seed(d)) + offset).half()
    found = run(x, 10)
    left = x[0].double() - scratch.pivot.double()
    assert_values(scratch.matrices[0], left @ left.T)
    expected = reference.ward(x[0].double(), 10)
    assert_same_labels(found[2], expected.assignment[None], x)
    assert float(found[4]) == pytest.approx(float(expected.loss), rel=1e-4)
    assert_values(found[0][0], expected.centers, torch.float16)


# Offsets, and every start


@pytest.mark.parametrize("init", ["ward", "topk", "farthest", "strided"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_an_offset_changes_no_cluster(method: str, init: str) -> None:
    """Tokens on a grid around 2^14 and around 0 are the same tokens, masked or not."""
    n = sized(21, gpu=33)
    x = torch.randint(-40, 40, (3, n, 6), generator=torch.Generator().manual_seed(6)).float()
    _, _, weight, mask = make(6, 3, n, 6, 7, weighted=True, masked=sized(True, gpu=False))
    found, moved = (run(x + shift, 7, method, weight, mask, init=init) for shift in (0.0, 2.0**14))
    same = assert_same_labels(
        found[2],
        moved[2],
        x,
        weight,
        lambda b: explained_by_a_tie(method, x[b].double(), 7, weight[b].double(), init, 3),
    )
    assert CUDA or torch.equal(found[5], moved[5])
    torch.testing.assert_close(found[4][same], moved[4][same], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_medoids_of_the_final_clusters(method: str) -> None:
    """Each is the best member of its own cluster, and its token comes out to the last bit."""
    n = sized(33, gpu=15)
    x, k, weight, mask = make(8, 3, n, 5, sized(9, gpu=5), weighted=True, zeros=True, masked=True)
    found = run(x, k, method, weight, mask, output="medoid")
    for b in range(3):
        label, medoids = found[2][b], found[3][b]
        live = medoids[medoids >= 0]
        assert torch.equal(found[0][b][: len(live)], x[b][live])
        assert bool((found[0][b][len(live) :] == 0).all())
        if len(live) < k:
            continue
        valid = mask[b].nonzero().flatten()
        place = torch.full((n,), -1).index_put((valid,), torch.arange(len(valid)))
        regret = medoid_regret(x[b, valid], label[valid], place[live], weight[b, valid])
        assert regret <= regret_limit(x[b, valid], weight[b, valid])
    assert any(bool((row >= 0).all()) for row in found[3])


# The gradient


@pytest.mark.parametrize("output", ["mean", "medoid"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_twins(method: str, output: str) -> None:
    """To tokens, and for means to their sizes: autograd of the pooled tokens, from either backend."""
    x, k, weight, mask = make(9, 3, sized(19, gpu=15), 5, 6, weighted=True, masked=True)
    x = x.nan_to_num()
    up = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    grads = []
    for backend in ("triton", "torch"):
        tokens, sizes = (tensor.detach().clone().to(DEVICE).requires_grad_() for tensor in (x, 1 + weight))
        there = weight.to(DEVICE), sizes, mask.to(DEVICE), None
        pooled = cluster(tokens, *there, k, method, "ward", output, 3, backend)[0]
        wanted = (tokens, sizes) if output == "mean" else (tokens,)
        grads.append([grad.cpu() for grad in torch.autograd.grad(pooled, wanted, up)])
    for found, expected in zip(*grads, strict=True):
        assert bool(found[~mask].eq(0).all()) and bool(found[mask].ne(0).any())
        assert_values(found, expected)


def test_what_stands_for_masked_tokens_reaches_no_start() -> None:
    # The products of rows that hold no token overflow here, and are in nobody's sum.
    generator = torch.Generator().manual_seed(0)
    x = 1e19 + 1e16 * torch.randn(1, 20, 64, generator=generator)
    mask = torch.rand(1, 20, generator=generator) < 0.7
    found = [run(x, 6, "kmeans", None, mask, init="farthest", backend=backend)[2] for backend in ("triton", "torch")]
    assert torch.equal(*found)
