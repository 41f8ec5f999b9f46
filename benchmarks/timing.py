"""Wall-clock times and peak memory of calls, providers taking turns in one process."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

# A slow provider is timed at least so often, whatever the budget.
LEAST = 3
# Libraries' threads go on spinning after a call: OpenBLAS' for 110 ms, others for less.
SETTLE_SECONDS = 0.15


@dataclass
class Budget:
    """repeats: rounds at most; seconds: of one provider in one case, after which it sits out."""

    repeats: int = 30
    seconds: float = 2.0


@dataclass
class Timed:
    """A call under test and what it took: ms of each repeat."""

    call: Callable[[int], object]
    ms: list[float] = field(default_factory=list)

    def wants_more(self, budget: Budget) -> bool:
        """Whether it takes part in the next round."""
        spent = sum(self.ms) / 1e3
        return len(self.ms) < budget.repeats and (spent < budget.seconds or len(self.ms) < min(LEAST, budget.repeats))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies, linear between neighbours.

    Raises:
        ValueError: no values, or a share outside 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"expected values and a share in [0, 1], got {len(values)} values and {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def wall_ms(call: Callable[[], object], wait: Callable[[], object] | None = None) -> float:
    """Milliseconds of one call; wait: for what it left running."""
    begin = time.perf_counter()
    call()
    if wait is not None:
        wait()
    return 1e3 * (time.perf_counter() - begin)


def settled_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call that follows another of its kind.

    The one before it was another provider's, whose threads may still spin on the cores and whose data fill the caches.
    """
    time.sleep(SETTLE_SECONDS)
    call()
    return wall_ms(call)


def alternate(entries: Sequence[Timed], budget: Budget, measure: Callable[[Callable[[], object]], float]) -> None:
    """Runs the entries by turns until each has its repeats or has spent its seconds.

    What disturbs the machine for a while then disturbs all of them. The place in a round rotates, since the one before
    decides what is in the caches.
    """
    turn = 0
    while any(entry.wants_more(budget) for entry in entries):
        for place in range(len(entries)):
            entry = entries[(place + turn) % len(entries)]
            if entry.wants_more(budget):
                entry.ms.append(measure(functools.partial(entry.call, turn)))
        turn += 1


def peak_cpu_mb(call: Callable[[], object]) -> float:
    """The most that one call holds beyond what was there before, in MB (10^6 bytes).

    Tensors as torch's profiler sees them come and go, plus NumPy's arrays as tracemalloc does; the two highs may not
    coincide, so this is an upper bound. What compiled code takes from malloc itself (numba, Rust) is not seen.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
        # Its first use in a process loads modules, whose memory is not the call's.
        pass
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = highest = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        held += change
        highest = max(highest, held)
    return (highest + arrays) / 1e6


def dtype_bytes(name: str) -> int:
    """Bytes of one element of a dtype by its name."""
    return getattr(torch, name).itemsize
