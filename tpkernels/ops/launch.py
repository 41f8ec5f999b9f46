"""Launches of the Triton kernels: configurations from shapes and devices, scratch, outputs.

Triton is imported at the first launch, on the tensor's own device and stream.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .samples import prepare
from .starts import start_labels

# What the resident programs may hold together, whatever the batch.
SCRATCH_BYTES = 256 << 20
OUTPUT_CODES = {"center": 0, "mean": 1, "medoid": 2}


def _on_device(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _programs(x: Tensor, floats: int) -> int:
    """Resident programs: two a multiprocessor, and no more than their scratch has room for.

    Off the GPU two, so that tests walk the persistent loop.
    """
    if not x.is_cuda:
        return 2
    most = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    return max(1, min(most, SCRATCH_BYTES // (4 * floats)))


def _precision() -> str:
    """How `tl.dot` takes float32 factors: split in three, since tokens without their mean no longer fit into tf32."""
    return "ieee" if torch.version.hip is not None else "tf32x3"


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())


def _strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    return (0,) * rank if tensor is None else tuple(tensor.stride())


def cluster(
    x: Tensor,
    weight: Tensor | None,
    pool_weight: Tensor | None,
    mask: Tensor | None,
    start: Tensor | None,
    k: int,
    method: str,
    init: str,
    output: str,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One launch of `kernels.resident`; arguments and results are those of `ops.cluster.cluster`."""
    from ..kernels.resident import resident_kernel

    b, n, d = x.shape
    medoids = method == "kmedoids"
    tokens = x.new_empty(b, k, d)
    assignment = torch.empty(b, n, dtype=torch.int64, device=x.device)
    source, n_iter = torch.empty_like(assignment), assignment.new_empty(b)
    has_medoids = medoids or output == "medoid"
    found = assignment.new_empty(b, k if has_medoids else 0)
    loss = torch.empty(b, dtype=torch.float32, device=x.device)
    results = tokens, source, assignment, found, loss if output == "center" else loss[:0].clone(), n_iter
    heights = loss.new_empty(b, 0)
    if 0 in (b, n):
        n_iter.zero_()
        loss.zero_()
        return *results, heights

    # The kernel chooses the paper's start itself.
    labels = None
    if init != "topk":
        labels = start_labels(prepare(x, weight, mask, k), k, init, start).contiguous()
    np2, kp2 = _power_of_two(n, 16), _power_of_two(k, 16)
    tile = min(64 if not x.is_cuda else 32, np2, kp2)
    block_d = 64 if not x.is_cuda else 32
    floats = np2 * np2 + 3 * np2 + kp2 + -(-d // block_d) * block_d + (0 if medoids else kp2 * np2)
    ints = 3 * np2 + 4 * kp2 + (max_iter + 1) * np2
    programs = min(b, _programs(x, floats))
    scratch = torch.empty(programs * floats, dtype=torch.float32, device=x.device)
    counters = torch.empty(programs * ints, dtype=torch.int32, device=x.device)
    flags = None if mask is None else mask.view(torch.uint8)
    with _on_device(x):
        resident_kernel[(programs,)](
            x, weight if weight is not None else x, pool_weight if pool_weight is not None else x,
            flags if flags is not None else x, labels if labels is not None else x,
            tokens, assignment, source, found, loss, n_iter, scratch, counters,
            b, n, d, k, max_iter, floats, ints,
            *x.stride(), *_strides(weight, 2), *_strides(pool_weight, 2), *_strides(flags, 2),
            NP=np2, KP=kp2, T=tile, BD=block_d, MEDOIDS=medoids, OUTPUT=OUTPUT_CODES[output],
            WEIGHTED=weight is not None, POOL_WEIGHTED=pool_weight is not None, MASKED=mask is not None,
            GIVEN=labels is not None, PRECISION=_precision(), num_warps=4,
        )  # fmt: skip
    return *results, heights


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """One launch of `kernels.pooling.cluster_mean_kernel`."""
    from ..kernels.pooling import cluster_mean_kernel

    b, n, d = x.shape
    out = x.new_empty(b, k, d)
    if out.numel() == 0:
        return out
    tile, block_d = 32, 32
    with _on_device(x):
        cluster_mean_kernel[(b * -(-k // tile) * -(-d // block_d),)](
            x, label, weight if weight is not None else x, out, n, d, k,
            *x.stride(), *label.stride(), *_strides(weight, 2),
            T=tile, BD=block_d, WEIGHTED=weight is not None, num_warps=4,
        )  # fmt: skip
    return out


def cluster_mean_backward(
    grad: Tensor, label: Tensor, x: Tensor | None, mean: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One launch of `kernels.pooling.cluster_mean_backward_kernel`."""
    from ..kernels.pooling import cluster_mean_backward_kernel

    b, k, d = grad.shape
    n = label.shape[1]
    wants = x is not None and mean is not None and weight is not None
    grad_x = grad.new_empty(b, n, d)
    grad_weight = grad.new_empty(b, n, dtype=weight.dtype) if wants and weight is not None else grad.new_empty(0)
    if grad_x.numel() == 0:
        return grad_x, grad_weight.zero_()
    tile, block_d = 32, 32
    with _on_device(grad):
        cluster_mean_backward_kernel[(b * -(-n // tile),)](
            grad, label, x if x is not None else grad, mean if mean is not None else grad,
            weight if weight is not None else grad, grad_x, grad_weight, n, d, k,
            *(_strides(x, 3)), *label.stride(), *_strides(weight, 2),
            T=tile, BD=block_d, WEIGHTED=weight is not None, GRAD_WEIGHT=wants, num_warps=4,
        )  # fmt: skip
    return grad_x, grad_weight
