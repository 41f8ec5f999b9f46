"""Every token's nearest slot, one block of slots after another: the rule that K-Means and K-Medoids share."""

import triton
import triton.language as tl


@triton.jit
def nearer(b_score, o_s, b_best, b_label):
    """The running minimum and its slot after the scores [R, NP] of slots o_s; the lowest slot wins ties."""
    b_least = tl.min(b_score, 0)
    b_slot = tl.min(tl.where(b_score == b_least[None, :], o_s[:, None], 2147483647), 0)
    return tl.minimum(b_best, b_least), tl.where(b_least < b_best, b_slot, b_label)


@triton.jit
def store_nearest(p_norm, p_label, p_sqdist, b_best, b_label, b_valid, o_n, n):
    """Writes labels [N], -1 for invalid tokens, and squared distances: scores plus the token's norm."""
    b_norm = tl.load(p_norm + o_n, mask=o_n < n, other=0.0)
    tl.store(p_label + o_n, tl.where(b_valid, b_label, -1), mask=o_n < n)
    tl.store(p_sqdist + o_n, tl.maximum(b_norm + b_best, 0.0), mask=o_n < n)
    tl.debug_barrier()
