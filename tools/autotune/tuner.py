"""Measures one case with every configuration: the gate, times by turns, then the best against the heuristic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tpkernels
from benchmarks import gpu, timing
from benchmarks.clustering.cases import Case
from benchmarks.clustering.gate import Gate
from benchmarks.clustering.inputs import Inputs, input_sets
from benchmarks.clustering.providers import Library
from benchmarks.errors import in_words
from benchmarks.timing import Budget, Timed, quantile
from tpkernels.ops.gpu import tuning
from tpkernels.ops.gpu.limits import limits_of
from tpkernels.ops.gpu.resident_tiles import ResidentConfig, candidates, resident_config

# Characters of an error that the table shows.
MOST_LETTERS = 160
Call = Callable[[], object]


@dataclass
class Attempt:
    """A configuration in a case: why_not, where it cannot run, and whether its answer was wrong; cold_s of the first
    call, with compilation; ms, the median of a call; replay, the call that is timed."""

    config: ResidentConfig
    why_not: str | None = None
    wrong: bool = False
    cold_s: float | None = None
    ms: float | None = None
    replay: Call | None = None


@dataclass
class Outcome:
    """What a case gave: attempts, the heuristic one first; best, if one was timed; gain, by how much the heuristic
    takes longer than it (0 where it is the best, infinite where it cannot run)."""

    key: str
    attempts: list[Attempt]
    best: Attempt | None = None
    gain: float = 0.0

    @property
    def red(self) -> bool:
        """Whether the library is at fault: an answer is wrong, or its own configuration does not run."""
        return any(attempt.wrong for attempt in self.attempts) or self.attempts[0].why_not is not None


def key_of(case: Case) -> str:
    """The key under which the case's launch looks up its configuration."""
    return tuning.resident_key(case.n, case.k, case.d, getattr(torch, case.dtype), case.method)


def configs_of(case: Case, device: torch.device) -> list[ResidentConfig]:
    """The configurations to try on the device, the heuristic one first."""
    given = case.n, case.k, getattr(torch, case.dtype), limits_of(device)
    heuristic = resident_config(*given, interpreted=device.type == "cpu")
    return [heuristic, *(config for config in candidates(*given) if config != heuristic)]


