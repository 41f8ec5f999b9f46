"""What the resident kernels are given: tuples of pointers, of strides, and of compile-time choices.

Sizes that change from call to call are parameters of their own: Triton specializes what lies in a tuple.
"""

from typing import Any, NamedTuple

import triton.language as tl


class Tensors(NamedTuple):
    """Inputs; one that is not there is a pointer that nothing reads."""

    x: tl.tensor
    weight: tl.tensor
    pool_weight: tl.tensor
    mask: tl.tensor
    start: tl.tensor
    counts: tl.tensor


class Strides(NamedTuple):
    """Strides of the inputs in their own elements: of the sample, the token (or center), the channel."""

    b: tl.tensor
    n: tl.tensor
    d: tl.tensor
    weight_b: tl.tensor
    weight_n: tl.tensor
    pool_b: tl.tensor
    pool_n: tl.tensor
    mask_b: tl.tensor
    mask_n: tl.tensor
    start_b: tl.tensor
    start_k: tl.tensor
    counts_b: tl.tensor


class Outputs(NamedTuple):
    """Contiguous results, see `launch.py`."""

    tokens: tl.tensor
    assignment: tl.tensor
    source: tl.tensor
    medoids: tl.tensor
    loss: tl.tensor
    n_iter: tl.tensor
    heights: tl.tensor
    total: tl.tensor
    n_clusters: tl.tensor


class Kind(NamedTuple):
    """What is computed; METHOD, INIT, OUTPUT, METRIC and CUT are those of `codes.py`.

    HALVES: centered tokens are kept as two half-type values, high and low, else as one float32. PRECISION: of products
    of float32. WIDEN: factors of half types go to float32 first. COUNTED: each sample has its own number of clusters.
    """

    METHOD: tl.constexpr
    INIT: tl.constexpr
    OUTPUT: tl.constexpr
    WEIGHTED: tl.constexpr
    POOL_WEIGHTED: tl.constexpr
    MASKED: tl.constexpr
    HALVES: tl.constexpr
    PRECISION: tl.constexpr
    WIDEN: tl.constexpr
    COUNTED: tl.constexpr
    METRIC: tl.constexpr
    CUT: tl.constexpr


class Tile(NamedTuple):
    """Block sizes, see `kernels/__init__.py`."""

    NP: tl.constexpr
    KP: tl.constexpr
    T: tl.constexpr
    BD: tl.constexpr
    R: tl.constexpr
    C: tl.constexpr
    S: tl.constexpr
    P: tl.constexpr


class Sizes(NamedTuple):
    """Tokens and channels of a sample; k: rows of the results, which a sample may have fewer clusters than; ld, ld_d:
    tokens and channels padded to whole lines.
    """

    n: tl.tensor
    d: tl.tensor
    k: tl.tensor
    ld: tl.tensor
    ld_d: tl.tensor


class Room(NamedTuple):
    """Buffers of scratch, a part of each for every program."""

    floats: tl.tensor
    ints: tl.tensor
    centered: tl.tensor


class Shape(NamedTuple):
    """Channels, and how much of each buffer belongs to a program."""

    d: tl.tensor
    floats: tl.tensor
    ints: tl.tensor
    centered: tl.tensor


def constants(tuple_type: Any, *values: Any) -> Any:
    """A tuple of compile-time constants."""
    return tuple_type(*map(tl.constexpr, values))
