"""Numbers of clusters as a tensor under `torch.compile`: one graph for all of them, and a name for what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.ragged import same
from tpkernels import TokenPool

METHODS = ("ward", "kmeans", "kmedoids")
COUNTS = [torch.tensor(k) for k in ([1, 2, 3], [8, 8, 8], [5, 1, 7])]


@pytest.fixture(autouse=True)
def cold_cache() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counted:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def draw(b: int, n: int, d: int) -> Tensor:
    return torch.randn(b, n, d, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("method", METHODS)
def test_other_counts_are_the_same_graph(method: str) -> None:
    x, count = draw(3, 9, 4), Counted()

    def run(x: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        found = getattr(tpkernels, method)(x, k, k_max=8)
        return found.assignment, found.centers, found.n_clusters

    compiled = torch.compile(run, fullgraph=True, backend=count)
    for k in COUNTS:
        assert all(same(one, two) for one, two in zip(compiled(x, k), run(x, k), strict=True))
    assert count.graphs == 1


@pytest.mark.parametrize("method", ["ward", "grid"])
def test_other_counts_are_the_same_graph_of_a_layer(method: str) -> None:
    x, count, layer = draw(3, 17, 4), Counted(), TokenPool(8, method)
    compiled = torch.compile(layer, fullgraph=True, backend=count)
    for k in COUNTS:
        assert same(compiled(x, k=k), layer(x, k=k))
    assert count.graphs == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_needs_the_width(method: str) -> None:
    function = torch.compile(getattr(tpkernels, method), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="k_max must be given where a tensor k cannot be looked at"):
        function(draw(3, 9, 4), COUNTS[0])


@pytest.mark.parametrize(
    "options",
    [{"distance_threshold": 1.5}, {"max_error": 0.3}, {"metric": "cosine", "k": 3}, {"k_max": 5, "max_error": 0.1}],
    ids=str,
)
def test_cuts_and_metrics_are_one_graph(options: dict[str, Any]) -> None:
    count = Counted()
    compiled = torch.compile(lambda x: tpkernels.ward(x, **options), fullgraph=True, backend=count)
    for b in (3, 2):
        x = draw(b, 9, 4)
        torch._dynamo.mark_dynamic(x, 0)
        for one, two in zip(compiled(x), tpkernels.ward(x, **options), strict=True):
            assert same(one, two)
    assert count.graphs == 1
