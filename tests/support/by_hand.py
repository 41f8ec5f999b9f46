"""Tokens on a line and what is compared with examples worked by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INF = math.inf
INITS = ["ward", "topk", "farthest", "strided"]


def line(*values: float) -> Tensor:
    """Tokens on a line, [N, 1] float64."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def canonical(labels: object) -> list[int]:
    """Labels renumbered by first appearance."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(label), len(seen)) for label in labels]
