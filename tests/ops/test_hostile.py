"""Hostile numbers and sizes, for every method on both backends: ids in range, no NaN that was not put in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tpkernels
from tests.support.marks import FOR_GPU, sized
from tests.support.pooled import CASES, Case, case_of_each_method, each_case, pool
from tests.support.strategies import odd
from tpkernels import TokenPool

# The least denormal, the least normal number, distances at float32's end, and what is beyond it when squared.
TOKENS = [0.0, 1e-45, 1.2e-38, 1e-20, 1.0, -1.0, 300.0, 1e18, 3e38, -3e38]
WEIGHTS = [0.0, 1e-45, 1e-30, 1.0, 1e30, 3e38]
BAD = [torch.nan, torch.inf, -torch.inf]


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Tensor, int, Tensor | None]:
    """x [B, N, D] of few different numbers, k and weights [B, N]; sometimes a NaN or Inf in the first sample alone."""
    b = draw(st.integers(1, 3))
    # On a GPU sizes that share a kernel: none is 1, nor is a product a multiple of 16.
    n, d = (
        (draw(odd(3, 11)), draw(st.integers(2, 4))) if FOR_GPU else (draw(st.integers(1, 12)), draw(st.integers(1, 4)))
    )
    few = draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3))
    size = b * n * d
    x = torch.tensor(draw(st.lists(st.sampled_from(few), min_size=size, max_size=size))).view(b, n, d)
    weight = None
    if draw(st.booleans()):
        some = draw(st.lists(st.sampled_from(WEIGHTS), min_size=1, max_size=3))
        weight = torch.tensor(draw(st.lists(st.sampled_from(some), min_size=b * n, max_size=b * n))).view(b, n)
    if draw(st.integers(0, 3)) == 0:
        x[0, draw(st.integers(0, n - 1)), draw(st.integers(0, d - 1))] = draw(st.sampled_from(BAD))
    k = draw(st.one_of(st.integers(1, n), st.sampled_from([1, max(1, n - 1), n])))
    k = sized(k, gpu=max(k, 2))
    return x, k, weight


@each_case
@settings(max_examples=sized(15, gpu=10))
@given(problem=hostile(), output=st.sampled_from(["mean", "medoid"]))
def test_any_numbers(
    case: Case, backend: str, device: torch.device, problem: tuple[Tensor, int, Tensor | None], output: str
) -> None:
    x, k, weight = problem
    output = sized(output, gpu="mean") if weight is None else output
    n = x.shape[1]
    found = pool(case, x, k, weight, backend=backend, device=device, output=output)
    label, tokens, medoids = found.label, found.tokens, found.info.medoids
    kept = label >= 0
    assert int(label.min()) >= -1 and int(label.max()) < k
    clean = [b for b in range(len(x)) if bool(x[b].isfinite().all())]
    for b in range(len(x)):
        # Every output token stands for some input token: none is empty, for k is at most n.
        names = set(label[b][kept[b]].tolist())
        if case.method not in ("kmeans",):
            assert names == set(range(k))
        if case.method in ("ward", "kmeans", "kmedoids", "grid", "bipartite"):
            assert bool(kept[b].all()) and float(found.info.sizes[b].sum()) == n
        if medoids is not None and case.clusters:
            chosen = medoids[b][medoids[b] >= 0].tolist()
            assert len(set(chosen)) == len(chosen)
            assert all(label[b, i] == slot for slot, i in enumerate(medoids[b].tolist()) if i >= 0)
    assert bool(tokens[clean].isfinite().all()), "no NaN that was not put in"


@case_of_each_method
def test_one_token_and_one_channel(case: Case, backend: str, device: torch.device) -> None:
    for n, d, k in ((1, 1, 1), (1, 5, 1), (7, 1, 6), (7, 1, 1), (2, 1, 1)):
        x = torch.randn(3, n, d, generator=torch.Generator().manual_seed(n * d))
        found = pool(case, x, k, torch.ones(3, n), backend=backend, device=device)
        assert found.tokens.shape == (3, k, d)
        assert bool(found.tokens.isfinite().all())
        assert bool((found.label < k).all())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.init}")
def test_a_batch_of_70_000(case: Case) -> None:
    """More samples than a grid's second dimension has places; the last ones are as they are alone."""
    x = torch.randn(70_000, 3, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(70_000, 3, generator=torch.Generator().manual_seed(1))
    whole = pool(case, x, 2, weight)
    alone = pool(case, x[-3:], 2, weight[-3:])
    assert torch.equal(whole.label[-3:], alone.label) and torch.equal(whole.tokens[-3:], alone.tokens)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.init}")
def test_a_sample_is_the_same_to_the_last_bit_in_any_batch(case: Case) -> None:
    """On a CPU's torch backend too, where the products are a library's: batch sizes on both sides of its thresholds."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(33, 50, 24, generator=generator), torch.rand(33, 50, generator=generator)
    layer = TokenPool(0.5, case.method, init=case.init, num_prefix_tokens=0, weighted=case.clusters)
    whole, info = layer(x, weight, return_info=True)
    for first, last in ((0, 1), (5, 7), (20, 33), (32, 33)):
        part, of_part = layer(x[first:last], weight[first:last], return_info=True)
        assert torch.equal(of_part.assignment, info.assignment[first:last])
        assert torch.equal(part, whole[first:last])


def test_attention_of_hostile_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-30, 1.0, 1e4, 1e15):
        q, k, v = (scale * torch.randn(2, 2, 9, 4, generator=generator) for _ in range(3))
        size = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1.0, 7.0, 1e6, 1e30, 1.0]).expand(2, 9)
        for key_size in (None, size):
            out, significance = tpkernels.attention(q, k, v, key_size=key_size)
            assert bool(out.isfinite().all()) and bool(significance.isfinite().all())
            total = 2 * (9.0 if key_size is None else float(size[0].sum()))
            torch.testing.assert_close(
                significance.double().sum(1), torch.full((2,), total).double(), rtol=1e-4, atol=0
            )
