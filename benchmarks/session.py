"""What every run of rows begins with: the device, the file of its results, the budget, and what its rows share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import environment, execution, memory, results
from .ledger import Ledger
from .rows import Table
from .timing import Budget

QUICK_REPEATS = 3
# The load above which a machine counts as busy: the shell's last command may still be in the average.
BUSY = 0.5


class Session(NamedTuple):
    """budget: of a subject's repeats; allocator: as `memory.keep_memory` says; facts: what all rows of the run share;
    ledger: where they go."""

    budget: Budget
    allocator: str
    facts: dict[str, Any]
    ledger: Ledger


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of --device, with the threads of --threads; Refusal as `environment.find_device`."""
    device = environment.find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return device


def begin(
    options: argparse.Namespace,
    device: torch.device,
    table: Table,
    repeats: Mapping[str, int],
    show: Callable[[Any], str],
) -> Session:
    """Begins a run, and says where it is.

    Args:
        options: output, quick, repeats, budget, keep_memory, and those of `execution.add_options`.
        repeats: by kind of device, where options has none.
        show: a row as the terminal shows it.

    Raises:
        Refusal: a file of results of another make.
    """
    path = results_path(options.output, device, options.quick, table.kind)
    if path.exists() and path.stat().st_size:
        # Checked before the work, not after it.
        table.check(path)
    budget = Budget(options.repeats or (QUICK_REPEATS if options.quick else repeats[device.type]), options.budget)
    allocator = memory.keep_memory() if options.keep_memory else memory.DEFAULT
    facts = {**environment.facts(device), **execution.shared_facts(options)}
    if options.worker is None:
        say_where(device, allocator, facts["load"])
    return Session(budget, allocator, facts, Ledger(table, path, facts["run"], show))


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


def wants_compile(asked: bool | None, device: str | None) -> bool:
    """Whether `all` begins with the compile gate: as `asked`, else where there is a GPU, since it takes minutes."""
    return environment.find_device(device).type == "cuda" if asked is None else asked
