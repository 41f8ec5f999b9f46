"""What a runner is given for its way: where rows go, where it says what it is at, and when it has to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .deadline import Deadline
from .ledger import Ledger
from .progress import Progress


@dataclass(frozen=True)
class Context:
    """As it is without arguments rows are kept nowhere, and there is no end."""

    ledger: Ledger = field(default_factory=Ledger)
    progress: Progress = field(default_factory=Progress)
    deadline: Deadline = field(default_factory=Deadline)

    def attempt(self, subject: str, name: str, step: Callable[[], Any], failed: Callable[[Exception], None]) -> Any:
        """What a step of a subject gives; where it raises, `failed` is told, and the run goes on."""
        self.progress(subject, name)
        found = None
        try:
            found = step()
        except Exception as error:
            failed(error)
        self.progress("")
        return found
