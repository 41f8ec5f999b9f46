"""The clustering of one sample by one program, from its Gram matrix to its pooled tokens.

Scratch of a sample: floats [11 NP + 2 KP], a pivot for each channel, one to three matrices; ints [10 NP + 5 KP + 16]
and a row of labels [NP] for each update and one more.
"""

import triton
import triton.language as tl

from .averages import segment_means, sort_members
from .means import assign_means, update_means
from .medoids import assign_medoids, member_costs, update_medoids
from .starts import WARD as FROM_WARD
from .starts import start_labels
from .tokens import load_tokens, valid_tokens
from .ward import ward_labels

WARD, MEANS, MEDOIDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
CENTER, MEAN, MEDOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _integers(p_ints, NP: tl.constexpr, KP: tl.constexpr):
    """label, order, first [KP + 16], token, medoid, stamp, place, marks [8, NP], history: where each begins."""
    p_first = p_ints + 2 * NP
    p_token = p_first + KP + 16
    p_marks = p_token + 4 * KP
    return (
        p_ints, p_ints + NP, p_first, p_token, p_token + KP, p_token + 2 * KP, p_token + 3 * KP, p_marks,
        p_marks + 8 * NP,
    )  # fmt: skip


@triton.jit
def _number_clusters(p_label, p_lowest, p_place, n, k, NP: tl.constexpr, KP: tl.constexpr, R: tl.constexpr):
    """Writes each slot's lowest token (NP for none) and its place among the slots by that token, empty ones last."""
    o_n = tl.arange(0, NP)
    b_label = tl.load(p_label + o_n, mask=o_n < n, other=-1)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        b_lowest = tl.min(tl.where(b_label[None, :] == o_s[:, None], o_n[None, :], NP), 1)
        tl.store(p_lowest + o_s, b_lowest, mask=o_s < k)
    tl.debug_barrier()
    o_k = tl.arange(0, KP)
    b_lowest = tl.load(p_lowest + o_k, mask=o_k < k, other=NP)
    b_key = tl.where(o_k < k, tl.where(b_lowest < NP, b_lowest, NP + o_k), 2147483647)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        b_own = tl.load(p_lowest + o_s, mask=o_s < k, other=NP)
        b_own = tl.where(b_own < NP, b_own, NP + o_s)
        tl.store(p_place + o_s, tl.sum((b_key[None, :] < b_own[:, None]).to(tl.int32), 1), mask=o_s < k)
    tl.debug_barrier()


