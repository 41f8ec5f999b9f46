"""What the launcher of the resident kernels promises.

One launch or three, which give the same; no scratch that grows with the batch; few variants of a kernel; nothing read
or written that is not its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from strategies import LAYOUTS, laid_out
from tolerances import assert_same_labels, assert_values, regret_limit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tpkernels.ops.gpu import resident, resident_tiles
from tpkernels.ops.gpu.limits import Limits, limits_of
from tpkernels.ops.problem import Spec, Tensors

pytestmark = KERNELS
# What makes room or looks at it another way: none of it is work for a device.
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
VIEWS = {"view", "slice", "detach", "alias", "as_strided", "select", "expand", "t", "transpose"}


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


RESIDENT = ("resident_kernel", "gram_kernel", "cluster_kernel", "pool_kernel")
RESULTS = ("tokens", "source", "assignment", "medoids", "loss", "n_iter", "heights", "total")
INITS = ("ward", "topk", "farthest", "strided", "given")
# Every method from every start.
PAIRS = [("ward", "ward"), *((method, init) for method in ("kmeans", "kmedoids") for init in INITS)]


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every kernel that a clustering and its gradient launch; without `run` they are only counted."""
    from tpkernels.kernels.resident import launch as kernels
    from tpkernels.kernels.streaming import means_backward

    launches: list[Spy.Launch] = []
    for module, name in (*((kernels, name) for name in RESIDENT), (means_backward, "cluster_mean_backward_kernel")):
        monkeypatch.setattr(module, name, Spy(getattr(module, name), launches, run))
    return launches


