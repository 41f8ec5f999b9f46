"""The clustering of one sample by one program, from its Gram matrix to the members that pooling reads."""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .codes import CUT_COUNT, INIT_WARD, METHOD_KMEANS, METHOD_KMEDOIDS, METHOD_WARD, OUTPUT_CENTER, OUTPUT_MEDOID
from .kmeans import assign_means, update_means
from .kmedoids import assign_medoids, member_costs, update_medoids
from .members import slot_totals, sort_members, sort_slots
from .scratch import vector_part
from .starts import start_labels
from .ward import ward_labels


@triton.jit
def _number_slots(s, z, tile):
    """Writes each slot's place in the order of their lowest tokens, empty slots last, after `sort_members`."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, tile.KP)
    b_begin = tl.load(s.begin + o_k, mask=o_k < z.k, other=0)
    m_live = tl.load(s.end + o_k, mask=o_k < z.k, other=0) > b_begin
    b_lowest = tl.load(s.order + b_begin, mask=m_live, other=0)
    tl.store(s.other + o_n, tl.zeros((NP,), tl.int32))
    tl.debug_barrier()
    tl.store(s.other + b_lowest, tl.full((tile.KP,), 1, tl.int32), mask=m_live)
    tl.debug_barrier()
    b_before = tl.cumsum(tl.load(s.other + o_n), 0)
    tl.debug_barrier()
    tl.store(s.other + o_n, b_before)
    tl.debug_barrier()
    b_empty = tl.cumsum(((m_live == 0) & (o_k < z.k)).to(tl.int32), 0)
    b_last = tl.max(b_before, 0) + b_empty - 1
    tl.store(s.place + o_k, tl.where(m_live, tl.load(s.other + b_lowest, mask=m_live, other=0) - 1, b_last))
    tl.debug_barrier()


@triton.jit
def _iterate(plain, max_iter, p_mask, stride_mask, s, z, kind, tile):
    """Updates and assignments until labels stand still, at most max_iter updates after the first assignment; returns
    the number of updates. `begin`, `end` and `order` are those of the last update.
    """
    o_n = tl.arange(0, tile.NP)
    moving = plain == 0
    updates = 0
    for turn in tl.range(max_iter + 1, disable_licm=True):
        if moving:
            b_old = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
            if kind.METHOD == METHOD_KMEDOIDS:
                update_medoids(s, z, kind, tile)
                assign_medoids(p_mask, stride_mask, s, z, kind, tile)
            else:
                tl.store(s.history + turn * tile.NP + o_n, b_old)
                update_means(turn, s, z, kind, tile)
                assign_means(p_mask, stride_mask, s, z, kind, tile)
            updates = turn
            b_new = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
            moving = (turn == 0) | (tl.sum((b_new != b_old).to(tl.int32), 0) > 0)
    return updates


@triton.jit
def _write_labels(out, b, updates, s, z, kind, tile):
    """Writes the assignment and the source, which becomes the label; slots by their places."""
    METHOD: tl.constexpr = kind.METHOD
    OUTPUT: tl.constexpr = kind.OUTPUT
    NP: tl.constexpr = tile.NP
    V: tl.constexpr = vector_part(tile.NP)
    for first in tl.range(0, NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        m_n = o_n < z.n
        b_label = tl.load(s.label + o_n, mask=m_n, other=-1)
        b_place = b_label
        if METHOD != METHOD_WARD or OUTPUT == OUTPUT_MEDOID:
            b_place = tl.load(s.place + b_label, mask=b_label >= 0, other=-1)
        b_source = b_place
        if OUTPUT == OUTPUT_MEDOID or (METHOD == METHOD_KMEDOIDS and OUTPUT == OUTPUT_CENTER):
            b_source = tl.where(tl.load(s.medoid + b_label, mask=b_label >= 0, other=NP) == o_n, b_place, -1)
        elif METHOD == METHOD_KMEANS and OUTPUT == OUTPUT_CENTER:
            # A center is the mean over the labels that its last update read.
            b_old = tl.load(s.history + updates * NP + o_n, mask=m_n, other=-1)
            b_source = tl.load(s.place + b_old, mask=b_old >= 0, other=-1)
        tl.store(out.assignment + b * z.n + o_n, b_place.to(tl.int64), mask=m_n)
        tl.store(out.source + b * z.n + o_n, b_source.to(tl.int64), mask=m_n)
        tl.debug_barrier()
        tl.store(s.label + o_n, b_source)
        tl.debug_barrier()


@triton.jit
def weights_of(tensors, b, b_valid, strides, kind, tile):
    """The valid tokens' weights [NP], the largest, and what weights are divided by."""
    b_weight = b_valid.to(tl.float32)
    if kind.WEIGHTED:
        p_weight = tensors.weight + b * strides.weight_b
        o_n = tl.arange(0, tile.NP)
        b_weight = tl.load(p_weight + o_n * strides.weight_n, mask=b_valid, other=0.0).to(tl.float32)
    peak = tl.max(b_weight, 0)
    return b_weight, peak, tl.where(peak > 0, peak, 1.0)


