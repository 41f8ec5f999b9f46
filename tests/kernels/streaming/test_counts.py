"""Streaming samples that each have their own number of clusters."""

from __future__ import annotations

import pytest
import torch

from tests.support.marks import interpreter_marks
from tests.support.strategies import make
from tests.support.streaming import METHODS, run
from tests.support.tolerances import assert_same_labels, assert_values

pytestmark = interpreter_marks("other forms of kernels to compile, for one rule")


@pytest.mark.parametrize("output", ["center", "medoid"])
@pytest.mark.parametrize("method", METHODS)
def test_counts_are_calls_of_their_own(method: str, output: str) -> None:
    """The same labels and medoids, which are the torch backend's; beyond a sample's own clusters nothing stands."""
    n, k = (40, 9)
    x, _, weight, mask = make(1, 3, n, 5, k, weighted=True, masked=True)
    counts = torch.tensor([3, k, 1])
    options = {"weight": weight, "pool_weight": weight, "mask": mask}
    found = run(x, k, method, output, **options, counts=counts)
    assert found.n_clusters.tolist() == counts.tolist()
    twin = run(x, k, method, output, **options, counts=counts, twin=True)
    same = assert_same_labels(found.assignment, twin.assignment, x, weight)
    assert_values(found.tokens[same], twin.tokens[same])
    for b, own in enumerate(counts.tolist()):
        assert bool((found.tokens[b, own:] == 0).all() and (found.total[b, own:] == 0).all())
        assert not found.medoids.numel() or bool((found.medoids[b, own:] == -1).all())
        alone = run(x[b : b + 1], own, method, output, **{name: one[b : b + 1] for name, one in options.items()})
        for name in ("assignment", "source", "n_iter", "n_clusters"):
            assert torch.equal(getattr(found, name)[b], getattr(alone, name)[0]), name
        assert torch.equal(found.medoids[b, :own], alone.medoids[0])
        # How many members are summed up at a time depends on the most clusters.
        assert_values(found.tokens[b, :own], alone.tokens[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_slot_that_is_none_is_nobodys_nearest(method: str) -> None:
    """The place of a slot without a start is the sample's mean, where tokens are here."""
    x = torch.randn(2, 34, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2:] *= 1e-3
    x -= x.mean(1, keepdim=True)
    start = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]] * 2)
    found = run(x, 8, method, init=start, counts=torch.tensor([2, 8]))
    assert int(found.assignment[0].max()) == 1 and found.n_clusters.tolist() == [2, 8]
    # As many as are asked for are starts, whatever stands behind them.
    start[0, 2:] = 1
    again = run(x, 8, method, init=start, counts=torch.tensor([2, 8]))
    for one, two in zip(found, again, strict=True):
        assert torch.equal(one, two)


def test_iterations_from_a_cut_go_on_with_what_it_leaves() -> None:
    n = 40
    x, _, weight, _ = make(2, 3, n, 5, 8, weighted=True)
    x[1, 3, 1] = torch.nan
    for cut, bound in (("distance", 1.0), ("error", 0.4)):
        options = {
            "weight": weight,
            "pool_weight": weight,
            "counts": torch.tensor([8, 5, 8]),
            "cut": cut,
            "bound": bound,
        }
        found, twin = (run(x, 8, "kmeans", init="ward", **options, twin=twin) for twin in (False, True))
        assert torch.equal(found.n_clusters, twin.n_clusters) and found.n_clusters[1] == 5
        assert_same_labels(found.assignment, twin.assignment, x, weight)
        assert [int(label.max()) + 1 for label in found.assignment] == found.n_clusters.tolist()
