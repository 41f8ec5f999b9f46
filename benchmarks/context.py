"""What a runner is given for its way: where rows go, where it says what it is at, and when it has to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

from .deadline import Deadline
from .ledger import Ledger
from .progress import Progress


@dataclass(frozen=True)
class Context:
    """As it is without arguments rows are kept nowhere, and there is no end."""

    ledger: Ledger = field(default_factory=Ledger)
    progress: Progress = field(default_factory=Progress)
    deadline: Deadline = field(default_factory=Deadline)
