"""Tokens as models have them: many channels, half types, strides, prefixes; and that no state is kept."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.marks import CUDA, runs_triton, sized
from tests.support.pooled import (
    CLUSTERERS,
    Case,
    canonical,
    case_of_each_method,
    clusterer_of_each_method,
    each_case,
    each_clusterer,
    equal,
    name,
    pool,
)
from tests.support.strategies import LAYOUTS, laid_out, make
from tests.support.tolerances import TOLERANCES, assert_values, assignment_regret, regret_limit
from tpkernels import TokenPool, reference


def check_state(case: Case, x: Tensor, k: int, weight: Tensor | None, backend: str, device: torch.device) -> None:
    """What a clusterer returns is a state of its own loop: the assignment is nearest, medoids and loss belong to it."""
    options = {} if case.method == "ward" else {"init": case.init}
    w = None if weight is None else weight.to(device)
    found = getattr(tpkernels, case.method)(x.to(device), k, w, backend=backend, **options)
    label, centers, loss = found.assignment.cpu(), found.centers.cpu(), found.loss.cpu()
    for b in range(len(x)):
        assert torch.equal(label[b], canonical(label[b]))
        sample_weight = None if weight is None else weight[b]
        scale = 1 if weight is None else float(weight[b].max())
        expected = float(reference.objective(x[b], centers[b], sample_weight, label[b]))
        assert abs(float(loss[b]) - expected) <= scale * regret_limit(x[b])
        if case.method == "ward":
            assert_values(centers[b], reference.cluster_mean(x[b], label[b], min(k, x.shape[1]), sample_weight))
        else:
            assert assignment_regret(x[b], centers[b], label[b]) <= regret_limit(x[b])


@pytest.mark.parametrize("d", [1, 3, 17, 1536])
@clusterer_of_each_method
def test_channels(case: Case, d: int, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(d, 2, 14, d, 5, weighted=True)
    check_state(case, x, k, weight, backend, device)


@pytest.mark.parametrize("n", [197, 577])
@pytest.mark.parametrize("case", CLUSTERERS, ids=name)
def test_many_tokens(case: Case, n: int, device: torch.device) -> None:
    x, k, weight, _ = make(n, 2, n, 17, int(0.7 * n), weighted=True)
    check_state(case, x, k, weight, "torch", device)


@runs_triton
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_many_tokens_in_triton(method: str, device: torch.device) -> None:
    x, k, weight, _ = make(1, 1, 197, 17, 137, weighted=True)
    check_state(Case(method, "topk"), x, k, weight, "triton", device)


@each_clusterer
def test_channels_with_an_offset(case: Case, backend: str, device: torch.device) -> None:
    """One channel at 100, as trained models have them: not a digit of the others' distances may go."""
    x, k, weight, _ = make(20, 2, 14, sized(8, gpu=7), 5, weighted=True)
    x[..., 5] = 100 + 0.01 * x[..., 5]
    check_state(case, x, k, weight, backend, device)
    flat = x.clone()
    flat[..., 5] = 0
    found = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(found.label, pool(case, flat, k, weight, backend=backend, device=device).label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@case_of_each_method
def test_half_types_compute_in_float32(case: Case, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """The same tokens in float32 give the same labels, and the same means but for their last rounding."""
    x, k, weight, _ = make(21, 2, sized(16, gpu=15), 6, 6, weighted=True)
    x = x.to(dtype)
    found = pool(case, x, k, weight, backend=backend, device=device)
    wide = pool(case, x.float(), k, weight, backend=backend, device=device)
    assert found.tokens.dtype == dtype
    assert torch.equal(found.label, wide.label)
    assert_values(found.tokens, wide.tokens)
    if case.clusters:
        assert found.info.loss.dtype == torch.float32
        torch.testing.assert_close(found.info.loss, wide.info.loss, rtol=20 * TOLERANCES[dtype].value, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@case_of_each_method
def test_weights_of_half_types(case: Case, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    # On a GPU each method with one type: another is another kernel of the same lines.
    dtype = sized(dtype, gpu=torch.float16 if case.method == "kmeans" else torch.bfloat16)
    x, k, weight, _ = make(22, 2, 14, 5, 5, weighted=True)
    weight = weight.to(dtype)
    found = pool(case, x, k, weight, backend=backend, device=device)
    wide = pool(case, x, k, weight.float(), backend=backend, device=device)
    assert torch.equal(found.label, wide.label)
    assert_values(found.tokens, wide.tokens)
    # Another kernel on a GPU.
    assert torch.equal(found.tokens, wide.tokens) or (CUDA and backend == "triton")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@case_of_each_method
def test_strides_do_not_count(case: Case, layout: str, backend: str, device: torch.device) -> None:
    # Rows of 16 bytes: a token further on is another token, not another kernel. A copy to a device has its own strides.
    x, k, weight, mask = make(23, 3, 13, sized(5, gpu=4), 5, weighted=True, masked=True)
    x, weight, mask = x.to(device), weight.to(device), mask.to(device)
    strided = laid_out(x, layout)
    assert strided.stride() != x.stride()
    wide = torch.stack([weight, weight], 2)[..., 0]
    turned = mask.mT.contiguous().mT
    plain = pool(case, x, k, weight, mask, backend=backend, device=device)
    found = pool(case, strided, k, wide, turned, backend=backend, device=device)
    assert torch.equal(found.label, plain.label)
    assert_values(found.tokens, plain.tokens)


@each_case
def test_prefix_tokens_pass_through(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(24, 2, sized(14, gpu=15), sized(5, gpu=4), 5, weighted=True)
    layer = TokenPool(k, case.method, init=case.init, num_prefix_tokens=2, backend=backend)
    tokens, info = layer(x.to(device), weight.to(device), return_info=True)
    alone = TokenPool(k, case.method, init=case.init, num_prefix_tokens=0, backend=backend)
    patches, alone_info = alone(x[:, 2:].to(device), weight[:, 2:].to(device), return_info=True)
    assert torch.equal(tokens[:, :2].cpu(), x[:, :2]) and torch.equal(tokens[:, 2:], patches)
    label = alone_info.assignment
    assert info.assignment[:, :2].tolist() == [[0, 1], [0, 1]]
    assert torch.equal(info.assignment[:, 2:], torch.where(label < 0, -1, label + 2))


@each_case
def test_runs_repeat_to_the_last_bit(
    case: Case, backend: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    """Whatever stood in the buffers before; and the arguments stay as they were."""
    x, k, weight, mask = make(25, 3, sized(17, gpu=15), 5, 6, weighted=True, duplicates=True, masked=True)
    before = x.clone(), weight.clone(), mask.clone()
    for output in ("mean", "medoid"):
        first = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        again = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        assert equal(first, again)
    request.getfixturevalue("poisoned")
    assert equal(first, pool(case, x, k, weight, mask, backend=backend, device=device, output="medoid"))
    assert torch.equal(x.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(weight, before[1]) and torch.equal(mask, before[2])


@each_case
def test_no_random_state_is_touched(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(26, 1, 12, 3, 4, weighted=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
    first = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert bool((np.random.get_state()[1] == states[2]).all())
    assert cuda is None or torch.equal(torch.cuda.get_rng_state(), cuda)
    # And none is read.
    torch.manual_seed(1)
    assert equal(first, pool(case, x, k, weight, backend=backend, device=device))
    torch.set_rng_state(states[0])
