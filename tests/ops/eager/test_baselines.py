"""The methods that Token Pooling is compared with, through `TokenPool`, against the reference's labels."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.support.strategies import make
from tests.support.tolerances import TOLERANCES, assert_values
from tpkernels import PoolInfo, TokenPool, reference
from tpkernels.ops.eager.baselines import uniform

SHAPES = [(1, 1, 3), (2, 9, 1), (3, 16, 5), (2, 49, 8), (1, 35, 17), (2, 64, 3)]
PRUNERS = ("topk", "importance", "random")
BASELINES = (*PRUNERS, "grid", "bipartite")


def pool(
    method: str, x: Tensor, k: int, weight: Tensor | None = None, *, backend: str = "torch", **options
) -> tuple[Tensor, PoolInfo]:
    """Tokens and info of a pool without prefix."""
    given = {name: options.pop(name) for name in ("sizes", "mask", "metric") if name in options}
    layer = TokenPool(k, method, num_prefix_tokens=0, backend=backend, **options)
    result = layer(x, weight, return_info=True, **given)
    return result[0], result[-1]


def counts(n: int) -> list[int]:
    return sorted({1, max(1, n // 4), max(1, n // 2), max(1, int(0.7 * n)), n, n + 2})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", BASELINES)
def test_labels_are_the_references(method: str, shape: tuple[int, int, int], device: torch.device) -> None:
    b, n, d = shape
    for k in counts(n):
        for seed in range(2):
            x, _, weight, _ = make(seed, b, n, d, k, weighted=True)
            options = {"seed": seed} if method in ("importance", "random") else {}
            expected = reference.batched(
                getattr(reference, method), x, k, weight if method in PRUNERS else None, **options
            )
            _, info = pool(method, x.to(device), k, weight.to(device), **options)
            assert torch.equal(info.assignment.cpu(), expected)


@pytest.mark.parametrize("method", BASELINES)
def test_labels_of_masked_tokens_are_the_references(method: str, device: torch.device) -> None:
    """Also where a sample has no token, or fewer than K."""
    for seed in range(6):
        x, k, weight, mask = make(seed, 4, 25, 6, 7, weighted=True, masked=True)
        mask[1], mask[2, 5:] = False, False
        options = {"seed": seed} if method in ("importance", "random") else {}
        w = weight if method in PRUNERS else None
        expected = reference.batched(getattr(reference, method), x, k, w, mask, **options)
        tokens, info = pool(method, x.to(device), k, weight.to(device), mask=mask.to(device), **options)
        assert torch.equal(info.assignment.cpu(), expected)
        assert tokens.shape == (4, 7, 6) and bool(tokens.isfinite().all())
        assert tokens[1].abs().sum() == 0 and info.sizes[1].sum() == 0


@pytest.mark.parametrize("method", BASELINES)
def test_tokens_and_sizes_belong_to_the_labels(method: str, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(3, 3, 25, 6, 10, weighted=True)
    sizes = torch.randint(1, 9, (3, 25), generator=torch.Generator().manual_seed(0)).float()
    tokens, info = pool(method, x.to(device), k, weight.to(device), backend=backend, sizes=sizes.to(device))
    label = info.assignment.cpu()
    for b in range(3):
        expected = reference.cluster_mean(x[b], label[b], k, sizes[b])
        assert_values(tokens[b].cpu(), expected)
        total = torch.stack([sizes[b, label[b] == slot].sum() for slot in range(k)])
        assert torch.equal(info.sizes[b].cpu(), total)
        kept = (label[b] >= 0).nonzero().flatten()
        if method in PRUNERS:
            # The tokens themselves, to the last bit, in raster order.
            assert len(kept) == k and torch.equal(tokens[b].cpu(), x[b, kept])
        else:
            assert len(kept) == 25


def test_topk_ties_go_to_the_lower_index() -> None:
    x = torch.zeros(1, 6, 2)
    assert pool("topk", x, 3, torch.tensor([[1.0, 2, 2, 1, 2, 2]]))[1].assignment.tolist() == [[-1, 0, 1, -1, 2, -1]]
    assert pool("topk", x, 2, torch.zeros(1, 6))[1].assignment.tolist() == [[0, 1, -1, -1, -1, -1]]


def test_topk_keeps_the_highest() -> None:
    x, k, weight, _ = make(0, 3, 40, 4, 13, weighted=True)
    label = pool("topk", x, k, weight)[1].assignment
    for b in range(3):
        assert weight[b, label[b] >= 0].min() > weight[b, label[b] < 0].max()


def test_uniform_is_the_references(device: torch.device) -> None:
    for seed in (0, 1, 7, 2**40 + 3, -5):
        values = uniform(200, seed, device).cpu()
        assert values.dtype == torch.float64
        assert values.tolist() == [reference.uniform(seed, i) for i in range(200)]
        assert float(values.min()) > 0 and float(values.max()) < 1


def test_random_is_the_same_in_every_sample_and_differs_by_seed() -> None:
    x = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0))
    labels = [pool("random", x, 11, seed=seed)[1].assignment for seed in range(30)]
    for label in labels:
        assert torch.equal(label[0], label[1]) and torch.equal(label[0], label[2])
        assert int((label[0] >= 0).sum()) == 11
    assert len({tuple(label[0].tolist()) for label in labels}) == 30
    # Every token's turn comes: 30 draws leave one out with probability (19 / 30)^30 = 1e-6.
    assert bool((torch.stack(labels) >= 0).any(0).all())


def test_importance_draws_in_proportion_to_the_weights() -> None:
    x, weight = torch.zeros(1, 4, 1), torch.tensor([[1.0, 2.0, 5.0, 0.0]])
    drawn = Counter(int(pool("importance", x, 1, weight, seed=seed)[1].assignment[0].argmax()) for seed in range(1500))
    # Standard errors below sqrt(0.25 / 1500) = 0.013.
    for token, expected in enumerate([1 / 8, 2 / 8, 5 / 8, 0]):
        assert abs(drawn[token] / 1500 - expected) < (0.052 if expected else 1e-9)


def test_importance_takes_tokens_without_weight_last() -> None:
    x, weight = torch.zeros(1, 6, 1), torch.tensor([[0.0, 3.0, 0.0, 1.0, 0.0, 2.0]])
    for seed in range(20):
        assert pool("importance", x, 3, weight, seed=seed)[1].assignment.tolist() == [[-1, 0, -1, 1, -1, 2]]
        assert pool("importance", x, 4, weight, seed=seed)[1].assignment.tolist() == [[0, 1, -1, 2, -1, 3]]
    # Masked ones come after them.
    mask = torch.tensor([[True, True, False, True, True, True]])
    label = pool("importance", x, 5, weight, mask=mask)[1].assignment
    assert label.tolist() == [[0, 1, -1, 2, 3, 4]]


def test_grid_of_every_size() -> None:
    for h, w in itertools.product(range(1, 7), repeat=2):
        x = torch.zeros(1, h * w, 1)
        for k in range(1, h * w + 1):
            label = pool("grid", x, k, grid_size=(h, w))[1].assignment[0]
            assert label.tolist() == reference.grid(x[0], k, grid_size=(h, w)).tolist()


def test_grid_averages_neighbours() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    tokens = image.flatten(2).mT
    expected = torch.nn.functional.avg_pool2d(image, 2).flatten(2).mT
    assert torch.equal(pool("grid", tokens, 4)[0], expected)


def test_bipartite_matches_by_the_metric(device: torch.device) -> None:
    for seed in range(4):
        x, k, _, _ = make(seed, 3, 21, 5, 6)
        metric = make(seed + 50, 3, 21, 4, 6).x
        expected = reference.batched(reference.bipartite, x, k, metric=metric)
        _, info = pool("bipartite", x.to(device), k, metric=metric.to(device))
        assert torch.equal(info.assignment.cpu(), expected)
        assert not torch.equal(expected, reference.batched(reference.bipartite, x, k))


def test_bipartite_weighs_what_it_merged_by_size(device: torch.device) -> None:
    """From the second round on, which these counts need."""
    differs = 0
    for seed in range(8):
        x, k, _, _ = make(seed, 2, 24, 5, 5)
        sizes = torch.randint(1, 30, (2, 24), generator=torch.Generator().manual_seed(seed)).float()
        expected = reference.batched(reference.bipartite, x, k, sizes)
        _, info = pool("bipartite", x.to(device), k, sizes=sizes.to(device))
        assert torch.equal(info.assignment.cpu(), expected)
        differs += not torch.equal(expected, reference.batched(reference.bipartite, x, k))
    assert differs


def test_bipartite_sees_directions_only() -> None:
    x, k, _, _ = make(0, 2, 20, 6, 11)
    length = torch.rand(2, 20, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    metric = x * length
    found = pool("bipartite", x, k)[1].assignment
    assert torch.equal(pool("bipartite", x, k, metric=metric)[1].assignment, found)
    # An offset is another direction: it must not be taken out.
    moved = pool("bipartite", x + 3, k)[1].assignment
    assert torch.equal(moved, reference.batched(reference.bipartite, x + 3, k))
    assert not torch.equal(moved, found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", BASELINES)
def test_types(method: str, dtype: torch.dtype, device: torch.device) -> None:
    x, k, weight, _ = make(2, 2, 16, 6, 7, weighted=True)
    x = x.to(dtype)
    tokens, info = pool(method, x.to(device), k, weight.to(device))
    assert tokens.dtype == dtype
    expected = reference.batched(getattr(reference, method), x, k, weight if method in PRUNERS else None)
    assert torch.equal(info.assignment.cpu(), expected)
    for b in range(2):
        # One rounding at the end, of entries as large as the tokens.
        expected_tokens = reference.cluster_mean(x[b], expected[b], k)
        atol = TOLERANCES[dtype].value * float(x.abs().max())
        torch.testing.assert_close(tokens[b].cpu().double(), expected_tokens, rtol=0, atol=atol)
