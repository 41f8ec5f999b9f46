"""Ward of more tokens than a vector that programs take at once: 1,025 and more, some samples at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.marks import CUDA, DEVICE, interpreter_only, runs_triton
from tests.support.tolerances import assert_same_labels, assert_values, total_variance
from tpkernels.ops.problem import Results

cluster = torch.ops.tpkernels.cluster.default

COMPILES = "on a GPU they are kernels of their own, which take a compiler a minute"


def tokens(b: int, n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, N, D] around a few centers, weights and a mask [B, N]; the last sample's padding is NaN."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(b, n, d, generator=generator)
    x += 3 * torch.randn(b, 20, d, generator=generator)[:, torch.arange(n) % 20]
    weight, mask = torch.rand(b, n, generator=generator), torch.rand(b, n, generator=generator) < 0.9
    x[-1][~mask[-1]] = torch.nan
    return x, weight, mask


def run(
    x: Tensor, k: int, weight: Tensor | None, mask: Tensor | None, output: str = "center", backend: str = "triton"
) -> Results:
    x, weight, mask = (None if tensor is None else tensor.to(DEVICE) for tensor in (x, weight, mask))
    found = cluster(x, weight, weight, mask, None, k, "ward", "ward", output, 0, backend)
    return Results._make(result.cpu() for result in found)


def assert_twins(x: Tensor, k: int, weight: Tensor | None, mask: Tensor | None, output: str = "center") -> Results:
    """The kernels' clusters, rounds, heights, loss and tokens are the torch backend's; returns the kernels'."""
    found, twin = (run(x, k, weight, mask, output, backend) for backend in ("triton", "torch"))
    same = assert_same_labels(found.assignment, twin.assignment, x, weight)
    assert torch.equal(found.source[same], twin.source[same])
    assert CUDA or torch.equal(found.n_iter, twin.n_iter)
    assert_values(found.tokens[same], twin.tokens[same])
    atol = 1e-6 * max(total_variance(sample[sample.isfinite().all(1)]) for sample in x)
    torch.testing.assert_close(found.heights, twin.heights, rtol=1e-4, atol=atol)
    torch.testing.assert_close(found.loss, twin.loss, rtol=1e-4, atol=atol)
    return found


@runs_triton
@pytest.mark.slow
def test_a_page_of_a_retriever() -> None:
    """1,030 vectors, weighted and masked: labels, rounds and heights; and each sample alone has the same bits."""
    x, weight, mask = tokens(2, 1030, 5)
    whole = assert_twins(x, 515, weight, mask)
    assert bool((whole.assignment[~mask] == -1).all())
    assert sorted(set(whole.assignment[1].tolist())) == list(range(-1, 515))
    alone = run(x[1:].clone(), 515, weight[1:].clone(), mask[1:].clone())
    for one, two in zip(alone, whole, strict=True):
        assert torch.equal(one[0], two[1]) if one.numel() else not two.numel()


@pytest.mark.slow
@interpreter_only(COMPILES)
@pytest.mark.parametrize(("n", "k", "output"), [(1100, 30, "mean"), (1025, 1000, "medoid"), (2050, 700, "center")])
def test_more_tokens_than_a_vector_has(n: int, k: int, output: str) -> None:
    x, _, _ = tokens(1, n, 3)
    assert_twins(x.nan_to_num(), k, None, None, output)


@interpreter_only(COMPILES)
@pytest.mark.parametrize("output", ["center", "mean", "medoid"])
def test_parts_of_vectors_and_of_rows_change_no_bit(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken in parts above 1,024 tokens gives the bits of the whole, here at 300 in parts of 32 and 128."""
    import triton.language as tl

    from tpkernels.kernels.resident import costs, scratch, ward

    x, weight, mask = tokens(2, 300, 4)
    expected = run(x, 90, weight, mask, output)
    monkeypatch.setattr(scratch, "VECTOR", tl.constexpr(32))
    for module in (costs, ward):
        monkeypatch.setattr(module, "BLOCKS", tl.constexpr(1))
    found = run(x, 90, weight, mask, output)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


@interpreter_only(COMPILES)
def test_equal_tokens_in_two_parts_of_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token has its twin in the other half: pairs go across parts, and none is left over."""
    import triton.language as tl

    from tpkernels.kernels.resident import scratch

    monkeypatch.setattr(scratch, "VECTOR", tl.constexpr(16))
    x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    found = run(x, 16, None, None)
    assert found.assignment[0].tolist() == [*range(16), *range(16)]
    assert int(found.n_iter) <= 2 and float(found.heights[0, :16].max()) == 0
