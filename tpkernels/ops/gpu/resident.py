"""Launches of the resident kernels: one for a batch, four where few large samples would leave processors idle.

Samples of more than 1,024 tokens always take four, as many of them at a time as there is scratch for.

Triton is imported at the first launch, on the tensor's own device and stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Plan(NamedTuple):
    """How a batch is launched: whether several programs share a sample, how many samples have scratch at a time, and
    what kernels take: scratch, its shape, block sizes, Triton's options."""

    split: bool
    places: int
    room: Any
    shape: Any
    tile: Any
    options: dict[str, int]


def plan(x: Tensor, k: int, method: str, codes_of: dict[str, int], max_iter: int, rows: int) -> Plan:
    """The plan for x [B, N, D] and K clusters.

    Args:
        codes_of: method, init and output as the kernels have them.
        rows: the most rows of a matrix at a time.
    """
    from ...kernels.resident.arguments import Room, Shape, Tile, constants
    from ...kernels.resident.scratch import needs

    b, n, d = x.shape
    limits, config = limits_of(x.device), config_of(x, k, method)
    width, slots = power_of_two(n, 16), power_of_two(k, 16)
    need = needs(
        n, d, k, max_iter, **codes_of, halves=x.dtype != torch.float32, width=width, slots=slots, tile=config.tile,
        block_d=config.block_d,
    )  # fmt: skip
    scratch = 4 * (need.floats + need.ints) + x.element_size() * need.centered
    split = splits(b, n, scratch, limits)
    count = at_once(b, scratch) if split else programs(b, scratch, config, limits)
    room = Room(
        torch.empty(count * need.floats, dtype=torch.float32, device=x.device),
        torch.empty(count * need.ints, dtype=torch.int32, device=x.device),
        torch.empty(count * need.centered, dtype=x.dtype, device=x.device),
    )
    tile = constants(
        Tile, width, slots, config.tile, config.block_d, min(config.rows, rows), min(width, LINE * limits.warp),
        config.segment, config.pooled,
    )  # fmt: skip
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if x.is_cuda and config.registers:
        # Without a limit ptxas spills registers to fit one more program per multiprocessor.
        options["maxnreg"] = config.registers
    return Plan(split, count, room, Shape(d, need.floats, need.ints, need.centered), tile, options)


def inputs(tensors: Tensors) -> tuple[Any, Any]:
    """The kernels' pointers and strides of inputs."""
    from ...kernels.resident.arguments import Strides
    from ...kernels.resident.arguments import Tensors as Inputs

    x, mask = tensors.x, tensors.mask
    given = tensors._replace(mask=None if mask is None else mask.view(torch.uint8))
    ranks = (2, 2, 2, 2, 1)
    steps = [step for one, rank in zip(given[1:], ranks, strict=True) for step in strides(one, rank)]
    return Inputs(*(x if one is None else one for one in given)), Strides(*x.stride(), *steps)


def kind_of(tensors: Tensors, codes_of: dict[str, int], metric: str, cut: str) -> Any:
    """The compile-time choices."""
    from ...kernels.resident import codes
    from ...kernels.resident.arguments import Kind, constants

    x, weight, pool_weight, mask, _, counts = tensors
    return constants(
        Kind, *codes_of.values(), weight is not None, pool_weight is not None, mask is not None,
        x.dtype != torch.float32, precision(), interpreting(), counts is not None, codes.METRICS[metric],
        codes.CUTS[cut],
    )  # fmt: skip


