"""Weighted means of a sample's clusters, from tokens sorted by label: N rows are read, whatever K is.

Sorted by (label, index), the members of a slot are contiguous. A block of S sorted tokens is averaged by one small
product with the matrix "same label" [S, S]: the row of a slot's last member holds its mean, and a slot that continues
in the next block carries its partial mean over.
"""

import triton
import triton.language as tl

from ..tokens import load_tokens


@triton.jit
def sort_members(p_label, p_weight, p_order, p_first, p_total, n, k, NP: tl.constexpr, R: tl.constexpr):
    """Writes the tokens sorted by (label, index) [N], where each slot begins [K + 1], and each slot's total [K].

    The total is the sum of the weights; minus the number of members where that is 0, and members count equally.
    """
    o_n = tl.arange(0, NP)
    b_label = tl.load(p_label + o_n, mask=o_n < n, other=-1)
    b_slot = tl.where(b_label >= 0, b_label, k)
    # Tokens without a label sort last, lanes beyond N after them.
    b_key = tl.where(o_n < n, b_slot, k + 1) * NP + o_n
    b_weight = tl.load(p_weight + o_n, mask=o_n < n, other=0.0)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        l_i = tl.load(p_label + o_i, mask=o_i < n, other=-1)
        k_i = tl.where(l_i >= 0, l_i, k) * NP + o_i
        b_place = tl.sum((b_key[None, :] < k_i[:, None]).to(tl.int32), 1)
        tl.store(p_order + b_place, o_i, mask=o_i < n)
    for s in range(0, k + 1, R):
        o_s = s + tl.arange(0, R)
        m_in = (b_slot[None, :] == o_s[:, None]) & (o_n < n)[None, :]
        b_first = tl.sum((b_key[None, :] < o_s[:, None] * NP).to(tl.int32), 1)
        b_count = tl.sum(m_in.to(tl.float32), 1)
        b_mass = tl.sum(tl.where(m_in, b_weight[None, :], 0.0), 1)
        tl.store(p_first + o_s, b_first, mask=o_s <= k)
        # A mass of NaN is kept: it must not count as 0.
        tl.store(p_total + o_s, tl.where(b_mass == 0, -b_count, b_mass), mask=o_s < k)
    tl.debug_barrier()


@triton.jit
def segment_means(
    p_rows, p_label, p_weight, p_order, p_first, p_total, p_out, count, first_d, last_d,
    stride_n, stride_d, stride_out, S: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, ODD: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the means of p_rows [N, D] over the first `count` sorted tokens, [K, D].

    ODD: rows may hold NaN or infinity, which then reach the mean of their own slot alone. Slots without members are not
    written.
    """
    o_t = tl.arange(0, S)
    for c in range(first_d, last_d, BD):
        o_d = c + tl.arange(0, BD)
        b_carry = tl.zeros((BD,), tl.float32)
        carried = -1
        # No pipelining: a load of scratch that is issued ahead could pass a barrier.
        for t in tl.range(0, count, S, num_stages=1):
            m_t = t + o_t < count
            b_token = tl.load(p_order + t + o_t, mask=m_t, other=0)
            b_label = tl.load(p_label + b_token, mask=m_t, other=-1)
            b_total = tl.load(p_total + b_label, mask=m_t, other=1.0)
            b_weight = tl.load(p_weight + b_token, mask=m_t, other=0.0)
            b_share = tl.where(b_total < 0, 1.0, b_weight) / tl.abs(b_total)
            m_same = (b_label[:, None] == b_label[None, :]) & m_t[None, :]
            b_x = load_tokens(p_rows, b_token, o_d, m_t, last_d, stride_n, stride_d)
            b_mean = tl.where((b_label == carried)[:, None], b_carry[None, :], 0.0)
            b_part = tl.where(m_same, b_share[None, :], 0.0)
            if ODD:
                # 0 * NaN is NaN: as factors, non-finite values would reach every slot of the block.
                m_odd = (b_x != b_x) | (tl.abs(b_x) == float("inf"))
                b_mean = tl.dot(b_part, tl.where(m_odd, 0.0, b_x), b_mean, input_precision=PRECISION)
                b_odd = tl.dot(m_same.to(tl.float16), m_odd.to(tl.float16))
                b_mean = tl.where(b_odd > 0, float("nan"), b_mean)
            else:
                b_mean = tl.dot(b_part, b_x, b_mean, input_precision=PRECISION)
            b_end = tl.load(p_first + b_label + 1, mask=m_t, other=0)
            # A single member is its own mean to the last bit, whatever the product rounds.
            m_single = m_t & (b_end - tl.load(p_first + b_label, mask=m_t, other=0) == 1)
            b_mean = tl.where(m_single[:, None], b_x, b_mean)
            m_last = m_t & (b_end == t + o_t + 1)
            o_out = b_label.to(tl.int64)[:, None] * stride_out + o_d[None, :]
            m_out = m_last[:, None] & (o_d < last_d)[None, :]
            tl.store(p_out + o_out, b_mean.to(p_out.dtype.element_ty), mask=m_out)
            b_carry = tl.sum(tl.where((o_t == S - 1)[:, None], b_mean, 0.0), 0)
            carried = tl.max(tl.where(o_t == S - 1, b_label, -1), 0)
