"""What the launchers promise: one launch, no scratch that grows with the batch, and few variants of a kernel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tpkernels.ops import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"),
        reason="needs Triton with its interpreter or a GPU",
    ),
]
# What makes room or looks at it another way: none of it is work for a device.
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
VIEWS = {"view", "slice", "detach", "alias", "as_strided", "select", "clone", "expand", "t", "transpose"}


class Spy:
    """Stands in for a kernel: counts and keeps its launches, and runs them outside the modes of a test."""

    def __init__(self, kernel: Any, launches: list[Spy.Launch], run: bool) -> None:
        self.kernel, self.launches, self.run = kernel, launches, run

    class Launch:
        def __init__(self, kernel: Any, grid: Any, args: tuple, kwargs: dict) -> None:
            self.name, self.grid, self.kwargs = kernel.__name__, grid, kwargs
            self.args = dict(zip(kernel.arg_names, args, strict=False))

    def __getitem__(self, grid: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            self.launches.append(Spy.Launch(self.kernel, grid, args, kwargs))
            if self.run:
                with _disable_current_modes():
                    self.kernel[grid](*args, **kwargs)

        return call


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every kernel that launch.py launches; without `run` they are only counted."""
    from tpkernels.kernels import pooling, resident

    launches: list[Spy.Launch] = []
    for module, name in (
        (resident, "resident_kernel"),
        (pooling, "cluster_mean_kernel"),
        (pooling, "cluster_mean_backward_kernel"),
    ):
        monkeypatch.setattr(module, name, Spy(getattr(module, name), launches, run))
    return launches


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Spy.Launch]:
    return spy(monkeypatch)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Spy.Launch]:
    return spy(monkeypatch, run=False)


class Allocations(TorchDispatchMode):
    """Keeps the name of every operation and the size in bytes of every allocation; fills new memory where asked."""

    def __init__(self, poison: bool = False) -> None:
        super().__init__()
        self.poison, self.operations, self.sizes = poison, set(), []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations.add(name)
        if name in ALLOCATIONS:
            self.sizes.append(out.untyped_storage().nbytes())
            if self.poison:
                # More than every label, token and iteration here, but near enough not to point out of the process.
                out.fill_(torch.nan if out.is_floating_point() else 97)
        return out


