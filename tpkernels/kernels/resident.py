"""K-Means and K-Medoids of whole samples, each by one program, in one launch.

A program takes sample after sample (a persistent grid). It reads the tokens once for their Gram matrix, iterates on
that matrix in scratch of its own, numbers the clusters by their lowest token, and reads the tokens again to pool them:

    x [B, N, D] -> tokens [B, K, D], assignment [B, N], source [B, N], medoids [B, K], loss [B], n_iter [B]

Scratch belongs to the P programs: P * (NP * NP + ...) floats, whatever B is.
"""

import triton
import triton.language as tl

from .means import assign_means, update_means
from .medoids import assign_medoids, update_medoids
from .tokens import gram_matrix, load_tokens, store_means


@triton.jit
def _rank_by_weight(p_weight, p_valid, p_label, p_start, n, k, NP: tl.constexpr, T: tl.constexpr):
    """Labels the k valid tokens of highest weight, ties to the lower index; p_start takes the choice on the way."""
    for i in range(0, n, T):
        o_i = i + tl.arange(0, T)
        m_i = tl.load(p_valid + o_i) > 0
        b_i = tl.load(p_weight + o_i)
        b_above = tl.zeros((T,), tl.int32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            m_j = (tl.load(p_valid + o_j) > 0)[None, :]
            b_j = tl.load(p_weight + o_j)[None, :]
            m_above = (b_j > b_i[:, None]) | ((b_j == b_i[:, None]) & (o_j[None, :] < o_i[:, None]))
            b_above += tl.sum((m_above & m_j).to(tl.int32), 1)
        tl.store(p_start + o_i, (m_i & (b_above < k)).to(tl.int32))
    tl.debug_barrier()
    o_n = tl.arange(0, NP)
    b_chosen = tl.load(p_start + o_n, mask=o_n < n, other=0)
    b_slot = tl.cumsum(b_chosen, 0) - 1
    tl.store(p_label + o_n, tl.where(b_chosen > 0, b_slot, -1))
    tl.debug_barrier()


@triton.jit
def _number_clusters(p_label, p_first, p_order, n, k, T: tl.constexpr, NP: tl.constexpr):
    """Writes each slot's lowest token (NP for none) and its place among the slots by that token, empty ones last."""
    for s in range(0, k, T):
        o_s = s + tl.arange(0, T)
        b_first = tl.full((T,), NP, tl.int32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            m_in = tl.load(p_label + o_j)[None, :] == o_s[:, None]
            b_first = tl.minimum(b_first, tl.min(tl.where(m_in, o_j[None, :], NP), 1))
        tl.store(p_first + o_s, b_first)
    tl.debug_barrier()
    for s in range(0, k, T):
        o_s = s + tl.arange(0, T)
        b_first = tl.load(p_first + o_s)
        b_key = tl.where(b_first < NP, b_first, NP + o_s)[:, None]
        b_place = tl.zeros((T,), tl.int32)
        for r in range(0, k, T):
            o_r = r + tl.arange(0, T)
            b_other = tl.load(p_first + o_r)
            b_other = tl.where(b_other < NP, b_other, NP + o_r)[None, :]
            b_place += tl.sum(((b_other < b_key) & (o_r < k)[None, :]).to(tl.int32), 1)
        tl.store(p_order + o_s, b_place)
    tl.debug_barrier()


@triton.jit
def resident_kernel(
    p_x, p_in_weight, p_pool_weight, p_mask, p_in_start,
    p_tokens, p_assignment, p_source, p_medoids, p_loss, p_n_iter,
    p_floats, p_ints,
    batch, n, d, k, max_iter, floats, ints,
    stride_b, stride_n, stride_d, stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn,
    NP: tl.constexpr, KP: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, MEDOIDS: tl.constexpr,
    OUTPUT: tl.constexpr, WEIGHTED: tl.constexpr, POOL_WEIGHTED: tl.constexpr, MASKED: tl.constexpr,
    GIVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """See the module. OUTPUT is 0 for the centres, 1 for means of the final clusters, 2 for medoid tokens."""
    pid = tl.program_id(0).to(tl.int64)
    p_gram = p_floats + pid * floats
    p_weight = p_gram + NP * NP
    p_norm = p_weight + NP
    p_cost = p_norm + NP
    p_square = p_cost + NP
    p_mean = p_square + KP
    p_product = p_mean + (d + BD - 1) // BD * BD
    p_valid = p_ints + pid * ints
    p_label = p_valid + NP
    p_spare = p_label + NP
    p_medoid = p_spare + NP
    p_stamp = p_medoid + KP
    p_first = p_stamp + KP
    p_order = p_first + KP
    p_history = p_order + KP
    o_n = tl.arange(0, NP)

    for sample in range(tl.program_id(0), batch, tl.num_programs(0)):
        # Offsets of samples pass 2^31.
        b = pid * 0 + sample
        p_xb = p_x + b * stride_b
        # The previous sample's last reads of the scratch come before this one's first writes.
        tl.debug_barrier()
        m_valid = o_n < n
        if MASKED:
            m_valid = m_valid & (tl.load(p_mask + b * stride_mb + o_n * stride_mn, mask=m_valid, other=0) != 0)
        b_weight = tl.where(m_valid, 1.0, 0.0)
        if WEIGHTED:
            p_w = p_in_weight + b * stride_wb
            b_weight = tl.load(p_w + o_n * stride_wn, mask=m_valid, other=0.0).to(tl.float32)
        count = tl.sum(m_valid.to(tl.int32), 0)
        slots = tl.minimum(count, k)
        peak = tl.max(b_weight, 0)
        scale = tl.where(peak > 0, peak, 1.0)
        bad_weights = tl.sum(((b_weight != b_weight) | (tl.abs(b_weight) == float("inf"))).to(tl.int32), 0)
        tl.store(p_weight + o_n, b_weight / scale)
        tl.store(p_valid + o_n, m_valid.to(tl.int32))
        tl.store(p_stamp + tl.arange(0, KP), tl.zeros((KP,), tl.int32))
        tl.store(p_square + tl.arange(0, KP), tl.full((KP,), float("inf"), tl.float32))
        tl.debug_barrier()

        gram_matrix(p_xb, p_valid, p_mean, p_gram, count, n, d, stride_n, stride_d, NP, T, BD, PRECISION)
        b_norm = tl.load(p_gram + o_n * NP + o_n, mask=o_n < n, other=0.0)
        tl.store(p_norm + o_n, b_norm)
        # NaN, Inf and values whose distances overflow all show in the trace.
        trace = tl.sum(b_norm, 0)
        bad = (bad_weights > 0) | (trace != trace) | (tl.abs(trace) == float("inf"))
        plain = bad | (count <= k)
        if GIVEN:
            b_start = tl.load(p_in_start + b * n + o_n, mask=m_valid, other=-1)
            tl.store(p_label + o_n, b_start.to(tl.int32))
            tl.debug_barrier()
        else:
            tl.debug_barrier()
            _rank_by_weight(p_weight, p_valid, p_label, p_spare, n, k, NP, T)

        updates = 0
        moving = plain == 0
        for turn in range(max_iter + 1):
            if moving:
                b_old = tl.load(p_label + o_n)
                tl.store(p_history + turn * NP + o_n, b_old)
                tl.debug_barrier()
                if MEDOIDS:
                    update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, NP, T)
                    assign_medoids(p_gram, p_norm, p_valid, p_medoid, p_label, p_cost, n, k, NP, T)
                else:
                    update_means(p_gram, p_weight, p_label, p_product, p_square, p_stamp, turn, n, k, NP, T, PRECISION)
                    assign_means(p_norm, p_valid, p_product, p_square, p_label, p_cost, n, k, NP, T)
                updates = turn
                moved = tl.sum(((tl.load(p_label + o_n) != b_old) & (o_n < n)).to(tl.int32), 0)
                moving = (turn == 0) | (moved > 0)
        loss = tl.sum(tl.where(m_valid, tl.load(p_cost + o_n) * tl.load(p_weight + o_n), 0.0), 0) * scale
        if plain:
            loss = tl.where(bad, float("nan"), 0.0)
            b_rank = tl.cumsum(m_valid.to(tl.int32), 0) - 1
            b_split = tl.where(m_valid, b_rank * slots // tl.maximum(count, 1), -1)
            tl.store(p_label + o_n, b_split)
            tl.store(p_history + o_n, b_split)
            tl.debug_barrier()
        elif OUTPUT == 2 and not MEDOIDS:
            tl.debug_barrier()
            update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, NP, T)
        _number_clusters(p_label, p_first, p_order, n, k, T, NP)
        if plain:
            # Clusters that no iteration made have their lowest token as medoid.
            tl.store(p_medoid + tl.arange(0, KP), tl.load(p_first + tl.arange(0, KP)))
            tl.debug_barrier()

        b_label = tl.load(p_label + o_n)
        b_place = tl.load(p_order + b_label, mask=b_label >= 0, other=-1)
        tl.store(p_assignment + b * n + o_n, b_place.to(tl.int64), mask=o_n < n)
        b_from = b_place
        if OUTPUT == 2 or (MEDOIDS and OUTPUT == 0):
            b_from = tl.where(tl.load(p_medoid + b_label, mask=b_label >= 0, other=NP) == o_n, b_place, -1)
        elif OUTPUT == 0:
            b_old = tl.load(p_history + updates * NP + o_n)
            b_from = tl.load(p_order + b_old, mask=b_old >= 0, other=-1)
        tl.store(p_source + b * n + o_n, b_from.to(tl.int64), mask=o_n < n)
        tl.store(p_n_iter + b, updates)
        tl.store(p_loss + b, loss)
        for s in range(0, k, T):
            o_s = s + tl.arange(0, T)
            m_s = o_s < k
            o_row = tl.load(p_order + o_s).to(tl.int64)
            if MEDOIDS or OUTPUT == 2:
                b_m = tl.load(p_medoid + o_s, mask=m_s, other=NP)
                tl.store(p_medoids + b * k + o_row, tl.where(b_m < NP, b_m, -1).to(tl.int64), mask=m_s)
            p_out = p_tokens + b * k * d
            if OUTPUT == 2 or (MEDOIDS and OUTPUT == 0):
                for c in range(0, d, BD):
                    o_d = c + tl.arange(0, BD)
                    b_x = load_tokens(p_xb, b_m, o_d, b_m < NP, d, stride_n, stride_d).to(p_out.dtype.element_ty)
                    m_out = m_s[:, None] & (o_d < d)[None, :]
                    tl.store(p_out + o_row[:, None] * d + o_d[None, :], b_x, mask=m_out)
            else:
                # Lloyd's centres are the means of the last update that found members, each of its own turn.
                p_from = p_history if OUTPUT == 0 else p_label
                store_means(
                    p_xb, p_from, p_pool_weight + b * stride_pb, p_stamp, p_out, o_s, o_row, m_s, 0, d, n, d,
                    1, NP, stride_pn, stride_n, stride_d, T, BD, POOL_WEIGHTED, OUTPUT == 0,
                )  # fmt: skip
