"""Ward, K-Means and K-Medoids of whole samples, each by one program, in one launch.

A program takes sample after sample (a persistent grid). It reads the tokens once for their Gram matrix, clusters on
that matrix in scratch of its own, and reads the tokens again to pool them:

    x [B, N, D] -> tokens [B, K, D], assignment [B, N], source [B, N], medoids [B, K], loss [B], n_iter [B],
                   merge_heights [B, N - 1], total [B, K]

Scratch belongs to the P programs, whatever B is. Few large samples take three launches of the same parts instead, so
that several programs share a sample where its work is large: the tiles of the Gram matrix, the clustering, and the
channels of the pooled tokens. Both ways compute the same numbers in the same order.
"""

import triton
import triton.language as tl

from .sample import cluster_sample, pool_sample
from .tokens import EXACT, SPLIT, channel_pivots, gram_matrix, gram_tile

# What seldom runs takes few registers from what always does.
RARE_TILE = tl.constexpr(32)


@triton.jit(do_not_specialize=["batch", "n", "k", "max_iter"])
def resident_kernel(
    p_x, p_weight, p_pool_weight, p_mask, p_start,
    p_tokens, p_assignment, p_source, p_medoids, p_loss, p_n_iter, p_heights, p_total,
    p_floats, p_ints,
    batch, n, d, k, max_iter, ld, floats, ints,
    stride_b, stride_n, stride_d, stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn,
    stride_sb, stride_sk,
    NP: tl.constexpr, KP: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, METHOD: tl.constexpr, INIT: tl.constexpr, OUTPUT: tl.constexpr, WEIGHTED: tl.constexpr,
    POOL_WEIGHTED: tl.constexpr, MASKED: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """See the module. OUTPUT is 0 for the centres, 1 for means of the final clusters, 2 for medoid tokens."""
    program = tl.program_id(0).to(tl.int64)
    p_floats += program * floats
    p_ints += program * ints
    # What is the same for all samples would be kept in registers from one to the next, more than there are.
    for sample in tl.range(tl.program_id(0), batch, tl.num_programs(0), disable_licm=True):
        # Offsets of samples pass 2^31.
        b = program * 0 + sample
        p_pivot = p_floats + 11 * NP + 2 * KP
        p_gram = p_pivot + (d + 15) // 16 * 16
        # The previous sample's last reads of the scratch come before this one's first writes.
        tl.debug_barrier()
        p_xb = p_x + b * stride_b
        p_mb = p_mask + b * stride_mb
        channel_pivots(p_xb, p_mb, p_pivot, n, d, stride_n, stride_d, stride_mn, BD, MASKED, FACTORS == EXACT)
        inexact = gram_matrix(
            p_xb, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
            T, BD, MASKED, FACTORS, PRECISION, WIDEN,
        )  # fmt: skip
        # Two conditions, since the first is known to the compiler.
        if FACTORS == EXACT:  # noqa: SIM102
            if inexact > 0:
                gram_matrix(
                    p_xb, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
                    T if T < RARE_TILE else RARE_TILE, BD if BD < RARE_TILE else RARE_TILE, MASKED, SPLIT, PRECISION,
                    WIDEN,
                )  # fmt: skip
        cluster_sample(
            p_weight, p_pool_weight, p_mask, p_start,
            p_assignment, p_source, p_medoids, p_loss, p_n_iter, p_heights, p_total, p_floats, p_ints, p_gram,
            b, n, k, max_iter, ld,
            stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn, stride_sb, stride_sk,
            NP, KP, R, S, P, METHOD, INIT, OUTPUT, WEIGHTED, POOL_WEIGHTED, MASKED, PRECISION,
        )  # fmt: skip
        pool_sample(
            p_x + b * stride_b, p_tokens + b * k * d, p_floats, p_ints, n, 0, d, d, k, stride_n, stride_d,
            NP, KP, S, P, METHOD, OUTPUT, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def gram_kernel(
    p_x, p_mask, p_floats, p_ints, n, d, ld, floats, ints,
    stride_b, stride_n, stride_d, stride_mb, stride_mn,
    NP: tl.constexpr, KP: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr,
    FACTORS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """First of three: a program makes a tile of a sample's Gram matrix. Every one of them writes the same pivots."""
    tiles = tl.cdiv(n, T)
    b = tl.program_id(0).to(tl.int64) // (tiles * tiles)
    tile = tl.program_id(0) % (tiles * tiles)
    i, j = tile // tiles * T, tile % tiles * T
    if j <= i:
        p_xb = p_x + b * stride_b
        p_mb = p_mask + b * stride_mb
        p_pivot = p_floats + b * floats + 11 * NP + 2 * KP
        p_gram = p_pivot + (d + 15) // 16 * 16
        channel_pivots(p_xb, p_mb, p_pivot, n, d, stride_n, stride_d, stride_mn, BD, MASKED, FACTORS == EXACT)
        inexact = gram_tile(
            p_xb, p_mb, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mn, ld,
            T, BD, MASKED, FACTORS, PRECISION, WIDEN,
        )  # fmt: skip
        # Every token is a row of one tile on the diagonal.
        if i == j:
            tl.store(p_ints + b * ints + tile // tiles, inexact)


@triton.jit(do_not_specialize=["n", "k", "max_iter"])
def cluster_kernel(
    p_x, p_weight, p_pool_weight, p_mask, p_start,
    p_assignment, p_source, p_medoids, p_loss, p_n_iter, p_heights, p_total,
    p_floats, p_ints,
    n, d, k, max_iter, ld, floats, ints,
    stride_b, stride_n, stride_d, stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn,
    stride_sb, stride_sk,
    NP: tl.constexpr, KP: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, METHOD: tl.constexpr, INIT: tl.constexpr, OUTPUT: tl.constexpr, WEIGHTED: tl.constexpr,
    POOL_WEIGHTED: tl.constexpr, MASKED: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Second of three: a program clusters a sample on its Gram matrix."""
    b = tl.program_id(0).to(tl.int64)
    p_floats += b * floats
    p_ints += b * ints
    p_mb = p_mask + b * stride_mb
    p_pivot = p_floats + 11 * NP + 2 * KP
    p_gram = p_pivot + (d + 15) // 16 * 16
    if FACTORS == EXACT:
        o_t = tl.arange(0, NP)
        if tl.sum(tl.load(p_ints + o_t, mask=o_t < tl.cdiv(n, T), other=0), 0) > 0:
            gram_matrix(
                p_x + b * stride_b, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
                T if T < RARE_TILE else RARE_TILE, BD if BD < RARE_TILE else RARE_TILE, MASKED, SPLIT, PRECISION,
                WIDEN,
            )  # fmt: skip
    tl.debug_barrier()
    cluster_sample(
        p_weight, p_pool_weight, p_mask, p_start,
        p_assignment, p_source, p_medoids, p_loss, p_n_iter, p_heights, p_total, p_floats, p_ints, p_gram,
        b, n, k, max_iter, ld,
        stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn, stride_sb, stride_sk,
        NP, KP, R, S, P, METHOD, INIT, OUTPUT, WEIGHTED, POOL_WEIGHTED, MASKED, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "k"])
def pool_kernel(
    p_x, p_tokens, p_floats, p_ints, n, d, k, floats, ints, stride_b, stride_n, stride_d,
    NP: tl.constexpr, KP: tl.constexpr, S: tl.constexpr, P: tl.constexpr, METHOD: tl.constexpr,
    OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Third of three: a program pools P channels of a sample."""
    parts = tl.cdiv(d, P)
    b = tl.program_id(0).to(tl.int64) // parts
    first_d = tl.program_id(0) % parts * P
    pool_sample(
        p_x + b * stride_b, p_tokens + b * k * d, p_floats + b * floats, p_ints + b * ints,
        n, first_d, tl.minimum(first_d + P, d), d, k, stride_n, stride_d,
        NP, KP, S, P, METHOD, OUTPUT, PRECISION,
    )  # fmt: skip
