"""Ward's first costs: what it takes to merge two tokens, `m_a m_b / (m_a + m_b) d_ab^2`, and every token's nearest.

The dissimilarity d is the distance of the tokens, or one of those that retrieval packages cluster with: `1 - x . y` of
tokens as they come, also clipped to [0, 2], or `1 - x . y / (|x| |y|)`, where a zero vector is at 1 from all others and
at 0 from zero vectors.
"""

import triton
import triton.language as tl

from .codes import METRIC_CLIPPED, METRIC_COSINE, METRIC_EUCLIDEAN
from .scratch import has_second_matrix

# Bits of +inf; more than any cost's bits or any token.
INF = tl.constexpr(0x7F800000)
BIG = tl.constexpr(0x7FFFFFFF)
# Blocks of columns that are loaded before any is stored or compared, so that a warp waits once for all.
BLOCKS = tl.constexpr(2)
# The farthest that tokens are by their product: its square times a mass is within float32.
FARTHEST = tl.constexpr(1e19)


@triton.jit
def nearer(b_cost, b_least, b_block, j):
    """The least costs so far, as the bits of floats that are not negative, and the first block of columns that has
    them.
    """
    return tl.minimum(b_cost, b_least), tl.where(b_cost < b_least, j, b_block)


@triton.jit
def over(b_x):
    """1 / x of positive numbers, to two units in the last place: a third of a division's instructions."""
    b_root = tl.rsqrt(b_x)
    return b_root * b_root


@triton.jit
def store_nearest(s, b_least, b_block, o_r, m_r, C: tl.constexpr):
    """Writes the least cost of rows o_r and the row's neighbor at that cost.

    Column c of block j of row r is `(r // C ^ j) C + c`, so that blocks are in the order of i XOR j.
    """
    b_row = tl.min(b_least, 1)
    b_tie = (o_r[:, None] % C ^ tl.arange(0, C)[None, :]) + b_block * C
    b_tie = tl.min(tl.where(b_least == b_row[:, None], b_tie, BIG), 1)
    tl.store(s.least + o_r, tl.minimum(b_row, INF).to(tl.float32, bitcast=True), mask=m_r)
    tl.store(s.near + o_r, b_tie ^ o_r, mask=m_r)


@triton.jit
def of_columns(p_of, o_c, R: tl.constexpr):
    """The entries of columns o_c, [R, C] with equal rows.

    Each lane loads its own: a vector [C] would be shared out between the warps, and go through shared memory.
    """
    return tl.load(tl.broadcast_to((p_of + o_c)[None, :], (R, o_c.shape[0])))


