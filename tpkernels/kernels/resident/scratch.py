"""Where the parts of a program's scratch begin.

Floats [11 NP + 2 KP], a pivot for each channel, one to three matrices; ints [10 NP + 5 KP + 16] and rows of labels
[NP], one for each update and one more.
"""

import triton
import triton.language as tl


@triton.jit
def integers(p_ints, NP: tl.constexpr, KP: tl.constexpr):
    """Pointers to label, order, first [KP + 16], token, medoid, stamp, place, marks [8, NP], history."""
    p_first = p_ints + 2 * NP
    p_token = p_first + KP + 16
    p_marks = p_token + 4 * KP
    return (
        p_ints, p_ints + NP, p_first, p_token, p_token + KP, p_token + 2 * KP, p_token + 3 * KP, p_marks,
        p_marks + 8 * NP,
    )  # fmt: skip
