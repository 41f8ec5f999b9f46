"""Checks of public functions' arguments; every message names the argument, what was expected and what was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .names import BACKENDS, INITS, REFINEMENTS, WARD_TOKENS
from .ops.backends import choose_backend, why_not_triton
from .ops.context import may_look

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def tokens(x: Tensor, name: str = "x") -> None:
    """x is a float tensor [B, N, D]."""
    _tensor(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor (float64, float32, float16, bfloat16), got {x.dtype}")
    if x.dim() != 3:
        raise ValueError(f"{name} must have shape [B, N, D], got {_shape(x)}")


def like_tokens(name: str, y: Tensor, x: Tensor) -> None:
    """y is a float tensor [B, M, D] for tokens x [B, N, D]."""
    tokens(y, name)
    if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
        raise ValueError(
            f"{name} must have shape [{x.shape[0]}, M, {x.shape[2]}] to fit x {_shape(x)}, got {_shape(y)}"
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
    _tensor(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if value.shape != x.shape[:2]:
        raise ValueError(f"{name} must have shape {list(x.shape[:2])} to fit x {_shape(x)}, got {_shape(value)}")
    same_device(name, value, x)
    if nonnegative and may_look(value) and bool((value < 0).any()):
        raise ValueError(f"{name} must not be negative, got a least value of {value.nan_to_num().min().item():g}")


def mask(value: Tensor | None, x: Tensor, name: str = "mask", of: str = "x") -> None:
    """value is None or a bool tensor [B, N], True for valid tokens."""
    if value is None:
        return
    _tensor(name, value)
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, True for tokens that are there, got {value.dtype}")
    if value.shape != x.shape[:2]:
        raise ValueError(f"{name} must have shape {list(x.shape[:2])} to fit {of} {_shape(x)}, got {_shape(value)}")
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
    _tensor("assignment", value)
    if value.dtype != torch.int64:
        raise TypeError(f"assignment must be an int64 tensor, got {value.dtype}")
    if not fits:
        raise ValueError(f"assignment must have shape {expected()} to fit {name} {_shape(of)}, got {_shape(value)}")
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


def count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


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


def metric(value: Tensor | None, x: Tensor) -> None:
    """value is None or a float tensor [B, N, M]."""
    if value is None:
        return
    tokens(value, "metric")
    if value.shape[:2] != x.shape[:2]:
        raise ValueError(f"metric must have shape [{x.shape[0]}, {x.shape[1]}, M] to fit x, got {_shape(value)}")
    same_device("metric", value, x)


def heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q, k [B, H, N, d] and v [B, H, N, e] are float tensors of one dtype and device."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        _tensor(name, value)
        if value.dtype not in FLOATS:
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.dim() != 4:
            raise ValueError(f"{name} must have shape [B, H, N, d], got {_shape(value)}")
        if value.shape[:3] != q.shape[:3] or (name == "k" and value.shape != q.shape):
            raise ValueError(f"{name} must have the shape of q {_shape(q)}, got {_shape(value)}")
        if value.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {value.dtype}")
        same_device(name, value, q, "q")
    if q.shape[1] < 1:
        raise ValueError(f"q must have at least one head, got {_shape(q)}")


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


def resolve_init(init: str | Tensor, n: int) -> str:
    """The start that `init` means for n tokens: "auto" is Ward up to 4,096 tokens, farthest-first above."""
    if isinstance(init, Tensor):
        return "given"
    one_of("init", init, INITS)
    return init if init != "auto" else "ward" if n <= WARD_TOKENS else "farthest"


def resolve_refine(refine: str | None, n: int) -> bool:
    """Whether K-Medoids of n tokens is refined by swaps."""
    if refine is None:
        return False
    one_of("refine", refine, REFINEMENTS)
    if n > WARD_TOKENS:
        raise ValueError(f'refine="swap" takes up to {WARD_TOKENS} tokens a sample, got {n}')
    return True


def ward_fits(n: int) -> None:
    """Raises ValueError where N tokens are too many for Ward's N x N costs."""
    if n > WARD_TOKENS:
        raise ValueError(
            f'Ward takes up to {WARD_TOKENS} tokens a sample, got {n}; use kmeans or kmedoids with init="farthest", '
            f'"topk" or "strided"'
        )


def init_indices(value: Tensor, x: Tensor, k: int, valid: Tensor | None) -> None:
    """value is an integer tensor [K] or [B, K] of distinct valid tokens; values are checked on the CPU only."""
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"init indices must be an int64 or int32 tensor, got {value.dtype}")
    b, n = x.shape[:2]
    k = min(k, n)
    if value.shape not in ((k,), (b, k)):
        raise ValueError(f"init indices must have shape [{k}] or [{b}, {k}], got {_shape(value)}")
    same_device("init", value, x)
    if not may_look(value) or value.numel() == 0:
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= n:
        raise ValueError(f"init indices must lie in 0..{n - 1}, got {low}..{high}")
    ordered = value.sort(dim=-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError("init indices must be distinct within a sample, got a duplicate")
    if valid is not None:
        named = valid.gather(1, value.long().expand(b, k))
        if not bool((named | (valid.sum(1, keepdim=True) <= k)).all()):
            raise ValueError("init indices must name tokens that mask keeps, got a masked one")


def backend(value: str, x: Tensor, method: str) -> str:
    """The backend that runs the call.

    Raises:
        ValueError: an unknown name.
        RuntimeError: `"triton"` cannot run the call; the message says why.
    """
    one_of("backend", value, BACKENDS)
    device, dtype, n, d = x.device, x.dtype, x.shape[1], x.shape[2]
    if value == "auto":
        return choose_backend(device, dtype, d, n, method)
    if value == "triton":
        reason = why_not_triton(device, dtype, d, n, method)
        if reason is not None:
            raise RuntimeError(f'backend="triton" cannot take this call: {reason}')
    return value
