"""The steps: what each runs, how long that may take, and the time without which it does not begin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Refusal
from ..rehearsal import rehearsing

# Seconds between the harness's deadline and the kill, in which it ends the case that it has begun.
NOTICE = 12.0
# Seconds of a provider's repeats in one case.
BUDGET = "0.2"
KERNEL = ("--provider", "tpkernels triton", "--no-isolate", "--budget", BUDGET)
SMOKES = ("ward", "kmedoids", "kmeans", "three", "streaming", "means", "attention", "pool")


@dataclass(frozen=True)
class Step:
    """One step of a run.

    commands: what runs side by side, from the run's folder and the seconds that are left; limit: seconds after which
    they are killed; expected: seconds that they should take, without which they do not begin.
    """

    name: str
    commands: Callable[[Path, float], list[list[str]]]
    limit: float
    expected: float


def child(name: str) -> Callable[[Path, float], list[list[str]]]:
    """A step of this package, in a process of its own."""

    def commands(output: Path, seconds: float) -> list[list[str]]:
        return [_benchmarks("device", "--child", name, "--output", str(output), "--deadline", f"{seconds:.1f}")]

    return commands


def _benchmarks(*words: str) -> list[str]:
    return [sys.executable, "-u", "-m", "benchmarks", *words]


def _smokes(output: Path, seconds: float) -> list[list[str]]:
    return [command for name in SMOKES for command in child(f"smoke-{name}")(output, seconds)]


def _harness(group: str, *words: str) -> Callable[[Path, float], list[list[str]]]:
    """A group of the harness, which appends to the repository's kind of CSV."""

    def commands(output: Path, seconds: float) -> list[list[str]]:
        known = ["--output", str(output), "--deadline", f"{max(1.0, seconds - NOTICE):.1f}"]
        small = ["--device", "cpu", "--quick"] if rehearsing() else []
        return [_benchmarks(group, *words, *known, *small)]

    return commands


def _tax(batch: int, *words: str) -> Callable[[Path, float], list[list[str]]]:
    if not rehearsing():
        return _harness("tax", "--model", "deit-s", "--batch", str(batch), "--method", "ward", *words)
    return _harness("tax", "--batch", "1", "--method", "ward", "--repeats", "2", "--no-compile")


def known() -> dict[str, Step]:
    """All steps, in an order that finds most in least time."""
    steps = [
        Step("env", child("env"), 120, 20),
        Step("smoke", _smokes, 120, 40),
        *(
            Step(f"time-{method}", _harness("sweep", "--case", f"{method}{separator}", *KERNEL), 75, 25)
            for method, separator in (("ward", ", "), ("kmedoids", " from "), ("kmeans", " from "))
        ),
        Step("time-attention", child("time-attention"), 60, 15),
        Step("ncu", child("ncu"), 150, 50),
        Step("sanitize", child("sanitize"), 120, 45),
        Step("time-rest", _harness("large", *KERNEL), 75, 30),
        # Three configurations of a method took 23 s beside an H200. There are nine, and the best one's other kernels.
        Step("tune", child("tune"), 540, 300),
        Step("rows", _harness("kernels", "--budget", "0.3", "--provider", "tpkernels"), 180, 110),
        Step("tax", _tax(256, "--repeats", "30", "--budget", "8", "--schedule", "three", "every"), 280, 140),
        Step("batch1", _tax(1, "--repeats", "50", "--budget", "4", "--schedule", "three"), 200, 100),
        Step("tests", child("tests"), 330, 200),
    ]
    return {step.name: step for step in steps}


# What one call of 310 seconds holds; the others are for calls of their own.
FIRST = (
    "env", "smoke", "time-ward", "time-kmedoids", "time-kmeans", "time-attention", "ncu", "sanitize", "time-rest",
)  # fmt: skip


def plan(names: Sequence[str] | None) -> list[Step]:
    """The steps of these names, in their order; those of a first call where none are given.

    Raises:
        Refusal: an unknown name.
    """
    steps = known()
    for name in names or ():
        if name not in steps:
            raise Refusal(f"--steps: expected names of {', '.join(steps)}, got {name!r}")
    return [steps[name] for name in names or FIRST]