@triton.jit
def look_at(tensors, b, s, z, strides, kind, tile):
    """Writes the weights [N] over the sample's largest and the tokens' norms [N], zero for invalid tokens.

    Returns which tokens are valid, those weights, how many are valid, the largest weight, what weights are divided by,
    and whether there are bad numbers.
    """
    NP: tl.constexpr = tile.NP
    n = z.n
    o_n = tl.arange(0, NP)
    b_valid = valid_tokens(tensors.mask + b * strides.mask_b, o_n, n, strides.mask_n, kind.MASKED)
    b_weight, peak, scale = weights_of(tensors, b, b_valid, strides, kind, tile)
    count = tl.sum(b_valid.to(tl.int32), 0)
    b_norm = tl.load(s.gram + o_n * z.ld + o_n, mask=b_valid, other=0.0)
    # NaN, infinity and values whose squared distances overflow all make 4 trace(G) non-finite.
    m_bad = (tl.sum(b_norm, 0) * 4 < float("inf")) == 0
    bad = m_bad | (tl.sum((tl.abs(b_weight) < float("inf")).to(tl.int32), 0) < NP)
    b_weight = b_weight / scale
    tl.store(s.weight + o_n, b_weight)
    tl.store(s.norm + o_n, b_norm)
    return b_valid, b_weight, count, peak, scale, bad


