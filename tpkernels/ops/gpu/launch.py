"""What every launcher of a Triton kernel needs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors too."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def on_device(x: Tensor) -> AbstractContextManager:
    """Makes the tensor's device the current one: kernels run on its current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def unfused(x: Tensor) -> dict[str, bool]:
    """Options of kernels whose lanes add up products between them and hand each other the sums."""
    # fma(x, y, round(z w)) is not fma(z, w, round(x y)): lanes that hold copies of one sum differ in its last bit, and
    # store it to one place of shared memory (racecheck: 187 hazards in 700 sums of `cluster_mean_backward_kernel`).
    return {"enable_fp_fusion": False} if x.is_cuda else {}


def strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    """Strides of a tensor, zeros where there is none."""
    return (0,) * rank if tensor is None else tuple(tensor.stride())


def power_of_two(n: int, least: int, most: int | None = None) -> int:
    """The power of two that n fits in, at least one and at most another."""
    width = max(least, 1 << (n - 1).bit_length())
    return width if most is None else min(most, width)
