"""Numbers, flags and names."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

INT64_MAX = 2**63 - 1


def count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    # PyTorch's operations take no more, and say only that an int is no int. A compiler would guard its own numbers.
    if not torch.compiler.is_compiling() and isinstance(value, int) and value > INT64_MAX:
        raise ValueError(f"{name} must be at most {INT64_MAX}, got {value}")


def integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def grid_size(value: tuple[int, int] | None) -> None:
    """value is None or (rows, columns), both at least 1."""
    if value is None:
        return
    pair = value if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in pair):
        raise ValueError(f"grid_size must be (rows, columns), both at least 1, got {value!r}")


def scale(value: float | None) -> None:
    """value is None or a finite number."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"scale must be a number or None, got {type(value).__name__}")
    # A size that a compiler keeps open makes the scale one of its own numbers, which is an int or float by its class.
    if not torch.compiler.is_compiling() and isinstance(value, (int, float)) and not math.isfinite(value):
        raise ValueError(f"scale must be finite, got {value}")


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
