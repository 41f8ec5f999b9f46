"""Every sample its own number of clusters: what its own call gives, to the last bit, in one call."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.ragged import CALLS, MASKED, WEIGHED, differences, ragged

# Each flag with each type once: all pairs are slow.
FEW = [("", torch.float64), ("weight", torch.float32), ("mask", torch.bfloat16), ("weight mask", torch.float32)]
ALL = list(
    product(
        (f"{w} {m}" for w, m in product(WEIGHED, MASKED)),
        (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    )
)


def has_copies(method: str, init: str) -> bool:
    """Whether samples may hold equal tokens.

    Products with more centers, or of more samples with one center, may round otherwise, and so settle a tie.
    """
    return method == "ward" or (method == "kmedoids" and init != "farthest")


each_call = pytest.mark.parametrize(("method", "init"), CALLS, ids=lambda name: name)
some = pytest.mark.parametrize(("flags", "dtype"), FEW, ids=str)


@each_call
@some
def test_a_sample_is_its_own_call(method: str, init: str, flags: str, dtype: torch.dtype, way: str) -> None:
    problem = ragged(flags=flags, dtype=dtype, bad=True, copies=has_copies(method, init))
    found = problem.call(method, init)
    wrong = {b: differences(found, problem.alone(b, method, init), b) for b in range(len(problem.k))}
    assert not any(wrong.values()), wrong


@pytest.mark.slow
@each_call
@pytest.mark.parametrize(("flags", "dtype"), ALL, ids=str)
def test_every_sample_of_many_is_its_own_call(method: str, init: str, flags: str, dtype: torch.dtype, way: str) -> None:
    for seed in range(6):
        sizes = 9 + 13 * seed, 16 * (1 + seed % 3)
        problem = ragged(seed, *sizes, flags=flags, dtype=dtype, bad=seed % 2 == 0, copies=has_copies(method, init))
        found = problem.call(method, init)
        wrong = {b: differences(found, problem.alone(b, method, init), b) for b in range(len(problem.k))}
        assert not any(wrong.values()), (seed, wrong)


@pytest.mark.parametrize("flags", ["", "weight mask"])
@each_call
def test_few_clusters_of_many_tokens(method: str, init: str, flags: str, way: str) -> None:
    """Where distances to the centers alone are cheaper than all pairs."""
    problem = ragged(3, 80, flags=flags, bad=True, copies=has_copies(method, init))
    problem = problem._replace(k=torch.tensor([1, 3, 2, 6, 5, 4, 2]))
    found = problem.call(method, init)
    wrong = {b: differences(found, problem.alone(b, method, init), b) for b in range(len(problem.k))}
    assert not any(wrong.values()), wrong


@pytest.mark.slow
@pytest.mark.parametrize("init", ["topk", "strided", "given"])
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_more_tokens_than_pairs_are_kept_of(method: str, init: str, way: str) -> None:
    problem = ragged(4, 2100, flags="weight mask", copies=False)
    problem = problem._replace(k=torch.tensor([1, 30, 2, 60, 5, 4, 2]))
    found = problem.call(method, init)
    wrong = {b: differences(found, problem.alone(b, method, init), b) for b in range(len(problem.k))}
    assert not any(wrong.values()), wrong


@each_call
def test_there_are_as_many_clusters_as_tokens_allow(method: str, init: str, way: str) -> None:
    problem = ragged(1, flags="weight mask", bad=True)
    found = problem.call(method, init)
    valid = problem.mask.sum(1)
    assert found.n_clusters.dtype == torch.int64
    assert torch.equal(found.n_clusters, torch.minimum(problem.k, valid))
    assert bool((found.assignment < found.n_clusters[:, None]).all())
    assert torch.equal(found.assignment < 0, ~problem.mask)
    beyond = torch.arange(found.centers.shape[1]) >= found.n_clusters[:, None]
    assert bool((found.centers[beyond] == 0).all())
    if method == "kmedoids":
        assert bool((found.medoids[beyond] == -1).all())


def test_a_cluster_that_lost_its_members_counts(way: str) -> None:
    """K-Means of four tokens in two places: two clusters of three are empty, and keep their centers."""
    x = torch.tensor([0.0, 0.0, 0.0, 9.0])[None, :, None].repeat(2, 1, 1)
    found = tpkernels.kmeans(x, torch.tensor([3, 2]), init=torch.tensor([0, 1, 2]))
    assert found.n_clusters.tolist() == [3, 2]
    assert found.assignment.tolist() == [[0, 0, 0, 0]] * 2 or int(found.assignment.max()) < 2
    alone = tpkernels.kmeans(x[:1], 3, init=torch.tensor([0, 1, 2]))
    assert torch.equal(found.centers[:1], alone.centers) and alone.n_clusters.tolist() == [3]
    assert found.centers[1, 2].tolist() == [0]


@pytest.mark.parametrize(("k_max", "width"), [(None, 9), (9, 9), (15, 15), (21, 21), (100, 21)])
@each_call
def test_k_max_is_the_width(method: str, init: str, k_max: int | None, width: int) -> None:
    problem = ragged(2, flags="weight mask")
    problem = problem._replace(k=torch.tensor([1, 9, 2, 2, 4, 1, 3]))
    given = {} if k_max is None else {"k_max": k_max}
    found = problem.call(method, init, **given)
    assert found.centers.shape[1] == width
    assert found.medoids is None or found.medoids.shape[1] == width
    wrong = {b: differences(found, problem.alone(b, method, init), b) for b in range(len(problem.k))}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_an_int_below_k_max_is_that_of_all(method: str) -> None:
    x = ragged(3).x
    function = getattr(tpkernels, method)
    found, plain = function(x, 4, k_max=9), function(x, 4)
    assert found.centers.shape[1] == 9 and found.n_clusters.tolist() == plain.n_clusters.tolist() == [4] * len(x)
    for b in range(len(x)):
        assert not differences(found, function(x[b : b + 1], 4), b)
    # All tokens where k is more: no wider than there are.
    assert function(x, 40).centers.shape[1] == function(x, 4, k_max=40).centers.shape[1] == 21


@pytest.mark.parametrize("flags", ["", "weight mask"])
def test_swaps_stay_in_their_sample(flags: str, way: str) -> None:
    problem = ragged(4, flags=flags, bad=True)
    found = problem.call("kmedoids", "strided", refine="swap", max_iter=1)
    wrong = {
        b: differences(found, problem.alone(b, "kmedoids", "strided", refine="swap", max_iter=1), b) for b in range(7)
    }
    assert not any(wrong.values()), wrong
    assert bool((found.loss.nan_to_num() <= problem.call("kmedoids", "strided", max_iter=1).loss.nan_to_num()).all())


@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 0, 3), (3, 1, 3), (3, 5, 0)])
@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_empty_shapes(method: str, shape: tuple[int, int, int], way: str) -> None:
    b, n, d = shape
    k = torch.arange(1, b + 1)
    found = getattr(tpkernels, method)(torch.ones(shape), k)
    width = min(b, n) if b else min(1, n)
    assert found.centers.shape == (b, width, d) and found.assignment.shape == (b, n)
    assert torch.equal(found.n_clusters, k.clamp(max=n))


def gradients(found: tpkernels.Clusters, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum in which every number of a center has another share, whatever the width of the results."""
    k, d = found.centers.shape[1:]
    share = torch.linspace(-1, 2, 100 * d).view(100, d)[:k]
    return torch.autograd.grad((share * found.centers).sum(), wanted)


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
@pytest.mark.parametrize("flags", ["", "weight mask"])
def test_gradients_are_those_of_own_calls(method: str, flags: str, way: str) -> None:
    problem = ragged(5, flags=flags)
    x = problem.x.clone().requires_grad_()
    wanted = [x]
    if flags and method != "kmedoids":
        wanted.append(problem.weight.clone().requires_grad_())
        problem = problem._replace(weight=wanted[1])
    problem = problem._replace(x=x)
    found = gradients(problem.call(method), wanted)
    for b in range(len(problem.k)):
        for whole, one in zip(found, gradients(problem.alone(b, method), wanted), strict=True):
            torch.testing.assert_close(whole[b], one[b], rtol=1e-6, atol=1e-7)
            assert bool((one[torch.arange(len(one)) != b] == 0).all())


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_vmap_takes_counts(method: str) -> None:
    x = torch.randn(3, 2, 10, 4, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([[1, 5], [3, 2], [7, 10]])
    function = getattr(tpkernels, method)

    def pooled(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = function(x, k, k_max=10)
        return found.assignment, found.centers, found.n_clusters

    for found, expected in zip(
        torch.func.vmap(pooled)(x, k),
        (torch.stack(parts) for parts in zip(*map(pooled, x, k), strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="k_max must be given"):
        torch.func.vmap(lambda x, k: function(x, k).centers)(x, k)
