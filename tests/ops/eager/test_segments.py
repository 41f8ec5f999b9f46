"""Sums over clusters by a product, which GPUs take, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.support.tolerances import assert_values
from tpkernels.ops.eager.segments import product_sum, segment_sum


def test_a_product_sums_as_adding_does() -> None:
    values = torch.randn(3, 40, 7, generator=torch.Generator().manual_seed(0))
    label = torch.randint(-1, 9, (3, 40), generator=torch.Generator().manual_seed(1))
    assert_values(product_sum(values, label, 9), segment_sum(values, label, 9))


def test_bad_numbers_stay_in_their_cluster_under_a_product() -> None:
    values, label = torch.ones(1, 8, 3), torch.tensor([[0, 0, 1, 1, 2, 2, -1, -1]])
    values[0, 0, 0], values[0, 2, 1], values[0, 6] = torch.inf, torch.nan, torch.nan
    values[0, 4, 2], values[0, 5, 2] = torch.inf, -torch.inf
    found = product_sum(values, label, 4)
    expected = torch.tensor([[[torch.inf, 2, 2], [2, torch.nan, 2], [2, 2, torch.nan], [0, 0, 0]]])
    assert torch.equal(found.nan_to_num(nan=7.25, posinf=8.25), expected.nan_to_num(nan=7.25, posinf=8.25))


def test_the_indicator_is_not_scattered_when_compiled() -> None:
    """torch 2.11's compiler makes int64 of float zeros into which a number is scattered, which no product takes."""
    called: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        called.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    values, label = torch.randn(1, 12, 4), torch.arange(12)[None] % 5
    found = torch.compile(product_sum, backend=backend, fullgraph=True)(values, label, 5)
    assert_values(found, segment_sum(values, label, 5))
    assert "scatter_add" in called and not called & {"scatter", "scatter_"}