class Problem:
    """Tokens [B, N, D] with weights, masks and a start, and the options of launch.cluster."""

    def __init__(self, b: int, n: int, d: int, k: int, method: str, output: str, *flags: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(b, n, d, generator=generator).to(DEVICE)
        weight = torch.rand(b, n, generator=generator).to(DEVICE)
        self.weight = weight if "weighted" in flags else None
        self.pool_weight = weight + 1 if "pool_weighted" in flags else None
        valid = torch.rand(b, n, generator=generator) < 0.8
        # A sample with fewer tokens than clusters, one without any, and one with a bad number.
        valid[0], valid[1:2] = torch.arange(n) < k // 2, False
        self.mask = valid.to(DEVICE) if "masked" in flags else None
        if "bad" in flags:
            self.x[-1, n // 2, d // 2] = torch.nan
        self.start = None
        if "given" in flags:
            # Tokens that are there come first.
            score = torch.rand(b, n, generator=generator) + (valid if "masked" in flags else 0)
            self.start = score.argsort(1, descending=True)[:, :k].to(DEVICE)
        self.k, self.method, self.output = k, method, output
        self.init = "given" if "given" in flags else "strided" if "strided" in flags else "topk"

    def run(self, max_iter: int = 2) -> tuple[Tensor, ...]:
        return launch.cluster(
            self.x, self.weight, self.pool_weight, self.mask, self.start,
            self.k, self.method, self.init, self.output, max_iter,
        )  # fmt: skip


def programs() -> int:
    """Resident programs of a launch of small samples that has enough of them."""
    return launch._programs(torch.empty(0, device=DEVICE), 1)


CALLS = [
    (method, output, *flags)
    for method in ("kmeans", "kmedoids")
    for output, flags in (
        ("center", ()),
        ("mean", ("weighted", "pool_weighted")),
        ("medoid", ("masked",)),
        ("mean", ("masked", "given", "bad")),
        ("center", ("weighted", "pool_weighted", "masked", "strided", "bad")),
    )
]


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_one_launch_of_one_dimension(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    for b in (1, 2, 300):
        counted.clear()
        Problem(b, 18, 4, 5, *call).run()
        assert [one.name for one in counted] == ["resident_kernel"]
        (grid,) = counted[0].grid
        # Resident programs take sample after sample: no more of them than the device holds.
        assert grid == min(b, programs())


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
@pytest.mark.parametrize("output", ["center", "mean", "medoid"])
def test_nothing_but_the_kernel_runs(method: str, output: str, launches: list[Spy.Launch]) -> None:
    problem = Problem(3, 18, 4, 5, method, output, "weighted", "pool_weighted", "masked")
    with Allocations() as seen:
        problem.run()
    assert [one.name for one in launches] == ["resident_kernel"]
    assert seen.operations <= ALLOCATIONS | VIEWS, seen.operations - ALLOCATIONS - VIEWS
    assert seen.operations & ALLOCATIONS


def test_backward_is_one_launch(launches: list[Spy.Launch]) -> None:
    from tpkernels.ops.cluster import cluster

    x = torch.randn(2, 18, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    size = torch.ones(2, 18, device=DEVICE, requires_grad=True)
    tokens = cluster(x, None, size, None, None, 5, "kmeans", "topk", "mean", 2, "triton")[0]
    assert [one.name for one in launches] == ["resident_kernel"]
    tokens.square().sum().backward()
    assert [one.name for one in launches] == ["resident_kernel", "cluster_mean_backward_kernel"]
    assert x.grad.ne(0).any() and size.grad.ne(0).any()


def test_an_empty_batch_launches_nothing(launches: list[Spy.Launch]) -> None:
    for b, n in ((0, 18), (2, 0)):
        problem = Problem(2, 18, 4, 5, "kmeans", "center")
        problem.x, problem.k = problem.x[:b, :n], min(5, n)
        tokens, _, label, _, loss, n_iter, _ = problem.run()
        assert tokens.shape == (b, problem.k, 4) and label.shape == (b, n)
        assert loss.shape == n_iter.shape == (b,) and loss.eq(0).all() and n_iter.eq(0).all()
    assert not launches


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_memory_that_grows_with_the_batch_is_input_and_output(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    n, d, k = 96, 8, 48
    sizes = {}
    most = programs()
    for factor in (1, 2, 3):
        problem = Problem(factor * most, n, d, k, *call)
        with Allocations() as seen:
            problem.run()
        # The start is chosen before the launch, by torch, except from the highest weights.
        sizes[factor] = seen.sizes
    if problem.init == "topk":
        assert len(sizes[1]) == len(sizes[2]) == len(sizes[3]) > 0
    grown = [after - before for before, after in zip(sizes[1], sizes[2], strict=True)]
    # int64 labels, or tokens, of one more sample for each program: nothing of N x N or N x K.
    assert max(grown) <= most * 8 * max(n, d * k)
    assert max(grown) < most * 4 * n * k
    assert [c - b for b, c in zip(sizes[2], sizes[3], strict=True)] == grown
    # Scratch is there, is more than a sample's N x N, and stands still.
    still = [size for size, growth in zip(sizes[1], grown, strict=True) if growth == 0]
    assert max(still) >= most * 4 * n * n


def constants(launches: list[Spy.Launch]) -> dict[str, Any]:
    """The compile-time arguments of the only launch."""
    (one,) = launches
    found = dict(one.kwargs)
    launches.clear()
    return found


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_sizes_and_strides_of_a_bucket_share_a_variant(method: str, counted: list[Spy.Launch]) -> None:
    def of(b: int = 2, n: int = 64, d: int = 8, k: int = 32, **changes: Any) -> dict[str, Any]:
        problem = Problem(b, n, d, k, method, "mean")
        for name, value in changes.items():
            setattr(problem, name, value)
        problem.run()
        return constants(counted)

    expected = of()
    assert {"NP", "KP", "T", "BD", "MEDOIDS", "OUTPUT", "PRECISION", "num_warps"} <= set(expected)
    assert expected["NP"] == 64 and expected["KP"] == 32
    assert expected["MEDOIDS"] == (method == "kmedoids")
    for n, k in ((33, 17), (64, 17), (33, 32), (49, 31)):
        assert of(n=n, k=k) == expected
    assert of(b=7) == of(d=100) == of(d=1) == expected
    x = torch.randn(2, 65, 9, device=DEVICE)
    for strided in (
        x[:, 1:, 1:],
        x.mT.contiguous().mT[:, 1:, 1:],
        x.expand(2, 65, 9)[:, :64, ::2],
        x[:1].expand(2, -1, -1)[:, 1:],
    ):
        assert of(x=strided) == expected
    # Flags and buckets do make variants: the comparison can fail.
    assert of(n=65) != expected and of(k=33) != expected
    assert of(mask=torch.ones(2, 64, dtype=torch.bool, device=DEVICE)) != expected


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_the_launch_passes_sizes_as_values(method: str, counted: list[Spy.Launch]) -> None:
    Problem(2, 49, 7, 20, method, "mean", "weighted", "masked").run(3)
    (one,) = counted
    assert {name: one.args[name] for name in ("batch", "n", "d", "k", "max_iter")} == {
        "batch": 2,
        "n": 49,
        "d": 7,
        "k": 20,
        "max_iter": 3,
    }
    assert not {"n", "k", "d", "batch", "max_iter"} & set(one.kwargs)
    assert one.kwargs["WEIGHTED"] and one.kwargs["MASKED"] and not one.kwargs["POOL_WEIGHTED"]


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, one, two in zip(
        ("tokens", "source", "assignment", "medoids", "loss", "n_iter", "heights"), found, expected, strict=True
    ):
        assert one.shape == two.shape and one.dtype == two.dtype, name
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True), name


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_what_buffers_held_before_changes_nothing(call: tuple[str, ...], launches: list[Spy.Launch]) -> None:
    # More samples than programs: scratch holds the previous sample's numbers, too.
    problem = Problem(5, 19, 5, 6, *call)
    expected = problem.run()
    with Allocations(poison=True) as seen:
        found = problem.run()
    assert seen.sizes
    assert_same(found, expected)
    # The poison was there: some of the scratch is never written.
    assert launches[-1].args["p_floats"].isnan().any()
    # Labels are in range whatever happened.
    assert found[2].min() >= -1 and found[2].max() < problem.k
    if "bad" not in call:
        assert found[0].isfinite().all()


@pytest.mark.parametrize("output", ["center", "mean", "medoid"])
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_a_wrong_start_reads_no_old_memory(method: str, output: str, launches: list[Spy.Launch]) -> None:
    # On a GPU nobody looks at a caller's indices, since looking would wait: a token twice, and a masked one.
    twice = Problem(3, 19, 5, 5, method, output)
    twice.start = torch.tensor([[3, 3, 7, 9, 1]] * 3, device=DEVICE)
    masked = Problem(3, 19, 5, 5, method, output)
    masked.mask = torch.arange(19, device=DEVICE).expand(3, 19) < 12
    masked.start = torch.tensor([[3, 5, 7, 9, 18]] * 3, device=DEVICE)
    for problem in (twice, masked):
        problem.init = "given"
        expected = problem.run()
        with Allocations(poison=True):
            assert_same(problem.run(), expected)
        assert expected[2].max() < problem.k and expected[0].isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_means_and_their_gradients_write_all_they_return(weighted: bool, launches: list[Spy.Launch]) -> None:
    problem = Problem(2, 37, 35, 34, "kmeans", "mean", "weighted")
    label = torch.randint(-1, 34, (2, 37), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weight = problem.weight if weighted else None
    up = torch.randn(2, 34, 35, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def run() -> tuple[Tensor, ...]:
        mean = launch.cluster_mean(problem.x, label, 34, weight)
        both = (problem.x, mean) if weighted else (None, None)
        return mean, *launch.cluster_mean_backward(up, label, *both, weight)

    expected = run()
    with Allocations(poison=True) as seen:
        found = run()
    assert len(seen.sizes) >= 2 and len(launches) == 4
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two) and one.isfinite().all()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, int]]]:
    """Scratch and outputs of the resident kernel with a canary behind them."""
    from tpkernels.kernels import resident

    kernel, watched = resident.resident_kernel, []
    names = ("p_tokens", "p_assignment", "p_source", "p_medoids", "p_loss", "p_n_iter", "p_floats", "p_ints")

    class Guard:
        def __getitem__(self, grid: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> None:
                given = dict(zip(kernel.arg_names, args, strict=False))
                copies = {}
                for name in names:
                    size = given[name].numel()
                    room = torch.full((size + 4096,), 77, dtype=given[name].dtype, device=given[name].device)
                    copies[name] = room
                    watched.append((room, size))
                kernel[grid](*(copies.get(name, value) for name, value in given.items()), **kwargs)
                for name in names[:6]:
                    given[name].view(-1).copy_(copies[name][: given[name].numel()])

            return call

    monkeypatch.setattr(resident, "resident_kernel", Guard())
    yield watched


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_nothing_is_written_behind_a_buffer(call: tuple[str, ...], guarded: list[tuple[Tensor, int]]) -> None:
    # Sizes just above and just below those of the tiles.
    for n, d, k in ((17, 5, 16), (16, 65, 9)):
        found = Problem(3, n, d, k, *call).run()
        assert found[2].max() < k
    assert len(guarded) == 16
    for room, size in guarded:
        assert room[size:].eq(77).all()