class Tuner:
    """Measures cases on one device: a GPU, or the CPU under Triton's interpreter."""

    def __init__(self, device: torch.device, budget: Budget) -> None:
        self.device, self.budget = device, budget
        self._watch = gpu.Stopwatch(device) if device.type == "cuda" else None

    def run(self, case: Case, told: Callable[[Attempt], None] = lambda attempt: None) -> Outcome:
        """Tries every configuration of a case.

        Args:
            told: called with each attempt after its first call, with a first time where it could be captured.
        """
        sets = input_sets(case, self.device, gpu.GRAPH_CALLS)
        calls = [Library("triton").prepare(inputs) for inputs in sets]
        gate = Gate(sets[0])
        outcome = Outcome(key_of(case), [Attempt(config) for config in configs_of(case, self.device)])
        # Graphs are replayed one after the other, so they may share their memory.
        pool = torch.cuda.graph_pool_handle() if self._watch else None
        for attempt in outcome.attempts:
            self._try(attempt, functools.partial(self._first, attempt, outcome.key, calls, gate, pool))
            told(attempt)
        ready = [attempt for attempt in outcome.attempts if attempt.replay is not None]
        for attempt, ms in zip(ready, self._medians(ready), strict=True):
            attempt.ms = ms / len(calls)
        # The best is the fastest that can also run the other kernels of its key.
        for attempt in sorted(ready, key=lambda attempt: attempt.ms or 0):
            self._try(attempt, functools.partial(self._forced, attempt, outcome.key, forms(sets[0], self.device)))
            if attempt.why_not is None:
                outcome.best = attempt
                break
        self._compare(outcome)
        for attempt in ready:
            # Graphs hold memory, which the next case needs.
            attempt.replay = None
        return outcome

    def _try(self, attempt: Attempt, step: Call) -> None:
        """Runs a step; where it raises, the attempt records the error and drops out, and the others go on."""
        try:
            step()
        except Exception as error:
            # Any exception: those of compilers and drivers for what does not fit change with their versions. The wait
            # raises where the device itself is lost, which ends the run.
            self._wait()
            attempt.why_not = in_words(error, MOST_LETTERS)
            attempt.ms = attempt.replay = None

    def _forced(self, attempt: Attempt, key: str, calls: Sequence[Call]) -> None:
        """Runs calls with the attempt's configuration.

        Raises:
            RuntimeError: the launcher looked up another key, so that another configuration ran.
        """
        with tuning.override(key, attempt.config._asdict()) as forced:
            for call in calls:
                before = forced.used
                call()
                if forced.used == before:
                    raise RuntimeError(
                        f"the launcher did not ask for {key}: the resident kernels do not take this case"
                    )
        self._wait()

    def _first(self, attempt: Attempt, key: str, calls: Sequence[Callable[[], Tensor]], gate: Gate, pool: Any) -> None:
        found: list[Tensor] = []
        first = functools.partial(self._forced, attempt, key, [lambda: found.append(calls[0]())])
        attempt.cold_s = timing.wall_ms(first) / 1e3
        weighted = gate.case.weighted
        verdict = gate.check(found[0], weighted=weighted, same_path=True, half_centers=False)
        if verdict.wrong is not None:
            attempt.why_not, attempt.wrong = f"wrong: {verdict.wrong}", True
        elif self._watch is None:
            attempt.replay = functools.partial(self._forced, attempt, key, calls)
        else:
            attempt.replay = self._capture(attempt, key, calls, pool)
            attempt.ms = min(self._watch.event_ms(attempt.replay) for _ in range(gpu.WARM_UP)) / len(calls)

    def _capture(self, attempt: Attempt, key: str, calls: Sequence[Call], pool: Any) -> Call:
        """A graph of the case's calls, replayed: launch cost is not what configurations differ in."""
        graph = torch.cuda.CUDAGraph()
        self._forced(attempt, key, calls)
        with tuning.override(key, attempt.config._asdict()), torch.cuda.graph(graph, pool=pool):
            for call in calls:
                call()
        graph.replay()
        self._wait()
        return graph.replay

    def _medians(self, attempts: list[Attempt]) -> list[float]:
        """The median milliseconds of each one's replay, by turns."""
        timed = [Timed(functools.partial(_replay, attempt)) for attempt in attempts]
        timing.alternate(timed, self.budget, self._watch.event_ms if self._watch else timing.wall_ms)
        return [quantile(times.ms, 0.5) for times in timed]

    def _compare(self, outcome: Outcome) -> None:
        """Times the best and the heuristic once more, since the least of many medians is partly luck."""
        heuristic, best = outcome.attempts[0], outcome.best
        if best is None or best is heuristic:
            return
        if heuristic.replay is None:
            outcome.gain = float("inf")
            return
        base, least = self._medians([heuristic, best])
        outcome.gain = base / least - 1

    def _wait(self) -> None:
        if self._watch is not None:
            torch.cuda.synchronize(self.device)


def _replay(attempt: Attempt, turn: int) -> object:
    if attempt.replay is None:
        raise RuntimeError(f"expected a configuration that was measured, got one that was not: {attempt.why_not}")
    return attempt.replay()


def forms(inputs: Inputs, device: torch.device) -> list[Call]:
    """Calls that share the case's key and compile to other kernels: masks, weights, other starts and outputs.

    They have more samples than several programs would share, so that each takes one launch.
    """
    case, samples = inputs.case, 2 * limits_of(device).processors + 1
    x = inputs.x[:1].expand(samples, -1, -1)
    weight = torch.ones(samples, case.n, device=device)
    mask = torch.arange(case.n, device=device).expand(samples, -1) != case.n // 2
    more: dict[str, Any] = {"mask": mask, "backend": "triton"}
    pool = functools.partial(tpkernels.TokenPool, case.k, case.method, num_prefix_tokens=0, backend="triton")
    pools = [pool(output="medoid"), pool(output="mean")]
    calls: list[Call] = [functools.partial(made, x, mask=mask) for made in pools]
    if case.method == "ward":
        return [functools.partial(tpkernels.ward, x, case.k, weight, **more), *calls]
    cluster = tpkernels.kmedoids if case.method == "kmedoids" else tpkernels.kmeans
    starts = ("ward", "farthest", "strided")
    return [functools.partial(cluster, x, case.k, weight, init=init, max_iter=2, **more) for init in starts] + calls
