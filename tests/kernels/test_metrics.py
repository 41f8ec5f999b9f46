"""Ward's kernels by cosines and by products of the tokens as they come: the first costs, and what comes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.marks import CUDA, DEVICE, KERNELS, sized
from tests.support.strategies import make
from tests.support.tolerances import assert_values
from tpkernels import reference
from tpkernels.ops.problem import Results

cluster = torch.ops.tpkernels.cluster.default

pytestmark = KERNELS


def run(
    x: Tensor, k: int, metric: str, weight: Tensor | None = None, mask: Tensor | None = None, backend: str = "triton"
) -> Results:
    x, weight, mask = (None if tensor is None else tensor.to(DEVICE) for tensor in (x, weight, mask))
    how = None, metric, "count", 0.0
    found = cluster(x, weight, weight, mask, None, k, "ward", "ward", "center", 0, backend, False, *how)
    return Results._make(result.cpu() for result in found)


@pytest.mark.parametrize("metric", ["cosine", "dot", "clipped"])
def test_clusters_heights_and_loss_are_the_twins(metric: str) -> None:
    for seed, dtype in enumerate(sized((torch.float32, torch.float16, torch.bfloat16), gpu=(torch.float32,))):
        n, k = sized((25, 9), gpu=(33, 15))
        x, _, weight, mask = make(seed, 2, n, 6, k, weighted=seed != 1, masked=seed != 1)
        x = (x + 0.5).to(dtype)
        found, twin = (run(x, k, metric, weight, mask, backend) for backend in ("triton", "torch"))
        torch.testing.assert_close(found.heights, twin.heights, rtol=1e-3, atol=1e-5)
        if CUDA:
            continue
        assert torch.equal(found.assignment, twin.assignment) and torch.equal(found.n_iter, twin.n_iter)
        assert_values(found.tokens, twin.tokens)
        # Centers are the raw tokens' means, and the loss is theirs.
        for b in range(2):
            there = torch.ones(n, dtype=torch.bool) if mask is None else mask[b]
            w = torch.ones(n) if weight is None else weight[b]
            centers = reference.cluster_mean(x[b, there].double(), found.assignment[b, there], k, w[there].double())
            assert_values(found.tokens[b].float(), centers, dtype)
            loss = reference.objective(x[b, there].double(), centers, w[there].double(), found.assignment[b, there])
            assert float(found.loss[b]) == pytest.approx(float(loss), rel=1e-4)


def test_lengths_do_not_count_for_a_cosine() -> None:
    """From 10^-18 to 10^18, where squares of squared lengths are beyond float32."""
    n = sized(20, gpu=33)
    x = torch.randn(1, n, 5, generator=torch.Generator().manual_seed(2))
    length = 10.0 ** (torch.arange(n) * 36 / (n - 1) - 18)
    found, expected = run(x * length[:, None], 6, "cosine"), run(x, 6, "cosine")
    assert torch.equal(found.assignment, expected.assignment)
    torch.testing.assert_close(found.heights, expected.heights, rtol=1e-4, atol=1e-6)


def test_equal_tokens_have_no_angle() -> None:
    """To the last bit, whatever their length is, and so do twice and half of them."""
    length = 10.0 ** torch.linspace(-9, 9, 15)[:, None]
    half = length * torch.randn(1, 15, 7, generator=torch.Generator().manual_seed(3))
    for dtype in sized((torch.float32, torch.bfloat16), gpu=(torch.float32,)):
        found = run(torch.cat([half, half, 2 * half], 1).to(dtype), 15, "cosine")
        assert found.assignment[0].tolist() == list(range(15)) * 3
        assert bool((found.heights[0, :30] == 0).all()) and bool(found.heights[0, 30:].isinf().all())


def test_zero_vectors_are_one_cluster_at_1_from_all_others() -> None:
    n = sized(19, gpu=33)
    x = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(4)).abs()
    x[0, ::4] = 0
    x[1] = 0
    found = run(x, 3, "cosine")
    assert set(found.assignment[0, ::4].tolist()) == {0} and bool((found.assignment[0, 1::4] > 0).all())
    assert found.heights.isnan().sum() == 0 and bool((found.heights[1, : n - 3] == 0).all())
    # By products they are at 1 from each other, too.
    assert run(x[1:], sized(n - 1, gpu=15), "dot").heights[0, 0] == 0.5
    assert run(x[:, : sized(2, gpu=n)], sized(1, gpu=15), "cosine").heights[:, 0].tolist() == [sized(0.5, gpu=0.0), 0.0]


def test_products_beyond_a_square_leave_a_complete_tree() -> None:
    n = sized(18, gpu=33)
    x = 1e17 * torch.randn(1, n, 15, generator=torch.Generator().manual_seed(5))
    found = run(x, 4, "dot")
    assert sorted(set(found.assignment[0].tolist())) == [0, 1, 2, 3] and not found.heights.isnan().any()


def test_a_clipped_distance_lies_in_0_to_2() -> None:
    pairs = torch.tensor([[[3.0, 0], [1, 0]], [[3, 0], [-1, 0]], [[0.5, 0], [0.5, 1]]])
    heights = run(pairs, 1, "clipped").heights[:, 0]
    torch.testing.assert_close(heights, torch.tensor([0.0, 2, 0.28125]), rtol=1e-6, atol=0)
