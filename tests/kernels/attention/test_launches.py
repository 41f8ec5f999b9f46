"""What the attention kernels promise: a sample's own bits, few launches, nothing of N x N."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.attention import RECEIVED, WIDTH, alike, attend, close, draw, gradients, same, sizes_and_mask, spy
from tests.support.launches import Allocations, alone
from tests.support.marks import DEVICE, KERNELS, sized
from tpkernels.ops.gpu import attention
from tpkernels.ops.gpu.limits import limits_of

pytestmark = KERNELS


def test_nan_stays_in_its_sample(regime: str) -> None:
    inputs = draw(3, sized(1, gpu=2), 20, WIDTH)
    alone, grads = attend(*inputs), gradients(attend, inputs, inputs[0])
    for bad in range(3):
        hurt = [t.clone() for t in inputs]
        hurt[bad][1, 0, 5, 2] = math.nan
        out, significance = attend(*hurt)
        assert out[1].isnan().any() and significance[1].isnan().any() == (bad < 2)
        same((out[[0, 2]], significance[[0, 2]]), (alone[0][[0, 2]], alone[1][[0, 2]]))
        for one, two in zip(gradients(attend, hurt, inputs[0]), grads, strict=True):
            same([one[[0, 2]]], [two[[0, 2]]])


def test_a_sample_is_the_same_alone_and_in_a_batch(regime: str) -> None:
    size, mask = sizes_and_mask(4, 20, "sized masked")
    d = sized(6, gpu=5)
    inputs = draw(4, 2, 20, d)
    grad = draw(4, 2, 20, d, seed=4)[0]
    whole = (*attend(*inputs, size, mask), *gradients(lambda *x: attend(*x, size, mask), inputs, grad))
    for b in (0, 3):
        *some, s, m, g = (alone(t, b) for t in (*inputs, size, mask, grad))
        found = (*attend(*some, s, m), *gradients(lambda *x, s=s, m=m: attend(*x, s, m), some, g))
        same(found, [t[b : b + 1] for t in whole])


def test_programs_that_have_all_of_a_head_give_the_same(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, results = draw(2, 2, 70, WIDTH), []
    launches = spy(monkeypatch)
    for programs in (1, 10**6):
        monkeypatch.setattr(attention, "PROGRAMS", programs / limits_of(DEVICE).processors)
        results.append(attend(*inputs))
    # A program for all five blocks of a head, and one for each.
    assert [one.grid for one in launches if one.name == "attend_rows_kernel"] == [(4,), (20,)]
    same(*results)


def test_twice_the_same(regime: str) -> None:
    inputs = draw(2, 2, 20, sized(6, gpu=5))
    same(attend(*inputs), attend(*inputs))
    same(gradients(attend, inputs, inputs[1]), gradients(attend, inputs, inputs[1]))


def test_edges(regime: str) -> None:
    for shape in ((0, 2, 7, 4), (2, 2, 0, 4)):
        inputs = draw(*shape)
        out, significance = attend(*inputs)
        assert out.shape == shape and significance.shape == (shape[0], shape[2])
        assert all(g.shape == shape for g in gradients(attend, inputs, torch.ones_like(out)))
    h = sized(3, gpu=2)
    q, k, v = draw(2, h, 1, 5)
    out, significance = attend(q, k, v)
    alike([out], [v])
    close(significance, torch.full((2, 1), float(h), device=DEVICE), RECEIVED)


def test_launches_are_few_and_of_one_dimension(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, run=False)
    q, k, v = (tensor.requires_grad_() for tensor in draw(3, 2, 40, 4))
    first = ["attend_rows_kernel"] if regime == "rows" else ["attend_stream_kernel"]
    second = [] if regime == "rows" else ["received_kernel"]
    out, significance = attend(q, k, v, need_significance=False)
    assert significance is None
    assert [one.name for one in launches] == first
    launches.clear()
    out, significance = attend(q, k, v)
    assert [one.name for one in launches] == [*first, *second, "sum_parts_kernel"]
    launches.clear()
    out.sum().backward()
    assert [one.name for one in launches] == ["query_gradient_kernel", "key_gradient_kernel"]
    launches.clear()
    attend(*draw(0, 2, 40, 4))
    attend(*draw(2, 2, 0, 4))
    assert not launches
    attend(*draw(70000, 1, 1, 1))
    assert all(len(one.grid) == 1 for one in launches) and len(launches) == len(first) + len(second) + 1


def test_the_significance_is_not_paid_for_where_it_is_not_needed(regime: str) -> None:
    inputs = draw(2, 2, sized(40, gpu=30), WIDTH)
    alike([attend(*inputs, need_significance=False)[0]], [attend(*inputs)[0]])


def test_nothing_of_n_by_n_is_allocated(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy(monkeypatch, run=False)
    b, h, n, d = 2, 3, 256, 8
    q, k, v = draw(b, h, n, d)
    with Allocations() as seen:
        out, _, lse = attention.attend(q, k, v, None, None, 1.0, True)
        attention.attend_backward(out, q, k, v, out, lse, None, None, 1.0)
    # Partial sums of each block of 16 queries are the largest: a sixteenth of N x N.
    assert max(seen.sizes) <= 4 * b * h * n * max(n // 16, d)
    assert sum(seen.sizes) < 4 * b * h * n * n