@triton.jit
def cluster_sample(
    p_in_weight, p_in_pool, p_mask, p_start,
    p_assignment, p_source, p_medoids, p_loss, p_n_iter, p_heights, p_out_total, p_floats, p_ints, p_gram,
    b, n, k, max_iter, ld, stride_wb, stride_wn, stride_pb, stride_pn, stride_mb, stride_mn, stride_sb, stride_sk,
    NP: tl.constexpr, KP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
    METHOD: tl.constexpr, INIT: tl.constexpr, OUTPUT: tl.constexpr, WEIGHTED: tl.constexpr,
    POOL_WEIGHTED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes all results but the tokens, and leaves the sorted members in scratch for `pool_sample`."""
    p_weight, p_pool, p_norm, p_cost, p_spare, p_state = (
        p_floats, p_floats + NP, p_floats + 2 * NP, p_floats + 3 * NP, p_floats + 4 * NP, p_floats + 5 * NP,
    )  # fmt: skip
    p_square = p_floats + 11 * NP
    p_total = p_square + KP
    p_label, p_order, p_first, p_token, p_medoid, p_stamp, p_place, p_marks, p_history = _integers(p_ints, NP, KP)
    # Ward overwrites the matrix it works on: what reads the Gram matrix later keeps it.
    second = 0
    if (METHOD == WARD and OUTPUT != MEAN) or (METHOD != WARD and INIT == FROM_WARD):
        second = n * ld
    p_sqdist = p_gram + second
    p_product = p_sqdist + n * ld

    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, KP)
    m_n = o_n < n
    b_valid = valid_tokens(p_mask + b * stride_mb, o_n, n, stride_mn, MASKED)
    b_weight = b_valid.to(tl.float32)
    if WEIGHTED:
        b_weight = tl.load(p_in_weight + b * stride_wb + o_n * stride_wn, mask=b_valid, other=0.0).to(tl.float32)
    count = tl.sum(b_valid.to(tl.int32), 0)
    slots = tl.minimum(count, k)
    peak = tl.max(b_weight, 0)
    scale = tl.where(peak > 0, peak, 1.0)
    b_norm = tl.load(p_gram + o_n * ld + o_n, mask=b_valid, other=0.0)
    # NaN, Inf and values whose distances overflow all show in the trace.
    m_bad = (tl.sum(b_norm, 0) * 4 < float("inf")) == 0
    bad = m_bad | (tl.sum((tl.abs(b_weight) < float("inf")).to(tl.int32), 0) < NP)
    plain = bad | (count <= k)
    b_weight = b_weight / scale
    tl.store(p_weight + o_n, b_weight)
    tl.store(p_norm + o_n, b_norm)
    tl.store(p_stamp + o_k, tl.zeros((KP,), tl.int32))
    tl.store(p_square + o_k, tl.full((KP,), float("inf"), tl.float32))
    tl.debug_barrier()

    updates = 0
    loss = 0.0
    if METHOD == WARD:
        p_heights += b * (n - 1)
        tl.store(p_heights + o_n, tl.full((NP,), float("inf"), tl.float32), mask=o_n < n - 1)
        tl.debug_barrier()
        if plain == 0:
            updates = ward_labels(
                p_gram, p_sqdist, p_norm, p_weight, p_state, p_marks, p_label, p_heights, b_valid,
                n, k, count, peak > 0, scale, ld, NP, R,
            )  # fmt: skip
            if OUTPUT == CENTER:
                # sum_i w_i ||x_i - mu||^2 = sum_i w_i (G_ii - x_i . mu) over a cluster
                member_costs(p_gram, p_weight, p_norm, p_cost, p_label, n, ld, NP, R)
                b_gap = (b_norm + tl.load(p_cost + o_n, mask=m_n, other=0.0)) / 2
                loss = tl.maximum(tl.sum(tl.where(b_valid, b_gap * b_weight, 0.0), 0), 0.0) * scale
    else:
        if plain == 0:
            if INIT == FROM_WARD:
                ward_labels(
                    p_gram, p_sqdist, p_norm, p_weight, p_state, p_marks, p_label, p_spare, b_valid,
                    n, k, count, peak > 0, scale, ld, NP, R,
                )  # fmt: skip
            else:
                start_labels(
                    p_gram, p_start + b * stride_sb, p_weight, p_norm, p_spare, p_order, p_label, b_valid,
                    n, k, count, slots, ld, stride_sk, INIT, NP, KP, R,
                )  # fmt: skip
        moving = plain == 0
        for turn in tl.range(max_iter + 1, disable_licm=True):
            if moving:
                b_old = tl.load(p_label + o_n, mask=m_n, other=-1)
                tl.store(p_history + turn * NP + o_n, b_old)
                tl.debug_barrier()
                if METHOD == MEDOIDS:
                    update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, ld, NP, R)
                    assign_medoids(p_gram, p_norm, p_medoid, p_label, p_cost, b_valid, n, k, ld, NP, R)
                else:
                    update_means(
                        p_gram, p_weight, p_label, p_order, p_first, p_total, p_product, p_square, p_stamp, turn,
                        n, k, ld, NP, R, S, P if P < NP else NP, PRECISION,
                    )  # fmt: skip
                    assign_means(p_norm, p_product, p_square, p_label, p_cost, b_valid, n, k, ld, NP, R)
                updates = turn
                b_new = tl.load(p_label + o_n, mask=m_n, other=-1)
                moving = (turn == 0) | (tl.sum((b_new != b_old).to(tl.int32), 0) > 0)
        if plain == 0:
            b_cost = tl.load(p_cost + o_n, mask=m_n, other=0.0)
            loss = tl.sum(tl.where(b_valid, b_cost * b_weight, 0.0), 0) * scale
    if plain:
        loss = tl.where(bad, float("nan"), 0.0)
        b_rank = tl.cumsum(b_valid.to(tl.int32), 0) - 1
        b_split = tl.where(b_valid, b_rank * slots // tl.maximum(count, 1), -1)
        tl.debug_barrier()
        tl.store(p_label + o_n, b_split)
        if METHOD == MEANS:
            tl.store(p_history + o_n, b_split)
        tl.debug_barrier()
    elif OUTPUT == MEDOID and METHOD != MEDOIDS:
        tl.debug_barrier()
        update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, ld, NP, R)

    b_label = tl.load(p_label + o_n, mask=m_n, other=-1)
    b_place = b_label
    if METHOD != WARD or OUTPUT == MEDOID:
        # p_first and p_token are free until the members are sorted.
        _number_clusters(p_label, p_first, p_place, n, k, NP, KP, R)
        b_place = tl.load(p_place + b_label, mask=b_label >= 0, other=-1)
    b_from = b_place
    # Two conditions, since the first is known to the compiler.
    if METHOD == MEDOIDS or OUTPUT == MEDOID:  # noqa: SIM102
        if plain:
            # Clusters that no iteration made have their lowest token as medoid.
            tl.store(p_medoid + o_k, tl.load(p_first + o_k, mask=o_k < k, other=NP), mask=o_k < k)
            tl.debug_barrier()
    if OUTPUT == MEDOID or (METHOD == MEDOIDS and OUTPUT == CENTER):
        b_from = tl.where(tl.load(p_medoid + b_label, mask=b_label >= 0, other=NP) == o_n, b_place, -1)
    elif METHOD == MEANS and OUTPUT == CENTER:
        b_old = tl.load(p_history + updates * NP + o_n, mask=m_n, other=-1)
        b_from = tl.load(p_place + b_old, mask=b_old >= 0, other=-1)
    if METHOD == MEDOIDS or OUTPUT == MEDOID:
        b_at = tl.load(p_place + o_k, mask=o_k < k, other=0)
        b_m = tl.load(p_medoid + o_k, mask=o_k < k, other=NP)
        tl.store(p_medoids + b * k + b_at, tl.where(b_m < NP, b_m, -1).to(tl.int64), mask=o_k < k)
        tl.store(p_token + b_at, b_m, mask=o_k < k)
    elif METHOD == MEANS:
        tl.store(p_token + tl.load(p_place + o_k, mask=o_k < k, other=0), o_k, mask=o_k < k)
    tl.store(p_assignment + b * n + o_n, b_place.to(tl.int64), mask=m_n)
    tl.store(p_source + b * n + o_n, b_from.to(tl.int64), mask=m_n)
    tl.store(p_n_iter + b, updates)
    if OUTPUT == CENTER:
        tl.store(p_loss + b, loss)

    b_pool = b_valid.to(tl.float32)
    most = 1.0
    if POOL_WEIGHTED:
        b_pool = tl.load(p_in_pool + b * stride_pb + o_n * stride_pn, mask=b_valid, other=0.0).to(tl.float32)
        most = tl.max(b_pool, 0)
        most = tl.where((most > 0) & (most < float("inf")), most, 1.0)
    tl.debug_barrier()
    tl.store(p_label + o_n, b_from)
    tl.store(p_pool + o_n, b_pool / most)
    tl.debug_barrier()
    sort_members(p_label, p_pool, p_order, p_first, p_total, n, k, NP, R)
    b_total = tl.load(p_total + o_k, mask=o_k < k, other=0.0)
    tl.store(p_out_total + b * k + o_k, tl.where(b_total > 0, b_total * most, b_total), mask=o_k < k)


@triton.jit
def _fill_empty(
    p_x, p_tokens, p_pool, p_first, p_token, p_stamp, p_history, n, k, first_d, last_d, d, stride_n, stride_d,
    NP: tl.constexpr, S: tl.constexpr, BD: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Writes the slots without members: zeros, or with KEEP the mean of the last update that found members."""
    for s in range(k):
        if tl.load(p_first + s) == tl.load(p_first + s + 1):
            slot = tl.load(p_token + s) if KEEP else 0
            p_from = p_history + (tl.load(p_stamp + slot) if KEEP else 0) * NP
            total = 1.0
            equal = 0.0
            if KEEP:
                o_n = tl.arange(0, NP)
                m_in = tl.load(p_from + o_n, mask=o_n < n, other=-1) == slot
                total = tl.sum(tl.where(m_in, tl.load(p_pool + o_n, mask=o_n < n, other=0.0), 0.0), 0)
                equal = tl.where(total == 0, 1.0, 0.0)
                total = tl.where(total == 0, tl.maximum(tl.sum(m_in.to(tl.float32), 0), 1.0), total)
            for c in range(first_d, last_d, BD):
                o_d = c + tl.arange(0, BD)
                b_mean = tl.zeros((BD,), tl.float32)
                if KEEP:
                    for i in range(0, n, S):
                        o_i = i + tl.arange(0, S)
                        m_i = tl.load(p_from + o_i, mask=o_i < n, other=-1) == slot
                        b_share = (tl.load(p_pool + o_i, mask=m_i, other=0.0) + equal) / total
                        b_x = load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d)
                        b_mean += tl.sum(tl.where(m_i[:, None], b_share[:, None] * b_x, 0.0), 0)
                o_out = tl.full((), 0, tl.int64) + s * d + o_d
                tl.store(p_tokens + o_out, b_mean.to(p_tokens.dtype.element_ty), mask=o_d < last_d)


