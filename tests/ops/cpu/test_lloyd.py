"""The compiled loops of K-Means, K-Medoids and of what surrounds every clusterer give what the torch twins give."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tpkernels
from benchmarks.timing import peak_cpu_mb
from tests.support.programs import run
from tests.support.strategies import LAYOUTS, laid_out, make, starts
from tests.support.tolerances import assert_values
from tpkernels import Clusters
from tpkernels.ops import backends
from tpkernels.ops.eager import distances
from tpkernels.ops.eager import lloyd as eager_lloyd
from tpkernels.ops.problem import Samples

pytest.importorskip("numba")

from tpkernels.ops.cpu import jit, members, nearest, tokens
from tpkernels.ops.cpu import table as table_module
from tpkernels.ops.cpu import threads as cpu_threads

METHODS = ("kmeans", "kmedoids")
BATCHES = sys.modules["tpkernels.ops.batches"]


def problems() -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Tokens, weights and mask, each a case of its own."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.rand(5, 37, generator=generator) > 0.3
    mask[1] = False
    weight = torch.rand(5, 37, generator=generator)
    weight[2] = 0
    weight[3, ::2] = 0
    spoilt = normal(5, 37, 6)
    spoilt[2, 7] = torch.nan
    spoilt[4, 0, 0] = torch.inf
    bad_weight = weight.clone()
    bad_weight[1, 3] = torch.nan
    return {
        "normal": (normal(5, 37, 6), None, None),
        "double": (normal(5, 37, 6).double(), None, None),
        "half": (normal(5, 37, 6).bfloat16(), weight, None),
        "weights": (normal(5, 37, 6), weight, None),
        "mask": (normal(5, 37, 6).masked_fill(~mask[..., None], torch.nan), None, mask),
        "weights and mask": (normal(5, 37, 6), weight.masked_fill(~mask, torch.nan), mask),
        "bad samples": (spoilt, weight, None),
        "bad weights": (normal(5, 37, 6), bad_weight, None),
        "one channel": (normal(5, 37, 1), weight, None),
        "offset": (normal(5, 37, 6) + 30 * normal(6), None, None),
        "equal tokens": (torch.ones(5, 37, 3), weight, None),
        "two tokens": (normal(5, 2, 4), None, None),
    }


Both = Callable[..., tuple[Any, Any]]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """What a call gives with the compiled loops, and without."""

    def run(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(backends, "has_numba", lambda: False)
            twin = function(*arguments, **named)
        return function(*arguments, **named), twin

    return run


def mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Means by what the torch backend takes."""
    return backends.torch_primitives(x).mean(x, label, k, weight)[0]


