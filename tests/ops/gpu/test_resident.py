"""What the launcher of the resident kernels promises: one launch or four, bounded scratch, few variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.launches import ALLOCATIONS, VIEWS, Allocations, Spy
from tests.support.marks import DEVICE, KERNELS, sized
from tests.support.resident import CALLS, NAMES, PAIRS, SMALL, Problem, assert_alike, assert_same, each_call
from tpkernels.ops.gpu import resident, resident_tiles
from tpkernels.ops.gpu.limits import Limits, limits_of

pytestmark = KERNELS


def test_the_calls_cover_what_there_is() -> None:
    problems = [Problem(1, 18, 4, 5, *call) for call in CALLS]
    assert {(one.method, one.init) for one in problems} == set(PAIRS)
    assert {(one.method, one.output) for one in problems} == {
        (method, output) for method in ("ward", "kmeans", "kmedoids") for output in ("center", "mean", "medoid")
    }


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


def test_four_launches_where_samples_are_few_and_large(counted: list[Spy.Launch]) -> None:
    most, d = 2 * limits_of(DEVICE).processors, sized(70, gpu=700)
    for n, b, expected in ((256, 1, 1), (257, 1, 4), (257, most, 4), (257, most + 1, 1)):
        counted.clear()
        Problem(b, n, d, 12, "kmeans", "mean").run()
        assert [one.name for one in counted] == NAMES[expected]
        if expected == 4:
            center, gram, cluster, pool = counted
            tiles, blocks = -(-n // gram.kwargs["T"]), -(-d // pool.kwargs["P"])
            assert tiles > 1 and blocks > 1
            # A program for each block of tokens, tile of a Gram matrix, sample, block of channels.
            assert (center.grid, gram.grid) == ((b * tiles,), (b * tiles**2,))
            assert (cluster.grid, pool.grid) == ((b,), (b * blocks,))


def test_which_batches_take_four_launches() -> None:
    limits = Limits(processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20, warp=32)
    megabyte = 1 << 20
    assert not resident.splits(1, 256, megabyte, limits) and not resident.splits(10**6, 256, megabyte, limits)
    assert resident.splits(1, 257, megabyte, limits) and resident.splits(1, 1024, megabyte, limits)
    # Enough samples to give every processor work, or more scratch than there may be.
    assert resident.splits(264, 300, 1024, limits) and not resident.splits(265, 300, 1024, limits)
    assert resident.splits(192, 300, 2 * megabyte, limits) and not resident.splits(193, 300, 2 * megabyte, limits)
    assert not resident.splits(4, 300, megabyte, limits._replace(processors=1))
    # More than 1,024 tokens are too many for one program, whatever the batch.
    assert resident.splits(1, 1025, 8 * megabyte, limits) and resident.splits(10**6, 4096, 500 * megabyte, limits)


def test_four_launches_take_the_samples_that_have_scratch() -> None:
    room = resident.SCRATCH_BYTES
    assert resident.at_once(1000, room // 1000) == 1000 and resident.at_once(1, 1) == 1
    # As many each time: 2 + 2 + 1, not 3 + 2; 21 + 21, not 41 + 1.
    assert resident.at_once(5, room // 2) == 2 and resident.at_once(42, room // 41) == 21
    assert resident.at_once(5, room) == resident.at_once(5, 2 * room) == 1


def test_ward_of_many_tokens_takes_four_launches_for_some_samples_at_a_time(counted: list[Spy.Launch]) -> None:
    n, d, b = 1030, 8, 60
    with Allocations() as seen:
        Problem(b, n, d, 12, "ward", "center").run()
    assert [one.name for one in counted] == NAMES[4] * 2
    assert [one.args["first_sample"] for one in counted if one.name != "gram_kernel"] == [0] * 3 + [30] * 3
    assert [one.grid for one in counted if one.name == "cluster_kernel"] == [(30,), (30,)]
    # Two matrices a sample, and little else.
    assert 30 * 8 * n * n < max(seen.sizes) <= sum(seen.sizes) < resident.SCRATCH_BYTES


@pytest.mark.parametrize(
    ("one", "two"), [(("ward", "mean"), ("ward", "center")), (("kmeans", "mean"), ("kmeans", "mean", "ward"))]
)
def test_all_matrices_of_a_program_count(one: tuple[str, ...], two: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    """Ward keeps the Gram matrix beside the one that it overwrites, where something reads it later."""
    for call in (one, two):
        Problem(2, 18, 4, 5, *call).run()
    before, after = (launch.args["shape.floats"] for launch in counted)
    # 18 tokens, in lines of 32.
    assert after - before == 18 * 32


def test_resident_programs_stay_within_what_the_device_has() -> None:
    limits = Limits(processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20, warp=32)
    config = resident_tiles.resident_config(196, 98, torch.bfloat16, limits)._replace(per_processor=2)

    def programs(batch: int, scratch: int) -> int:
        return resident.programs(batch, scratch, config, limits)

    assert programs(5, 1 << 10) == 5
    assert programs(10**6, 1 << 10) == 264
    # Scratch in all has a bound, the cache is none.
    assert programs(10**6, 1 << 20) == 264
    assert programs(10**6, 8 << 20) == 48 == resident.SCRATCH_BYTES // (8 << 20)
    assert programs(10**6, 1 << 40) == 1


@each_call
def test_one_launch_and_four_give_the_same(
    call: tuple[str, ...], launches: list[Spy.Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
    problem = Problem(3, 19, sized(20, gpu=21), sized(9, gpu=6), *call)
    expected = problem.run()
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    assert_alike(problem.run(), expected, problem)
    assert [one.name for one in launches] == NAMES[1] + NAMES[4]


@each_call
def test_some_samples_at_a_time_give_the_same(
    call: tuple[str, ...], launches: list[Spy.Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    problem = Problem(3, 19, sized(20, gpu=21), sized(9, gpu=6), *call)
    expected = problem.run()
    monkeypatch.setattr(resident, "at_once", lambda *_: 2)
    assert_same(problem.run(), expected)
    assert [one.name for one in launches] == NAMES[4] * 3


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
        tokens, _, label, _, loss, n_iter, heights, total, n_clusters = problem.run()
        assert tokens.shape == (b, problem.k, 4) and label.shape == (b, n) and total.shape == (b, problem.k)
        assert loss.shape == n_iter.shape == n_clusters.shape == (b,)
        assert loss.eq(0).all() and n_iter.eq(0).all() and n_clusters.eq(0).all()
        assert heights.shape == (b, max(n - 1, 0) if method == "ward" else 0)
    assert not launches


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
def test_four_launches_take_scratch_for_each_sample(call: tuple[str, ...], counted: list[Spy.Launch]) -> None:
    n, b = 257, 2
    problem = Problem(b, n, 8, 40, *call)
    with Allocations() as seen:
        problem.run()
    assert [one.name for one in counted] == NAMES[4]
    assert b * 4 * n * n <= max(seen.sizes) <= b * 16 * n * n


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
    assert {"NP", "KP", "T", "BD", "METHOD", "INIT", "OUTPUT", "HALVES", "PRECISION", "num_warps"} <= set(clustering)
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


def test_ways_of_clustering_share_the_other_three_kernels(
    counted: list[Spy.Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    for call in CALLS:
        Problem(3, 19, 20, 9, *call).run()
    assert len(counted) == 4 * len(CALLS)
    variants = {name: {repr(sorted(one.kwargs.items())) for one in counted if one.name == name} for name in NAMES[4]}
    center, gram, cluster, pool = map(len, variants.values())
    # Half types or float32, the tokens masked or not; what is pooled, weighted or not.
    # Half types of a metric without a mean have their own.
    assert (center, gram, cluster) == (4, 2, len(CALLS)) and pool <= 8
    strides = {one.args["strides.weight_n"] for one in counted if one.name in ("center_kernel", "pool_kernel")}
    assert strides == {0}


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_the_launch_passes_sizes_as_values(method: str, way: int, counted: list[Spy.Launch]) -> None:
    Problem(2, 49, 7, 20, method, "mean", "weighted", "masked").run(3)
    sizes = {"batch": 2, "n": 49, "shape.d": 7, "k": 20, "max_iter": 3}
    seen = set()
    for one in counted:
        for name, value in sizes.items():
            assert one.args.get(name, value) == value
            seen |= {name} & set(one.args)
        assert not {*sizes, "d", "floats", "ints"} & set(one.kwargs)
    assert seen == set(sizes) - ({"batch"} if way == 4 else set())
    clustering = counted[way // 2].kwargs
    assert clustering["WEIGHTED"] and clustering["MASKED"] and not clustering["POOL_WEIGHTED"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kilobytes", [227, 163, 99, 64, 48])
def test_configurations_fit_the_device(kilobytes: int, dtype: torch.dtype) -> None:
    element = torch.empty(0, dtype=dtype).element_size()
    for warp in (32, 64):
        limits = Limits(processors=20, shared_bytes=kilobytes << 10, l2_bytes=4 << 20, warp=warp)
        for n in (2, 16, 17, 100, 196, 256, 257, 576, 1024, 1030, 4096):
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
