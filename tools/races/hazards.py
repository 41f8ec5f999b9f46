"""Races of a kernel's lanes through device memory, found in its TTGIR.

Two accesses of one buffer by one program, the first of which reaches the second on some path without a full barrier,
are a hazard unless both only read, or every lane touches what it touched itself:

    RAW  a load after a store        WAR  a store after a load        WAW  a store after a store

Barriers inside reductions and layout changes are the compiler's own and may go with its next release: none counts. A
load that copies in the background (the software pipeline's) runs beside what follows it, past barriers too, until its
wait: of scratch there may be none.
Branches are taken either way and loops run any number of times, whatever their conditions say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from .pointers import Place, Pointers, Slice
from .ttgir import Op, UnreadableIR, read
from .zeros import zeros_of

# tl.debug_barrier() in Triton 3.7, and before.
BARRIERS = ("ttg.barrier all", "gpu.barrier")
# The wait for all copies in the background.
_WAIT = re.compile(r"(ttg|amdg)\.async_wait\b.*\{num = 0 : i32\}")
_READS = ("tt.load", "amdg.buffer_load", "ttg.async_copy_global_to_local", "amdg.buffer_load_to_local")
_WRITES = ("tt.store", "amdg.buffer_store")
_ATOMICS = ("tt.atomic_rmw", "tt.atomic_cas", "amdg.buffer_atomic_rmw", "amdg.buffer_atomic_cas")
_BACKGROUND = ("ttg.async_copy_global_to_local", "amdg.buffer_load_to_local")
_PASSES_POINTERS = (
    "tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout", "tt.reshape", "tt.trans",
    "arith.select", "scf.yield", "scf.condition", "scf.for", "scf.while",
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    op: Op
    place: Place
    reads: bool
    writes: bool

    def __str__(self) -> str:
        names = " or ".join(sorted({one.name or one.root for one in self.place.slices}))
        return f"{self.op.name} of {names} at {self.op.where}"


@dataclass(frozen=True)
class Finding:
    """kind: RAW, WAR, WAW or PIPELINED; first reaches second (the same access where a loop brings it back)."""

    kind: str
    first: Access
    second: Access

    def __str__(self) -> str:
        return f"{self.kind}: {self.first}" + (f" -> {self.second}" if self.kind != "PIPELINED" else "")

    @property
    def slices(self) -> frozenset[str]:
        return frozenset(one.name or one.root for one in self.second.place.slices)


class _Graph:
    """Control flow: a node each access and barrier; an edge says which loops' iterations it leaves."""

    def __init__(self, pointers: Pointers) -> None:
        self.pointers = pointers
        self.content: list[Access | str | None] = []
        self.edges: dict[int, set[tuple[int, Op | None]]] = defaultdict(set)
        self.accesses: list[Access] = []

    def node(self, content: Access | str | None = None) -> int:
        self.content.append(content)
        return len(self.content) - 1

    def build(self, blocks: dict[str, list[Op]]) -> int:
        starts = {label: self.node() for label in blocks}
        ahead = {label: set(ops[-1].targets) if ops else set() for label, ops in blocks.items()}
        for label, ops in blocks.items():
            end = self.walk(ops, starts[label])
            self.edges[end] |= {(starts[target], None) for target in ahead[label]}
        for label in blocks:
            reached: set[str] = set()
            todo = list(ahead[label])
            while todo:
                one = todo.pop()
                todo += ahead[one] - reached
                reached |= {one}
            if label in reached:
                raise UnreadableIR(f"block {label} comes back to itself: loops are known as scf.for and scf.while")
        return starts["entry"]

    def walk(self, ops: list[Op], at: int) -> int:
        for op in ops:
            if op.name == "scf.if":
                after = self.node()
                for region in op.regions:
                    start = self.node()
                    self.edges[at].add((start, None))
                    self.edges[self.walk(region, start)].add((after, None))
                if len(op.regions) == 1:
                    self.edges[at].add((after, None))
                at = after
            elif op.name in ("scf.for", "scf.while"):
                head, after = self.node(), self.node()
                self.edges[at].add((head, None))
                tested = self.walk(op.regions[0], head) if op.name == "scf.while" else head
                self.edges[tested].add((after, op))
                self.edges[self.walk(op.regions[-1], tested)].add((head, op))
                at = after
            else:
                content = self.read_op(op)
                if content is not None:
                    new = self.node(content)
                    self.edges[at].add((new, None))
                    at = new
        return at

    def read_op(self, op: Op) -> Access | str | None:
        if op.text.startswith(BARRIERS):
            return "barrier"
        if _WAIT.match(op.text):
            return "wait"
        if op.name.startswith(("tt.descriptor", "tt.call", "ttng.async_tma", "amdg.async_tdm")):
            raise UnreadableIR(f"{op}: this analysis does not know what memory it touches")
        pointing = [value for value in op.operands if self.pointers.slices(value)]
        if not pointing or op.name in _PASSES_POINTERS:
            return None
        if op.name not in (*_READS, *_WRITES, *_ATOMICS):
            raise UnreadableIR(f"{op}: an operation on pointers that this analysis does not know")
        base, offsets = pointing[0], None
        if op.name.startswith("amdg.buffer"):
            offsets = op.operands[op.operands.index(base) + 1]
        shape = _first_type(op)
        access = Access(op, self.pointers.place(base, offsets, shape), op.name not in _WRITES, op.name not in _READS)
        self.accesses.append(access)
        return access


