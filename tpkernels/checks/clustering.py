"""What a clusterer is asked for: how many clusters, from which start, by which backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..names import BACKENDS, INITS, REFINEMENTS, WARD_TOKENS
from ..ops.backends import choose_backend, why_not_triton
from ..ops.context import may_look, transformed
from .tensors import same_device, shape_of
from .values import count, one_of


def clusters_wanted(
    k: int | Tensor | None, k_max: int | None, x: Tensor, *, by_value: bool = False, most: str | None = "k_max"
) -> tuple[int, Tensor | None]:
    """The most clusters of a sample, and each one's number [B] where those differ from it.

    Args:
        k: an int, an int64 tensor [B], or None beside a cut by value.
        k_max: bounds k; None for the largest k, which is looked at, or all tokens without k.
        by_value: whether values cut too. most: what k_max is called; None where k may be above it, and counts as it.
    """
    if k_max is not None:
        count("k_max", k_max, 1)
    if k is None:
        if not by_value:
            raise ValueError("k must be given, or distance_threshold or max_error; got none of them")
        return x.shape[1] if k_max is None else k_max, None
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
            raise TypeError(f"k must be an int or an int64 tensor [B], got {type(k).__name__}")
        count("k", k, 1)
        if k_max is None:
            return k, None
        if k >= k_max and (most is None or k == k_max):
            return k_max, None
        if k > k_max:
            raise ValueError(f"k must be at most {most}, {k_max}, got {k}")
        return k_max, x.new_full((x.shape[0],), k, dtype=torch.int64)
    _counts(k, x, most, k_max)
    if k_max is not None:
        return k_max, k
    if not torch.compiler.is_compiling() and not transformed(k) and not _capturing(k):
        return (int(k.max()) if len(k) else 1), k
    raise ValueError(
        "k_max must be given where a tensor k cannot be looked at: in torch.compile, torch.func, CUDA graphs"
    )


def _counts(k: Tensor, x: Tensor, most: str | None, k_max: int | None) -> None:
    """k is an int64 tensor [B] of at least 1 and at most k_max; values are checked on the CPU only."""
    if k.dtype != torch.int64:
        raise TypeError(f"k must be an int or an int64 tensor [B], got {k.dtype}")
    if k.shape != x.shape[:1]:
        raise ValueError(f"k must have shape [{x.shape[0]}] to fit x {shape_of(x)}, got {shape_of(k)}")
    same_device("k", k, x)
    if not may_look(k) or k.numel() == 0:
        return
    if int(k.min()) < 1:
        raise ValueError(f"k must be at least 1, got {int(k.min())}")
    if k_max is not None and most is not None and int(k.max()) > k_max:
        raise ValueError(f"k must be at most {most}, {k_max}, got {int(k.max())}")


def _capturing(value: Tensor) -> bool:
    return value.is_cuda and torch.cuda.is_current_stream_capturing()


def cut(
    distance_threshold: float | None, max_error: float | None, *, by_ward: bool, metric: str = "euclidean"
) -> tuple[str, float]:
    """Where Ward's dendrogram is cut, as in `names.CUTS`, and the value.

    Args:
        by_ward: whether there is a dendrogram.
    """
    given = {
        name: value
        for name, value in (("distance_threshold", distance_threshold), ("max_error", max_error))
        if value is not None
    }
    if not given:
        return "count", 0.0
    if len(given) > 1:
        raise ValueError(
            f"distance_threshold and max_error must not both be given, got {distance_threshold!r} and {max_error!r}"
        )
    ((name, value),) = given.items()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
    if not by_ward:
        raise ValueError(f'{name} must be None without Ward, as the method or init="ward", got {value!r}')
    if name == "distance_threshold":
        # Comparisons that NaN fails, and that a compiler which keeps numbers open goes through.
        if not 0 <= value < math.inf:
            raise ValueError(f"distance_threshold must be finite and at least 0, got {value!r}")
        return "distance", float(value)
    if metric != "euclidean":
        raise ValueError(f'max_error must be None with another metric than "euclidean", got {value!r} with {metric!r}')
    if not 0 <= value < 1:
        raise ValueError(f"max_error must lie in [0, 1), got {value!r}")
    return "error", float(value)


def init_indices(value: Tensor, x: Tensor, k: int, valid: Tensor | None, counts: Tensor | None = None) -> None:
    """value is an integer tensor [K] or [B, K] of distinct valid tokens; values are checked on the CPU only.

    Args:
        counts: [B], how many of a sample's indices count; all where None.
    """
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"init indices must be an int64 or int32 tensor, got {value.dtype}")
    b, n = x.shape[:2]
    k = min(k, n)
    if value.shape not in ((k,), (b, k)):
        raise ValueError(f"init indices must have shape [{k}] or [{b}, {k}], got {shape_of(value)}")
    same_device("init", value, x)
    if not may_look(value) or value.numel() == 0:
        return
    if counts is not None:
        value = value.expand(b, k)
        ignored = torch.arange(k) >= counts[:, None]
        low, high = int(value[~ignored].min()), int(value[~ignored].max())
        # Stand-ins that are distinct, and no token's.
        value = torch.where(ignored, -1 - torch.arange(k), value)
    else:
        low, high = int(value.min()), int(value.max())
    if low < 0 or high >= n:
        raise ValueError(f"init indices must lie in 0..{n - 1}, got {low}..{high}")
    ordered = value.sort(dim=-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError("init indices must be distinct within a sample, got a duplicate")
    if valid is not None:
        named = valid.gather(1, value.long().expand(b, k).clamp(min=0)) | (value < 0)
        if not bool((named | (valid.sum(1, keepdim=True) <= (k if counts is None else counts[:, None]))).all()):
            raise ValueError("init indices must name tokens that mask keeps, got a masked one")


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


def backend(value: str, x: Tensor, method: str, metric: str = "euclidean") -> str:
    """The backend that runs the call.

    Raises:
        ValueError: an unknown name.
        RuntimeError: `"triton"` cannot run the call; the message says why.
    """
    one_of("backend", value, BACKENDS)
    device, dtype, n, d = x.device, x.dtype, x.shape[1], x.shape[2]
    if value == "auto":
        return choose_backend(device, dtype, d, n, method, metric)
    if value == "triton":
        reason = why_not_triton(device, dtype, d, n, method, metric)
        if reason is not None:
            raise RuntimeError(f'backend="triton" cannot take this call: {reason}')
    return value
