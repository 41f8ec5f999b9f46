"""Compiled code as instructions with their call paths, and labels: NVIDIA's SASS, and AMD's assembly.

NVIDIA's disassembler tells one file and line of an instruction, without the calls that led there. Triton's PTX has them
in a comment on each `.loc`, so every `.loc` gets a line number of its own before the kernel is assembled once more, and
the line that the disassembler prints leads back to the comment. The code must come out as it was.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tools.compile_gate.targets import Target, binaries, run

from .chains import Chain, Files


class Instruction(NamedTuple):
    """name: its opcode; text; chain: where it comes from; number: of the instruction of PTX that it comes from (on AMD
    its own); to: the label that it may branch to; falls: whether the next instruction may follow; control: NVIDIA's
    bits for the scheduler, see `waits.py`."""

    name: str
    text: str
    chain: Chain = ()
    number: int = 0
    to: str | None = None
    falls: bool = True
    control: int = 0


class Code(NamedTuple):
    """instructions in order; labels: the place of the instruction that each stands before."""

    instructions: list[Instruction]
    labels: dict[str, int]


def code(built: Any, target: Target, files: Files, options: dict[str, Any], source: Any) -> Code:
    """The code of what `triton.compile` returned."""
    if target.backend == "hip":
        return amd(built.asm["amdgcn"], files)
    cubin, comments = _numbered(built, target, options, source)
    made, old = _disassembled(cubin), _disassembled(built.asm["cubin"])
    chains: list[Chain] = []
    for comment in comments:
        # Line 0 is moved or merged code, which stays with its neighbours.
        chains.append(files.chain(comment) or (chains[-1] if chains else ()))
    found = sass(made, chains)
    before = sass(old, [])
    if [one.name for one in found.instructions] != [one.name for one in before.instructions]:
        raise RuntimeError(
            f"expected the {len(before.instructions)} instructions of the kernel that was built, got others "
            f"({len(found.instructions)}) with lines renumbered"
        )
    return found


def renumbered(ptx: str) -> tuple[str, list[str]]:
    """PTX in which every instruction has a line of its own, from 1 on, in file 1; and each one's comment.

    An instruction's line tells copies of it, which the assembler makes where it unrolls, from its neighbours.
    """
    rows, comments = [], []
    # Instructions may take several lines; sections of debug information follow the body.
    depth, whole, comment = 0, True, ""
    for row in ptx.splitlines():
        bare = row.split("//")[0].strip()
        if found := re.match(r"^\s*\.loc\s[^/]*(?://(.*))?$", row):
            comment = found.group(1) or ""
            continue
        if depth and whole and re.match(r"@?%?!?\w", bare) and not bare.endswith(":"):
            comments.append(comment)
            rows.append(f"\t.loc\t1 {len(comments)} 0")
        rows.append(row)
        depth += (bare == "{") - (bare == "}")
        whole = bare[-1:] in ("", ";", "{", "}", ":")
    return "\n".join(rows) + "\n", comments


def _numbered(built: Any, target: Target, options: dict[str, Any], source: Any) -> tuple[bytes, list[str]]:
    """The kernel assembled once more, as Triton's own backend does."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    backend = make_backend(GPUTarget(target.backend, target.arch, target.limits.warp))
    chosen = backend.parse_options({**options, **source.parse_options()})
    ptx, comments = renumbered(built.asm["ptx"])
    return backend.make_cubin(ptx, {}, chosen, target.arch), comments


def _disassembled(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return run(str(binaries() / "nvdisasm"), "-c", "-g", "-hex", str(path))


# The second half of an instruction's 128 bits stands on a line of its own, with the scheduler's 17 in the middle.
_BITS = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)(.*?);")


def sass(text: str, chains: list[Chain]) -> Code:
    """Instructions of nvdisasm's listing; chains: of line 1 and on."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line = 0
    # Without a return a call is a jump: so the assembler leaves loops in which a warp may have diverged.
    jumps = ("BRA",) if re.search(r"\bRET\.", text) else ("BRA", "CALL")
    for row in text.splitlines():
        if found := re.match(r'^\s*//## File "[^"]*", line (\d+)', row):
            line = int(found.group(1))
        elif found := re.match(r"^\s*(\.L_x_\w+):", row):
            labels[found.group(1)] = len(instructions)
        elif (found := _BITS.match(row)) and instructions:
            instructions[-1] = instructions[-1]._replace(control=int(found.group(1), 16) >> 41 & 0x1FFFF)
        elif found := _SASS.match(row):
            guard, name, operands = found.groups()
            first = name.split(".")[0]
            to = re.search(r"\((\.L_x_\w+)\)", operands)
            if first in ("BRX", "JMX", "JMP", "BRXU"):
                raise RuntimeError(f"expected branches to labels, got {row.strip()}")
            # Warps that have diverged take the other way of BRA.DIV: these do not.
            goes = to is not None and first in jumps and ".DIV" not in name
            plain = guard is None and re.fullmatch(r"\s*`\(\.L_x_\w+\)\s*", operands) is not None
            falls = not (guard is None and first in ("EXIT", "RET")) and not (goes and plain)
            chain = chains[line - 1] if 0 < line <= len(chains) else ()
            instructions.append(
                Instruction(name, row.strip(), chain, line, to.group(1) if goes and to else None, falls)
            )
    return Code(instructions, labels)


def amd(text: str, files: Files) -> Code:
    """Instructions of AMD's assembly, whose `.loc` have the calls in a comment."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    chain: Chain = ()
    for row in text.splitlines():
        if found := re.match(r"^\s*\.loc\s[^;]*;(.*)$", row):
            chain = files.chain(found.group(1)) or chain
        elif found := re.match(r"^(\.LBB\w+):", row):
            labels[found.group(1)] = len(instructions)
        elif re.match(r"^\s*s_endpgm", row):
            instructions.append(Instruction("s_endpgm", row.strip(), chain, len(instructions), None, False))
        elif re.match(r"^\s*\.section|^\s*\.Lfunc_end", row) and instructions:
            break
        elif found := re.match(r"^\s+((?:[svu]|ds|global|buffer|flat|scratch)_\w+)(.*)$", row):
            name, operands = found.groups()
            if name in ("s_setpc_b64", "s_swappc_b64", "s_cbranch_i_fork"):
                raise RuntimeError(f"expected branches to labels, got {row.strip()}")
            to = re.search(r"(\.LBB\w+)", operands) if "branch" in name else None
            falls = name != "s_branch"
            instructions.append(
                Instruction(name, row.strip(), chain, len(instructions), to.group(1) if to else None, falls)
            )
    return Code(instructions, labels)
