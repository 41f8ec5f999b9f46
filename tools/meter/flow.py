"""The flow of compiled code: basic blocks, which block every way leads through, and loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from .code import Code, Instruction


@dataclass
class Block:
    """Instructions that run together; after, before: blocks that may follow and precede, by their numbers."""

    instructions: list[Instruction]
    after: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop: its head, the blocks that jump back to it, all its blocks, and the loop around it."""

    head: int
    latches: list[int]
    blocks: set[int]
    outer: int | None = None


@dataclass
class Flow:
    """blocks in order; above[b]: the blocks on every way to b, itself among them, empty where no way leads there;
    loops; inner[b]: the innermost loop of a block, None outside of loops."""

    blocks: list[Block]
    above: list[set[int]]
    loops: list[Loop]
    inner: list[int | None]

    def always(self, block: int, loop: int | None) -> bool:
        """Whether a block runs in every turn of its loop; outside of loops, in every program."""
        ends = self.loops[loop].latches if loop is not None else self._ends()
        return all(block in self.above[end] for end in ends)

    def size(self, loop: int) -> int:
        """Instructions of a loop, inner loops among them."""
        return sum(len(self.blocks[block].instructions) for block in self.loops[loop].blocks)

    def _ends(self) -> list[int]:
        return [
            number
            for number, block in enumerate(self.blocks)
            if self.above[number] and (not block.after or _ends(block.instructions[-1]))
        ] or [0]


def flow(code: Code) -> Flow:
    """The flow of a kernel that begins at its first instruction."""
    blocks = _blocks(code)
    above = _above(blocks)
    loops = _loops(blocks, above)
    inner: list[int | None] = [None] * len(blocks)
    # The largest first, so that the innermost loop stays.
    for number in sorted(range(len(loops)), key=lambda one: -len(loops[one].blocks)):
        loops[number].outer = inner[loops[number].head]
        for block in loops[number].blocks:
            inner[block] = number
    return Flow(blocks, above, loops, inner)


def _blocks(code: Code) -> list[Block]:
    rows = code.instructions
    starts = {0, *code.labels.values()}
    starts |= {place + 1 for place, one in enumerate(rows) if one.to is not None or not one.falls or _ends(one)}
    order = sorted(start for start in starts if start < len(rows))
    at = {start: number for number, start in enumerate(order)}
    blocks = [Block(rows[start:end]) for start, end in zip(order, [*order[1:], len(rows)], strict=True)]
    for number, block in enumerate(blocks):
        last = block.instructions[-1]
        after = [number + 1] if last.falls and number + 1 < len(blocks) else []
        if last.to is not None:
            after.append(at[code.labels[last.to]])
        block.after = list(dict.fromkeys(after))
        for other in block.after:
            blocks[other].before.append(number)
    return blocks


def _ends(one: Instruction) -> bool:
    return one.name.startswith(("EXIT", "RET"))


def _above(blocks: list[Block]) -> list[set[int]]:
    """Dominators, by the textbook's iteration over the blocks that can be reached."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].after))]
    while stack:
        number, rest = stack[-1]
        following = next((one for one in rest if one not in seen), None)
        if following is None:
            order.append(number)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].after)))
    order.reverse()
    above: list[set[int]] = [set(order) if number in seen else set() for number in range(len(blocks))]
    above[0] = {0}
    changed = True
    while changed:
        changed = False
        for number in order[1:]:
            new = set.intersection(*(above[one] for one in blocks[number].before if one in seen)) | {number}
            changed |= new != above[number]
            above[number] = new
    return above


def _loops(blocks: list[Block], above: list[set[int]]) -> list[Loop]:
    found: dict[int, Loop] = {}
    for number, block in enumerate(blocks):
        for head in block.after:
            if not above[number] or head not in above[number]:
                continue
            loop = found.setdefault(head, Loop(head, [], {head}))
            loop.latches.append(number)
            stack = [number]
            while stack:
                one = stack.pop()
                if one not in loop.blocks:
                    loop.blocks.add(one)
                    stack += [before for before in blocks[one].before if above[before]]
    return list(found.values())
