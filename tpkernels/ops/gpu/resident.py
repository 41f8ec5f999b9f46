"""Launches of the resident kernels: one for a batch, three where few large samples would leave processors idle.

Triton is imported at the first launch, on the tensor's own device and stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Results, Spec, Tensors, allocate
from . import tuning
from .launch import interpreting, on_device, power_of_two, strides
from .limits import Limits, limits_of
from .resident_tiles import ResidentConfig, resident_config

# Scratch of all resident programs together, for any batch.
SCRATCH_BYTES = 256 << 20
# Up to this width a sample's matrix is small enough that one program makes, clusters and pools it.
ONE_LAUNCH_WIDTH = 256


def precision() -> str:
    """How `tl.dot` takes float32 factors: split in three, since tokens without their mean no longer fit into tf32."""
    return "ieee" if torch.version.hip is not None else "tf32x3"


def config_of(x: Tensor, k: int, method: str, ward: bool = False) -> ResidentConfig:
    """The tuned configuration for x [B, N, D] and K clusters where there is one, else the heuristic.

    Args:
        ward: whether Ward's rounds run, as the method or as the start.
    """
    n = x.shape[1]
    found = tuning.lookup(tuning.resident_key(n, k, x.shape[2], x.dtype, method), x.device)
    if found is not None:
        return ResidentConfig(**found)
    return resident_config(n, k, x.dtype, limits_of(x.device), ward=ward, interpreted=not x.is_cuda)


def programs(batch: int, scratch: int, matrices: int, config: ResidentConfig, limits: Limits) -> int:
    """Programs that take the samples by turns: as many as run at once, and whose matrices stay in the L2 cache.

    Args:
        scratch, matrices: bytes that a program writes in all, and those of them that are N x N.
    """
    most = config.per_processor * limits.processors
    cached = max(limits.processors, limits.l2_bytes // matrices)
    return max(1, min(batch, most, cached, SCRATCH_BYTES // scratch))


def splits(batch: int, n: int, scratch: int, limits: Limits) -> bool:
    """Whether three launches take the batch, so that several programs share a sample."""
    small = batch <= 2 * limits.processors and batch * scratch <= SCRATCH_BYTES
    return power_of_two(n, 16) > ONE_LAUNCH_WIDTH and small


def cluster(tensors: Tensors, spec: Spec) -> Results:
    """`kernels.resident.launch`: the results of `ops.cluster`, for k <= N."""
    from ...kernels.resident import codes

    x, weight, pool_weight, mask, start = tensors
    k, method, init, output, max_iter, _ = spec
    b, n, d = x.shape
    results = allocate(x, spec, totals=True)
    out, source, assignment, found, loss, n_iter, heights, total = results
    if 0 in (b, n):
        n_iter.zero_()
        loss.zero_()
        return results
    # A gathered token is not weighed.
    pool_weight = None if spec.gathers else pool_weight
    flags = None if mask is None else mask.view(torch.uint8)
    ward = spec.runs_ward
    limits, config = limits_of(x.device), config_of(x, k, method, ward)
    half = x.dtype != torch.float32
    width, slots = power_of_two(n, 16), power_of_two(k, 16)
    line = -(-n // 16) * 16
    second = output != "mean" if method == "ward" else init == "ward"
    matrices = (1 + second) * n * line
    floats = 11 * width + 2 * slots + -(-d // 16) * 16 + matrices
    floats += k * line if method == "kmeans" else 0
    floats = -(-floats // 16) * 16
    ints = (11 + max_iter) * width + 5 * slots + 16
    scratch = 4 * (floats + ints)
    split = splits(b, n, scratch, limits)
    count = b if split else programs(b, scratch, 4 * matrices, config, limits)
    room = torch.empty(count * floats, dtype=torch.float32, device=x.device)
    counters = torch.empty(count * ints, dtype=torch.int32, device=x.device)

    fills = (
        x, weight if weight is not None else x, pool_weight if pool_weight is not None else x,
        flags if flags is not None else x, start if start is not None else x,
    )  # fmt: skip
    outs = assignment, source, found, _any(loss, total), n_iter, _any(heights, total), total
    steps = *strides(weight, 2), *strides(pool_weight, 2), *strides(flags, 2), *strides(start, 2)
    tiles = {
        "NP": width, "KP": slots, "T": config.tile, "BD": config.block_d, "MASKED": mask is not None,
        "FACTORS": (codes.FACTORS_EXACT if half else codes.FACTORS_FULL).value, "PRECISION": precision(),
        "WIDEN": interpreting(),
    }  # fmt: skip
    kinds = {
        "METHOD": codes.METHODS[method], "INIT": codes.INITS[init if method != "ward" else "topk"],
        "OUTPUT": codes.OUTPUTS[output], "WEIGHTED": weight is not None, "POOL_WEIGHTED": pool_weight is not None,
        "R": config.rows, "S": config.segment, "P": config.pooled,
    }  # fmt: skip
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if x.is_cuda and config.registers:
        # Without a limit ptxas spills registers to fit one more program per multiprocessor.
        options["maxnreg"] = config.registers
    if x.is_cuda and ward:
        # A fused multiply-add rounds a distance and its mirror image differently, and Ward needs them equal.
        options["enable_fp_fusion"] = False
    sizes = n, d, k, max_iter, line, floats, ints
    with on_device(x):
        if split:
            _three(fills, out, outs, room, counters, sizes, steps, tiles, kinds, options)
        else:
            from ...kernels.resident.launch import resident_kernel

            resident_kernel[(count,)](
                *fills, out, *outs, room, counters, b, *sizes, *x.stride(), *steps, **tiles, **kinds, **options
            )
    return results


def _any(tensor: Tensor, stand_in: Tensor) -> Tensor:
    """A kernel writes what it was asked for and nothing else, but takes a pointer for all."""
    return tensor if tensor.numel() else stand_in


def _three(
    fills: tuple[Tensor, ...], out: Tensor, outs: tuple[Tensor, ...], room: Tensor, counters: Tensor,
    sizes: tuple[int, ...], steps: tuple[int, ...], tiles: dict[str, Any], kinds: dict[str, Any],
    options: dict[str, int],
) -> None:  # fmt: skip
    """The three launches: a program for each tile of the Gram matrices, each sample, each block of channels."""
    from ...kernels.resident.launch import cluster_kernel, gram_kernel, pool_kernel

    x, flags = fills[0], fills[3]
    b = x.shape[0]
    n, d, k, _, line, floats, ints = sizes
    side = -(-n // tiles["T"])
    gram_kernel[(b * side * side,)](
        x, flags, room, counters, n, d, line, floats, ints, *x.stride(), *steps[4:6], **tiles, **options
    )
    cluster_kernel[(b,)](*fills, *outs, room, counters, *sizes, *x.stride(), *steps, **tiles, **kinds, **options)
    pool_kernel[(b * -(-d // kinds["P"]),)](
        x, out, room, counters, n, d, k, floats, ints, *x.stride(),
        **{name: tiles[name] for name in ("NP", "KP", "PRECISION")},
        **{name: kinds[name] for name in ("S", "P", "METHOD", "OUTPUT")}, **options,
    )  # fmt: skip
