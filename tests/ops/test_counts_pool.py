"""`TokenPool` with a number of tokens for each sample, and what becomes of its labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.pooled import CASES, Case, name
from tests.support.ragged import same
from tpkernels import TokenPool, cluster_mean, unpool

KEEP, PREFIX = 8, 2
K = torch.tensor([1, 5, 8, 3])
each_case = pytest.mark.parametrize("case", CASES, ids=name)


def draw(n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens with their prefix, their significance, and sizes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(K), PREFIX + n, 6, generator=generator)
    return x, torch.rand(x.shape[:2], generator=generator), torch.rand(x.shape[:2], generator=generator) + 0.5


def layer(case: Case, keep: int = KEEP, **options: object) -> TokenPool:
    return TokenPool(keep, case.method, init=case.init, num_prefix_tokens=PREFIX, **options)


@each_case
@pytest.mark.parametrize("output", ["mean", "medoid"])
def test_each_sample_keeps_its_own_number(case: Case, output: str, way: str) -> None:
    x, score, sizes = draw()
    tokens, pooled, info = layer(case, output=output)(x, score, sizes=sizes, k=K, return_info=True)
    assert tokens.shape == (4, PREFIX + KEEP, 6) and info.n_clusters.dtype == torch.int64
    assert torch.equal(info.n_clusters, K)
    beyond = torch.arange(KEEP) >= K[:, None]
    assert bool((tokens[:, PREFIX:][beyond] == 0).all()) and bool((pooled[:, PREFIX:][beyond] == 0).all())
    assert torch.equal(info.sizes, pooled)
    for b in range(4):
        # The prefix, and from there on one output token for each.
        assert sorted(set(info.assignment[b].tolist()) - {-1}) == list(range(PREFIX + int(K[b])))
    torch.testing.assert_close(pooled.sum(1), sizes.masked_fill(info.assignment < 0, 0).sum(1))


@each_case
def test_a_sample_is_its_own_layer(case: Case, way: str) -> None:
    x, score, sizes = draw()
    tokens, pooled, info = layer(case)(x, score, sizes=sizes, k=K, return_info=True)
    for b in range(4):
        rows = slice(b, b + 1)
        own = layer(case, int(K[b]))(x[rows], score[rows], sizes=sizes[rows], return_info=True)
        count = PREFIX + int(K[b])
        torch.testing.assert_close(tokens[rows, :count], own[0])
        torch.testing.assert_close(pooled[rows, :count], own[1])
        assert torch.equal(info.assignment[rows], own[2].assignment)
        assert info.n_iter is None or torch.equal(info.n_iter[rows], own[2].n_iter)
        assert info.medoids is None or torch.equal(info.medoids[rows, : int(K[b])], own[2].medoids)


@each_case
def test_a_number_for_all(case: Case) -> None:
    x, score, sizes = draw()
    one = layer(case)(x, score, sizes=sizes, k=3, return_info=True)
    other = layer(case)(x, score, sizes=sizes, k=torch.full((4,), 3), return_info=True)
    assert one[0].shape[1] == PREFIX + KEEP and one[2].n_clusters.tolist() == [3] * 4
    assert all(same(a, b) for a, b in zip((*one[:2], *one[2]), (*other[:2], *other[2]), strict=True))


@each_case
def test_no_sample_keeps_more_than_is_there(case: Case) -> None:
    """Where `keep` has room for all tokens, and where a mask leaves fewer than are asked for."""
    x, score, sizes = draw(7)
    k = K.clamp(max=7)
    info = layer(case)(x, score, sizes=sizes, k=k, return_info=True)[2]
    assert info.n_clusters.tolist() == k.tolist()
    mask = torch.arange(x.shape[1]) < PREFIX + torch.tensor([[7], [3], [0], [2]])
    tokens, pooled, info = layer(case)(x, score, sizes=sizes, mask=mask, k=k, return_info=True)
    assert info.n_clusters.tolist() == [1, 3, 0, 2]
    beyond = torch.arange(tokens.shape[1]) >= PREFIX + info.n_clusters[:, None]
    assert bool((tokens[beyond] == 0).all()) and bool((pooled[beyond] == 0).all())


@each_case
def test_without_k_all_are_keeps(case: Case) -> None:
    x, score, sizes = draw()
    info = layer(case)(x, score, sizes=sizes, return_info=True)[2]
    assert info.n_clusters.tolist() == [KEEP] * 4
    # Nothing to pool.
    assert layer(case, 20)(x, score, sizes=sizes, return_info=True)[2].n_clusters.tolist() == [16] * 4


@pytest.mark.parametrize("method", ["ward", "random"])
@pytest.mark.parametrize("k", [9, torch.tensor([1, 9, 2, 2])], ids=["int", "tensor"])
def test_more_than_keep_is_refused(method: str, k: int | Tensor) -> None:
    x, score, _ = draw()
    with pytest.raises(ValueError, match="k must be at most what keep keeps, 8, got 9"):
        layer(Case(method))(x, score, k=k)


def test_labels_go_into_means_and_back(way: str) -> None:
    x = draw()[0].requires_grad_()
    tokens, info = layer(Case("ward"))(x, k=K, return_info=True)
    means = cluster_mean(x, info.assignment, tokens.shape[1])
    torch.testing.assert_close(means, tokens)
    restored = unpool(tokens, info.assignment)
    for b in range(4):
        for label in range(PREFIX + int(K[b])):
            members = info.assignment[b] == label
            expected = x[b, members].mean(0).expand(int(members.sum()), -1)
            torch.testing.assert_close(restored[b, members], expected)
    # Every token's share of the sum comes back to it, and nothing to clusters that are none.
    (grad,) = torch.autograd.grad(restored.sum(), x)
    torch.testing.assert_close(grad, torch.ones_like(grad))


def test_a_distance_leaves_each_sample_its_own(way: str) -> None:
    x = torch.cat([draw()[0], draw()[0] * 0.1], 0)
    tokens, info = layer(Case("ward"), distance_threshold=2.5)(x, return_info=True)
    counts = info.n_clusters
    assert bool((counts[4:] == 1).all()) and len(set(counts[:4].tolist())) > 1 and int(counts.max()) <= KEEP
    assert tokens.shape[1] == PREFIX + KEEP
    capped = layer(Case("ward"), distance_threshold=2.5)(x, k=2, return_info=True)[1]
    assert torch.equal(capped.n_clusters, counts.clamp(max=2))
