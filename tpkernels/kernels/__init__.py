"""Triton kernels; they know nothing of the rest of the package.

Names: `p_` a pointer, `o_` offsets, `m_` a mask, `b_` a block of values. Sizes in capitals are compile-time constants.
Programs exchange values between lanes through scratch in device memory: every such exchange crosses a barrier.
"""