def medoids(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Medoids by what the torch backend takes."""
    return backends.torch_primitives(x).nearest_members(x, label, k, weight)


def prepared(x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int) -> Samples:
    """Samples by what the torch backend takes."""
    return backends.torch_primitives(x).prepare(x, weight, mask, k)


def assert_same(found: Clusters, twin: Clusters) -> None:
    assert torch.equal(found.assignment, twin.assignment)
    assert torch.equal(found.n_iter, twin.n_iter)
    assert (found.medoids is None) == (twin.medoids is None)
    assert found.medoids is None or torch.equal(found.medoids, twin.medoids)
    finite = twin.loss.isfinite()
    assert torch.equal(found.loss.isfinite(), finite)
    assert_values(found.centers[finite], twin.centers[finite])
    assert_values(found.loss[finite], twin.loss[finite])


@pytest.mark.parametrize("k", [1, 11, 36, 40])
@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("method", METHODS)
def test_the_loops_give_what_the_twins_give(method: str, name: str, k: int, both: Both) -> None:
    x, weight, mask = problems()[name]
    solve = getattr(tpkernels, method)
    for init, max_iter in (("topk", 0), ("topk", 1), ("topk", 7), ("strided", 2), ("farthest", 5), ("ward", 3)):
        assert_same(*both(solve, x, k, weight, init=init, max_iter=max_iter, mask=mask, backend="torch"))


@pytest.mark.parametrize("method", METHODS)
def test_small_problems(method: str, both: Both) -> None:
    """Many of them, some with clusters that lose all their members on the way and keep their center."""
    lost = 0
    for seed in range(60):
        problem = make(seed, 4, 12 + seed % 20, 1 + seed % 3, 5 + seed % 4, weighted=seed % 2 == 1, zeros=seed % 4 == 1)
        start = starts(problem, seed)
        solve = getattr(tpkernels, method)
        for max_iter in (1, 2, 5):
            found, twin = both(solve, problem.x, problem.k, problem.weight, init=start, max_iter=max_iter)
            assert_same(found, twin)
            members = torch.nn.functional.one_hot(found.assignment, problem.k).sum(1)
            lost += int((members == 0).sum())
    assert method == "kmedoids" or lost > 0


@pytest.mark.parametrize("method", METHODS)
def test_tokens_beyond_the_gram_matrix(method: str, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Centers are met in tiles, whose ends must not show: of 5 tokens here, and of samples."""
    monkeypatch.setattr(eager_lloyd, "GRAM_LIMIT", 8)
    x, weight, mask = problems()["weights and mask"]
    for elements in (55, 500, 5000):
        monkeypatch.setattr(nearest, "TILE_ELEMENTS", elements)
        solve = getattr(tpkernels, method)
        assert_same(*both(solve, x, 11, weight, init="strided", mask=mask))


@pytest.mark.parametrize("name", problems())
def test_one_sample_beyond_the_gram_matrix(name: str, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with all centers are kept, and made anew for those that moved; blocks' ends must not show."""
    monkeypatch.setattr(eager_lloyd, "GRAM_LIMIT", 1)
    monkeypatch.setattr(table_module, "BLOCK", 5)
    x, weight, mask = problems()[name]
    cases = ((1, "topk", 3), (11, "topk", 0), (11, "strided", 1), (11, "topk", 9), (40, "topk", 2))
    for i in range(len(x)):
        one, w, there = (None if part is None else part[i : i + 1] for part in (x, weight, mask))
        assert table_module.fits(one.float(), 40)
        for k, init, max_iter in cases:
            assert_same(*both(tpkernels.kmeans, one, k, w, init=init, max_iter=max_iter, mask=there))


def test_clusters_that_lose_their_members_beyond_the_gram_matrix(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_lloyd, "GRAM_LIMIT", 1)
    lost = 0
    # Two of these are known to lose one.
    for seed in (96, 282, *range(30)):
        problem = make(seed, 1, 20, 2, 8, weighted=True)
        for max_iter in (1, 2, 5):
            named = {"init": starts(problem, seed), "max_iter": max_iter}
            found, twin = both(tpkernels.kmeans, problem.x, problem.k, problem.weight, **named)
            assert_same(found, twin)
            lost += int((torch.nn.functional.one_hot(found.assignment, problem.k).sum(1) == 0).sum())
    assert lost > 0


def test_products_that_are_kept_are_those_of_the_centers() -> None:
    """Slots change in any order, and their rows with them."""
    generator = torch.Generator().manual_seed(3)
    place, row_of = torch.arange(12), torch.zeros(12, 4)
    table = torch.zeros(12, 4)
    for turn in range(30):
        changed = torch.rand(12, generator=generator) < (1 if turn == 0 else 0.4)
        count = table_module.gather_rows(table, place, changed)
        assert count == int(changed.sum()) and place.sort().values.tolist() == list(range(12))
        assert sorted(place[changed].tolist()) == list(range(count))
        new = torch.randn(count, 4, generator=generator)
        table[:count] = new
        row_of[place.argsort()[:count]] = new
        assert torch.equal(table[place], row_of)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_samples_do_not_show(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, mask = problems()["weights and mask"]
    solve = getattr(tpkernels, method)
    whole = solve(x, 11, weight, init="topk", mask=mask)
    for elements in (1, 2 * 37 * (37 + 6), 3 * 37 * (37 + 6)):
        monkeypatch.setattr(BATCHES, "CPU_CHUNK_ELEMENTS", elements)
        assert_same(solve(x, 11, weight, init="topk", mask=mask), whole)


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_threads_gives_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, mask = problems()["weights and mask"]
    monkeypatch.setattr(jit, "SHARE_ELEMENTS", 1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3, 5):
            torch.set_num_threads(count)
            results.append(getattr(tpkernels, method)(x, 11, weight, init="topk", mask=mask))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("plain", [False, True])
def test_an_error_in_a_thread_is_raised(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "SHARE_ELEMENTS", 1)
    if plain:
        monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
    threads = torch.get_num_threads()

    def kernel(array: Any, first: int, last: int) -> None:
        if first > 0:
            raise ZeroDivisionError
        array[first:last] = 1

    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError):
            jit.over_samples(kernel, [torch.zeros(4)], 4, 100)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work(plain: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own threads where its runtime lends them, else threads of ours: but two of those gain nothing."""
    if plain:
        monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
    elif cpu_threads.openmp() is None:
        pytest.skip("torch's OpenMP runtime has no entry for others here")
    # Each waits until all are there.
    expected = 1 if plain and threads < cpu_threads.LEAST_PLAIN else threads
    barrier, seen = threading.Barrier(expected), []

    def work(item: int) -> None:
        barrier.wait(timeout=30)
        seen.append((item, threading.get_ident()))

    cpu_threads.share(work, [(item,) for item in range(expected)], threads)
    assert sorted(item for item, _ in seen) == list(range(expected))
    assert len({ident for _, ident in seen}) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_means_of_labels(layout: str, dtype: torch.dtype, both: Both) -> None:
    """Tokens left out may hold NaN; clusters without members and without weight have their rules."""
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(-1, 7, (3, 20), generator=generator)
    label[label == 4] = 3
    x = torch.randn(3, 20, 5, generator=generator).masked_fill((label < 0)[..., None], torch.nan).to(dtype)
    weight = torch.rand(3, 20, generator=generator).masked_fill(label == 2, 0)
    for w in (None, weight, weight.to(dtype), weight[:, :1].expand(3, 20)):
        found, twin = both(mean, laid_out(x, layout), label, 7, w)
        assert found.dtype == twin.dtype == dtype
        assert_values(found, twin)
        assert not found[:, 4].any()


def test_labels_beyond_the_clusters_raise() -> None:
    """The loops would write there."""
    x, label = torch.zeros(1, 3, 2), torch.tensor([[0, 5, 1]])
    for call in (
        lambda: tokens.cluster_mean(x, label, 5, None),
        lambda: members.nearest_members(x, label, 5, None),
        lambda: tokens.objective(x, torch.zeros(1, 5, 2), label, None),
    ):
        with pytest.raises(IndexError, match="expected -1 to 4, got 5"):
            call()


def test_means_of_single_tokens_are_the_tokens() -> None:
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(4))
    weight = torch.rand(2, 9, generator=torch.Generator().manual_seed(5)) + 1e-3
    label = torch.arange(9).expand(2, 9)
    assert torch.equal(tokens.cluster_mean(x, label, 9, weight), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_medoids_of_labels(layout: str, both: Both) -> None:
    """Duplicates too: the lowest of equal tokens, whatever they weigh."""
    for seed in range(20):
        problem = make(seed, 3, 24, 3, 7, weighted=seed % 2 == 0, zeros=seed % 4 == 0, duplicates=True)
        label = torch.randint(-1, 9, (3, 24), generator=torch.Generator().manual_seed(seed))
        x = laid_out(problem.x, layout)
        found, twin = both(medoids, x, label, 10, problem.weight)
        assert torch.equal(found, twin)
        assert bool((found[:, 9] == 24).all())


def test_the_lower_of_two_equal_tokens_is_the_medoid() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 1.0], [3.0, 1.0], [0.0, 4.0]])[None]
    weight = torch.tensor([[1.0, 0.2, 0.9, 1.0]])
    label = torch.tensor([[0, 1, 1, 2]])
    assert members.nearest_members(x, label, 3, weight).tolist() == [[0, 1, 3]]
    # Of two that differ, the heavier; of two that weigh the same, the lower.
    label = torch.tensor([[0, 0, 1, 1]])
    assert members.nearest_members(x, label, 2, weight).tolist() == [[0, 3]]
    assert members.nearest_members(x, label, 2, None).tolist() == [[0, 2]]


def test_the_objective() -> None:
    generator = torch.Generator().manual_seed(6)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(3, 20, 5, generator=generator, dtype=dtype)
        center = torch.randn(3, 4, 5, generator=generator, dtype=dtype)
        label = torch.randint(-1, 4, (3, 20), generator=generator)
        x = x.masked_fill((label < 0)[..., None], torch.nan)
        weight = torch.rand(3, 20, generator=generator).masked_fill(label < 0, torch.nan)
        for w in (None, weight):
            expected = distances.objective(x, center, label, w)
            for layout in LAYOUTS:
                found = tokens.objective(laid_out(x, layout), center, label, w)
                assert found.dtype == dtype
                assert_values(found, expected)


@pytest.mark.parametrize("name", problems())
def test_prepared_samples(name: str, both: Both) -> None:
    x, weight, mask = problems()[name]
    for layout in LAYOUTS:
        found, twin = both(prepared, laid_out(x, layout), weight, mask, 11)
        for field, one, other in zip(found._fields, found, twin, strict=True):
            assert (one is None) == (other is None), field
            if one is None:
                continue
            if field in ("scale", "offset"):
                # Of no use in samples that are not clustered.
                one, other = one[twin.finite], other[twin.finite]
            assert one.dtype == other.dtype and one.shape == other.shape, field
            if one.is_floating_point():
                assert_values(one, other)
            else:
                assert torch.equal(one, other), field


@pytest.mark.parametrize("method", ["kmeans", "kmedoids", "ward"])
def test_memory_is_that_of_a_chunk(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.5 times a chunk's N x N beyond the results, whatever the batch."""
    monkeypatch.setattr(BATCHES, "CPU_CHUNK_ELEMENTS", 1 << 20)
    b, n, d, k = 256, 96, 64, 48
    x = torch.randn(b, n, d, generator=torch.Generator().manual_seed(7))
    start = {} if method == "ward" else {"init": "strided"}
    solve = getattr(tpkernels, method)
    found = solve(x, k, **start)
    results = sum(one.nbytes for one in found if one is not None)
    # The labels that the means were taken of are a result of the operation, too.
    results += found.assignment.nbytes
    # The first look in a process loads modules.
    peak_cpu_mb(lambda: None)
    assert peak_cpu_mb(lambda: solve(x, k, **start)) * 1e6 <= results + 1.5 * 4 * (1 << 20)
    assert 4 * b * n * n > 2 * 4 * (1 << 20)


@pytest.mark.slow
def test_a_fresh_process_finds_the_loops_compiled(tmp_path: Path) -> None:
    """Compiling takes seconds: a second process must not need to."""
    code = """
import sys, torch
from tpkernels.ops.cpu import members, tokens
label = torch.tensor([[0, 1, 0]])
members.nearest_members(torch.ones(1, 3, 2), label, 2, None)
tokens.cluster_mean(torch.ones(1, 3, 2), label, 2, None)
for loop in (members.write_medoids, tokens.write_means):
    sys.stdout.write(f"{sum(loop.stats.cache_hits.values())}{sum(loop.stats.cache_misses.values())} ")
"""
    done = [run("-c", code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    assert [one.stdout.split() for one in done] == [["01"] * 2, ["10"] * 2]