@triton.jit
def _power_to_unit(b_norm):
    """The power of two f for which `f^2 norm` lies in 1..4, from the exponent of a squared length."""
    b_half = ((b_norm.to(tl.int32, bitcast=True) >> 23) - 127) >> 1
    return ((127 - b_half) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _dissimilarity(b_gram, b_norm_r, b_norm_c, METRIC: tl.constexpr):
    """d of tokens with these products and squared lengths; +inf where the product is -inf."""
    if METRIC == METRIC_COSINE:
        # Scaled by powers of two nothing overflows, and equal tokens have the cosine 1 to the last bit: the root of a
        # square is exact.
        b_power_r = _power_to_unit(b_norm_r)
        b_power_c = _power_to_unit(b_norm_c)
        b_r = b_norm_r * b_power_r * b_power_r
        b_c = b_norm_c * b_power_c * b_power_c
        b_lengths = tl.sqrt_rn(tl.where(b_r > 0, b_r, 1.0) * tl.where(b_c > 0, b_c, 1.0))
        b_far = tl.maximum(1.0 - tl.div_rn(b_gram * b_power_r * b_power_c, b_lengths), 0.0)
        return tl.where((b_norm_r + b_norm_c == 0) & (b_gram == 0), 0.0, b_far)
    else:
        b_far = 1.0 - b_gram
        if METRIC == METRIC_CLIPPED:
            b_near = tl.minimum(tl.maximum(b_far, 0.0), 2.0)
        else:
            b_far = tl.abs(b_far)
            b_near = tl.minimum(b_far, FARTHEST)
        return tl.where(b_far < float("inf"), b_near, b_far)


@triton.jit
def first_costs(s, z, kind, tile):
    """Writes the costs [N, ld] of merging two tokens, +inf for a token with itself, and every token's nearest."""
    o_n = tl.arange(0, tile.NP)
    # Norms are the matrix's own diagonal, so that equal tokens are at distance 0 to the last bit; there -inf makes a
    # token infinitely far from itself.
    tl.store(s.gram + o_n * z.ld + o_n, tl.full((tile.NP,), float("-inf"), tl.float32), mask=o_n < z.n)
    tl.debug_barrier()
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    U: tl.constexpr = BLOCKS if tile.NP > C else 1
    for r in range(0, z.n, R):
        m_r = r + tl.arange(0, R) < z.n
        o_r = tl.minimum(r + tl.arange(0, R), z.n - 1)
        b_mass_r = tl.load(s.mass + o_r)
        b_norm_r = tl.load(s.norm + o_r)
        b_least = tl.full((R, C), INF, tl.int32)
        b_block = tl.zeros((R, C), tl.int32)
        for first in tl.range(0, tile.NP // C, U, num_stages=1):
            if (r // C ^ first) // U * U * C < z.n:
                b_cost = ()
                b_gone = ()
                for block in tl.static_range(U):
                    o_c = tl.arange(0, C) + (r // C ^ (first + block)) * C
                    if kind.METRIC == METRIC_EUCLIDEAN:
                        b_new = b_norm_r[:, None] + of_columns(s.norm, o_c, R)
                        b_new = tl.maximum(b_new - 2 * tl.load(s.gram + o_r[:, None] * z.ld + o_c[None, :]), 0.0)
                    else:
                        b_new = tl.load(s.gram + o_r[:, None] * z.ld + o_c[None, :])
                        b_new = _dissimilarity(b_new, b_norm_r[:, None], of_columns(s.norm, o_c, R), kind.METRIC)
                        b_new *= b_new
                    if kind.WEIGHTED:
                        b_mass = of_columns(s.mass, o_c, R)
                        b_new *= b_mass_r[:, None] * b_mass * over(b_mass_r[:, None] + b_mass)
                    else:
                        b_new *= 0.5 / tile.NP
                    b_cost += (b_new,)
                    b_gone += (of_columns(s.gone, o_c, R),)
                tl.debug_barrier()
                for block in tl.static_range(U):
                    o_c = tl.arange(0, C) + (r // C ^ (first + block)) * C
                    # Whole padded rows store as vectors.
                    m_at = m_r[:, None] & (o_c < z.ld)[None, :]
                    tl.store(s.cost_matrix + o_r[:, None] * z.ld + o_c[None, :], b_cost[block], mask=m_at)
                    b_bits = (b_cost[block].to(tl.int32, bitcast=True) | b_gone[block]) & BIG
                    b_least, b_block = nearer(b_bits, b_least, b_block, first + block)
        store_nearest(s, b_least, b_block, o_r, m_r, C)
    tl.debug_barrier()
    if has_second_matrix(kind.METHOD, kind.INIT, kind.OUTPUT):
        tl.store(s.gram + o_n * z.ld + o_n, tl.load(s.norm + o_n), mask=o_n < z.n)
        tl.debug_barrier()


@triton.jit
def total_error(s, z, tile):
    """`sum_i m_i ||x_i - mean||^2` in float64, from the first costs: `sum_{i < j} (m_i + m_j) cost_ij / sum_i m_i`.

    No digits cancel, as they do in a difference of sums of norms, and equal tokens have an error of 0.
    """
    o_n = tl.arange(0, tile.NP)
    b_there = tl.load(s.gone + o_n) == 0
    b_mass = tl.where(b_there, tl.load(s.mass + o_n), 0.0)
    b_sum = tl.zeros((tile.NP,), tl.float32)
    for i in tl.range(0, z.n, num_stages=1):
        m_in = b_there & (o_n < i)
        b_cost = tl.load(s.cost_matrix + i * z.ld + o_n, mask=m_in, other=0.0)
        b_term = (b_mass + tl.load(s.mass + i)) * b_cost
        b_sum += tl.where(tl.load(s.gone + i) == 0, b_term, 0.0)
    return tl.sum(b_sum.to(tl.float64), 0) / tl.sum(b_mass.to(tl.float64), 0)
