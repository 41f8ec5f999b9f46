"""Loops that numba compiles for CPUs where it is installed, and the threads that share a batch's samples."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import threads as cpu_threads

# A thread is worth starting for so many numbers: it costs about as long as reading them.
SHARE_ELEMENTS = 1 << 18
# Ranges that samples are parted into for a few threads, a multiple of their number; many threads take one each.
RANGES = 16


@functools.cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def may_look(x: Tensor) -> bool:
    """Whether what is computed may depend on the values of x.

    An accelerator would be waited for; a compiler's trace, or that of a transform of `torch.func`, has no values.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed(x)


def transformed(x: Tensor) -> bool:
    """Whether x stands for a tensor in a transform of `torch.func`, such as vmap and grad."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def takes(x: Tensor) -> bool:
    """Whether compiled loops can take such tensors: they read memory, and know no other types."""
    return x.dtype in (torch.float32, torch.float64) and may_look(x) and available()


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
    import numba

    from .loop_store import store

    dispatcher = numba.njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=allowed)(function)
    store(dispatcher, function)
    return dispatcher


def numpy() -> Any:
    """The module numpy, which is there where numba is."""
    import numpy

    return numpy


def flat(x: Tensor) -> tuple[Tensor, int, int]:
    """x [B, N, D] as the memory that it lies in, with the strides of a sample and of a token; channels lie together."""
    x = x.detach()
    x = x if x.shape[2] == 1 or x.stride(2) == 1 else x.contiguous()
    span = sum((size - 1) * stride for size, stride in zip(x.shape[:2], x.stride()[:2], strict=True)) + x.shape[2]
    return x.as_strided((span if x.numel() else 0,), (1,)), x.stride(0), x.stride(1)


def over_samples(kernel: Callable[..., None], arguments: list[Any], b: int, elements: int) -> None:
    """Calls `kernel(*arguments, first, last)` so that every sample of b lies in one range, on as many threads as torch.

    Args:
        arguments: contiguous tensors, handed over as arrays, and numbers.
        elements: numbers that the call goes through; few are not worth a thread.
    """
    arrays = [one.detach().numpy() if isinstance(one, Tensor) else one for one in arguments]
    threads = max(1, min(torch.get_num_threads(), b, elements // SHARE_ELEMENTS))
    if threads == 1:
        kernel(*arrays, 0, b)
        return
    # Samples take differently long: who is done early takes another range.
    count = min(b, threads * max(1, RANGES // threads))
    cpu_threads.share(
        lambda first, last: kernel(*arrays, first, last), pairwise(b * i // count for i in range(count + 1)), threads
    )
