"""Fine-tuned: each model by `deit_train.py` in a process of its own; finished runs are not repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from common.arguments import EXAMPLES
from deit.methods import Method
from deit.model import DeiT
from deit.rows import tokens_per_block
from deit.strided import strided_macs
from tqdm import tqdm

import tpkernels

from .points import TUNED, Point

TRAIN = EXAMPLES / "deit_train.py"
BASE, STRIDED = "base", "strided"


@dataclass(frozen=True)
class Job:
    """One run: its folder's name, what it adds to the command, and its point's cost."""

    name: str
    method: str
    label: str
    budget: float | None
    seed: int
    arguments: tuple[str, ...]
    tokens: tuple[int, ...]
    macs: tpkernels.Macs


def jobs(
    model: DeiT, methods: Sequence[Method], budgets: Sequence[float], layers: Sequence[int] | None,
    strided: Sequence[int], seeds: Sequence[int],
) -> list[Job]:  # fmt: skip
    """All runs, seed by seed, so that a stopped sweep has whole seeds; the base model, trained as long, first."""
    base = tpkernels.count_macs(model)
    found = []
    for seed in seeds:
        whole = tuple(row.tokens_out for row in base.per_layer)
        found.append(Job(f"base-{seed}", BASE, "base model", None, seed, (), whole, base))
        for budget in budgets:
            tokens = tokens_per_block(model, None, budget, layers)
            named = () if layers is None else ("--layers", *map(str, layers))
            for method in methods:
                macs = tpkernels.count_macs(model, tokens, method=method.method, init=method.init)
                more = ("--method", method.name, "--budget", f"{budget:g}", *named)
                name = f"{method.name}-{budget:g}-{seed}"
                found.append(Job(name, method.name, method.label, budget, seed, more, tuple(tokens), macs))
        for layer in strided:
            macs, tokens = strided_macs(model, layer)
            label, more = "strided convolution (trained)", ("--strided", str(layer))
            found.append(Job(f"strided-{layer}-{seed}", STRIDED, label, None, seed, more, tuple(tokens), macs))
    return found


def run(work: Sequence[Job], model: str, common: Sequence[str], folder: Path, at_once: int) -> list[Point]:
    """Runs what is not there yet; the points in the order of the jobs.

    Args:
        model: its name in the points.
        common: arguments of `deit_train.py` that all runs share.
        at_once: processes at a time, each with its share of the threads.

    Raises:
        RuntimeError: a run failed; those that finished stay.
    """
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    with ThreadPoolExecutor(at_once) as pool, tqdm(total=len(work), unit="run", desc=TUNED, mininterval=5) as bar:
        pending = [pool.submit(_train, job, common, folder, threads) for job in work]
        try:
            for done in as_completed(pending):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [point_of(job, model, folder) for job in work]


def _train(job: Job, common: Sequence[str], folder: Path, threads: str) -> None:
    output = folder / job.name
    command = ["--output", str(output), "--seed", str(job.seed), *common, *job.arguments]
    note = output / "command.json"
    if note.is_file() and json.loads(note.read_text()) == command and _row(output) is not None:
        return
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "output.txt", "w") as log:
        done = subprocess.run(
            [sys.executable, str(TRAIN), *command], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )  # fmt: skip
    if done.returncode:
        last = (output / "output.txt").read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"{job.name} failed ({' '.join(last)}); its output is in {output / 'output.txt'}")
    note.write_text(json.dumps(command))


def _row(output: Path) -> dict | None:
    """The last line of a run's log, None where there is none with a test."""
    log = output / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    row = json.loads(lines[-1]) if lines else {}
    return row if "test_correct" in row else None


def point_of(job: Job, model: str, folder: Path) -> Point:
    """What a finished run's log says."""
    row = _row(folder / job.name)
    if row is None:
        raise RuntimeError(f"{folder / job.name} holds no finished run")
    return Point(
        TUNED, model, job.method, job.label, job.budget, job.seed, " ".join(map(str, job.tokens)), job.macs.base / 1e9,
        job.macs.total / 1e9, job.macs.clustering / 1e9, row["test_images"], row["test_correct"], None, row["images"],
        row["epoch"], row["images_per_second"],
    )  # fmt: skip