@triton.jit
def cluster_sample(tensors, out, s, b, max_iter, bound, z, strides, kind, tile):
    """Writes all results but the tokens, and leaves the sorted members in scratch for `pool_sample`."""
    NP: tl.constexpr = tile.NP
    METHOD: tl.constexpr = kind.METHOD
    OUTPUT: tl.constexpr = kind.OUTPUT
    n = z.n
    k = z.k
    p_mask = tensors.mask + b * strides.mask_b
    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, tile.KP)
    m_n = o_n < n
    b_valid, b_weight, count, peak, scale, bad = look_at(tensors, b, s, z, strides, kind, tile)
    most = k
    if kind.COUNTED:
        most = tl.load(tensors.counts + b * strides.counts_b)
        most = tl.minimum(tl.maximum(most, 1), k).to(tl.int32)
    slots = tl.minimum(count, most)
    # No iteration runs: there is nothing to compare, or a slot for every token.
    plain = bad | (count <= most)
    if kind.CUT != CUT_COUNT:
        # Values merge fewer tokens, too.
        plain = bad | (count <= 1)
    tl.store(s.stamp + o_k, tl.zeros((tile.KP,), tl.int32))
    tl.store(s.square + o_k, tl.full((tile.KP,), float("inf"), tl.float32))
    tl.debug_barrier()

    updates = 0
    loss = 0.0
    if METHOD == METHOD_WARD:
        p_heights = out.heights + b * (n - 1)
        if plain:
            tl.store(p_heights + o_n, tl.full((NP,), float("inf"), tl.float32), mask=o_n < n - 1)
        else:
            updates, left = ward_labels(
                p_heights, p_mask, strides.mask_n, count, most, peak > 0, bound, scale, s, z, kind, tile
            )
            if kind.CUT != CUT_COUNT:
                slots = left
            if OUTPUT == OUTPUT_CENTER:
                # Read again, and so below: a vector that is kept over all rounds leaves those too few registers.
                b_valid = valid_tokens(p_mask, o_n, n, strides.mask_n, kind.MASKED)
                # sum_i w_i ||x_i - mu||^2 = sum_i w_i (G_ii - x_i . mu) over a cluster
                sort_members(s.weight, s, z, tile, kind.WEIGHTED)
                member_costs(s, z, kind, tile)
                b_gap = (tl.load(s.norm + o_n) + tl.load(s.cost + o_n, mask=m_n, other=0.0)) / 2
                loss = tl.maximum(tl.sum(tl.where(b_valid, b_gap * tl.load(s.weight + o_n), 0.0), 0), 0.0) * scale
                if kind.CUT != CUT_COUNT:
                    # Tokens that are clusters of their own, which a count would have left alone.
                    loss = tl.where(left == count, 0.0, loss)
    else:
        if plain == 0:
            if kind.INIT == INIT_WARD:
                _, left = ward_labels(
                    s.cost, p_mask, strides.mask_n, count, most, peak > 0, bound, scale, s, z, kind, tile
                )
                if kind.CUT != CUT_COUNT:
                    slots = left
            else:
                p_start = tensors.start + b * strides.start_b
                start_labels(p_start, strides.start_k, b_valid, count, slots, s, z, kind, tile)
        updates = _iterate(plain, max_iter, p_mask, strides.mask_n, s, z, kind, tile)
        if plain == 0:
            b_cost = tl.load(s.cost + o_n, mask=m_n, other=0.0)
            loss = tl.sum(tl.where(b_valid, b_cost * b_weight, 0.0), 0) * scale
    b_valid = valid_tokens(p_mask, o_n, n, strides.mask_n, kind.MASKED)
    tl.store(out.n_clusters + b, slots)
    if plain:
        # The valid tokens in order, split evenly over the slots.
        loss = tl.where(bad, float("nan"), 0.0)
        b_rank = tl.cumsum(b_valid.to(tl.int32), 0) - 1
        b_split = tl.where(b_valid, b_rank * slots // tl.maximum(count, 1), -1)
        tl.debug_barrier()
        tl.store(s.label + o_n, b_split)
        if METHOD == METHOD_KMEANS:
            tl.store(s.history + o_n, b_split)
        tl.debug_barrier()
    elif OUTPUT == OUTPUT_MEDOID and METHOD != METHOD_KMEDOIDS:
        tl.debug_barrier()
        update_medoids(s, z, kind, tile)

    if METHOD != METHOD_WARD or OUTPUT == OUTPUT_MEDOID:
        sort_members(s.weight, s, z, tile, False)
        _number_slots(s, z, tile)
    # Nested, since the outer condition is a compile-time constant.
    if METHOD == METHOD_KMEDOIDS or OUTPUT == OUTPUT_MEDOID:  # noqa: SIM102
        if plain:
            # Without iterations a cluster's medoid is its lowest token.
            b_begin = tl.load(s.begin + o_k, mask=o_k < k, other=0)
            m_live = tl.load(s.end + o_k, mask=o_k < k, other=0) > b_begin
            tl.store(s.medoid + o_k, tl.load(s.order + b_begin, mask=m_live, other=NP), mask=o_k < k)
            tl.debug_barrier()
    _write_labels(out, b, updates, s, z, kind, tile)
    b_at = tl.load(s.place + o_k, mask=o_k < k, other=0)
    if METHOD == METHOD_KMEDOIDS or OUTPUT == OUTPUT_MEDOID:
        b_m = tl.load(s.medoid + o_k, mask=o_k < k, other=NP)
        tl.store(out.medoids + b * k + b_at, tl.where(b_m < NP, b_m, -1).to(tl.int64), mask=o_k < k)
        tl.store(s.token + b_at, b_m, mask=o_k < k)
    elif METHOD == METHOD_KMEANS:
        tl.store(s.token + b_at, o_k, mask=o_k < k)
    tl.store(out.n_iter + b, updates)
    if OUTPUT == OUTPUT_CENTER:
        tl.store(out.loss + b, loss)

    b_pool = b_valid.to(tl.float32)
    most = 1.0
    if kind.POOL_WEIGHTED:
        p_pool = tensors.pool_weight + b * strides.pool_b
        b_pool = tl.load(p_pool + o_n * strides.pool_n, mask=b_valid, other=0.0).to(tl.float32)
        most = tl.max(b_pool, 0)
        most = tl.where((most > 0) & (most < float("inf")), most, 1.0)
    tl.debug_barrier()
    tl.store(s.pool + o_n, b_pool / most)
    # Labels are places from here on.
    tl.store(s.place + o_k, o_k)
    tl.debug_barrier()
    sort_members(s.pool, s, z, tile, kind.POOL_WEIGHTED)
    slot_totals(o_k < k, s, tile, kind.POOL_WEIGHTED)
    sort_slots(o_k < k, s, tile)
    b_total = tl.load(s.total + o_k, mask=o_k < k, other=0.0)
    tl.store(out.total + b * k + o_k, tl.where(b_total > 0, b_total * most, b_total), mask=o_k < k)
