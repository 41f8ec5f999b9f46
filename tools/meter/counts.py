"""How often a warp runs each basic block for a sample: from statements' counts and from the code's loops.

A loop of the code belongs to the loop of the source that nearly all of its instructions come from, and turns as often.
A block that runs in every turn has its loop's count. Any other block has the count that most of its instructions come
with, at most its loop's: an instruction that was moved out of a loop counts as often as that loop begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .chains import Chain
from .executions import Statements
from .flow import Flow
from .unrolled import turns

# The share of a loop's instructions that come from the loop of the source; others were moved into it.
SHARE = 0.7
# Instructions of a loop that polls.
MOST_POLLING = 12


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
    loops = [0.0] * len(flow.loops)
    beside: dict[int, float] = {}
    # The outermost first: a loop without a header is as frequent as what is around it.
    for number in reversed(order):
        outer, header = flow.loops[number].outer, found.loops[number]
        if header is None:
            loops[number] = programs if outer is None else loops[outer]
            if not _waits(flow, number):
                found.doubts.append(f"a loop of {flow.size(number)} instructions belongs to none of the source")
            continue
        made = turns(flow, number, found.loops, statements)
        loops[number] = made.loops[number]
        beside |= made.beside
        place = f"{header[0][0]}:{header[0][1]}"
        if made.copies > 1:
            found.doubts.append(f"{place} is unrolled {made.copies} times")
        if not statements.known(header):
            found.doubts.append(f"{place} has turns that the interpreter, which took another branch, could not count")
        if not made.sure:
            found.doubts.append(f"{place} has {len(made.loops)} loops, and each counts whole")
    found.doubts[:] = dict.fromkeys(found.doubts)
    for number, block in enumerate(flow.blocks):
        if not flow.above[number]:
            continue
        loop = flow.inner[number]
        most = programs if loop is None else loops[loop]
        found.blocks[number] = most
        if number in beside:
            found.blocks[number] = min(most, beside[number])
        elif not flow.always(number, loop):
            votes: Counter[float] = Counter()
            for one in block.instructions:
                if one.chain:
                    votes[next((level for level in statements.levels(one.chain) if level <= most + 1e-9), most)] += 1
            if votes:
                found.blocks[number] = votes.most_common(1)[0][0]
    return found


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
