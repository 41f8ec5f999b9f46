"""Tensors by their shape, dtype and device, and by their values where those may be looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.context import may_look
from .values import count

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape, for messages."""
    return str(list(tensor.shape))


def is_tensor(name: str, value: object) -> None:
    """value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def tokens(x: Tensor, name: str = "x") -> None:
    """x is a float tensor [B, N, D]."""
    is_tensor(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor (float64, float32, float16, bfloat16), got {x.dtype}")
    if x.dim() != 3:
        raise ValueError(f"{name} must have shape [B, N, D], got {shape_of(x)}")


def like_tokens(name: str, y: Tensor, x: Tensor) -> None:
    """y is a float tensor [B, M, D] for tokens x [B, N, D]."""
    tokens(y, name)
    if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
        raise ValueError(
            f"{name} must have shape [{x.shape[0]}, M, {x.shape[2]}] to fit x {shape_of(x)}, got {shape_of(y)}"
        )
    same_device(name, y, x)


def same_device(name: str, value: Tensor, x: Tensor, of: str = "x") -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of {of}, {x.device}, got {value.device}")


def per_token(name: str, value: Tensor | None, x: Tensor, *, nonnegative: bool = True) -> None:
    """value is None or a float tensor [B, N]; negative entries are found on the CPU and outside the compiler only.

    Elsewhere the check would synchronise with the device.
    """
    if value is None:
        return
    is_tensor(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if value.shape != x.shape[:2]:
        raise ValueError(f"{name} must have shape {list(x.shape[:2])} to fit x {shape_of(x)}, got {shape_of(value)}")
    same_device(name, value, x)
    if nonnegative and may_look(value) and bool((value < 0).any()):
        raise ValueError(f"{name} must not be negative, got a least value of {value.nan_to_num().min().item():g}")


def mask(value: Tensor | None, x: Tensor, name: str = "mask", of: str = "x") -> None:
    """value is None or a bool tensor [B, N], True for valid tokens."""
    if value is None:
        return
    is_tensor(name, value)
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, True for tokens that are there, got {value.dtype}")
    if value.shape != x.shape[:2]:
        raise ValueError(f"{name} must have shape {list(x.shape[:2])} to fit {of} {shape_of(x)}, got {shape_of(value)}")
    same_device(name, value, x)


def labels(value: Tensor, x: Tensor) -> None:
    """value is an int64 tensor [B, N]."""
    _labels(value, isinstance(value, Tensor) and value.shape == x.shape[:2], lambda: list(x.shape[:2]), "x", x)


def labels_over(value: Tensor, y: Tensor) -> None:
    """value is an int64 tensor [B, N] that points into y [B, K, D]."""
    fits = isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == y.shape[0]
    _labels(value, fits, lambda: f"[{y.shape[0]}, N]", "y", y)


def _labels(value: Tensor, fits: bool, expected: Callable[[], object], name: str, of: Tensor) -> None:
    # Words for the error alone: writing a size out would make it a constant of a trace.
    is_tensor("assignment", value)
    if value.dtype != torch.int64:
        raise TypeError(f"assignment must be an int64 tensor, got {value.dtype}")
    if not fits:
        raise ValueError(f"assignment must have shape {expected()} to fit {name} {shape_of(of)}, got {shape_of(value)}")
    same_device("assignment", value, of, name)


def label_range(value: Tensor, k: int) -> None:
    """Entries of an assignment lie in -1..k-1; checked on the CPU and outside the compiler only."""
    if not may_look(value) or value.numel() == 0:
        return
    low, high = int(value.min()), int(value.max())
    if low < -1 or high >= k:
        raise ValueError(f"assignment must lie in -1..{k - 1} (-1: no cluster), got {low}..{high}")


def clusters(x: Tensor, assignment: Tensor, k: int, weight: Tensor | None) -> None:
    """assignment [B, N] names k clusters of tokens x [B, N, D], whose weights are None or [B, N]."""
    tokens(x)
    labels(assignment, x)
    count("k", k, 1)
    label_range(assignment, k)
    per_token("weight", weight, x)


def centers(x: Tensor, value: Tensor, valid: Tensor | None, center_valid: Tensor | None) -> None:
    """value [B, K, D] are centers for tokens x [B, N, D], with masks [B, N] and [B, K] or None."""
    tokens(x)
    like_tokens("centers", value, x)
    count("the number of centers", value.shape[1], 1)
    mask(valid, x)
    mask(center_valid, value, "center_mask", "centers")


def metric(value: Tensor | None, x: Tensor) -> None:
    """value is None or a float tensor [B, N, M]."""
    if value is None:
        return
    tokens(value, "metric")
    if value.shape[:2] != x.shape[:2]:
        raise ValueError(f"metric must have shape [{x.shape[0]}, {x.shape[1]}, M] to fit x, got {shape_of(value)}")
    same_device("metric", value, x)


def heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q, k [B, H, N, d] and v [B, H, N, e] are float tensors of one dtype and device."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        is_tensor(name, value)
        if value.dtype not in FLOATS:
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.dim() != 4:
            raise ValueError(f"{name} must have shape [B, H, N, d], got {shape_of(value)}")
        if value.shape[:3] != q.shape[:3] or (name == "k" and value.shape != q.shape):
            raise ValueError(f"{name} must have the shape of q {shape_of(q)}, got {shape_of(value)}")
        if value.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {value.dtype}")
        same_device(name, value, q, "q")
    if q.shape[1] < 1:
        raise ValueError(f"q must have at least one head, got {shape_of(q)}")
