"""Whether a run is a rehearsal of one on a GPU: tiny sizes, Triton's interpreter, stand-ins for the profilers."""

from __future__ import annotations

import os

VARIABLE = "TPKERNELS_REHEARSAL"


def rehearsing() -> bool:
    """Whether this process is part of one, which says nothing about a GPU."""
    return os.environ.get(VARIABLE) == "1"
