"""How often a warp runs each basic block for a sample: from statements' counts and from the code's loops.

A loop of the code belongs to the loop of the source that nearly all of its instructions come from, and turns as often.
A block that runs in every turn has its loop's count. Any other block has the count that most of its instructions come
with, at most its loop's: an instruction that was moved out of a loop counts as often as that loop begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .chains import Chain, Files
from .flow import Flow
from .trips import Trips

# The share of a loop's instructions that come from the loop of the source; others were moved into it.
SHARE = 0.7
# Instructions of a loop that polls.
MOST_POLLING = 12
# Instructions that the assembler may not leave out, and of which each in PTX makes one; AMD's are only compared.
MARKS = ("BAR", "SHFL", "STG", "STS", "LDG", "REDUX", "global_", "ds_write", "s_barrier")


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

    def _around(self, chain: Chain) -> list[Chain]:
        statement = self._files.statement(chain[0])
        return [((chain[0][0], line), *chain[1:]) for line in (statement.around if statement is not None else ())]

    def _function(self, chain: Chain) -> str:
        statement = self._files.statement(chain[0])
        return statement.function if statement is not None else ""


@dataclass
class Counted:
    """blocks: counts by block; loops: the header of each loop of the code; doubts: what was taken without proof."""

    blocks: list[float]
    loops: list[Chain | None]
    doubts: list[str] = field(default_factory=list)


def counts(flow: Flow, statements: Statements, programs: float) -> Counted:
    """Counts of all blocks; programs: of the kernel, by sample."""
    found = Counted([0.0] * len(flow.blocks), [None] * len(flow.loops))
    order = sorted(range(len(flow.loops)), key=lambda one: len(flow.loops[one].blocks))
    # The innermost loops first: what they take is no longer free to the loops around them.
    for number in order:
        found.loops[number] = _header(flow, number, found.loops, statements)
    turns = [0.0] * len(flow.loops)
    over: dict[int, float] = {}
    # The outermost first: a loop without a header is as frequent as what is around it.
    for number in reversed(order):
        outer = flow.loops[number].outer
        if found.loops[number] is not None:
            made, left = _unrolled(flow, number, found, statements)
            turns[number] = made[number]
            over |= left
            continue
        turns[number] = programs if outer is None else turns[outer]
        if not _waits(flow, number):
            found.doubts.append(f"a loop of {_size(flow, number)} instructions belongs to none of the source")
    for number, block in enumerate(flow.blocks):
        if not flow.above[number]:
            continue
        loop = flow.inner[number]
        most = programs if loop is None else turns[loop]
        found.blocks[number] = most
        if number in over:
            found.blocks[number] = min(most, over[number])
        elif not flow.always(number, loop):
            votes: Counter[float] = Counter()
            for one in block.instructions:
                if one.chain:
                    votes[next((level for level in statements.levels(one.chain) if level <= most + 1e-9), most)] += 1
            if votes:
                found.blocks[number] = votes.most_common(1)[0][0]
    return found


def _unrolled(flow: Flow, number: int, found: Counted, statements: Statements) -> tuple[dict[int, float], dict]:
    """Turns of all loops of a loop's header that stand beside it, and counts of blocks that take what is left over.

    A compiler repeats a body u times; of t turns t // u * u are then the loop's, and of those that are left some are
    taken by blocks of fewer copies, the rest by another loop.
    """
    header = found.loops[number]
    if header is None:
        return {}, {}
    outer = flow.loops[number].outer
    twins = [one for one, loop in enumerate(flow.loops) if found.loops[one] == header and loop.outer == outer]
    whole, begun = statements.turns(header), statements.entries(header)
    main, least = (choose(twins, key=lambda one: _size(flow, one)) for choose in (max, min))
    own = [block for block in flow.loops[main].blocks if flow.inner[block] == main and flow.always(block, main)]
    copies = _repeats(flow, own, header, statements)
    if len(twins) > 1 and copies <= 1:
        # Copies that were made before the assembler are instructions of their own.
        copies = round(_marks(flow, main) / max(1, _marks(flow, least)))
    if copies <= 1 or not begun:
        if len(twins) > 1 and number == least and begun:
            found.doubts.append(f"{header[0][0]}:{header[0][1]} has {len(twins)} loops, and each counts whole")
        return dict.fromkeys(twins, whole), {}
    if number == least:
        found.doubts.append(f"{header[0][0]}:{header[0][1]} is unrolled {copies} times")
    rest = whole / begun - whole / begun // copies * copies
    over: dict[int, float] = {}
    by_copies: dict[int, list[int]] = {}
    for block in range(len(flow.blocks)):
        # Not what leads to the loop, where a turn may stand that runs only if no other does.
        aside = flow.above[block] and block not in flow.above[flow.loops[main].head] and not flow.always(block, outer)
        if aside and flow.inner[block] == outer and (several := _repeats(flow, [block], header, statements)):
            by_copies.setdefault(several, []).append(block)
    for several in sorted(by_copies, reverse=True):
        # A part of a turn, where a mean is what is left.
        taken = min(1.0, rest // several) if several > 1 else min(1.0, rest)
        over |= dict.fromkeys(by_copies[several], taken * begun)
        rest -= several * taken
    turns = dict.fromkeys(twins, 0.0)
    turns[main] = whole / begun // copies * begun
    if least != main:
        turns[least] = rest * begun
    return turns, over


def _header(flow: Flow, number: int, taken: list[Chain | None], statements: Statements) -> Chain | None:
    if _waits(flow, number):
        return None
    loop = flow.loops[number]
    inside = {taken[one] for one in range(len(taken)) if taken[one] and flow.loops[one].blocks < loop.blocks}
    votes: Counter[Chain] = Counter()
    total = 0
    for block in loop.blocks:
        for one in flow.blocks[block].instructions:
            if not one.chain:
                continue
            total += 1
            around = statements.loops(one.chain)
            # Loops that stand in a loop that is taken cannot be around it.
            last = max((place for place, header in enumerate(around) if header in inside), default=-1)
            votes.update(around[last + 1 :])
    good = [header for header, count in votes.items() if count >= SHARE * total]
    return max(good, key=lambda header: len(statements.loops(header)), default=None)


def _waits(flow: Flow, number: int) -> bool:
    """Whether a loop does nothing but poll, which succeeds at once where work is ahead."""
    rows = [one for block in flow.loops[number].blocks for one in flow.blocks[block].instructions]
    return len(rows) <= MOST_POLLING and any("TRYWAIT" in one.name or one.name == "NANOSLEEP" for one in rows)


def _size(flow: Flow, number: int) -> int:
    return sum(len(flow.blocks[block].instructions) for block in flow.loops[number].blocks)


def _repeats(flow: Flow, blocks: Iterable[int], header: Chain, statements: Statements) -> int:
    """How often the assembler repeats a loop's body in blocks: the least copies of an instruction that must stay."""
    copies: Counter[tuple[str, int]] = Counter()
    for block in blocks:
        for one in flow.blocks[block].instructions:
            if one.name.startswith(MARKS) and header in statements.loops(one.chain):
                copies[one.name, one.number] += 1
    return min(copies.values(), default=0)


def _marks(flow: Flow, number: int) -> int:
    rows = [one for block in flow.loops[number].blocks for one in flow.blocks[block].instructions]
    return sum(one.name.startswith(MARKS) for one in rows)
