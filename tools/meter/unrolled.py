"""Loops whose body a compiler repeats: how often they turn, and what takes the turns that are left over.

The body is repeated u times; of t turns t // u are then the loop's. Of those that are left some are taken by blocks of
fewer copies beside it, the rest by another loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .chains import Chain
from .executions import Statements
from .flow import Flow

# Instructions that the assembler may not leave out, and of which each in PTX makes one; AMD's are only compared.
MARKS = ("BAR", "SHFL", "STG", "STS", "LDG", "REDUX", "global_", "buffer_", "ds_write", "s_barrier")


class Turns(NamedTuple):
    """loops: turns of a loop and of those beside it that have its header; beside: counts of blocks that take what is
    left; copies: of the body; sure: whether the turns of several loops could be told apart."""

    loops: dict[int, float]
    beside: dict[int, float]
    copies: int = 1
    sure: bool = True


def turns(flow: Flow, number: int, headers: list[Chain | None], statements: Statements) -> Turns:
    """Turns of a loop whose header is known; headers: of all loops."""
    header = headers[number]
    if header is None:
        raise ValueError(f"headers: expected one for loop {number}, got None")
    outer = flow.loops[number].outer
    twins = [one for one, loop in enumerate(flow.loops) if headers[one] == header and loop.outer == outer]
    whole, begun = statements.turns(header), statements.entries(header)
    main, least = (choose(twins, key=flow.size) for choose in (max, min))
    own = [block for block in flow.loops[main].blocks if flow.inner[block] == main and flow.always(block, main)]
    copies = _copies(flow, own, header, statements)
    if copies <= 1:
        # Copies that were made before the assembler are instructions of their own.
        copies = round(_marks(flow, main) / max(1, _marks(flow, least)))
    if copies <= 1:
        copies = _barriers(flow, own, statements)
    if copies <= 1 or not begun:
        return Turns(dict.fromkeys(twins, whole), {}, sure=len(twins) == 1 or not begun)
    beside = _beside(flow, main, header, statements)
    if len(twins) == 1 and not beside:
        return Turns({main: whole / copies}, {}, copies)
    main_turns = whole / begun // copies
    rest = whole / begun - main_turns * copies
    over: dict[int, float] = {}
    for several in sorted(beside, reverse=True):
        # A part of a turn, where a mean is what is left.
        taken = min(1.0, rest // several) if several > 1 else min(1.0, rest)
        over |= dict.fromkeys(beside[several], taken * begun)
        rest -= several * taken
    found = dict.fromkeys(twins, 0.0) | {least: rest * begun}
    return Turns(found | {main: main_turns * begun}, over, copies)


def _beside(flow: Flow, main: int, header: Chain, statements: Statements) -> dict[int, list[int]]:
    """Blocks that turn the loop's body without a loop, by the copies that they have."""
    found: dict[int, list[int]] = {}
    outer = flow.loops[main].outer
    for block in range(len(flow.blocks)):
        # Not what leads to the loop, where a turn may stand that runs only if no other does.
        aside = flow.above[block] and block not in flow.above[flow.loops[main].head] and not flow.always(block, outer)
        if aside and flow.inner[block] == outer and (several := _copies(flow, [block], header, statements)):
            found.setdefault(several, []).append(block)
    return found


def _copies(flow: Flow, blocks: Iterable[int], header: Chain, statements: Statements) -> int:
    """How often the assembler repeats a loop's body in blocks: the least copies of an instruction that must stay."""
    copies: Counter[tuple[str, int]] = Counter()
    for block in blocks:
        for one in flow.blocks[block].instructions:
            if one.name.startswith(MARKS) and header in statements.loops(one.chain):
                copies[one.name, one.number] += 1
    return min(copies.values(), default=0)


def _barriers(flow: Flow, blocks: Iterable[int], statements: Statements) -> int:
    """How often a barrier of the source stands in blocks that every turn passes."""
    rows = [one for block in blocks for one in flow.blocks[block].instructions]
    seen = Counter(
        one.chain for one in rows if one.name.startswith(("BAR", "s_barrier")) and statements.barriers(one.chain)
    )
    return min(seen.values(), default=1)


def _marks(flow: Flow, number: int) -> int:
    rows = [one for block in flow.loops[number].blocks for one in flow.blocks[block].instructions]
    return sum(one.name.startswith(MARKS) for one in rows)
