"""Providers and models that end, hang or break, and with them the harness's command line when it is run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import isolation
from benchmarks.__main__ import main
from benchmarks.clustering import providers
from benchmarks.clustering.inputs import Inputs
from benchmarks.tax import models as tax_models
from benchmarks.tax import runner as tax_runner

# The third call of a provider on the CPU is its first repeat: the gate's and the one for memory come before.
FIRST, REPEAT = 1, 3
# With one repeat, which is made twice, a case has four calls: this one is in the second case.
LATER = 7


def hang() -> None:
    time.sleep(3600)


def fail() -> None:
    raise RuntimeError("it broke")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose() -> None:
    """An index out of range, which ends the process's CUDA context; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.ones(4, device="cuda")[torch.tensor([1 << 40], device="cuda")].sum().item()


class Faulty(providers.Library):
    """The library, whose call of this number does something else before."""

    def __init__(self, name: str, number: int = 0, fault: Callable[[], object] = fail) -> None:
        super().__init__("torch")
        self.name, self.number, self.fault, self.calls = name, number, fault, 0

    def prepare(self, inputs: Inputs) -> Callable[[], Tensor]:
        right = super().prepare(inputs)

        def call() -> Tensor:
            self.calls += 1
            if self.calls == self.number:
                self.fault()
            return right()

        return call


class FaultyModel(nn.Module):
    """A model whose call of this number does something else before."""

    def __init__(self, module: nn.Module, number: int, fault: Callable[[], object]) -> None:
        super().__init__()
        self.module, self.number, self.fault, self.calls = module, number, fault, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.number:
            self.fault()
        return self.module(images)


# --provider picks those that share a text.
PLANTED = (
    Faulty("planted, right"),
    Faulty("planted, aborts", FIRST, os.abort),
    Faulty("planted, exits in a repeat", REPEAT, lambda: os._exit(0)),
    Faulty("planted, hangs", FIRST, hang),
    Faulty("planted, raises", FIRST, fail),
    Faulty("planted, raises in a repeat", REPEAT, fail),
    Faulty("planted too, right"),
    Faulty("killed", LATER, kill),
    Faulty("lost, right"),
    Faulty("lost, loses", FIRST, lose),
    Faulty("lost, right as well"),
)
COMMAND = (sys.executable, "-m", "tests.support.faulty")
MODELS = {"topk": (REPEAT, os.abort), "bipartite": (FIRST, fail), "kmeans": (REPEAT, fail)}


def plant(set_attribute: Callable[[object, str, object], object] = setattr) -> None:
    """Puts them in place of the right ones."""
    right = tax_models.variants

    def variants(*given: object) -> list[tax_models.Variant]:
        found = []
        for one in right(*given):
            module = FaultyModel(one.module, *MODELS[one.name]) if one.name in MODELS else one.module
            found.append(tax_models.Variant(one.name, module, one.blocks, one.tokens))
        return found

    set_attribute(providers, "OWN", PLANTED)
    set_attribute(tax_runner, "variants", variants)


if __name__ == "__main__":
    plant()
    isolation.COMMAND = COMMAND
    raise SystemExit(main())