# Several tiles of the Gram matrix and blocks of channels.
SMALL = resident_tiles.ResidentConfig(16, 16, 16, 16, 16, 4, 1, 2, 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: SMALL for every test, so that they share kernels, and two programs, so that each takes many samples."""
    if FOR_GPU:
        monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
        monkeypatch.setattr(resident, "programs", lambda batch, *_: min(batch, 2))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, small: None) -> list[Spy.Launch]:
    return spy(monkeypatch)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Spy.Launch]:
    return spy(monkeypatch, run=False)


@pytest.fixture(params=["one", "three"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One launch for a batch of small samples, or three: how many."""
    if request.param == "three":
        monkeypatch.setattr(resident, "splits", lambda *_: True)
    return {"one": 1, "three": 3}[request.param]


NAMES = {1: ["resident_kernel"], 3: ["gram_kernel", "cluster_kernel", "pool_kernel"]}


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
    """Tokens [B, N, D] with weights, masks and a start, and the options of resident.cluster.

    Flags: weighted, pool_weighted, masked, bad (a NaN), half (float16, a channel with an offset and a token that has
    none of it), and a start (topk where none is named).
    """

    def __init__(self, b: int, n: int, d: int, k: int, method: str, output: str, *flags: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(b, n, d, generator=generator)
        if "half" in flags:
            x[..., 0] += 50
            # The pivot is made of the tokens i n // 16 for i in 0..15: for n above 16 one of the others has no offset.
            others = sorted(set(range(n)) - {i * n // 16 for i in range(16)})
            x[0, others[:1], 0] -= 49.97
        self.x = x.to(DEVICE, torch.float16 if "half" in flags else torch.float32)
        weight = torch.rand(b, n, generator=generator).to(DEVICE)
        self.weight = weight if "weighted" in flags else None
        self.pool_weight = weight + 1 if "pool_weighted" in flags else None
        valid = torch.rand(b, n, generator=generator) < 0.8
        # A sample with fewer tokens than clusters, one without any, and one with a bad number.
        valid[0], valid[1:2] = torch.arange(n) < k // 2, False
        self.mask = valid.to(DEVICE) if "masked" in flags else None
        if "bad" in flags:
            self.x[-1, n // 2, d // 2] = torch.nan
        self.init = next((init for init in INITS if init in flags), "ward" if method == "ward" else "topk")
        self.start = None
        if self.init == "given":
            # Tokens that are there come first.
            score = torch.rand(b, n, generator=generator) + (valid if "masked" in flags else 0)
            self.start = score.argsort(1, descending=True)[:, :k].to(DEVICE)
        self.k, self.method, self.output = k, method, output

    def run(self, max_iter: int = 2) -> tuple[Tensor, ...]:
        tensors = Tensors(self.x, self.weight, self.pool_weight, self.mask, self.start)
        return resident.cluster(tensors, Spec(self.k, self.method, self.init, self.output, max_iter))


CALLS = [
    ("ward", "center", "half"),
    ("ward", "center", "weighted", "pool_weighted", "masked"),
    ("ward", "mean", "weighted", "pool_weighted"),
    ("ward", "medoid", "masked", "bad"),
    *(
        (method, output, *flags)
        for method in ("kmeans", "kmedoids")
        for output, flags in (
            ("center", ("half",)),
            ("mean", ("weighted", "pool_weighted", "ward")),
            ("medoid", ("masked", "farthest")),
            ("mean", ("masked", "given", "bad")),
            ("center", ("weighted", "pool_weighted", "masked", "strided", "bad")),
        )
    ),
]
each_call = pytest.mark.parametrize("call", CALLS, ids="-".join)


def test_the_calls_cover_what_there_is() -> None:
    problems = [Problem(1, 18, 4, 5, *call) for call in CALLS]
    assert {(one.method, one.init) for one in problems} == set(PAIRS)
    assert {(one.method, one.output) for one in problems} == {
        (method, output) for method in ("ward", "kmeans", "kmedoids") for output in ("center", "mean", "medoid")
    }


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, one, two in zip(RESULTS, found, expected, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype, name
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True), name


def assert_alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], problem: Problem) -> None:
    """What two kernels make of a problem: the same bits in the interpreter, the same up to ties on a GPU."""
    if not CUDA:
        assert_same(found, expected)
        return
    found, expected = (tuple(result.cpu() for result in results) for results in (found, expected))
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in expected]
    x = problem.x.cpu()
    same = assert_same_labels(found[2], expected[2], x, problem.weight)
    tokens, source, _, medoids, loss, _, heights, total = zip(found, expected, strict=True)
    for one, two in (source, medoids):
        assert torch.equal(one[same], two[same])
    for b in same:
        good = slice(None) if x[b].isfinite().all() else tokens[1][b].isfinite()
        assert torch.equal(tokens[0][b].isfinite(), tokens[1][b].isfinite())
        assert_values(tokens[0][b][good], tokens[1][b][good], of=x[b])
        assert_values(total[0][b], total[1][b])
        if x[b].isfinite().all():
            valid = x[b] if problem.mask is None else x[b][problem.mask[b].cpu()]
            scale = 1.0 if problem.weight is None else float(problem.weight[b].max())
            atol = scale * regret_limit(valid)
            for one, two in (loss, heights):
                if len(one):
                    torch.testing.assert_close(one[b], two[b], rtol=1e-5, atol=atol)


# Launches


@each_call
def test_one_launch_of_one_dimension(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    limits, config = limits_of(DEVICE), resident.config_of(torch.empty(1, 18, 4, device=DEVICE), 5, call[0])
    for b in (1, 2, 3000):
        counted.clear()
        Problem(b, 18, 4, 5, *call).run()
        assert [one.name for one in counted] == ["resident_kernel"]
        (grid,) = counted[0].grid
        # Resident programs take sample after sample: no more of them than the device holds.
        assert grid == min(b, config.per_processor * limits.processors)


def test_three_launches_where_samples_are_few_and_large(counted: list[Spy.Launch]) -> None:
    most, d = 2 * limits_of(DEVICE).processors, sized(70, gpu=700)
    for n, b, expected in ((256, 1, 1), (257, 1, 3), (257, most, 3), (257, most + 1, 1)):
        counted.clear()
        Problem(b, n, d, 12, "kmeans", "mean").run()
        assert [one.name for one in counted] == NAMES[expected]
        if expected == 3:
            gram, cluster, pool = counted
            tiles, blocks = -(-n // gram.kwargs["T"]), -(-d // pool.kwargs["P"])
            assert tiles > 1 and blocks > 1
            # A program for each tile of a Gram matrix, each sample, each block of channels.
            assert (gram.grid, cluster.grid, pool.grid) == ((b * tiles**2,), (b,), (b * blocks,))


def test_the_number_of_launches_can_be_asked() -> None:
    limits = Limits(processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20, warp=32)
    megabyte = 1 << 20
    assert resident.launches(0, 300, megabyte, limits) == resident.launches(4, 0, megabyte, limits) == 0
    assert resident.launches(1, 256, megabyte, limits) == resident.launches(10**6, 256, megabyte, limits) == 1
    assert resident.launches(1, 257, megabyte, limits) == resident.launches(1, 1024, megabyte, limits) == 3
    # Enough samples to give every processor work, or more scratch than there may be.
    assert resident.launches(264, 300, 1024, limits) == 3 and resident.launches(265, 300, 1024, limits) == 1
    assert resident.launches(256, 300, megabyte, limits) == 3 and resident.launches(257, 300, megabyte, limits) == 1
    assert resident.launches(4, 300, megabyte, limits._replace(processors=1)) == 1


@pytest.mark.parametrize(
    ("call", "expected"),
    [(("ward", "mean"), 1), (("ward", "center"), 2), (("kmeans", "mean", "ward"), 2), (("kmeans", "mean"), 1)],
)
def test_all_matrices_of_a_program_count(
    call: tuple[str, ...], expected: int, monkeypatch: pytest.MonkeyPatch, counted: list[Spy.Launch]
) -> None:
    """Ward keeps the Gram matrix beside the one that it overwrites, where something reads it later."""
    found: list[int] = []
    before = resident.programs

    def programs(batch: int, scratch: int, matrices: int, *rest: Any) -> int:
        found.append(matrices)
        return before(batch, scratch, matrices, *rest)

    monkeypatch.setattr(resident, "programs", programs)
    Problem(2, 18, 4, 5, *call).run()
    # 18 tokens, in lines of 32.
    assert found == [expected * 4 * 18 * 32]


def test_resident_programs_stay_within_what_the_device_has() -> None:
    limits = Limits(processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20, warp=32)
    config = resident_tiles.resident_config(196, 98, torch.bfloat16, limits)._replace(per_processor=2)

    def programs(batch: int, scratch: int, matrix: int) -> int:
        return resident.programs(batch, scratch, matrix, config, limits)

    assert programs(5, 1 << 10, 1 << 10) == 5
    assert programs(10**6, 1 << 10, 1 << 10) == 264
    # Matrices stay in the L2 as long as every processor has one, and scratch in all has a bound.
    assert programs(10**6, 1 << 18, 1 << 18) == 200
    assert programs(10**6, 1 << 20, 1 << 20) == 132
    assert programs(10**6, 8 << 20, 4 << 20) == 32 == resident.SCRATCH_BYTES // (8 << 20)
    assert programs(10**6, 1 << 40, 1 << 40) == 1


@each_call
def test_one_launch_and_three_give_the_same(
    call: tuple[str, ...], launches: list[Spy.Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
    problem = Problem(3, sized(35, gpu=19), sized(20, gpu=21), sized(9, gpu=6), *call)
    expected = problem.run()
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    assert_alike(problem.run(), expected, problem)
    assert [one.name for one in launches] == NAMES[1] + NAMES[3]


@pytest.mark.parametrize("output", ["center", "mean", "medoid"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_nothing_but_the_kernels_runs(pair: tuple[str, str], output: str, way: int, counted: list[Spy.Launch]) -> None:
    method, init = pair
    problem = Problem(3, 18, 4, 5, method, output, init, "weighted", "pool_weighted", "masked")
    assert problem.init == init
    with Allocations() as seen:
        problem.run()
    assert [one.name for one in counted] == NAMES[way]
    assert seen.operations <= ALLOCATIONS | VIEWS, seen.operations - ALLOCATIONS - VIEWS
    assert seen.operations & ALLOCATIONS


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_backward_is_one_launch(method: str, way: int, launches: list[Spy.Launch]) -> None:
    cluster = torch.ops.tpkernels.cluster.default
    x = torch.randn(2, 18, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    size = torch.ones(2, 18, device=DEVICE, requires_grad=True)
    weight = sized(None, gpu=size.detach())
    tokens = cluster(x, weight, size, None, None, 5, method, "ward", "mean", 2, "triton")[0]
    assert [one.name for one in launches] == NAMES[way]
    tokens.square().sum().backward()
    assert [one.name for one in launches] == [*NAMES[way], "cluster_mean_backward_kernel"]
    assert x.grad.ne(0).any() and size.grad.ne(0).any()


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_an_empty_batch_launches_nothing(method: str, launches: list[Spy.Launch]) -> None:
    for b, n in ((0, 18), (2, 0)):
        problem = Problem(2, 18, 4, 5, method, "center")
        problem.x, problem.k = problem.x[:b, :n], min(5, n)
        tokens, _, label, _, loss, n_iter, heights, total = problem.run()
        assert tokens.shape == (b, problem.k, 4) and label.shape == (b, n) and total.shape == (b, problem.k)
        assert loss.shape == n_iter.shape == (b,) and loss.eq(0).all() and n_iter.eq(0).all()
        assert heights.shape == (b, max(n - 1, 0) if method == "ward" else 0)
    assert not launches


# Memory


@each_call
def test_memory_that_grows_with_the_batch_is_input_and_output(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    n, d, k = 96, 8, 48
    limits, sizes = limits_of(DEVICE), {}
    most = resident.config_of(torch.empty(1, n, d, device=DEVICE), k, call[0]).per_processor * limits.processors
    for factor in (1, 2, 3):
        problem = Problem(factor * most, n, d, k, *call)
        with Allocations() as seen:
            problem.run()
        sizes[factor] = seen.sizes
    assert [one.grid for one in counted] == [(most,)] * 3
    assert len(sizes[1]) == len(sizes[2]) == len(sizes[3]) > 0
    grown = [after - before for before, after in zip(sizes[1], sizes[2], strict=True)]
    # int64 labels, or tokens, of one more sample for each program: nothing of N x N or N x K.
    assert max(grown) <= most * 8 * max(n, d * k)
    assert max(grown) < most * 4 * n * k
    assert [c - b for b, c in zip(sizes[2], sizes[3], strict=True)] == grown
    # Scratch is there, is more than a sample's N x N and less than four of them, and stands still.
    still = [size for size, growth in zip(sizes[1], grown, strict=True) if growth == 0]
    assert most * 4 * n * n <= sum(still) <= most * 16 * n * n


@each_call
def test_three_launches_take_scratch_for_each_sample(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    n, b = 257, 2
    problem = Problem(b, n, 8, 40, *call)
    with Allocations() as seen:
        problem.run()
    assert [one.name for one in counted] == NAMES[3]
    assert b * 4 * n * n <= max(seen.sizes) <= b * 16 * n * n


# Variants


def constants(launches: list[Spy.Launch]) -> list[dict[str, Any]]:
    """The compile-time arguments of the launches."""
    found = [dict(one.kwargs) for one in launches]
    launches.clear()
    return found


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_sizes_and_strides_of_a_bucket_share_a_variant(method: str, way: int, counted: list[Spy.Launch]) -> None:
    def of(b: int = 2, n: int = 64, d: int = 8, k: int = 32, **changes: Any) -> list[dict[str, Any]]:
        problem = Problem(b, n, d, k, method, "mean")
        for name, value in changes.items():
            setattr(problem, name, value)
        problem.run()
        assert len(counted) == way
        return constants(counted)

    expected = of()
    clustering = expected[way // 2]
    assert {"NP", "KP", "T", "BD", "METHOD", "INIT", "OUTPUT", "FACTORS", "PRECISION", "num_warps"} <= set(clustering)
    assert clustering["NP"] == 64 and clustering["KP"] == 32
    for n, k in ((33, 17), (64, 17), (33, 32), (49, 31)):
        assert of(n=n, k=k) == expected
    assert of(b=7) == of(b=1) == of(d=100) == of(d=1) == expected
    x = torch.randn(2, 65, 9, device=DEVICE)
    for strided in (
        x[:, 1:, 1:],
        x.mT.contiguous().mT[:, 1:, 1:],
        x.expand(2, 65, 9)[:, :64, ::2],
        x[:1].expand(2, -1, -1)[:, 1:],
    ):
        assert of(x=strided) == expected
    # Flags, types and buckets do make variants: the comparison can fail.
    assert of(n=65) != expected and of(k=33) != expected and of(output="center") != expected
    assert of(mask=torch.ones(2, 64, dtype=torch.bool, device=DEVICE)) != expected
    assert of(x=torch.randn(2, 64, 8, device=DEVICE).half()) != expected


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_the_launch_passes_sizes_as_values(method: str, way: int, counted: list[Spy.Launch]) -> None:
    Problem(2, 49, 7, 20, method, "mean", "weighted", "masked").run(3)
    sizes = {"batch": 2, "n": 49, "d": 7, "k": 20, "max_iter": 3}
    seen = set()
    for one in counted:
        for name, value in sizes.items():
            assert one.args.get(name, value) == value
            seen |= {name} & set(one.args)
        assert not {*sizes, "ld", "floats", "ints"} & set(one.kwargs)
    assert seen == set(sizes) - ({"batch"} if way == 3 else set())
    clustering = counted[way // 2].kwargs
    assert clustering["WEIGHTED"] and clustering["MASKED"] and not clustering["POOL_WEIGHTED"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kilobytes", [227, 163, 99, 64, 48])
def test_configurations_fit_the_device(kilobytes: int, dtype: torch.dtype) -> None:
    element = torch.empty(0, dtype=dtype).element_size()
    for warp in (32, 64):
        limits = Limits(processors=20, shared_bytes=kilobytes << 10, l2_bytes=4 << 20, warp=warp)
        for n in (2, 16, 17, 100, 196, 256, 257, 576, 1024):
            found = resident_tiles.candidates(n, max(1, n // 2), dtype, limits)
            assert found[0] == resident_tiles.resident_config(n, max(1, n // 2), dtype, limits)
            assert len(set(found)) == len(found)
            for config in found:
                assert config.shared_bytes(element) * config.per_processor <= limits.shared_bytes
                assert 1 <= config.tile <= max(16, 2 * n) and 1 <= config.num_warps * warp <= 1024
                for size in (config.tile, config.block_d, config.rows, config.segment, config.num_warps):
                    assert size & (size - 1) == 0
            # Within a bucket it is one choice.
            low = n // 2 + 1 if n & (n - 1) == 0 else n
            assert resident_tiles.resident_config(low, max(1, n // 2), dtype, limits) == found[0] or n < 3
    # Less shared memory gives another choice somewhere: the limit is looked at.
    choices = {
        resident_tiles.resident_config(196, 98, torch.float32, Limits(20, size << 10, 4 << 20, 32))
        for size in (227, 20)
    }
    assert len(choices) == 2


# What is read and written


@each_call
def test_what_buffers_held_before_changes_nothing(call: tuple[str, ...], way: int, launches: list[Spy.Launch]) -> None:
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
    # On a GPU nobody looks at a caller's indices, since looking would wait: a token twice, a masked one, none at all.
    twice, masked, nowhere = (Problem(3, 19, 5, 5, method, output, "given") for _ in range(3))
    twice.start = torch.tensor([[3, 3, 7, 9, 1]] * 3, device=DEVICE)
    masked.mask = torch.arange(19, device=DEVICE).expand(3, 19) < 12
    masked.start = torch.tensor([[3, 5, 7, 9, 18]] * 3, device=DEVICE)
    nowhere.start = torch.tensor([[19, -1, 1 << 20, 9, 2]] * 3, device=DEVICE)
    # With a mask it is another kernel, which others compile for the means.
    for problem in (
        (twice, masked, nowhere) if output == "mean" else sized((twice, masked, nowhere), gpu=(twice, nowhere))
    ):
        expected = problem.run()
        with Allocations(poison=True):
            assert_same(problem.run(), expected)
        assert expected[2].max() < problem.k and expected[0].isfinite().all()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, small: None) -> list[tuple[str, Tensor, int]]:
    """Scratch and outputs of the resident kernels with a canary behind them."""
    from tpkernels.kernels.resident import launch as kernels

    watched: list[tuple[str, Tensor, int]] = []
    names = {f"p_{name}" for name in (*RESULTS, "floats", "ints")}

    class Guard:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> None:
                given = dict(zip(self.kernel.arg_names, args, strict=False))
                # A buffer that stands in for another is the same one.
                rooms: dict[int, tuple[Tensor, Tensor]] = {}
                # p_total comes before p_loss and p_heights, for which it may stand in.
                for name in sorted(names & set(given), reverse=True):
                    old = given[name]
                    if id(old) not in rooms:
                        room = torch.full((old.numel() + 4096,), 77, dtype=old.dtype, device=old.device)
                        room[: old.numel()] = old.flatten()
                        rooms[id(old)] = old, room
                        watched.append((name, room, old.numel()))
                    given[name] = rooms[id(old)][1]
                self.kernel[grid](*given.values(), **kwargs)
                for old, room in rooms.values():
                    old.view(-1).copy_(room[: old.numel()])

            return call

    for name in RESIDENT:
        monkeypatch.setattr(kernels, name, Guard(getattr(kernels, name)))
    return watched


@each_call
def test_nothing_is_written_behind_a_buffer(
    call: tuple[str, ...], way: int, guarded: list[tuple[str, Tensor, int]]
) -> None:
    # Sizes just above and just below those of the tiles.
    for n, d, k in sized(((17, 5, 16), (16, 65, 9)), gpu=((17, 5, 15), (31, 17, 9))):
        problem = Problem(3, n, d, k, *call)
        found = problem.run()
        assert found[2].max() < k
    assert {"p_tokens", "p_assignment", "p_source", "p_n_iter", "p_total", "p_floats"} <= {name for name, *_ in guarded}
    for name, room, size in guarded:
        assert room[size:].eq(77).all(), name


def alone(tensor: Tensor, b: int) -> Tensor:
    """One sample of a batch; on a GPU where a whole batch would begin, which is the same kernel's case."""
    part = tensor[b : b + 1]
    return part.clone() if FOR_GPU else part


@each_call
def test_a_sample_is_the_same_in_any_batch(call: tuple[str, ...], launches: list[Spy.Launch]) -> None:
    problem = Problem(5, 19, 5, 6, *call)
    whole = problem.run()
    assert launches[0].grid < (5,)
    tensors = {name: getattr(problem, name) for name in ("x", "weight", "pool_weight", "mask", "start")}
    for b in (0, 2, 4):
        for name, tensor in tensors.items():
            setattr(problem, name, None if tensor is None else alone(tensor, b))
        assert_same(problem.run(), tuple(result[b : b + 1] for result in whole))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_strides_do_not_count(method: str, layout: str, way: int, launches: list[Spy.Launch]) -> None:
    # Rows of 16 bytes: a token further on is another token, not another kernel.
    flags = sized(("mean", "given"), gpu=("center", "strided"))
    problem = Problem(
        2, sized(19, gpu=18), sized(5, gpu=4), 6, method, flags[0], "weighted", "pool_weighted", "masked", *flags[1:]
    )
    expected = problem.run()
    problem.x = laid_out(problem.x, layout)
    for name in ("weight", "pool_weight", "mask", "start"):
        tensor = getattr(problem, name)
        # On a GPU with one of the layouts.
        if tensor is not None and (layout == "every other" or not FOR_GPU):
            # Between its numbers others stand.
            setattr(problem, name, torch.stack([tensor, tensor.flip(1)], -1)[..., 0])
    assert_alike(problem.run(), expected, problem)
    assert not problem.x.is_contiguous()


@pytest.mark.parametrize("far", ["samples", "tokens"])
@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_offsets_beyond_32_bits(method: str, far: str, way: int, launches: list[Spy.Launch]) -> None:
    """Strides fit in 32 bits and offsets do not, in storage of which almost nothing is ever touched."""
    problem = Problem(3, 18, 4, 5, method, sized("mean", gpu="center"), "half")
    expected = problem.run()
    # Of no more sixteens than those of the tokens beside each other.
    odd = sized(0, gpu=1)
    strides = (2**30 + 64 + odd, 4, 1) if far == "samples" else (128 + odd, 2**27 + odd, 1)
    last = 2 * strides[0] + 17 * strides[1] + 3 * strides[2]
    assert last >= 2**31 > max(strides)
    x = torch.empty(last + 1, dtype=torch.float16, device=DEVICE).as_strided((3, 18, 4), strides)
    problem.x = x.copy_(problem.x)
    assert_same(problem.run(), expected)
