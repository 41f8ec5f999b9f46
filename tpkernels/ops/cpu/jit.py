"""Loops that numba compiles, and how they are called: a batch's samples in ranges, shared by torch's threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numba
import torch
from torch import Tensor

from . import threads
from .loop_store import store

# Starting a thread takes about as long as reading this many numbers.
SHARE_ELEMENTS = 1 << 18
# Ranges of samples to share among a few threads, a multiple of their number; many threads take one range each.
RANGES = 16


def jit(function: Callable[..., Any]) -> Any:
    """`function` compiled, to be run by several threads at once.

    Sums may be taken in another order, or the compiler could not use vectors; NaN and infinity keep their meaning.
    numba stores the result beside the file for a function of a module; what stands inside another function it compiles
    anew in every process.
    """
    return _compiled(function, {"reassoc", "nsz", "contract"})


def jit_without_nan(function: Callable[..., Any]) -> Any:
    """`jit` for what is never given NaN: a least of many, or a choice by comparisons, then works on vectors."""
    return _compiled(function, {"reassoc", "nsz", "contract", "nnan"})


def _compiled(function: Callable[..., Any], allowed: set[str]) -> Any:
    dispatcher = numba.njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=allowed)(function)
    store(dispatcher, function)
    return dispatcher


def over_samples(kernel: Callable[..., None], arguments: list[Any], b: int, elements: int) -> None:
    """Calls `kernel(*arguments, first, last)` so that every sample of b lies in one range, on as many threads as torch.

    Args:
        arguments: contiguous tensors without gradient, handed over as arrays, and numbers.
        elements: numbers that the call goes through; few are not worth a thread.
    """
    arrays = [one.numpy() if isinstance(one, Tensor) else one for one in arguments]
    count = max(1, min(torch.get_num_threads(), b, elements // SHARE_ELEMENTS))
    if count == 1:
        kernel(*arrays, 0, b)
        return
    # Samples take differently long: a thread that is done early takes another range.
    ranges = min(b, count * max(1, RANGES // count))
    threads.share(
        lambda first, last: kernel(*arrays, first, last), pairwise(b * i // ranges for i in range(ranges + 1)), count
    )


def over_tokens(kernel: Callable[..., None], x: Tensor, arguments: list[Any]) -> None:
    """`over_samples` of a loop that goes once through tokens x [B, N, D] of any strides.

    The loop gets x as the memory that it lies in, and the strides of a sample and of a token; channels lie together.
    """
    x = x if x.shape[2] == 1 or x.stride(2) == 1 else x.contiguous()
    b, n, d = x.shape
    per_sample, per_token, _ = x.stride()
    span = (b - 1) * per_sample + (n - 1) * per_token + d if x.numel() else 0
    x = x.detach() if x.requires_grad else x
    flat = x.numpy().reshape(-1) if x.is_contiguous() else x.as_strided((span,), (1,))
    over_samples(kernel, [flat, per_sample, per_token, *arguments], b, b * n * d)


def writable(label: Tensor) -> Tensor:
    """A copy of labels, of any strides, for loops to write into."""
    return label.clone(memory_format=torch.contiguous_format)
