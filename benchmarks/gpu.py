"""Times, launches and memory on CUDA: events on cold caches, captured graphs, the profiler's count of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tpkernels.ops.gpu.limits import limits_of

from .timing import Budget, Timed, alternate

# Sets of inputs that calls rotate over; calls that one captured graph holds, and what they should take together, ms.
MOST_SETS = 64
GRAPH_CALLS = 16
GRAPH_MS = 20.0
WARM_UP = 3
Call = Callable[[], object]


def input_sets(device: torch.device, bytes_of_one: int) -> int:
    """How many sets of inputs exceed the second-level cache together, 2 at least; the flush does the rest."""
    return max(2, min(MOST_SETS, limits_of(device).l2_bytes // max(1, bytes_of_one) + 2))


class Stopwatch:
    """Times calls by events after the second-level cache has been overwritten and the device stands still.

    The device waits for the host from the first launch on, so that launch cost is in these times; `graph_ms` leaves it
    out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Twice the cache: whatever its policy, nothing of the inputs stays.
        self._flush = torch.empty(2 * limits_of(device).l2_bytes, dtype=torch.uint8, device=device)

    def event_ms(self, call: Call) -> float:
        """Milliseconds between events right before and right after one call."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize(self.device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def graph_ms(self, calls: Sequence[Call], budget: Budget) -> list[float]:
        """Milliseconds a call without launch cost: a graph holds calls on several sets of inputs, a replay is one time.

        Raises:
            RuntimeError: a call cannot be captured (it waits for the host, or allocates in a way graphs cannot hold).
        """
        one = min(self.event_ms(calls[0]) for _ in range(WARM_UP))
        calls = calls[: max(1, min(GRAPH_CALLS, round(GRAPH_MS / one)))]
        graph = capture(self.device, calls[0], lambda: [call() for call in calls])
        graph.replay()
        replays = Timed(lambda turn: graph.replay())
        alternate([replays], budget, self.event_ms)
        graph.reset()
        return [ms / len(calls) for ms in replays.ms]


def capture(device: torch.device, warm_up: Call, record: Call) -> torch.cuda.CUDAGraph:
    """A graph of what `record` launches, after a first call on a stream of its own: graphs cannot hold its work."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        warm_up()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        record()
    return graph


def count_launches(call: Call, device: torch.device) -> int:
    """Kernels that one call runs on the device, as torch's profiler counts them; copies and fills are not kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    return sum(
        event.device_type == DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
        for event in profiler.events()
    )


def peak_mb(call: Call, device: torch.device) -> float:
    """The most that one call holds on the device beyond what was there before, in MB (10^6 bytes)."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def bandwidth_gbs(device: torch.device) -> float:
    """Measured GB/s of device memory: a copy of 1 GiB (less where memory is short), read and written."""
    free, _ = torch.cuda.mem_get_info(device)
    size = min(1 << 30, free // 4)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    watch = Stopwatch(device)
    for _ in range(WARM_UP):
        target.copy_(source)
    best = min(watch.event_ms(lambda: target.copy_(source)) for _ in range(10))
    return 2 * size / best / 1e6