@triton.jit
def pool_sample(
    p_x, p_tokens, p_floats, p_ints, n, first_d, last_d, d, k, stride_n, stride_d,
    NP: tl.constexpr, KP: tl.constexpr, S: tl.constexpr, P: tl.constexpr, METHOD: tl.constexpr,
    OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the pooled tokens [K, D]."""
    p_label, p_order, p_first, p_token, _, p_stamp, _, _, p_history = _integers(p_ints, NP, KP)
    if OUTPUT == MEDOID or (METHOD == MEDOIDS and OUTPUT == CENTER):
        for s in range(0, k, S):
            o_s = s + tl.arange(0, S)
            b_m = tl.load(p_token + o_s, mask=o_s < k, other=NP)
            for c in range(first_d, last_d, P):
                o_d = c + tl.arange(0, P)
                b_x = load_tokens(p_x, b_m, o_d, b_m < NP, last_d, stride_n, stride_d)
                o_out = o_s.to(tl.int64)[:, None] * d + o_d[None, :]
                m_out = (o_s < k)[:, None] & (o_d < last_d)[None, :]
                tl.store(p_tokens + o_out, b_x.to(p_tokens.dtype.element_ty), mask=m_out)
    else:
        p_pool = p_floats + NP
        p_total = p_floats + 11 * NP + KP
        segment_means(
            p_x, p_label, p_pool, p_order, p_first, p_total, p_tokens, tl.load(p_first + k), first_d, last_d,
            stride_n, stride_d, d, S, P, PRECISION, True,
        )  # fmt: skip
        o_k = tl.arange(0, KP)
        b_first = tl.load(p_first + o_k, mask=o_k < k, other=-1)
        b_next = tl.load(p_first + o_k + 1, mask=o_k < k, other=-2)
        if tl.sum((b_first == b_next).to(tl.int32), 0) > 0:
            _fill_empty(
                p_x, p_tokens, p_pool, p_first, p_token, p_stamp, p_history, n, k, first_d, last_d, d,
                stride_n, stride_d, NP, S, P, METHOD == MEANS and OUTPUT == CENTER,
            )  # fmt: skip
