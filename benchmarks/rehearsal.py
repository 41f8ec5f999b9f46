"""Whether a run is a rehearsal of one on a GPU: tiny sizes, Triton's interpreter, stand-ins for the profilers."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

VARIABLE = "TPKERNELS_REHEARSAL"


def rehearsing() -> bool:
    """Whether this process is part of one, which says nothing about a GPU."""
    return os.environ.get(VARIABLE) == "1"


def quickened() -> AbstractContextManager[None]:
    """In a rehearsal Triton's interpreter does nothing twice; see `tools/quick_interpreter.py`."""
    if not rehearsing():
        return nullcontext()
    from triton.runtime import interpreter

    from tools import quick_interpreter

    return quick_interpreter.quickened(interpreter)
