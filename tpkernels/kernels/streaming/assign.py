"""Nearest centers of many tokens, without any tensor of N x K: distances and their arg-min in one pass.

    label_i = arg min_s ||x_i - c_s||^2 = arg min_s (||c_s||^2 / 2 - x_i . c_s)

The products run on tensor cores without losing float32's digits: tokens and centers, less the sample's mean and scaled
by a power of two, are each the sum of two float16, x = h + l, and `x . c = h . h' + h . l' + l . h'` (l . l' is below
rounding). Tokens are split once (`halves.py`), not in every iteration, and take the memory of a float32 copy.
"""

import triton
import triton.language as tl


@triton.jit
def _nearer(b_product, b_norm, o_s, b_best, b_label):
    """The running arg-min after another tile of centers; the lowest slot wins ties."""
    b_score = b_norm[None, :] - b_product
    b_least = tl.min(b_score, 1)
    b_slot = tl.min(tl.where(b_score == b_least[:, None], o_s[None, :], 2147483647), 1)
    return tl.minimum(b_best, b_least), tl.where(b_least < b_best, b_slot, b_label)


@triton.jit(
    do_not_specialize=["n", "k", "parts", "slots", "first"], do_not_specialize_on_alignment=["p_moving", "p_moved"]
)
def assign_kernel(
    p_high, p_low, p_center_high, p_center_low, p_norm, p_mask, p_medoid, p_old, p_new, p_moving, p_moved,
    n, k, width, parts, slots, first, stride_mb, stride_mn,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, HOLD: tl.constexpr, MASKED: tl.constexpr,
    MEDOIDS: tl.constexpr,
):  # fmt: skip
    """New keys b (K + 1) + label of BN tokens from halves of tokens [B, N, width] and of centers [B, K, width].

    p_moved[b] becomes 1 if any key differs from the old one, and on the first turn. Samples that have converged are
    skipped. Half the centers' squared norms come in parts, [parts, slots = B K]. HOLD keeps the tokens' channels in
    registers for all tiles of centers: width = BD and parts = 1.
    """
    pid = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(n, BN)
    b = pid // tiles
    if tl.load(p_moving + b) == 0:
        return
    o_n = (pid % tiles).to(tl.int32) * BN + tl.arange(0, BN)
    m_n = o_n < n
    # Lanes out of range repeat the last token or the last center, so that the loops need no masks.
    o_x = (b * n + tl.minimum(o_n, n - 1))[:, None] * width
    o_d = tl.arange(0, BD)
    p_norm += b * k
    p_center_high += b * k * width
    p_center_low += b * k * width
    b_best = tl.full((BN,), float("inf"), tl.float32)
    b_label = tl.zeros((BN,), tl.int32)
    if HOLD:
        b_h = tl.load(p_high + o_x + o_d[None, :])
        b_l = tl.load(p_low + o_x + o_d[None, :])
        for s in range(0, k, BK):
            o_s = tl.minimum(s + tl.arange(0, BK), k - 1)
            o_c = o_s.to(tl.int64)[:, None] * width + o_d[None, :]
            b_ch = tl.trans(tl.load(p_center_high + o_c))
            b_cl = tl.trans(tl.load(p_center_low + o_c))
            b_product = tl.dot(b_h, b_cl)
            b_product = tl.dot(b_l, b_ch, b_product)
            b_product = tl.dot(b_h, b_ch, b_product)
            b_best, b_label = _nearer(b_product, tl.load(p_norm + o_s), o_s, b_best, b_label)
    else:
        for s in range(0, k, BK):
            o_s = tl.minimum(s + tl.arange(0, BK), k - 1)
            o_c = o_s.to(tl.int64)[:, None] * width + o_d[None, :]
            b_product = tl.zeros((BN, BK), tl.float32)
            for c in range(0, width, BD):
                b_h = tl.load(p_high + o_x + c + o_d[None, :])
                b_l = tl.load(p_low + o_x + c + o_d[None, :])
                b_ch = tl.trans(tl.load(p_center_high + o_c + c))
                b_cl = tl.trans(tl.load(p_center_low + o_c + c))
                b_product = tl.dot(b_h, b_cl, b_product)
                b_product = tl.dot(b_l, b_ch, b_product)
                b_product = tl.dot(b_h, b_ch, b_product)
            p_part = p_norm + o_s
            b_norm = tl.load(p_part)
            for _ in range(1, parts):
                p_part += slots
                b_norm += tl.load(p_part)
            b_best, b_label = _nearer(b_product, b_norm, o_s, b_best, b_label)

    base = b * (k + 1)
    b_old = tl.load(p_old + b * n + o_n, mask=m_n, other=0)
    if MEDOIDS:
        # A medoid belongs to the cluster that it was chosen from, even where another medoid is an equal token.
        o_own = (b_old - base).to(tl.int32)
        b_medoid = tl.load(p_medoid + b * k + o_own, mask=m_n & (o_own < k), other=-1)
        b_label = tl.where(b_medoid == o_n, o_own, b_label)
    if MASKED:
        m_valid = tl.load(p_mask + b * stride_mb + o_n.to(tl.int64) * stride_mn, mask=m_n, other=0) != 0
        b_label = tl.where(m_valid, b_label, k)
    b_new = (base + b_label).to(p_new.dtype.element_ty)
    tl.store(p_new + b * n + o_n, b_new, mask=m_n)
    moved = tl.sum((m_n & (b_new != b_old)).to(tl.int32), 0)
    if (moved > 0) | (first > 0):
        # Benign race: every writer stores 1.
        tl.store(p_moved + b, 1)
