"""How long a warp takes that no other delays: the cycles between its instructions, and what it waits for.

The assembler leaves bits for the scheduler in every instruction (NVIDIA, since Volta): for how many cycles the next one
waits at least, which of six scoreboards it holds until its result is there or its operands are read, and for which
scoreboards it waits itself. Followed in order, with a latency for each kind of instruction that holds one, they give
the time. A barrier takes a fixed time, as if all warps came to it together; what is on its way when a block ends is on
its way in the block that follows.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from .code import Instruction
from .flow import Flow

# Cycles of a load from memory: more than a hit in the first-level cache takes, less than device memory.
LOAD = 300.0
# Cycles from an instruction to its result, by the beginning of its name; None: a load from memory.
LATENCY = {
    "LDGSTS": 12, "LDG": None, "LD.": None, "ATOM": None, "LDSM": 33, "LDS": 28, "LDC": 40, "SHFL": 24, "REDUX": 24,
    "MUFU": 24, "S2": 30, "HGMMA": 128, "HMMA": 34,
}  # fmt: skip
OTHER = 16
# Cycles until operands are read, of a barrier, and between two products of a tensor core.
OPERANDS, BARRIER, PRODUCT = 12, 30, 32
# Scoreboards that an instruction can name, and groups of copies that are remembered.
BOARDS, GROUPS = 6, 8
LOADS, COPIES, PRODUCTS, BARRIERS, REST, ISSUE = "loads", "copies", "products", "barriers", "other results", "issue"
KINDS = (ISSUE, LOADS, COPIES, PRODUCTS, BARRIERS, REST)


@dataclass
class Warp:
    """Times in cycles since a block began: now; until[s]: when scoreboard s is free, and kind[s] what holds it; groups:
    when each group of asynchronous copies is there; products: when the tensor core's last one is."""

    now: float = 0.0
    until: list[float] = field(default_factory=lambda: [0.0] * BOARDS)
    kind: list[str] = field(default_factory=lambda: [REST] * BOARDS)
    groups: list[float] = field(default_factory=list)
    products: float = 0.0

    def later(self) -> Warp:
        """The same warp as the next block begins."""
        until = [time - self.now for time in self.until]
        groups = [time - self.now for time in self.groups[-GROUPS:]]
        return Warp(0.0, until, list(self.kind), groups, self.products - self.now)

    def issue(self, one: Instruction, load: float = LOAD) -> tuple[str, float]:
        """Issues an instruction; returns what it waited for longest, and the cycles until the next may follow."""
        began, why = self.now, ISSUE
        stall, bits = one.control & 15, one.control >> 5
        writes, reads, waits = bits & 7, bits >> 3 & 7, bits >> 6
        times = [(self.until[board], self.kind[board]) for board in range(BOARDS) if waits >> board & 1]
        if one.name.startswith("DEPBAR") and (left := re.search(r"SB\d, 0x([0-9a-f]+)", one.text)):
            times += [(time, COPIES) for time in self.groups[: len(self.groups) - int(left.group(1), 16)]]
        elif one.name.startswith("WARPGROUP.DEPBAR"):
            times.append((self.products, PRODUCTS))
        elif one.name.startswith("BAR."):
            times.append((self.now + BARRIER, BARRIERS))
        if times and max(times)[0] > self.now:
            self.now, why = max(times)
        if one.name.startswith("LDGDEPBAR"):
            self.groups.append(self.now + load)
        elif one.name.startswith("HGMMA"):
            self.products = max(self.now + latency(one.name, load), self.products + PRODUCT)
        loads = latency(one.name, load) == load
        for board, cycles in ((writes, latency(one.name, load)), (reads, OPERANDS)):
            if board < BOARDS and self.now + cycles > self.until[board]:
                self.until[board] = self.now + cycles
                self.kind[board] = LOADS if loads and board == writes else REST
        self.now += max(1, stall)
        return why, self.now - began


def latency(name: str, load: float = LOAD) -> float:
    """Cycles from an instruction to its result."""
    cycles = next((cycles for begin, cycles in LATENCY.items() if name.startswith(begin)), OTHER)
    return load if cycles is None else cycles


def waits(flow: Flow, counts: list[float], load: float = LOAD) -> list[list[tuple[str, float]]]:
    """For each block, what each of its instructions waits for and its cycles.

    Args:
        counts: how often each block runs; a block begins as the most frequent of those before it ends.
    """
    ends: dict[int, Warp] = {}
    found: list[list[tuple[str, float]]] = []
    # In the second pass loops know how their turns end.
    for _ in range(2):
        found = []
        for number, block in enumerate(flow.blocks):
            before = max((one for one in block.before if one in ends), key=lambda one: counts[one], default=None)
            warp = Warp() if before is None else ends[before].later()
            found.append([warp.issue(one, load) for one in block.instructions])
            ends[number] = warp
    return found


def alone(flow: Flow, counts: list[float], load: float = LOAD) -> Counter[str]:
    """Cycles that a warp takes for a unit, by what they are spent on; empty where there are no bits to read."""
    total: Counter[str] = Counter()
    if any(one.control for block in flow.blocks for one in block.instructions):
        for rows, count in zip(waits(flow, counts, load), counts, strict=True):
            for why, cycles in rows:
                total[why] += cycles * count
    return total
