"""A program's scratch: where each part begins, and how much there is of it.

Floats hold vectors of tokens and of slots, a pivot for each channel, and one to three matrices; ints hold vectors and,
for K-Means, the labels of every update. Centered tokens have a buffer of their own type.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .codes import INIT_WARD, METHOD_KMEANS, METHOD_WARD, OUTPUT_MEAN

# Vectors by the buffer that they lie in and what they have an entry for.
TOKEN_FLOATS, SLOT_FLOATS = tl.constexpr(13), tl.constexpr(3)
TOKEN_INTS, SLOT_INTS = tl.constexpr(10), tl.constexpr(10)
# Entries of a vector that are taken at a time where much is held for each of them: registers have no room for more.
VECTOR = tl.constexpr(1024)


class Scratch(NamedTuple):
    """Pointers, in floats:

    - by token [NP]: weight, pool (weights), norm, cost, mass, signed (a mass before a round, and what becomes of it),
      below, least, height; by pair of clusters that merge: first_mass, second_mass, gap (what that costs); by place in
      `order`: ordered_weight;
    - by slot [KP]: square, total, and by falling number of members sorted_total;
    - pivot [ld_d] and the matrices [N, ld] gram, cost_matrix (Ward's, which may be the same) and product [K, ld].

    In ints:

    - by token [NP]: label, order, near, first, second (of a pair), scan, parent, turn, other, gone;
    - by slot [KP]: begin, end, token, medoid, bound, stamp, place, and by falling number of members sorted_begin,
      sorted_count, sorted_place;
    - history [max_iter + 1, NP].

    centered is [2 or 1, rows, ld_d].
    """

    weight: tl.tensor
    pool: tl.tensor
    norm: tl.tensor
    cost: tl.tensor
    mass: tl.tensor
    signed: tl.tensor
    below: tl.tensor
    least: tl.tensor
    height: tl.tensor
    first_mass: tl.tensor
    second_mass: tl.tensor
    gap: tl.tensor
    ordered_weight: tl.tensor
    square: tl.tensor
    total: tl.tensor
    sorted_total: tl.tensor
    pivot: tl.tensor
    gram: tl.tensor
    cost_matrix: tl.tensor
    product: tl.tensor
    label: tl.tensor
    order: tl.tensor
    near: tl.tensor
    first: tl.tensor
    second: tl.tensor
    scan: tl.tensor
    parent: tl.tensor
    turn: tl.tensor
    other: tl.tensor
    gone: tl.tensor
    begin: tl.tensor
    end: tl.tensor
    token: tl.tensor
    medoid: tl.tensor
    bound: tl.tensor
    stamp: tl.tensor
    place: tl.tensor
    sorted_begin: tl.tensor
    sorted_count: tl.tensor
    sorted_place: tl.tensor
    history: tl.tensor
    centered: tl.tensor


class Needs(NamedTuple):
    """Elements of a program's buffers: floats, ints, centered tokens."""

    floats: int
    ints: int
    centered: int


def lines(count: int, unit: int = 16) -> int:
    """The count padded to whole units."""
    return -(-count // unit) * unit


def needs(
    n: int, d: int, k: int, max_iter: int, *, method: int, init: int, output: int, halves: bool, width: int,
    slots: int, tile: int, block_d: int,
) -> Needs:  # fmt: skip
    """What `scratch_of` lays out, in elements; codes as in `codes.py`, width and slots are NP and KP."""
    matrix = n * lines(n)
    # Whole blocks of a row's columns are read, beyond the last row too.
    matrices = (2 if has_second_matrix(method, init, output) else 1) * matrix
    floats = TOKEN_FLOATS.value * width + SLOT_FLOATS.value * slots + lines(d, block_d) + matrices + width
    floats += k * lines(n) if method == METHOD_KMEANS.value else 0
    ints = (TOKEN_INTS.value + (max_iter + 1 if method == METHOD_KMEANS.value else 0)) * width
    ints += SLOT_INTS.value * slots
    return Needs(lines(floats), lines(ints), (1 + halves) * lines(n, tile) * lines(d, block_d))


@triton.constexpr_function
def has_second_matrix(method: int, init: int, output: int) -> bool:
    """Whether Ward's costs have a matrix beside the Gram matrix, which is read after Ward's rounds."""
    return output != OUTPUT_MEAN if method == METHOD_WARD else init == INIT_WARD


@triton.constexpr_function
def vector_part(width: int) -> int:
    """How many entries of a vector of such a width are taken at a time."""
    return width if width < VECTOR.value else VECTOR.value


@triton.jit
def scratch_of(p_floats, p_ints, p_centered, z, kind, tile):
    """The parts of the scratch that begins at the pointers."""
    NP: tl.constexpr = tile.NP
    KP: tl.constexpr = tile.KP
    p_slots = p_floats + TOKEN_FLOATS * NP
    p_pivot = p_slots + SLOT_FLOATS * KP
    p_gram = p_pivot + z.ld_d
    p_costs = p_gram
    if has_second_matrix(kind.METHOD, kind.INIT, kind.OUTPUT):
        p_costs = p_gram + z.n * z.ld
    p_of_slots = p_ints + TOKEN_INTS * NP
    return Scratch(
        p_floats, p_floats + NP, p_floats + 2 * NP, p_floats + 3 * NP, p_floats + 4 * NP, p_floats + 5 * NP,
        p_floats + 6 * NP, p_floats + 7 * NP, p_floats + 8 * NP, p_floats + 9 * NP, p_floats + 10 * NP,
        p_floats + 11 * NP, p_floats + 12 * NP, p_slots, p_slots + KP, p_slots + 2 * KP, p_pivot,
        p_gram, p_costs, p_costs + z.n * z.ld,
        p_ints, p_ints + NP, p_ints + 2 * NP, p_ints + 3 * NP, p_ints + 4 * NP, p_ints + 5 * NP, p_ints + 6 * NP,
        p_ints + 7 * NP, p_ints + 8 * NP, p_ints + 9 * NP,
        p_of_slots, p_of_slots + KP, p_of_slots + 2 * KP, p_of_slots + 3 * KP, p_of_slots + 4 * KP,
        p_of_slots + 5 * KP, p_of_slots + 6 * KP, p_of_slots + 7 * KP, p_of_slots + 8 * KP,
        p_of_slots + 9 * KP, p_of_slots + SLOT_INTS * KP, p_centered,
    )  # fmt: skip
