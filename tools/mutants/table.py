"""All mutants, at most three of a kind, in the order in which they are planted."""

from __future__ import annotations

from .dendrograms import DENDROGRAMS
from .kernels import KERNELS
from .layers import LAYERS
from .operations import OPERATIONS

MUTANTS = (*KERNELS, *OPERATIONS, *DENDROGRAMS, *LAYERS)
# Of mutants that no test can see, why they are no mistakes.
WHY: dict[str, str] = {}