def cluster(tensors: Tensors, spec: Spec) -> Results:
    """`kernels.resident.launch`: the results of `ops.cluster`, for k <= N."""
    from ...kernels.resident import codes
    from ...kernels.resident.arguments import Outputs
    from ...kernels.resident.launch import resident_kernel

    x = tensors.x
    k, method, init, output, max_iter = spec[:5]
    b, n, _ = x.shape
    results = allocate(x, spec, totals=True)
    out, source, assignment, found, loss, n_iter, heights, total, n_clusters = results
    if 0 in (b, n):
        for one in (n_iter, loss, n_clusters):
            one.zero_()
        return results
    if spec.gathers:
        # A gathered token is not weighed.
        tensors = tensors._replace(pool_weight=None)
    codes_of = {
        "method": codes.METHODS[method], "init": codes.INITS[init if method != "ward" else "topk"],
        "output": codes.OUTPUTS[output],
    }  # fmt: skip
    made = plan(x, k, method, codes_of, max_iter, power_of_two(k, 16))
    given, steps = inputs(tensors)
    # A kernel writes what it was asked for and nothing else, but takes a pointer for all.
    outs = Outputs(
        out, assignment, source, found, _any(loss, total), n_iter, _any(heights, total), total, n_clusters
    )  # fmt: skip
    kind = kind_of(tensors, codes_of, spec.metric, spec.cut)
    with on_device(x):
        if made.split:
            for first in range(0, b, made.places):
                samples = first, min(made.places, b - first)
                _four(given, outs, made, steps, samples, (n, k, max_iter), spec.bound, kind)
        else:
            resident_kernel[(made.places,)](
                given, outs, made.room, made.shape, steps, b, n, k, max_iter, spec.bound, kind, made.tile,
                **made.options,
            )  # fmt: skip
    return results


def _any(tensor: Tensor, stand_in: Tensor) -> Tensor:
    """A tensor, or another where it is empty."""
    return tensor if tensor.numel() else stand_in


def _four(
    given: Any, outs: Any, made: Plan, steps: Any, samples: tuple[int, int], sizes: tuple[int, int, int],
    bound: float, kind: Any,
) -> None:  # fmt: skip
    """The four launches: programs for blocks of tokens, tiles of the Gram matrices, samples, blocks of channels.

    Args:
        samples: the first, and how many.
    """
    from ...kernels.resident import codes
    from ...kernels.resident.launch import cluster_kernel, pool_kernel

    (first, b), (n, k, max_iter) = samples, sizes
    room, shape, tile, options = made.room, made.shape, made.tile, made.options
    gram_matrices(given, made, steps, samples, n, k, kind)
    # Methods differ in their centers: means and medoids are pooled alike.
    own = kind.OUTPUT.value == codes.OUTPUTS["center"]
    pooling = _only(kind, "OUTPUT", "POOL_WEIGHTED", *(["METHOD"] if own else []))
    cluster_kernel[(b,)](given, outs, room, shape, steps, first, n, k, max_iter, bound, kind, tile, **options)
    pool_kernel[(b * -(-shape.d // tile.P.value),)](
        given.x, outs.tokens, room, shape, _only(steps, "b", "n", "d"), first, n, k, pooling, tile, **options
    )


def gram_matrices(given: Any, made: Plan, steps: Any, samples: tuple[int, int], n: int, k: int, kind: Any) -> None:
    """The first two launches: programs for blocks of tokens, tiles of the Gram matrices."""
    from ...kernels.resident.launch import center_kernel, gram_kernel

    first, b = samples
    room, shape, tile, options = made.room, made.shape, made.tile, made.options
    side = -(-n // tile.T.value)
    of_x_and_mask = _only(steps, "b", "n", "d", "mask_b", "mask_n")
    centering, products = _only(kind, "MASKED", "HALVES", "METRIC"), _only(kind, "HALVES", "PRECISION", "WIDEN")
    center_kernel[(b * side,)](given.x, given.mask, room, shape, of_x_and_mask, first, n, k, centering, tile, **options)
    gram_kernel[(b * side * side,)](room, shape, n, k, products, tile, **options)


def _only(values: Any, *names: str) -> Any:
    """A tuple with zeros but in the named fields: what a kernel does not read makes no variant of it."""
    zero = type(values[0])(0)
    return values._make(value if name in names else zero for name, value in zip(values._fields, values, strict=True))
