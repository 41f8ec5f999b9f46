"""One run over groups of cases: prints rows as they come and appends them to the device's file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from . import cases, environment, execution, memory, results, rows
from .context import Context
from .errors import Refusal
from .ledger import Ledger
from .providers import providers_of
from .rows import Row
from .runner import Runner, blank_row
from .timing import Budget

REPEATS = {"cpu": 30, "cuda": 100}
QUICK_REPEATS = 3
# Processes that already run on the average; one may be the shell's last command.
BUSY = 0.5


def wants_compile(asked: bool | None, device: str | None) -> bool:
    """Whether `all` begins with the compile gate: as asked, else where there is a GPU, since it takes minutes."""
    return environment.find_device(device).type == "cuda" if asked is None else asked


def results_path(folder: Path, device: torch.device, quick: bool, kind: str = "") -> Path:
    """The device's file of one kind of results."""
    return folder / results.file_name(environment.slug(environment.device_name(device)), quick, kind)


def say_where(device: torch.device, allocator: str, load: float) -> None:
    """What the run is on, and whether it is alone there."""
    threads = torch.get_num_threads()
    print(f"{environment.device_name(device)}, {threads} threads, torch {torch.__version__}, {allocator}")
    if load > BUSY:
        print(f"The machine is busy (load {load:.1f}): times on the CPU will be of that, too.")


@contextmanager
def measuring_on(device: torch.device) -> Iterator[None]:
    """No gradients, and this device the current one."""
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


class Cases:
    """What `execution` needs to know of cases of clustering.

    Args:
        plan: (group, case, providers) of every case.
    """

    def __init__(
        self, plan: Sequence[tuple], device: torch.device, budget: Budget, facts: dict[str, Any], ledger: Ledger
    ) -> None:
        self._plan, self._device, self._budget, self._facts, self.ledger = plan, device, budget, facts, ledger
        self.titles = [f"{group}: {case.name}, {case.shape}, {case.dtype}" for group, case, _ in plan]

    def blanks(self, unit: int) -> list[Row]:
        """A case's rows before anything has run."""
        group, case, everyone = self._plan[unit]
        takers = [provider for provider in everyone if case.method in provider.methods]
        return [blank_row(self._facts, self._device.type, group, case, provider) for provider in takers]

    @contextmanager
    def measuring(self, context: Context) -> Iterator[Callable[[int], object]]:
        """What measures a case, but for the rows that are there."""
        with measuring_on(self._device):
            runner = Runner(self._device, self._budget, self._facts, context)

            def measure(unit: int) -> None:
                group, case, everyone = self._plan[unit]
                there = {row.provider for row in self.blanks(unit) if self.ledger.has(row)}
                runner.run(group, case, [provider for provider in everyone if provider.name not in there])

            yield measure


def measure(groups: Sequence[str], options: argparse.Namespace) -> int:
    """Runs the groups; how many rows were wrong or failed.

    Raises:
        Refusal: an unknown device, no case or provider left, a file of results of another make, or as
            `execution.execute`.
    """
    device = environment.find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = results_path(options.output, device, options.quick)
    if path.exists() and path.stat().st_size:
        # Before the work, not after it.
        rows.check(path)
    plan = _plan(groups, device.type, options)
    budget = Budget(options.repeats or (QUICK_REPEATS if options.quick else REPEATS[device.type]), options.budget)
    allocator = memory.keep_memory() if options.keep_memory else memory.DEFAULT
    facts = {**environment.facts(device), **execution.shared_facts(options)}
    if options.worker is None:
        say_where(device, allocator, facts["load"])
    job = Cases(plan, device, budget, facts, Ledger(rows, path, facts["run"], line))
    return execution.execute(job, options, device.type, facts)


def _plan(groups: Sequence[str], kind: str, options: argparse.Namespace) -> list[tuple]:
    """(group, case, providers) of every case; --case and --provider have to leave something in one group at least."""
    plan, complaints = [], []
    for group in groups:
        try:
            chosen = cases.select(group, kind, small=options.quick, only=options.case)
            everyone = providers_of(group, options.provider)
        except Refusal as error:
            complaints.append(error)
            continue
        plan += [(group, case, everyone) for case in chosen]
    if not plan:
        raise complaints[0]
    return plan


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    if row.status != "ok":
        return f"  {row.provider:<22}  {row.status}"
    parts = [f"p50 {row.p50_ms:9.3f} ms", f"p20 {row.p20_ms:9.3f}", f"p99 {row.p99_ms:9.3f}"]
    if row.graph_p50_ms is not None:
        parts.append(f"graph {row.graph_p50_ms:8.4f}")
    parts += [f"cold {row.cold_ms:8.0f}", f"{row.over_floor:7.2f}x floor", f"{row.peak_mb:8.1f} MB"]
    if row.launches is not None:
        parts.append(f"{row.launches} launches")
    parts.append(f"objective {row.objective_ratio:.4f}")
    if row.note:
        parts.append(row.note)
    return "  ".join([f"  {row.provider:<22}", *parts])
