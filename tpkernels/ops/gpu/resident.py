"""Launches of the resident kernels: one for a batch, four where few large samples would leave processors idle.

Samples of more than 1,024 tokens always take four, as many of them at a time as there is scratch for.

Triton is imported at the first launch, on the tensor's own device and stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Results, Spec, Tensors, allocate
from . import tuning
from .launch import interpreting, on_device, power_of_two, strides
from .limits import SCRATCH_BYTES, Limits, limits_of
from .resident_tiles import ResidentConfig, resident_config

# Up to this width a sample's matrix is small enough that one program makes, clusters and pools it.
ONE_LAUNCH_WIDTH = 256
# Above this width four launches take any batch, since scratch is short before programs are.
FOUR_LAUNCHES_WIDTH = 1024
# Numbers of a row that a lane holds: what it loads at once.
LINE = 4


def precision() -> str:
    """How `tl.dot` takes float32 factors: split in three, since tokens without their mean no longer fit into tf32."""
    return "ieee" if torch.version.hip is not None else "tf32x3"


def config_of(x: Tensor, k: int, method: str) -> ResidentConfig:
    """The tuned configuration for x [B, N, D] and K clusters where there is one, else the heuristic."""
    n = x.shape[1]
    found = tuning.lookup(tuning.resident_key(n, k, x.shape[2], x.dtype, method), x.device)
    if found is not None:
        return ResidentConfig(**found)
    return resident_config(n, k, x.dtype, limits_of(x.device), interpreted=not x.is_cuda)


def programs(batch: int, scratch: int, config: ResidentConfig, limits: Limits) -> int:
    """Programs that take the samples by turns: as many as run at once, and whose scratch there is room for.

    Their scratch may exceed the L2 cache: a second program on a processor gains more than that costs, and a batch that
    fits all at once has no second round (docs/kernels.md).

    Args:
        scratch: bytes that a program writes.
    """
    return max(1, min(batch, config.per_processor * limits.processors, SCRATCH_BYTES // scratch))


def splits(batch: int, n: int, scratch: int, limits: Limits) -> bool:
    """Whether four launches take the batch, so that several programs share a sample."""
    width = power_of_two(n, 16)
    small = batch <= 2 * limits.processors and batch * scratch <= SCRATCH_BYTES
    return width > FOUR_LAUNCHES_WIDTH or (width > ONE_LAUNCH_WIDTH and small)


def at_once(batch: int, scratch: int) -> int:
    """Samples that four launches take, evenly many each time: those that there is scratch for, one at least."""
    rounds = -(-batch // max(1, SCRATCH_BYTES // scratch))
    return -(-batch // rounds)


def cluster(tensors: Tensors, spec: Spec) -> Results:
    """`kernels.resident.launch`: the results of `ops.cluster`, for k <= N."""
    from ...kernels.resident import codes
    from ...kernels.resident.arguments import Kind, Outputs, Room, Shape, Strides, Tile, constants
    from ...kernels.resident.arguments import Tensors as Inputs
    from ...kernels.resident.launch import resident_kernel
    from ...kernels.resident.scratch import needs

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
    limits, config = limits_of(x.device), config_of(x, k, method)
    width, slots = power_of_two(n, 16), power_of_two(k, 16)
    codes_of = {
        "method": codes.METHODS[method], "init": codes.INITS[init if method != "ward" else "topk"],
        "output": codes.OUTPUTS[output],
    }  # fmt: skip
    halves = x.dtype != torch.float32
    need = needs(
        n, d, k, max_iter, **codes_of, halves=halves, width=width, slots=slots, tile=config.tile, block_d=config.block_d
    )
    element = x.element_size()
    scratch = 4 * (need.floats + need.ints) + element * need.centered
    split = splits(b, n, scratch, limits)
    count = at_once(b, scratch) if split else programs(b, scratch, config, limits)
    room = Room(
        torch.empty(count * need.floats, dtype=torch.float32, device=x.device),
        torch.empty(count * need.ints, dtype=torch.int32, device=x.device),
        torch.empty(count * need.centered, dtype=x.dtype, device=x.device),
    )
    flags = None if mask is None else mask.view(torch.uint8)
    given = Inputs(x, *(x if tensor is None else tensor for tensor in (weight, pool_weight, flags, start)))
    steps = Strides(*x.stride(), *strides(weight, 2), *strides(pool_weight, 2), *strides(flags, 2), *strides(start, 2))
    # A kernel writes what it was asked for and nothing else, but takes a pointer for all.
    outs = Outputs(out, assignment, source, found, _any(loss, total), n_iter, _any(heights, total), total)
    shape = Shape(d, need.floats, need.ints, need.centered)
    kind = constants(
        Kind, *codes_of.values(), weight is not None, pool_weight is not None, mask is not None, halves, precision(),
        interpreting(),
    )  # fmt: skip
    tile = constants(
        Tile, width, slots, config.tile, config.block_d, min(config.rows, slots), min(width, LINE * limits.warp),
        config.segment, config.pooled,
    )  # fmt: skip
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if x.is_cuda and config.registers:
        # Without a limit ptxas spills registers to fit one more program per multiprocessor.
        options["maxnreg"] = config.registers
    with on_device(x):
        if split:
            for first in range(0, b, count):
                samples = first, min(count, b - first)
                _four(given, outs, room, shape, steps, samples, (n, k, max_iter), kind, tile, options)
        else:
            resident_kernel[(count,)](given, outs, room, shape, steps, b, n, k, max_iter, kind, tile, **options)
    return results


def _any(tensor: Tensor, stand_in: Tensor) -> Tensor:
    """A tensor, or another where it is empty."""
    return tensor if tensor.numel() else stand_in


def _four(
    given: Any, outs: Any, room: Any, shape: Any, steps: Any, samples: tuple[int, int], sizes: tuple[int, int, int],
    kind: Any, tile: Any, options: dict[str, int],
) -> None:  # fmt: skip
    """The four launches: programs for blocks of tokens, tiles of the Gram matrices, samples, blocks of channels.

    Args:
        samples: the first, and how many.
    """
    from ...kernels.resident import codes
    from ...kernels.resident.launch import center_kernel, cluster_kernel, gram_kernel, pool_kernel

    d = shape.d
    (first, b), (n, k, max_iter) = samples, sizes
    side = -(-n // tile.T.value)
    of_x = _only(steps, "b", "n", "d")
    of_x_and_mask = _only(steps, "b", "n", "d", "mask_b", "mask_n")
    centering, products = _only(kind, "MASKED", "HALVES"), _only(kind, "HALVES", "PRECISION", "WIDEN")
    # Methods differ in their centers: means and medoids are pooled alike.
    own = kind.OUTPUT.value == codes.OUTPUTS["center"]
    pooling = _only(kind, "OUTPUT", "POOL_WEIGHTED", *(["METHOD"] if own else []))
    center_kernel[(b * side,)](given.x, given.mask, room, shape, of_x_and_mask, first, n, k, centering, tile, **options)
    gram_kernel[(b * side * side,)](room, shape, n, k, products, tile, **options)
    cluster_kernel[(b,)](given, outs, room, shape, steps, first, n, k, max_iter, kind, tile, **options)
    pool_kernel[(b * -(-d // tile.P.value),)](
        given.x, outs.tokens, room, shape, of_x, first, n, k, pooling, tile, **options
    )


def _only(values: Any, *names: str) -> Any:
    """A tuple with zeros but in the named fields: what a kernel does not read makes no variant of it."""
    zero = type(values[0])(0)
    return values._make(value if name in names else zero for name, value in zip(values._fields, values, strict=True))
