"""The entry kernels of Ward, K-Means and K-Medoids: one launch, a sample by one program, or three.

In one launch a program takes sample after sample (a persistent grid). It reads the tokens for their Gram matrix,
clusters on that matrix in scratch of its own, and reads the tokens again to pool them:

    x [B, N, D] -> tokens [B, K, D], assignment [B, N], source [B, N], medoids [B, K], loss [B], n_iter [B],
                   merge_heights [B, N - 1], total [B, K]

There is scratch for each program, not for each sample. Few large samples take three launches of the same parts, so that
several programs share a sample: tiles of the Gram matrix, the clustering, and channels of the pooled tokens. Both ways
compute the same numbers in the same order.
"""

import triton
import triton.language as tl

from .cluster import cluster_sample
from .codes import FACTORS_EXACT, FACTORS_SPLIT
from .gram import channel_pivots, gram_matrix, gram_tile
from .pool import pool_sample

# Small tile for the rare exact pass, so the hot path keeps its registers.
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
    """All steps of whole samples; METHOD, INIT, OUTPUT and FACTORS are those of `codes.py`."""
    program = tl.program_id(0).to(tl.int64)
    p_floats += program * floats
    p_ints += program * ints
    # disable_licm: values hoisted out of the loop over samples would take more registers than there are.
    for sample in tl.range(tl.program_id(0), batch, tl.num_programs(0), disable_licm=True):
        # The sum with an int64 widens the index: offsets of samples pass 2^31.
        b = program * 0 + sample
        p_pivot = p_floats + 11 * NP + 2 * KP
        p_gram = p_pivot + (d + 15) // 16 * 16
        # The previous sample's reads of the scratch end before this one's writes begin.
        tl.debug_barrier()
        p_xb = p_x + b * stride_b
        p_mb = p_mask + b * stride_mb
        channel_pivots(p_xb, p_mb, p_pivot, n, d, stride_n, stride_d, stride_mn, BD, MASKED, FACTORS == FACTORS_EXACT)
        inexact = gram_matrix(
            p_xb, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
            T, BD, MASKED, FACTORS, PRECISION, WIDEN,
        )  # fmt: skip
        # Nested, since the outer condition is a compile-time constant.
        if FACTORS == FACTORS_EXACT:  # noqa: SIM102
            if inexact > 0:
                gram_matrix(
                    p_xb, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
                    T if T < RARE_TILE else RARE_TILE, BD if BD < RARE_TILE else RARE_TILE, MASKED, FACTORS_SPLIT,
                    PRECISION, WIDEN,
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
    """First of three: a program makes a tile of a sample's Gram matrix.

    Benign race: every program of a sample stores the same pivots.
    """
    tiles = tl.cdiv(n, T)
    b = tl.program_id(0).to(tl.int64) // (tiles * tiles)
    tile = tl.program_id(0) % (tiles * tiles)
    i, j = tile // tiles * T, tile % tiles * T
    if j <= i:
        p_xb = p_x + b * stride_b
        p_mb = p_mask + b * stride_mb
        p_pivot = p_floats + b * floats + 11 * NP + 2 * KP
        p_gram = p_pivot + (d + 15) // 16 * 16
        channel_pivots(p_xb, p_mb, p_pivot, n, d, stride_n, stride_d, stride_mn, BD, MASKED, FACTORS == FACTORS_EXACT)
        inexact = gram_tile(
            p_xb, p_mb, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mn, ld,
            T, BD, MASKED, FACTORS, PRECISION, WIDEN,
        )  # fmt: skip
        # The diagonal tiles have every token as a row once, so their counts are enough.
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
    if FACTORS == FACTORS_EXACT:
        o_t = tl.arange(0, NP)
        if tl.sum(tl.load(p_ints + o_t, mask=o_t < tl.cdiv(n, T), other=0), 0) > 0:
            gram_matrix(
                p_x + b * stride_b, p_mb, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mn, ld,
                T if T < RARE_TILE else RARE_TILE, BD if BD < RARE_TILE else RARE_TILE, MASKED, FACTORS_SPLIT,
                PRECISION, WIDEN,
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
