"""What the C library does with memory that tensors on the CPU free."""

from __future__ import annotations

import ctypes
import platform

# <malloc.h> of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST = 2**31 - 1

HELP = "have glibc keep freed memory, so that nobody pays page faults that another is spared (default: yes)"
KEPT, DEFAULT = "memory kept", "default"


def keep_memory() -> str:
    """Has glibc keep freed memory for this process instead of returning it to the system; what is in force then.

    Above thresholds that move with what a process frees, glibc returns memory, and the next tensor of that size takes a
    page fault every 4 KB. Which of two models crosses a threshold is an accident of their sizes: the same MLP on the
    same tokens was seen to take 65 ms in one and 83 ms in the other.
    """
    if platform.libc_ver()[0] != "glibc":
        return DEFAULT
    libc = ctypes.CDLL(None)
    done = libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, MOST)
    return KEPT if done else DEFAULT
