"""Triton's GPU dialect (TTGIR), read from its text: operations, their operands, the loops around them.

Only what an analysis of memory needs is read. An operation that is not handled is an error, never skipped: an analysis
that misses it could miss a race.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class UnreadableIR(ValueError):
    """The text holds something that this reader, or an analysis on top of it, does not handle."""


@dataclass(eq=False)
class Value:
    """A value and where it comes from.

    role: "argument" of the function, "block" argument, "result" number `number` of owner, "index" of the loop owner, or
    "carried" around it, by what `carried` says: the loop's operand and what its body yields.
    """

    name: str
    role: str
    owner: Op | None = None
    number: int = 0
    carried: list[Value] = field(default_factory=list)
    pointer: bool = False


@dataclass(eq=False)
class Op:
    """One operation; `text` is its line without its results, its location and the names of its operands."""

    name: str
    operands: list[Value]
    text: str
    where: str
    loops: tuple[Op, ...]
    line: int
    result: Value | None = None
    regions: list[list[Op]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} at {self.where}"


@dataclass
class Function:
    """A kernel: its arguments, its blocks by label in the order of the text, threads as (warps, lanes of a warp)."""

    name: str
    arguments: list[Value]
    blocks: dict[str, list[Op]]
    threads: tuple[int, int]
    encodings: dict[str, str]


_NAME = re.compile(r"%([\w.$-]+)(?:#(\d+))?")
_RESULTS = re.compile(r"^%([\w.$-]+)(?::(\d+))? = ")
_OPCODE = re.compile(r'^"?([a-z_]+\.[\w.]+)"?')
_LOCATION = re.compile(r"\s*loc\((?:[^()\"]|\"[^\"]*\"|\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\))*\)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# Their regions compute on values alone.
_COMBINERS = ("tt.reduce", "tt.scan", "tt.map_elementwise")


def _locations(text: str) -> dict[str, str]:
    """Source locations by their aliases, "folder/file:line, called at folder/file:line"."""
    aliases = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, flags=re.M))

    def place(inner: str, depth: int = 0) -> str:
        if depth > 60:
            return "?"
        if inner in aliases:
            return place(aliases[inner], depth + 1)
        if found := re.fullmatch(r'"([^"]*)":(\d+):\d+(?: to :\d+)?', inner):
            return f"{'/'.join(found[1].split('/')[-2:])}:{found[2]}"
        if found := re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", inner):
            return ", called at ".join(filter(None, (place(found[1], depth + 1), place(found[2], depth + 1))))
        if found := re.fullmatch(r'"[^"]*"\((.*)\)', inner):
            return place(found[1], depth + 1)
        return ""

    return {name: place(name) for name in aliases}


class _Reader:
    def __init__(self, text: str) -> None:
        self.places = _locations(text)
        self.encodings = dict(re.findall(r"^(#\w+) = (#ttg?\.\w+<.*>)$", text, flags=re.M))
        self.scopes: list[dict[str, list[Value]]] = [{}]
        self.lines = text.splitlines()
        self.at = 0

    def look_up(self, name: str, number: str | None, line: int) -> Value:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name][int(number or 0)]
        raise UnreadableIR(f"line {line}: %{name} is used before anything defines it")

    def define(self, name: str, values: list[Value]) -> None:
        self.scopes[-1][name] = values

    def function(self) -> Function:
        text = "\n".join(self.lines)
        warps = re.search(r'"ttg.num-warps" = (\d+)', text)
        lanes = re.search(r'"ttg.threads-per-warp" = (\d+)', text)
        starts = [i for i, line in enumerate(self.lines) if line.lstrip().startswith("tt.func")]
        if len(starts) != 1 or warps is None or lanes is None:
            raise UnreadableIR(f"expected one function whose module tells its warps, found {len(starts)} functions")
        header = self.lines[starts[0]]
        name = re.search(r"@([\w.$-]+)\(", header)
        assert name is not None
        arguments = [
            Value(found, "argument", pointer=kind.startswith("!tt.ptr"))
            for found, kind in re.findall(r"%([\w.$-]+): (\S+)", header)
        ]
        for value in arguments:
            self.define(value.name, [value])
        self.at = starts[0] + 1
        blocks: dict[str, list[Op]] = {}
        label = "entry"
        while True:
            blocks[label], ended = self.ops(())
            found = re.match(r"\^(bb\d+)", ended)
            if found is None:
                break
            label = found[1]
            for argument in re.findall(r"%([\w.$-]+): ", _LOCATION.sub("", ended)):
                self.define(argument, [Value(argument, "block")])
        return Function(name[1], arguments, blocks, (int(warps[1]), int(lanes[1])), self.encodings)

    def ops(self, loops: tuple[Op, ...]) -> tuple[list[Op], str]:
        """Operations up to the line that ends their block, and that line."""
        found: list[Op] = []
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            self.at += 1
            if not line or line.startswith("//"):
                continue
            if line.startswith(("}", "^")):
                return found, line
            found.append(self.op(line, loops))
        raise UnreadableIR("the text ends inside a region")

    def op(self, line: str, loops: tuple[Op, ...]) -> Op:
        number = self.at
        alias = re.search(r"loc\((#loc\d*)\)$", line)
        line = _LOCATION.sub("", line).rstrip()
        results = _RESULTS.match(line)
        rest = line[results.end() :] if results else line
        code = _OPCODE.match(rest)
        if code is None:
            raise UnreadableIR(f"line {number}: no operation in {line!r}")
        where = (self.places.get(alias[1], "") if alias else "") or f"TTGIR line {number}"
        plain = _STRING.sub('""', rest) if code[1] not in _COMBINERS else rest
        opens = plain.endswith("{")
        op = Op(code[1], [], _NAME.sub("%", rest), where, loops, number)
        if op.name in ("scf.for", "scf.while"):
            self.loop(op, plain)
        else:
            op.operands = [self.look_up(name, which or None, number) for name, which in _NAME.findall(plain)]
            op.targets = re.findall(r"\^(bb\d+)", plain)
            if op.name == "scf.if" and opens:
                self.branches(op)
            elif op.name in _COMBINERS and opens:
                self.combiner()
            elif opens:
                raise UnreadableIR(f"line {number}: {op.name} has a region that this reader does not know")
        if results:
            made = [Value(results[1], "result", op, i) for i in range(int(results[2] or 1))]
            self.define(results[1], made)
            op.result = made[0]
        return op

    def region(self, loops: tuple[Op, ...]) -> tuple[list[Op], str]:
        self.scopes.append({})
        found, ended = self.ops(loops)
        self.scopes.pop()
        return found, ended

    def branches(self, op: Op) -> None:
        ended = "else {"
        while ended.rstrip("{ ").endswith("else"):
            found, ended = self.region(op.loops)
            op.regions.append(found)
            ended = _LOCATION.sub("", ended)

    def combiner(self) -> None:
        # Up to "}) : types"; nothing in between touches memory.
        depth = 1
        while depth:
            line = _LOCATION.sub("", self.lines[self.at]).strip()
            self.at += 1
            depth += line.endswith("{") - line.startswith("}")

    def loop(self, op: Op, plain: str) -> None:
        # "%carried = %start", in scf.for after the variable's own "%i = %from to %to step %by".
        pairs = re.findall(r"%([\w.$-]+) = %([\w.$-]+)(?:#(\d+))?", plain)
        carried = [(name, self.look_up(start, which or None, op.line)) for name, start, which in pairs]
        if op.name == "scf.for":
            bounds = re.search(r"= (%\S+) to (%\S+) step (%[\w.$#-]+)", plain)
            if bounds is None:
                raise UnreadableIR(f"line {op.line}: bounds of {plain!r}")
            op.operands = [
                self.look_up(found[1], found[2], op.line)
                for found in map(_NAME.fullmatch, bounds.groups())
                if found is not None
            ]
            assert len(op.operands) == 3
            carried = carried[1:]
        inner = (*op.loops, op)
        self.scopes.append({})
        variables = [Value(name, "carried", op, i, [start]) for i, (name, start) in enumerate(carried)]
        for value in variables:
            self.define(value.name, [value])
        if op.name == "scf.for":
            self.define(pairs[0][0], [Value(pairs[0][0], "index", op)])
        body, ended = self.ops(inner)
        self.scopes.pop()
        op.regions.append(body)
        if op.name == "scf.while":
            if _LOCATION.sub("", ended).strip() != "} do {":
                raise UnreadableIR(f"line {self.at}: expected the body of scf.while, found {ended!r}")
            self.scopes.append({})
            header = _LOCATION.sub("", self.lines[self.at]).strip()
            passed = body[-1].operands[1:]
            if header.startswith("^"):
                self.at += 1
                for i, name in enumerate(re.findall(r"%([\w.$-]+): ", header)):
                    self.define(name, [Value(name, "carried", op, i, [passed[i]])])
            body, _ = self.ops(inner)
            self.scopes.pop()
            op.regions.append(body)
        for value, again in zip(variables, body[-1].operands, strict=False):
            value.carried.append(again)
        op.operands += [start for _, start in carried]


def walk(ops: list[Op]) -> Iterator[Op]:
    """Operations, and those inside them, in the order of the text."""
    for op in ops:
        yield op
        for region in op.regions:
            yield from walk(region)


def read(text: str) -> Function:
    """The kernel in a module's text.

    Raises:
        UnreadableIR: on an operation with a region, or a form, that is not handled here.
    """
    return _Reader(text).function()
