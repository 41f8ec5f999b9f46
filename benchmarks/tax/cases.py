"""Problems of the pooling tax: models, schedules, batches, ways to run, and the methods that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import Refusal

# Blocks 4, 7 and 10 of the paper, counted from 0.
THREE = (3, 6, 9)
BATCHES = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 64, 256)}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
MODELS = ("deit-ti", "deit-s", "deit-b", "deit-fashion")
QUICK_MODELS = ("deit-nano",)
QUICK_BATCHES = (1, 2)
# By the names of the examples' evaluation: Ward is the default, wk-medoids the paper's with its scores.
METHODS = ("ward", "wk-medoids", "kmedoids", "kmeans", "bipartite", "topk")
BASE, SLICING = "base", "slicing"
MODES = ("eager", "compiled", "CUDA graph")


@dataclass(frozen=True)
class Schedule:
    """keep: the share of the patch tokens that each pooling leaves; layers: 0-based blocks, every one where None."""

    name: str
    keep: float
    layers: tuple[int, ...] | None

    @property
    def title(self) -> str:
        """The title in tables, which count blocks from 1."""
        if self.layers is None:
            return f"every block keeps {self.keep}"
        *most, last = (str(layer + 1) for layer in self.layers)
        return f"blocks {', '.join(most)} and {last} keep {self.keep}"


SCHEDULES = {"every": Schedule("every", 0.9, None), "three": Schedule("three", 0.7, THREE)}


@dataclass(frozen=True)
class Problem:
    """One model with one schedule on one batch of images."""

    model: str
    schedule: Schedule
    batch: int
    dtype: str

    @property
    def title(self) -> str:
        """The problem as text."""
        return f"{self.model}, {self.schedule.title}, B={self.batch}, {self.dtype}"


def problems(
    kind: str,
    *,
    small: bool = False,
    models: Sequence[str] | None = None,
    schedules: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
) -> list[Problem]:
    """The problems for a kind of device ("cpu" or "cuda"), small batches of all schedules first.

    Args:
        small: the quick ones.
        models, schedules: names to keep. batches: sizes to take instead of the device's.

    Raises:
        Refusal: an unknown model.
    """
    known = QUICK_MODELS if small else MODELS
    for name in models or ():
        if name not in known:
            raise Refusal(f"--model: expected names of {', '.join(known)}, got {name!r}")
    sizes = batches or (QUICK_BATCHES if small else BATCHES[kind])
    return [
        Problem(model, SCHEDULES[schedule], batch, DTYPES[kind])
        for model in dict.fromkeys(models or known)
        for batch in dict.fromkeys(sizes)
        for schedule in dict.fromkeys(schedules or SCHEDULES)
    ]


def modes(kind: str, batch: int, compiled: bool) -> list[str]:
    """How a problem's models are run: the compiled ones also as a CUDA graph at batch 1, where launching costs most."""
    graph = compiled and kind == "cuda" and batch == 1
    return [MODES[0], *([MODES[1]] if compiled else []), *([MODES[2]] if graph else [])]
