"""Nothing that a resident kernel reads or writes is not its own: old memory, canaries, batches, strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.launches import Allocations, Spy, alone, named
from tests.support.marks import DEVICE, FOR_GPU, KERNELS, sized
from tests.support.resident import RESIDENT, RESULTS, Problem, assert_alike, assert_same, each_call, each_call_by_turns
from tests.support.strategies import LAYOUTS, laid_out

pytestmark = KERNELS


@each_call_by_turns
def test_what_buffers_held_before_changes_nothing(call: tuple[str, ...], way: int, launches: list[Spy.Launch]) -> None:
    # More samples than programs: scratch holds the previous sample's numbers, too.
    problem = Problem(5, 19, 5, 6, *call)
    expected = problem.run()
    with Allocations(poison=True) as seen:
        found = problem.run()
    assert seen.sizes
    assert_same(found, expected)
    # The poison was there: some of the scratch is never written.
    assert launches[-1].args["p_room.floats"].isnan().any()
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
    names = {*(f"out.{name}" for name in RESULTS), *(f"p_room.{name}" for name in ("floats", "ints", "centered"))}

    class Guard:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> None:
                # A buffer that stands in for another is the same one.
                rooms: dict[int, tuple[Tensor, Tensor]] = {}
                # out.total comes before out.loss and out.heights, for which it may stand in.
                for name, old in sorted(named(self.kernel, args).items(), reverse=True):
                    if name in names and id(old) not in rooms:
                        room = torch.full((old.numel() + 4096,), 77, dtype=old.dtype, device=old.device)
                        room[: old.numel()] = old.flatten()
                        rooms[id(old)] = old, room
                        watched.append((name, room, old.numel()))

                def instead(value: Any) -> Any:
                    if isinstance(value, tuple):
                        return type(value)(*map(instead, value))
                    return rooms[id(value)][1] if id(value) in rooms else value

                self.kernel[grid](*map(instead, args), **kwargs)
                for old, room in rooms.values():
                    old.view(-1).copy_(room[: old.numel()])

            return call

    for name in RESIDENT:
        monkeypatch.setattr(kernels, name, Guard(getattr(kernels, name)))
    return watched


@each_call_by_turns
def test_nothing_is_written_behind_a_buffer(
    call: tuple[str, ...], way: int, guarded: list[tuple[str, Tensor, int]]
) -> None:
    # Sizes just above and just below those of the tiles.
    for n, d, k in sized(((17, 5, 16), (16, 65, 9)), gpu=((17, 5, 15), (31, 17, 9))):
        problem = Problem(3, n, d, k, *call)
        found = problem.run()
        assert found[2].max() < k
    assert {f"out.{name}" for name in ("tokens", "assignment", "source", "n_iter", "total", "n_clusters")} <= {
        name for name, *_ in guarded
    }
    for name, room, size in guarded:
        assert room[size:].eq(77).all(), name


@each_call
def test_a_sample_is_the_same_in_any_batch(call: tuple[str, ...], launches: list[Spy.Launch]) -> None:
    problem = Problem(5, 19, 5, 6, *call)
    whole = problem.run()
    assert launches[0].grid < (5,)
    tensors = {name: getattr(problem, name) for name in ("x", "weight", "pool_weight", "mask", "start", "counts")}
    for b in (0, 4):
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