def _first_type(op: Op) -> str:
    """Type of what an access touches, without "ptr": equal types have equal layouts."""
    given = op.text.split(" : ")[-1].lstrip("(")
    if not given.startswith("tensor<"):
        return "scalar"
    depth = 0
    for i, letter in enumerate(given):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == ">":
            return re.sub(r"!tt\.ptr<([^>]*)>", r"\1", given[: i + 1])
    raise UnreadableIR(f"{op}: no type in {op.text!r}")


def _overlap(a: Access, b: Access, known: set[Slice]) -> bool:
    return any(_meet(x, a.place, y, b.place, known) for x in a.place.slices for y in b.place.slices)


def _meet(x: Slice, a: Place, y: Slice, b: Place, known: set[Slice]) -> bool:
    if x.root != y.root:
        return False
    if x.terms is None or y.terms is None or x == y:
        return True
    if x.terms == y.terms:
        (low, reach, high) = (x, a.extent, y) if x.start < y.start else (y, b.extent, x)
        if high.start < low.start + reach:
            return True
    # A scalar lies in the slice that starts nearest before it, or in the slice that its offset was added to.
    return any(
        one.scalar and not other.scalar and other_slice == _home(its, known)
        for one, its, other, other_slice in ((a, x, b, y), (b, y, a, x))
    )


def _home(scalar: Slice, known: set[Slice]) -> Slice | None:
    same = [one for one in known if (one.root, one.terms) == (scalar.root, scalar.terms)]
    before = [one for one in same if one.start <= scalar.start]
    return max(before, key=lambda one: one.start) if before else scalar.parent


def _own_lane(first: Access, second: Access, crossed: frozenset[Op]) -> bool:
    """Whether every lane accesses the same elements both times, each by one thread."""
    if first.place.identity != second.place.identity or first.place.varies & crossed:
        return False
    if not (first.reads or second.reads):
        # Of the threads that hold an element the same one stores it both times. Offsets loaded from memory may coincide
        # for two elements, which other threads store.
        return first.place.scalar or not first.place.loaded
    return first.place.alone and not first.place.loaded


def _kind(first: Access, second: Access) -> str | None:
    if not (first.writes or second.writes) or (first.reads and first.writes and second.reads and second.writes):
        return None
    if first.writes and second.reads:
        return "RAW"
    return "WAW" if first.writes else "WAR"


def find(text: str, scratch: frozenset[str] | None = None) -> list[Finding]:
    """Hazards of a compiled kernel, in the order of the text.

    Args:
        text: its TTGIR.
        scratch: arguments to look at; by default all that the kernel stores to.

    Raises:
        UnreadableIR: on operations whose memory accesses are not handled here.
    """
    function = read(text)
    graph = _Graph(Pointers(function, zeros_of(function)))
    entry = graph.build(function.blocks)
    if scratch is None:
        scratch = frozenset(one.root for access in graph.accesses if access.writes for one in access.place.slices)
    watched = [access for access in graph.accesses if {one.root for one in access.place.slices} & scratch]
    blocks = {one for access in watched if not access.place.scalar for one in access.place.slices}
    # A place that scalars are both stored to and loaded from is a variable of its own.
    singles = [access for access in watched if access.place.scalar]
    blocks |= {one for access in singles if access.writes for one in access.place.slices} & {
        one for access in singles if access.reads for one in access.place.slices
    }

    found = {Finding("PIPELINED", access, access) for access in watched if access.op.name in _BACKGROUND}
    # What no barrier has ended: the access, the loops whose iterations lie in between, whether it still copies.
    arriving: dict[int, set[tuple[Access, frozenset[Op], bool]]] = defaultdict(set)
    todo = [entry]
    seen = {entry}
    while todo:
        at = todo.pop()
        content = graph.content[at]
        leaving = arriving[at]
        if content == "barrier":
            leaving = {one for one in leaving if one[2]}
        elif content == "wait":
            leaving = {(access, crossed, False) for access, crossed, _ in leaving}
        elif isinstance(content, Access) and content in watched:
            for before, crossed, _ in leaving:
                kind = _kind(before, content)
                if kind and _overlap(before, content, blocks) and not _harmless(before, content, crossed):
                    found.add(Finding(kind, before, content))
            leaving = leaving | {(content, frozenset(), content.op.name in _BACKGROUND)}
        for target, loop in graph.edges[at]:
            new = {(access, crossed | {loop}, copying) for access, crossed, copying in leaving} if loop else leaving
            if target not in seen or not new <= arriving[target]:
                seen.add(target)
                arriving[target] |= new
                todo.append(target)
    return sorted(found, key=lambda one: (one.second.op.line, one.first.op.line, one.kind))


def _harmless(first: Access, second: Access, crossed: frozenset[Op]) -> bool:
    if _own_lane(first, second, crossed):
        return True
    # The iterations of a loop write tiles of their own, but offsets loaded from memory may coincide.
    return first is second and not first.reads and not first.place.loaded
