"""Launches and memory of the streaming kernels; means and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.launches import alone
from tests.support.marks import DEVICE, FOR_GPU, KERNELS
from tests.support.streaming import METHODS, assert_total, spy
from tests.support.tolerances import assert_values
from tpkernels.ops import cluster
from tpkernels.ops.cluster_mean import mean_backward_torch
from tpkernels.ops.eager.means import cluster_mean
from tpkernels.ops.gpu import means, streaming
from tpkernels.ops.gpu.limits import Limits
from tpkernels.ops.problem import Spec, Tensors

pytestmark = KERNELS


class Operations(TorchDispatchMode):
    """Keeps the names of all operations, and the elements and bytes of the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.element_size())
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return out


def counted(method: str, b: int, n: int, d: int, k: int, max_iter: int, launches: list) -> tuple[list, Operations]:
    launches.clear()
    x, weight = torch.zeros(b, n, d, device=DEVICE), torch.ones(b, n, device=DEVICE)
    with Operations() as seen:
        spec = Spec(k, method, "strided", "center", max_iter)
        cluster.run(Tensors(x, weight, weight, weight > 0), spec, streaming.STREAMING)
    return list(launches), seen


@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_is_a_fixed_number_of_launches(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, run=False)
    per_iteration = set()
    for shape in ((1, 300, 5, 7), (3, 1000, 40, 200), (2, 4096, 200, 2048)):
        (two, before), (three, after) = (counted(method, *shape, turns, launches) for turns in (2, 3))
        assert all(len(one.grid) == 1 for one in three)
        names = [one.name for one in three]
        per_iteration.add((len(three) - len(two), len(after.names) - len(before.names), names.count("assign_kernel")))
        # Nothing asks the device what it found.
        assert not {"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero"} & set(after.names)
    assert len(per_iteration) == 1
    ((kernels, operations, assigned),) = per_iteration
    assert kernels == (6 if method == "kmedoids" else 3) and assigned == 4
    assert 0 < operations <= 20


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_of_the_size_of_tokens_and_centers(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, run=False)
    n, d, k = 4096, 16, 1024
    for b in (1, 3):
        _, seen = counted(method, b, n, d, k, 2, launches)
        # Both halves of the tokens are one tensor; a sort's places take 8 bytes.
        assert seen.largest <= 2 * b * n * d < b * n * k
        assert seen.bytes <= b * n * d * 4


def test_backward_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch)
    x, label = torch.randn(2, 70, 5, device=DEVICE), torch.arange(70, device=DEVICE).expand(2, 70) % 9
    weight = torch.rand(2, 70, device=DEVICE)
    mean, total = means.cluster_mean(x, label, 9, weight)
    assert [one.name for one in launches] == ["chunk_mean_kernel", "segment_mean_kernel"]
    launches.clear()
    means.cluster_mean_backward(torch.ones_like(mean), label, x, mean, weight, total)
    assert [one.name for one in launches] == ["cluster_mean_backward_kernel"]


def labels(generator: torch.Generator, b: int, n: int, k: int, kind: str) -> Tensor:
    """Labels with -1 among them: even, one cluster with nearly all of the tokens, or pairs."""
    if kind == "skewed":
        return torch.where(torch.rand(b, n, generator=generator) < 0.9, k // 2, torch.randint(-1, k, (b, n)))
    if kind == "pairs":
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(b)]) // 2 % k
    return torch.randint(-1, k, (b, n), generator=generator)


@pytest.mark.parametrize("weights", [None, "rand", "zeros", "huge"])
@settings(max_examples=3)
@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(["even", "skewed", "pairs"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_means_and_gradients_are_the_twins(seed: int, kind: str, weights: str | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, n, d = 2, 30 + seed, 1 + seed % 40
    k = n // 2 if kind == "pairs" else 1 + seed % 9
    if FOR_GPU:
        # Few kernels: clusters of two or of many, and one width for each type.
        dtype = torch.bfloat16 if weights == "rand" else torch.float32
        n, d = 31 + 4 * (seed % 25), 37 if dtype == torch.float32 else 5
        k = n // 2 if kind == "pairs" else 2 + seed % 2
    label = labels(generator, b, n, k, kind)
    x = torch.randn(b, n, d, generator=generator).to(dtype)
    up = torch.randn(b, k, d, generator=generator).to(dtype)
    weight = None if weights is None else torch.rand(b, n, generator=generator)
    if weights == "zeros":
        weight[:, ::2] = 0
        weight[label == 0] = 0
    if weights == "huge":
        weight *= 1e30
    wants = weight is not None
    mean, total = means.cluster_mean(x.to(DEVICE), label.to(DEVICE), k, weight if weight is None else weight.to(DEVICE))
    assert_values(mean.cpu(), cluster_mean(x.double(), label, k, None if weight is None else weight.double()).to(dtype))
    assert_total(total.cpu(), label, weight)
    # Gradients arrive with any strides, all equal among them.
    up = up.to(DEVICE)
    for grad in (up, up.mT.contiguous().mT, up[:, :1, :1].expand(b, k, d)):
        inputs = (x, mean.cpu(), weight) if wants else (None, None, weight)
        expected = mean_backward_torch(grad.cpu().contiguous(), label, *inputs)
        there = (None if t is None else t.to(DEVICE) for t in (label, *inputs))
        found = means.cluster_mean_backward(grad, *there, total)
        assert_values(found[0].cpu(), expected[0])
        assert found[1].shape == expected[1].shape
        assert_values(
            found[1].cpu() * (1e30 if weights == "huge" else 1), expected[1] * (1e30 if weights == "huge" else 1)
        )


def test_a_bad_number_stays_in_its_cluster(poisoned: None) -> None:
    x = torch.ones(2, 90, 5)
    label = torch.arange(90).expand(2, 90) // 30
    x[0, 47, 2] = torch.nan
    x[1, 3, 4] = torch.inf
    mean, _ = means.cluster_mean(x.to(DEVICE), label.to(DEVICE), 4, None)
    expected = torch.ones(2, 4, 5)
    expected[:, 3] = 0
    expected[0, 1, 2], expected[1, 0, 4] = torch.nan, torch.inf
    assert torch.allclose(mean.cpu(), expected, rtol=1e-6, atol=0, equal_nan=True)


def test_sums_do_not_depend_on_the_batch() -> None:
    """Bit for bit: chunks begin where samples do."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 101, 6, generator=generator), torch.rand(3, 101, generator=generator)
    label = labels(generator, 3, 101, 5, "skewed")
    x, weight, label = x.to(DEVICE), weight.to(DEVICE), label.to(DEVICE)
    whole = means.cluster_mean(x, label, 5, weight)
    for b in range(3):
        one, total = means.cluster_mean(alone(x, b), alone(label, b), 5, alone(weight, b))
        assert torch.equal(one[0], whole[0][b]) and torch.equal(total[0], whole[1][b])


def test_tiles_fit_every_device() -> None:
    for shared, warp in ((64, 64), (64, 32), (99, 32), (163, 32), (227, 32)):
        limits = Limits(100, shared << 10, 4 << 20, warp)
        for d in (1, 17, 64, 65, 128, 129, 768, 2048):
            for n, k in ((16, 1), (1000, 16), (131072, 16384)):
                found = streaming.assign_config(4, n, k, d, limits)
                width, step = streaming.padded_width(d), found["BD"]
                assert width >= d and width % step == 0 and found["HOLD"] == (width == step)
                held = 4 * step * (found["BN"] if found["HOLD"] and shared > 200 else 0)
                assert held + 4 * step * found["BK"] <= shared << 10
                assert min(found["BN"], found["BK"]) >= 16
