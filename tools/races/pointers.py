"""Where the pointers of a kernel point, from its TTGIR: the argument, the slice of it, and the elements of each lane.

A slice starts in an argument at scalar offsets that are constant for the whole launch (sizes, program ids, constants);
offsets that loops or loads make are places within a slice. A slice is taken to end where the next one starts: two with
different starts are disjoint, unless a block reaches from one into the other, or a scalar lies in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .layouts import alone
from .ttgir import Function, Op, Value

# Their results are not a function of their operands' numbers alone.
_IMPURE = ("tt.load", "tt.atomic", "amdg.buffer", "ttg.local", "ttg.async", "tt.reduce", "tt.scan", "tt.map", "scf.")
_SAME_POINTER = ("tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout", "tt.reshape", "tt.trans")


@dataclass(frozen=True)
class Slice:
    """Argument, launch-invariant terms and constant of the offset; None for the terms where any slice may be meant."""

    root: str
    terms: frozenset[tuple[int, int]] | None
    start: int = 0
    name: str = field(default="", compare=False)
    parent: Slice | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Place:
    """What one access touches.

    slices: which ones it may be; extent: elements that it reaches from a slice's start at least; scalar: one element
    by one lane; identity: equal for two accesses in which every lane has the same elements; varies: loops within one
    iteration of which alone that holds; alone: no two threads have the same element; loaded: the offsets depend on
    loads.
    """

    slices: frozenset[Slice]
    extent: int
    scalar: bool
    identity: object
    varies: frozenset[Op]
    alone: bool
    loaded: bool


def _pure(value: Value) -> bool:
    return value.role == "result" and value.owner is not None and not value.owner.name.startswith(_IMPURE)


class Pointers:
    """Analysis of the values of one function.

    zeros: loaded scalars that are always 0, see `zeros_of`: a kernel may hide a constant from the compiler so.
    """

    def __init__(self, function: Function, zeros: frozenset[Value] = frozenset()) -> None:
        self.function, self.zeros = function, zeros
        self._numbers: dict[object, int] = {}
        self._number_of: dict[Value, int] = {}
        self._slices: dict[Value, frozenset[Slice]] = {}

    def number(self, value: Value) -> int:
        """Equal for two values that are the same computation on the same values."""
        if value not in self._number_of:
            key: object = value
            fixed = self.constant(value)
            if fixed is not None and "tensor<" not in (value.owner.text if value.owner is not None else ""):
                key = ("constant", fixed)
            elif _pure(value) and value.owner is not None and re.match(r"arith\.(addi|subi) [^<]*$", value.owner.text):
                terms, start = self.linear(value)
                if start == 0 and list(terms.values()) == [1]:
                    self._number_of[value] = next(iter(terms))
                    return self._number_of[value]
                key = ("linear", frozenset(terms.items()), start)
            elif _pure(value) and value.owner is not None:
                key = (value.owner.text, value.number, *map(self.number, value.owner.operands))
            self._number_of[value] = self._numbers.setdefault(key, len(self._numbers))
        return self._number_of[value]

    def sources(self, value: Value) -> set[Value]:
        """The values that a computation starts from: arguments, constants, loops' variables, loads."""
        seen, todo, found = set(), [value], set()
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if _pure(one) and one.owner is not None and one.owner.operands:
                todo += one.owner.operands
            elif one not in self.zeros:
                found.add(one)
        return found

    def varies(self, value: Value) -> frozenset[Op]:
        """Loops in whose iterations the value may differ."""
        found: set[Op] = set()
        for source in self.sources(value):
            if source.owner is None or _pure(source):
                continue
            found |= set(source.owner.loops) if source.role == "result" else {source.owner}
        return frozenset(found)

    def invariant(self, value: Value) -> bool:
        """Whether the value is constant for the whole launch of a program."""
        return all(source.role == "argument" or _pure(source) for source in self.sources(value))

    def loaded(self, value: Value) -> bool:
        """Whether the value may depend on a load."""
        return not all(source.role in ("argument", "index") or _pure(source) for source in self.sources(value))

    def constant(self, value: Value) -> int | None:
        """An integer that is written in the program, of one or of all lanes; None for any other."""
        if value in self.zeros:
            return 0
        if value.role != "result" or value.owner is None or value.owner.name != "arith.constant":
            return None
        found = re.match(r"arith\.constant (?:dense<)?(-?\d+)>? : ", value.owner.text)
        return int(found[1]) if found else None

    def linear(self, value: Value) -> tuple[dict[int, int], int]:
        """An integer as terms and a constant, as far as sums, and products with constants, go."""
        fixed = self.constant(value)
        if fixed is not None:
            return {}, fixed
        op = value.owner
        if op is not None and _pure(value):
            if op.name in ("arith.extsi", "arith.extui", "arith.index_cast"):
                return self.linear(op.operands[0])
            if op.name in ("arith.addi", "arith.subi", "arith.muli"):
                (a, a0), (b, b0) = map(self.linear, op.operands)
                if op.name == "arith.muli" and not (a and b):
                    terms, by = (a, b0) if a else (b, a0)
                    return {term: times * by for term, times in terms.items() if by}, a0 * b0
                if op.name != "arith.muli":
                    sign = 1 if op.name == "arith.addi" else -1
                    return _sum(a, b, sign), a0 + sign * b0
        return {self.number(value): 1}, 0

    def slices(self, value: Value) -> frozenset[Slice]:
        """Slices that a pointer, or a tensor of them, points into; empty for other values."""
        if value not in self._slices:
            self._slices[value] = self._carried(value) if value.role == "carried" else self._find(value)
        return self._slices[value]

    def _carried(self, value: Value) -> frozenset[Slice]:
        first = self.slices(value.carried[0])
        before = set(self._slices)
        self._slices[value] = first
        again = frozenset().union(*map(self.slices, value.carried[1:]))
        if again <= first:
            return first
        # The pointer itself moves from iteration to iteration, and may point anywhere in its argument.
        for known in set(self._slices) - before:
            del self._slices[known]
        return frozenset(Slice(one.root, None, name=one.root) for one in first | again)

    def _find(self, value: Value) -> frozenset[Slice]:
        op = value.owner
        if op is None or value.role == "index":
            return frozenset({Slice(value.name, frozenset(), name=value.name)}) if value.pointer else frozenset()
        if op.name in ("scf.for", "scf.while", "scf.if"):
            last = op.regions[0][-1:] if op.name == "scf.while" else [region[-1] for region in op.regions if region]
            skip = 1 if op.name == "scf.while" else 0
            passed = [end.operands[value.number + skip] for end in last]
            passed += [op.operands[3 + value.number]] if op.name == "scf.for" else []
            return frozenset().union(*map(self.slices, passed))
        if op.name == "arith.select":
            return self.slices(op.operands[1]) | self.slices(op.operands[2])
        if op.name in _SAME_POINTER:
            return self.slices(op.operands[0])
        if op.name != "tt.addptr":
            return frozenset()
        base, offset = op.operands
        found = self.slices(base)
        if "tensor<" in op.text or not self.invariant(offset):
            return found
        terms, start = self.linear(offset)
        return frozenset(
            one
            if one.terms is None
            else Slice(one.root, frozenset(_sum(dict(one.terms), terms).items()), one.start + start, value.name, one)
            for one in found
        )

    def place(self, base: Value, offsets: Value | None, shape: str) -> Place:
        """What an access touches: through a pointer, a tensor of them, or a pointer with a tensor of offsets."""
        parts = [base] if offsets is None else [base, offsets]
        scalar = not shape.startswith("tensor<")
        identity: object = (*map(self.number, parts), shape)
        varies = frozenset().union(*map(self.varies, parts))
        tile = None if scalar else self._tile(base, offsets, shape)
        if tile is not None:
            identity, varies = tile, frozenset()
        slices = self.slices(base)
        if any(map(self._reaches_down, parts)):
            slices = frozenset(Slice(one.root, None, name=one.name) for one in slices)
        return Place(
            slices,
            1 if scalar else max(map(self._extent, parts)),
            scalar,
            identity,
            varies,
            alone(shape, self.function),
            any(map(self.loaded, parts)),
        )

    def _ancestors(self, value: Value) -> set[Value]:
        """A value and all that its computation passes through."""
        seen, todo = set(), [value]
        while todo:
            one = todo.pop()
            if one not in seen and _pure(one) and one.owner is not None:
                todo += one.owner.operands
            seen.add(one)
        return seen

    def _ranges(self, value: Value) -> list[int]:
        """Ends of the ranges of lanes in a computation."""
        made = [one.owner for one in self._ancestors(value) if _pure(one) and one.owner is not None]
        return [int(re.findall(r"end = (\d+)", op.text)[0]) for op in made if op.name == "tt.make_range"]

    def _extent(self, value: Value) -> int:
        return max([1, *self._ranges(value)])

    def _reaches_down(self, value: Value) -> bool:
        """Whether lanes may have negative offsets from the pointer."""
        made = [one.owner for one in self._ancestors(value) if _pure(one) and one.owner is not None]
        for op in made:
            if op.name == "arith.subi":
                lanes, start = self._ranges(op.operands[1]), self.constant(op.operands[0])
                if lanes and (start is None or start < max(lanes) - 1):
                    return True
        return False

    def _tile(self, base: Value, offsets: Value | None, shape: str) -> object:
        """Identity of `slice + first + range(T)` where first goes from a bound in steps of T: a lane always has the
        elements of one remainder by T, in whichever iteration of whichever loop."""
        if offsets is None:
            op = base.owner
            if op is None or op.name != "tt.addptr":
                return None
            splat, offsets = op.operands
            if splat.owner is None or splat.owner.name != "tt.splat":
                return None
            base = splat.owner.operands[0]
        first: list[Value] = []
        widths: list[int] = []
        todo = [offsets]
        while todo:
            one = todo.pop()
            op = one.owner
            if op is None or not _pure(one):
                return None
            if op.name in ("arith.addi", "arith.extsi"):
                todo += op.operands
            elif op.name == "tt.splat":
                first.append(op.operands[0])
            elif op.name == "tt.make_range" and "start = 0 " in op.text:
                widths.append(int(re.findall(r"end = (\d+)", op.text)[0]))
            else:
                return None
        if len(widths) != 1 or len(first) > 1 or not self.invariant(base):
            return None
        terms, start = self._bound(first[0], widths[0]) if first else ({}, 0)
        if terms is None or start % widths[0]:
            return None
        return ("tile", self.number(base), frozenset(terms.items()), widths[0], shape)

    def _bound(self, value: Value, width: int) -> tuple[dict[int, int] | None, int]:
        """The remainder by width of a loop's index, perhaps plus a constant; None where it varies."""
        shift, op = 0, value.owner
        if op is not None and op.name == "arith.addi" and _pure(value):
            fixed = [one for one in op.operands if self.constant(one) is not None]
            if len(fixed) != 1:
                return None, 0
            shift = self.constant(fixed[0]) or 0
            value = next(one for one in op.operands if one is not fixed[0])
            op = value.owner
        if value.role != "index" or op is None:
            return None, 0
        by = self.constant(op.operands[2])
        if by is None or by % width or not self.invariant(op.operands[0]):
            return None, 0
        terms, start = self.linear(op.operands[0])
        return terms, start + shift


def _sum(a: dict[int, int], b: dict[int, int], sign: int = 1) -> dict[int, int]:
    total = {term: a.get(term, 0) + sign * b.get(term, 0) for term in {**a, **b}}
    return {term: times for term, times in total.items() if times}
