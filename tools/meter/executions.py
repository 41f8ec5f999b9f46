"""How often a statement runs, and all that it stands in: loops, branches, callers."""

from __future__ import annotations

from .chains import Chain, Files
from .trips import Trips


class Statements:
    """Counts of statements, and of what stands around them.

    Args:
        trips: of the interpreter.
        files: where the statements stand.
    """

    def __init__(self, trips: Trips, files: Files) -> None:
        self._trips, self._files = trips, files
        self._functions = {(self._function(chain), chain[1:]) for chain in trips.counts}
        self._levels: dict[Chain, list[float]] = {}

    def count(self, chain: Chain) -> float:
        """Executions of a statement.

        The interpreter may take another way where the compiler decides, so what stands in such an `if` counts as the
        `if` does.
        """
        if chain in self._trips.counts:
            return self._trips.counts[chain]
        for header in self._around(chain):
            statement = self._files.statement(header[0])
            if statement is not None and not statement.fixed:
                break
            if header in self._trips.counts:
                return self._trips.counts[header]
        called = (self._function(chain), chain[1:]) in self._functions
        return 0.0 if called or len(chain) == 1 else self.count(chain[1:])

    def turns(self, header: Chain) -> float:
        """How often a loop's body runs."""
        return self._trips.counts.get(header, 0.0) - self._trips.entries.get(header, 0.0)

    def known(self, header: Chain) -> bool:
        """Whether a loop's turns were counted: none are in a branch that only the compiler takes."""
        return header in self._trips.counts or not self.count(header)

    def entries(self, header: Chain) -> float:
        """How often a loop is begun."""
        return self._trips.entries.get(header, 0.0)

    def loops(self, chain: Chain) -> list[Chain]:
        """The headers of the loops around a statement and around its callers, the innermost first."""
        found = []
        for place in range(len(chain)):
            for one in (chain[place:], *self._around(chain[place:])):
                statement = self._files.statement(one[0])
                if statement is not None and statement.kind in ("for", "while"):
                    found.append(one)
        return found

    def levels(self, chain: Chain) -> list[float]:
        """Counts of a statement and of all that it stands in, the innermost first."""
        if chain not in self._levels:
            found = []
            for place in range(len(chain)):
                here = chain[place:]
                found.append(self.count(here))
                for one in (here, *self._around(here)):
                    statement = self._files.statement(one[0])
                    if statement is not None and statement.kind in ("for", "while"):
                        found += [self.turns(one), self.entries(one)]
                    elif one is not here:
                        found.append(self.count(one))
            self._levels[chain] = found
        return self._levels[chain]

    def barriers(self, chain: Chain) -> bool:
        """Whether a statement is a barrier of the source, of which code has one for each time that it runs."""
        statement = self._files.statement(chain[0])
        return statement is not None and statement.kind == "barrier"

    def _around(self, chain: Chain) -> list[Chain]:
        statement = self._files.statement(chain[0])
        return [((chain[0][0], line), *chain[1:]) for line in (statement.around if statement is not None else ())]

    def _function(self, chain: Chain) -> str:
        statement = self._files.statement(chain[0])
        return statement.function if statement is not None else ""
