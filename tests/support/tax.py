"""Problems and rows of the pooling tax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tax import cases as tax_cases
from benchmarks.tax.cases import Problem, Schedule
from benchmarks.tax.rows import TABLE as tax_rows

CPU = torch.device("cpu")
FEW = Schedule("three", 0.5, (1, 3))
PROBLEM = Problem("deit-nano", tax_cases.SCHEDULES["three"], 2, "float32")
TOKENS = (65, 65, 65, 46, 46, 46, 32, 32, 32, 23, 23, 23)


class Changed(nn.Module):
    """A module whose logits a test changes."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.module(images))


def row(**changes: Any) -> tax_rows.row:
    """A row that is ok."""
    values: dict[str, Any] = {
        **dict.fromkeys(("commit", "library", "python", "torch", "triton"), "1"),
        "run": "2031-02-03T04:05:06+00:00", "device": "Box, 2", "runs_on": "cpu", "threads": 1, "load": 0.5,
        "allocator": "memory kept", "model": "deit-s", "schedule": "three", "keep": 0.7, "layers": "3 6 9",
        "tokens": "197 138", "b": 8,
        "dtype": "float32", "mode": "eager", "method": "ward", "status": "ok", "ward_rounds": 5.5, "rounds": 9,
        "p20_ms": 1.0, "p50_ms": 2.0, "p99_ms": 3.0, "cold_ms": 4.0, "peak_mb": 5.0,
        "tax": 0.034, "tax_p20": 0.03, "tax_p80": 0.05, "speedup": 1.25, "speedup_p20": 1.2, "speedup_p80": 1.3,
    }  # fmt: skip
    return tax_rows.row(**{**values, **changes})


def without_times(**changes: Any) -> tax_rows.row:
    return row(**{**dict.fromkeys(tax_rows.row.TIMES), "rounds": 0, **changes})


def broken(module: nn.Module) -> nn.Module:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("it broke")

    return Changed(module, fail)
