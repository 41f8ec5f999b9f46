"""The time at which a run has to end, for machines that are at hand for minutes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .timing import Budget

# The command line imports this first; loading torch, which takes seconds, counts.
BEGAN = time.monotonic()


class Deadline:
    """This many seconds after `began`; no deadline where seconds is None."""

    def __init__(self, seconds: float | None = None, began: float = BEGAN) -> None:
        self._end = math.inf if seconds is None else began + seconds

    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether nothing more may begin."""
        return self.left() == 0


class Until:
    """A budget whose seconds are 0 from the deadline on: rounds end then, after the least number of them."""

    def __init__(self, budget: Budget, deadline: Deadline) -> None:
        self._budget, self._deadline = budget, deadline
        self.repeats = budget.repeats

    @property
    def seconds(self) -> float:
        """The budget's, or 0."""
        return 0.0 if self._deadline.over else self._budget.seconds
