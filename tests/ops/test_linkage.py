"""The whole dendrogram in scipy's format: scipy's own, and what scipy makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from torch import Tensor

import tpkernels
from tests.support import scipys
from tests.support.marks import CUDA
from tests.support.ragged import same
from tpkernels.ops import backends

METRICS = ("euclidean", "cosine", "dot", "rows", "clipped")
NO_MERGER = torch.tensor([-1.0, -1.0, torch.inf, 0.0], dtype=torch.float64)


def draw(
    seed: int, n: int | None = None, *, weighted: bool = False, masked: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Three samples of up to 60 tokens, with weights, and masks anywhere over NaN."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 61, (), generator=generator)) if n is None else n
    x = torch.randn(3, n, 2 + seed % 17, generator=generator).to(dtype)
    weight = (torch.rand(3, n, generator=generator) + 0.05).to(dtype) if weighted else None
    mask = torch.rand(3, n, generator=generator) < 0.7 if masked else None
    return {"x": x if mask is None else x.masked_fill(~mask[..., None], torch.nan), "weight": weight, "mask": mask}


def valid(problem: dict[str, Any], b: int) -> Tensor:
    """Which tokens of a sample are there."""
    return torch.ones(problem["x"].shape[1], dtype=torch.bool) if problem["mask"] is None else problem["mask"][b]


def check_is_scipys(seed: int, dtype: torch.dtype) -> None:
    problem = draw(seed, masked=seed % 2 == 1, dtype=dtype)
    tables = tpkernels.linkage(**problem)
    assert tables.dtype == torch.float64 and tables.shape == (3, problem["x"].shape[1] - 1, 4)
    for b in range(3):
        there = problem["x"][b, valid(problem, b)]
        made = max(len(there) - 1, 0)
        assert torch.equal(tables[b, made:], NO_MERGER.expand(tables.shape[1] - made, 4))
        if not made:
            continue
        table, expected = tables[b, :made].numpy(), scipys.tree(there)
        # Tokens near each other far from the mean: the rounding of products is that of the largest.
        largest = expected[-1, 2] if dtype == torch.float32 else 0
        np.testing.assert_allclose(table[:, 2], expected[:, 2], rtol=1e-5, atol=1e-5 * largest)
        if (np.diff(expected[:, 2]) > 1e-5 * np.maximum(expected[1:, 2], largest)).all():
            # Without a tie it is the same tree, row by row.
            assert np.array_equal(table[:, [0, 1, 3]], expected[:, [0, 1, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", range(0, 30, 10))
def test_is_scipys(start: int, dtype: torch.dtype, way: str) -> None:
    for seed in range(start, start + (10 if way == "compiled" else 4)):
        check_is_scipys(seed, dtype)


@pytest.mark.slow
def test_is_scipys_on_many(way: str) -> None:
    for seed in range(1000, 2000):
        check_is_scipys(seed, torch.float32)


CASES = [
    ("euclidean", torch.float32, ""),
    ("euclidean", torch.bfloat16, "weighted"),
    ("euclidean", torch.float64, "weighted masked"),
    ("cosine", torch.float32, "masked"),
    ("dot", torch.float64, "weighted"),
    ("rows", torch.float32, "masked"),
]
each_case = pytest.mark.parametrize(("metric", "dtype", "flags"), CASES, ids=str)


def case(metric: str, dtype: torch.dtype, flags: str, seed: int = 5, n: int = 20) -> dict[str, Any]:
    return draw(seed, n, weighted="weighted" in flags, masked="masked" in flags, dtype=dtype) | {"metric": metric}


@each_case
def test_its_cuts_are_wards(metric: str, dtype: torch.dtype, flags: str, way: str) -> None:
    """At every number of clusters, wherever heights differ."""
    problem = case(metric, dtype, flags)
    tables = tpkernels.linkage(**problem).numpy()
    compared = 0
    for k in range(1, 21):
        found = tpkernels.ward(**problem, k=k)
        for b in range(3):
            there = valid(problem, b)
            table = tables[b, : int(there.sum()) - 1]
            if k <= len(table) + 1 and scipys.decided(table, k):
                compared += 1
                assert torch.equal(found.assignment[b, there], scipys.cut(table, k)), (b, k)
    assert compared > 35


@each_case
def test_scipy_takes_it(metric: str, dtype: torch.dtype, flags: str, way: str) -> None:
    problem = case(metric, dtype, flags)
    for b, table in enumerate(tpkernels.linkage(**problem)):
        n = int(valid(problem, b).sum())
        rows = table[: n - 1].numpy()
        assert hierarchy.is_valid_linkage(rows, throw=True) and hierarchy.is_monotonic(rows)
        assert bool((rows[:, 0] < rows[:, 1]).all()) and rows[-1, 3] == n
        # What merges comes before the merger, and every cluster but the last merges once.
        assert bool((rows[:, 1] < n + np.arange(n - 1)).all())
        assert sorted(rows[:, :2].flatten().tolist()) == list(range(2 * n - 2))
        assert sorted(hierarchy.dendrogram(rows, no_plot=True)["leaves"]) == list(range(n))
        assert hierarchy.cut_tree(rows, n_clusters=3).max() == 2
        assert hierarchy.fcluster(rows, 4, "maxclust").max() <= 4


@each_case
def test_it_reaches_wards_heights(metric: str, dtype: torch.dtype, flags: str, way: str) -> None:
    problem = case(metric, dtype, flags)
    table, heights = tpkernels.linkage(**problem)[..., 2], tpkernels.ward(**problem, k=1).merge_heights
    torch.testing.assert_close(table, (2 * heights.double()).sqrt(), rtol=1e-6, atol=1e-6)


def test_the_fourth_column_counts_tokens(way: str) -> None:
    """Whatever their weights, which are masses all the same."""
    problem = draw(2, 12, weighted=True)
    light = tpkernels.linkage(**problem)
    heavy = tpkernels.linkage(**{**problem, "weight": 4 * problem["weight"]})
    torch.testing.assert_close(heavy[..., 2], 2 * light[..., 2])
    assert torch.equal(heavy[..., 3], light[..., 3]) and bool((light[:, -1, 3] == 12).all())
    # A token of weight 2 is the token twice, but for the row that joins the two.
    x = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = torch.tensor([[1.0, 2, 1, 1, 1, 1]], dtype=torch.float64)
    twice = tpkernels.linkage(torch.cat([x, x[:, 1:2]], 1))[0]
    torch.testing.assert_close(twice[1:, 2], tpkernels.linkage(x, weight)[0, :, 2])


def test_ids_are_ranks_of_the_tokens_that_are_there(way: str) -> None:
    problem = draw(3, 20, masked=True)
    tables = tpkernels.linkage(**problem)
    for b in range(3):
        there = problem["mask"][b]
        n = int(there.sum())
        packed = tpkernels.linkage(problem["x"][b : b + 1, there])
        assert torch.equal(tables[b, : n - 1, [0, 1, 3]], packed[0][:, [0, 1, 3]])
        torch.testing.assert_close(tables[b, : n - 1, 2], packed[0, :, 2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_bad_sample_has_no_mergers(metric: str, way: str) -> None:
    problem = draw(4, 11)
    clean = tpkernels.linkage(**problem, metric=metric)
    problem["x"][1, 4, 0] = torch.nan
    found = tpkernels.linkage(**problem, metric=metric)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert torch.equal(found[1], NO_MERGER.expand(10, 4))
    weight = torch.ones(3, 11)
    weight[2, 3] = torch.inf
    found = tpkernels.linkage(problem["x"].nan_to_num(), weight, metric=metric)
    assert torch.equal(found[2], NO_MERGER.expand(10, 4))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3), (2, 2, 3), (0, 0, 0), (2, 3, 0)])
def test_few_tokens(shape: tuple[int, int, int], metric: str, way: str) -> None:
    x = torch.arange(float(np.prod(shape))).view(shape)
    b, n, _ = shape
    found = tpkernels.linkage(x, metric=metric)
    assert found.shape == (b, max(n - 1, 0), 4) and found.dtype == torch.float64
    if n == 2:
        assert found[:, 0, [0, 1, 3]].tolist() == [[0, 1, 2]] * b
    if shape == (2, 2, 3) and metric == "euclidean":
        torch.testing.assert_close(found[:, 0, 2], torch.full((2,), 27.0, dtype=torch.float64).sqrt())
    masked = tpkernels.linkage(x, mask=torch.zeros(b, n, dtype=torch.bool), metric=metric)
    assert torch.equal(masked, NO_MERGER.expand(b, max(n - 1, 0), 4))


def test_padding_in_front_and_behind_is_the_same(way: str) -> None:
    x = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(6))
    alone = tpkernels.linkage(x)
    for before, after in ((0, 7), (9, 0), (3, 3)):
        padded = torch.nn.functional.pad(x, (0, 0, before, after), value=torch.nan)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
        mask[:, before : before + 16] = True
        found = tpkernels.linkage(padded, mask=mask)
        assert torch.equal(found[:, :15, [0, 1, 3]], alone[..., [0, 1, 3]])
        torch.testing.assert_close(found[:, :15, 2], alone[..., 2], rtol=1e-5, atol=1e-6)


def test_vmap_is_a_loop() -> None:
    x = torch.randn(3, 2, 10, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([tpkernels.linkage(*sample) for sample in zip(x, weight, strict=True)])
    torch.testing.assert_close(torch.func.vmap(tpkernels.linkage)(x, weight), expected)
    moved = torch.func.vmap(tpkernels.linkage, in_dims=(1, 0))(x.transpose(0, 1), weight)
    torch.testing.assert_close(moved, expected)


def test_it_has_no_gradient(way: str) -> None:
    problem = draw(8, 9, weighted=True)
    x, weight = problem["x"].requires_grad_(), problem["weight"].requires_grad_()
    found = tpkernels.linkage(x, weight)
    assert not found.requires_grad
    # Nor does it refuse in the middle of a graph that has one.
    (x.sum() + found.isfinite().sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.skipif(CUDA, reason="the loops of a CPU")
def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if not backends.has_numba():
        pytest.skip("numba is not installed")
    for seed in range(6):
        problem = draw(seed, 12 + 9 * seed, weighted=seed % 2 == 1, masked=seed % 3 == 1, dtype=torch.float64)
        loops = tpkernels.linkage(**problem)
        with monkeypatch.context() as patch:
            patch.setattr(backends, "has_numba", lambda: False)
            patch.setattr(backends, "_tell_of_numba", lambda: None)
            operations = tpkernels.linkage(**problem)
        assert torch.equal(loops[..., [0, 1, 3]], operations[..., [0, 1, 3]])
        torch.testing.assert_close(loops[..., 2], operations[..., 2])


def test_the_same_call_again_is_the_same(way: str) -> None:
    problem = draw(9, 33, weighted=True, masked=True)
    assert same(tpkernels.linkage(**problem), tpkernels.linkage(**problem))
