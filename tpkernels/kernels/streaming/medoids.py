"""What a token costs in its cluster, and the member that costs least: the medoid.

cost_i = ||x_i - mu_{s(i)}||^2    medoid_s = the lowest i of cluster s with cost_i <= (1 + slack) min cost

For squared distances the member nearest to the weighted mean has the least sum of weighted distances. Tokens are read
in memory order, not by cluster. A cluster's least cost is found by atomic minima on the bits of the floats, which order
as floats do where none is negative, and give the same result in any order.
"""

import triton
import triton.language as tl

# Costs that differ by rounding alone are tied, as those of two members of equal weight, and the lowest index wins.
TIE = tl.constexpr(1 + 2.0**-18)


@triton.jit(do_not_specialize=["n", "k"], do_not_specialize_on_alignment=["p_moving"])
def member_cost_kernel(
    p_x, p_offset, p_center, p_label, p_moving, p_cost, p_least, n, d, k,
    stride_b, stride_n, stride_d, stride_lb, stride_ln,
    T: tl.constexpr, BD: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """Costs [B, N] of tokens [B, N, D] with centers [B, K, D]; 0 without a label. A program has T tokens.

    SEARCH: labels are keys, centers lack the offset, samples that have converged are skipped, and p_least [B, K], the
    bits of each cluster's least cost, is lowered.
    """
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(n, T)
    b = pid // parts
    moving = 1
    if SEARCH:
        moving = tl.load(p_moving + b)
    if moving == 0:
        return
    o_i = (pid % parts * T + tl.arange(0, T)).to(tl.int64)
    m_i = o_i < n
    b_label = tl.load(p_label + b * stride_lb + o_i * stride_ln, mask=m_i, other=-1).to(tl.int64)
    if SEARCH:
        b_label = tl.where(m_i, b_label - b * (k + 1), -1)
    m_in = m_i & (b_label >= 0) & (b_label < k)
    o_row = b * k + tl.where(m_in, b_label, 0)
    b_cost = tl.zeros((T,), tl.float32)
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        m = m_in[:, None] & (o_d < d)[None, :]
        p_row = p_x + b * stride_b + o_i[:, None] * stride_n + o_d[None, :] * stride_d
        b_gap = tl.load(p_row, mask=m, other=0.0).to(tl.float32)
        if SEARCH:
            b_gap -= tl.load(p_offset + b * d + o_d, mask=o_d < d, other=0.0)[None, :]
        b_gap -= tl.load(p_center + o_row[:, None] * d + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        b_gap = tl.where(m, b_gap, 0.0)
        b_cost += tl.sum(b_gap * b_gap, 1)
    tl.store(p_cost + b * n + o_i, b_cost, mask=m_i)
    if SEARCH:
        tl.atomic_min(p_least + o_row, b_cost.to(tl.int32, bitcast=True), mask=m_in, sem="relaxed")


@triton.jit(do_not_specialize=["n", "k"], do_not_specialize_on_alignment=["p_moving"])
def medoid_kernel(p_key, p_cost, p_least, p_moving, p_medoid, n, k, T: tl.constexpr):
    """Lowers p_medoid [B, K] to the lowest token whose cost ties with its cluster's least."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(n, T)
    b = pid // parts
    if tl.load(p_moving + b) == 0:
        return
    o_i = (pid % parts).to(tl.int32) * T + tl.arange(0, T)
    m_i = o_i < n
    b_label = tl.load(p_key + b * n + o_i, mask=m_i, other=0).to(tl.int64) - b * (k + 1)
    m_in = m_i & (b_label < k)
    o_row = b * k + tl.where(m_in, b_label, 0)
    b_least = tl.load(p_least + o_row, mask=m_in, other=0).to(tl.float32, bitcast=True)
    b_cost = tl.load(p_cost + b * n + o_i, mask=m_in, other=0.0)
    tl.atomic_min(p_medoid + o_row, o_i, mask=m_in & (b_cost <= b_least * TIE), sem="relaxed")


@triton.jit(do_not_specialize=["n", "k"], do_not_specialize_on_alignment=["p_moving"])
def medoid_centres_kernel(
    p_high, p_low, p_medoid, p_moving, p_center_high, p_center_low, p_norm, n, k, width,
    S: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Copies the medoids' halves [B, N, width] to the centers [B, K, width] and writes their squared norms, halved.

    A slot without members (medoid N) gets an infinite norm, so that no token chooses it.
    """
    pid = tl.program_id(0).to(tl.int64)
    groups = tl.cdiv(k, S)
    b = pid // groups
    if tl.load(p_moving + b) == 0:
        return
    o_s = (pid % groups).to(tl.int32) * S + tl.arange(0, S)
    m_s = o_s < k
    b_medoid = tl.load(p_medoid + b * k + o_s, mask=m_s, other=0)
    m_live = m_s & (b_medoid < n)
    o_from = (b * n + b_medoid)[:, None] * width
    o_to = (b * k + o_s)[:, None] * width
    b_norm = tl.zeros((S,), tl.float32)
    for c in range(0, width, BD):
        o_d = c + tl.arange(0, BD)[None, :]
        m = m_live[:, None] & (o_d < width)
        b_high = tl.load(p_high + o_from + o_d, mask=m, other=0.0)
        b_low = tl.load(p_low + o_from + o_d, mask=m, other=0.0)
        tl.store(p_center_high + o_to + o_d, b_high, mask=m)
        tl.store(p_center_low + o_to + o_d, b_low, mask=m)
        b_x = b_high.to(tl.float32) + b_low.to(tl.float32)
        b_norm += tl.sum(b_x * b_x, 1)
    tl.store(p_norm + b * k + o_s, tl.where(m_live, b_norm / 2, float("inf")), mask=m_s)
