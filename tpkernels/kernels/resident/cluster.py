"""The clustering of one sample by one program, from its Gram matrix to the members that pooling reads."""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .codes import INIT_WARD, METHOD_KMEANS, METHOD_KMEDOIDS, METHOD_WARD, OUTPUT_CENTER, OUTPUT_MEAN, OUTPUT_MEDOID
from .kmeans import assign_means, update_means
from .kmedoids import assign_medoids, member_costs, update_medoids
from .means import sort_members
from .scratch import integers
from .starts import start_labels
from .ward import ward_labels


@triton.jit
def _number_clusters(p_label, p_lowest, p_place, n, k, NP: tl.constexpr, KP: tl.constexpr, R: tl.constexpr):
    """Writes each slot's lowest token (NP for none) and the slot's place in their order, empty slots last."""
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
    p_label, p_order, p_first, p_token, p_medoid, p_stamp, p_place, p_marks, p_history = integers(p_ints, NP, KP)
    # Ward overwrites its matrix: where the Gram matrix is read afterwards, Ward has a second one.
    second = 0
    if (METHOD == METHOD_WARD and OUTPUT != OUTPUT_MEAN) or (METHOD != METHOD_WARD and INIT == INIT_WARD):
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
    # NaN, infinity and values whose squared distances overflow all make 4 trace(G) non-finite.
    m_bad = (tl.sum(b_norm, 0) * 4 < float("inf")) == 0
    bad = m_bad | (tl.sum((tl.abs(b_weight) < float("inf")).to(tl.int32), 0) < NP)
    # No iteration runs: there is nothing to compare, or a slot for every token.
    plain = bad | (count <= k)
    b_weight = b_weight / scale
    tl.store(p_weight + o_n, b_weight)
    tl.store(p_norm + o_n, b_norm)
    tl.store(p_stamp + o_k, tl.zeros((KP,), tl.int32))
    tl.store(p_square + o_k, tl.full((KP,), float("inf"), tl.float32))
    tl.debug_barrier()

    updates = 0
    loss = 0.0
    if METHOD == METHOD_WARD:
        p_heights += b * (n - 1)
        tl.store(p_heights + o_n, tl.full((NP,), float("inf"), tl.float32), mask=o_n < n - 1)
        tl.debug_barrier()
        if plain == 0:
            updates = ward_labels(
                p_gram, p_sqdist, p_norm, p_weight, p_state, p_marks, p_label, p_heights, b_valid,
                n, k, count, peak > 0, scale, ld, NP, R,
            )  # fmt: skip
            if OUTPUT == OUTPUT_CENTER:
                # sum_i w_i ||x_i - mu||^2 = sum_i w_i (G_ii - x_i . mu) over a cluster
                member_costs(p_gram, p_weight, p_norm, p_cost, p_label, n, ld, NP, R)
                b_gap = (b_norm + tl.load(p_cost + o_n, mask=m_n, other=0.0)) / 2
                loss = tl.maximum(tl.sum(tl.where(b_valid, b_gap * b_weight, 0.0), 0), 0.0) * scale
    else:
        if plain == 0:
            if INIT == INIT_WARD:
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
                if METHOD == METHOD_KMEDOIDS:
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
        # The valid tokens in order, split evenly over the slots.
        loss = tl.where(bad, float("nan"), 0.0)
        b_rank = tl.cumsum(b_valid.to(tl.int32), 0) - 1
        b_split = tl.where(b_valid, b_rank * slots // tl.maximum(count, 1), -1)
        tl.debug_barrier()
        tl.store(p_label + o_n, b_split)
        if METHOD == METHOD_KMEANS:
            tl.store(p_history + o_n, b_split)
        tl.debug_barrier()
    elif OUTPUT == OUTPUT_MEDOID and METHOD != METHOD_KMEDOIDS:
        tl.debug_barrier()
        update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, ld, NP, R)

    b_label = tl.load(p_label + o_n, mask=m_n, other=-1)
    b_place = b_label
    if METHOD != METHOD_WARD or OUTPUT == OUTPUT_MEDOID:
        # p_first holds the slots' lowest tokens until `sort_members` writes it.
        _number_clusters(p_label, p_first, p_place, n, k, NP, KP, R)
        b_place = tl.load(p_place + b_label, mask=b_label >= 0, other=-1)
    b_source = b_place
    # Nested, since the outer condition is a compile-time constant.
    if METHOD == METHOD_KMEDOIDS or OUTPUT == OUTPUT_MEDOID:  # noqa: SIM102
        if plain:
            # Without iterations a cluster's medoid is its lowest token.
            tl.store(p_medoid + o_k, tl.load(p_first + o_k, mask=o_k < k, other=NP), mask=o_k < k)
            tl.debug_barrier()
    if OUTPUT == OUTPUT_MEDOID or (METHOD == METHOD_KMEDOIDS and OUTPUT == OUTPUT_CENTER):
        b_source = tl.where(tl.load(p_medoid + b_label, mask=b_label >= 0, other=NP) == o_n, b_place, -1)
    elif METHOD == METHOD_KMEANS and OUTPUT == OUTPUT_CENTER:
        # A center is the mean over the labels that its last update read.
        b_old = tl.load(p_history + updates * NP + o_n, mask=m_n, other=-1)
        b_source = tl.load(p_place + b_old, mask=b_old >= 0, other=-1)
    if METHOD == METHOD_KMEDOIDS or OUTPUT == OUTPUT_MEDOID:
        b_at = tl.load(p_place + o_k, mask=o_k < k, other=0)
        b_m = tl.load(p_medoid + o_k, mask=o_k < k, other=NP)
        tl.store(p_medoids + b * k + b_at, tl.where(b_m < NP, b_m, -1).to(tl.int64), mask=o_k < k)
        tl.store(p_token + b_at, b_m, mask=o_k < k)
    elif METHOD == METHOD_KMEANS:
        tl.store(p_token + tl.load(p_place + o_k, mask=o_k < k, other=0), o_k, mask=o_k < k)
    tl.store(p_assignment + b * n + o_n, b_place.to(tl.int64), mask=m_n)
    tl.store(p_source + b * n + o_n, b_source.to(tl.int64), mask=m_n)
    tl.store(p_n_iter + b, updates)
    if OUTPUT == OUTPUT_CENTER:
        tl.store(p_loss + b, loss)

    b_pool = b_valid.to(tl.float32)
    most = 1.0
    if POOL_WEIGHTED:
        b_pool = tl.load(p_in_pool + b * stride_pb + o_n * stride_pn, mask=b_valid, other=0.0).to(tl.float32)
        most = tl.max(b_pool, 0)
        most = tl.where((most > 0) & (most < float("inf")), most, 1.0)
    tl.debug_barrier()
    tl.store(p_label + o_n, b_source)
    tl.store(p_pool + o_n, b_pool / most)
    tl.debug_barrier()
    sort_members(p_label, p_pool, p_order, p_first, p_total, n, k, NP, R)
    b_total = tl.load(p_total + o_k, mask=o_k < k, other=0.0)
    tl.store(p_out_total + b * k + o_k, tl.where(b_total > 0, b_total * most, b_total), mask=o_k < k)
