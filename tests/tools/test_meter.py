"""The meter: calls and turns of statements, loops and branches of compiled code, and both together, by hand.

Small kernels (`tests/support/metered.py`) run in the interpreter for their turns and are compiled for GPUs that need
not be there; what they cost is added up here from their own code.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.once import once
from tests.support.programs import ROOT, environment, run
from tools.meter import parts, waits
from tools.meter.chains import Files
from tools.meter.code import Code, Instruction, amd, renumbered, sass
from tools.meter.counts import counts
from tools.meter.devices import DEVICES
from tools.meter.executions import Statements
from tools.meter.flow import flow
from tools.meter.sources import statements
from tools.meter.trips import trips

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNELS = ROOT / "tpkernels" / "kernels"
# Lines count: the numbers below are those of this text.
SOURCE = """
@jit
def inner(x, FLAG: tl.constexpr):
    if FLAG:
        y = x + 1
    else:
        y = (x +
             2)
    return y


@jit
def outer(n):
    total = 0
    for i in range(n):
        total += inner(
            i,
            True,
        )
        if total > 4:
            total += 0
    while total > 0:
        total -= 4
    return total


@jit
def unrolled(n):
    total = 0
    for i in range(n):
        for j in static_range(4):
            total += inner(j, True)
            for k in static_range(2):
                total -= k
    return total


def on_the_host(n):
    return n
"""
# What the text takes from Triton.
TRITON = {"jit": lambda function: function, "static_range": range}


def executed(folder: Path) -> tuple[Path, dict[str, Any], dict[str, int]]:
    """The text as a file that has been run: its path, its names, and its lines by what stands in them."""
    path = folder / "small.py"
    path.write_text(SOURCE)
    made: dict[str, Any] = dict(TRITON)
    exec(compile(SOURCE, str(path), "exec"), made)
    return path, made, {text.strip(): number for number, text in enumerate(SOURCE.splitlines(), 1)}


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What the small kernels cost, by target, case and warps."""
    folder = once(tmp_path_factory, "metered", _measure)
    return {(row["target"], row["case"], row["num_warps"]): row for row in json.loads((folder / "costs").read_text())}


def _measure(folder: Path) -> None:
    counted = run("-m", "tests.support.metered", "trips", TRITON_INTERPRET="1")
    assert counted.returncode == 0, counted.stderr
    command = [sys.executable, "-m", "tests.support.metered", "costs"]
    env = environment(TRITON_CACHE_DIR=str(folder / "cache"))
    made = subprocess.run(command, input=counted.stdout, env=env, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (folder / "costs").write_text(made.stdout)


def total(row: dict[str, Any]) -> float:
    return sum(row["parts"].values())


def unrolled(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Instructions of an unrolled loop's four turns, of two, of one, and of all else, by their places."""
    blocks = [block for block in row["blocks"] if block["reached"]]
    four, one = (place for place, block in enumerate(blocks) if block["loop"] is not None)
    lengths = [len(block["rows"]) for block in blocks]
    two = max(range(four + 1, one), key=lambda place: lengths[place])
    return lengths[four], lengths[two], lengths[one], sum(lengths) - lengths[four] - lengths[two] - lengths[one]


def test_straight_code_counts_once(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    row = costs["sm_90", "straight", 4]
    rows = [text for block in row["blocks"] for text in block["rows"]]
    end = next(place for place, text in enumerate(rows) if "EXIT" in text)
    assert total(row) == end + 1 and not row["doubts"]


def test_turns_of_an_unrolled_loop(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    row, twice = costs["sm_90", "looped", 4], costs["sm_90", "looped twice as often", 4]
    four, two, one, rest = unrolled(row)
    # 5 turns are 4 and 1, 10 are 4, 4 and 2.
    assert total(row) == rest + four + one
    assert total(twice) == rest + 2 * four + two
    assert "unrolled 4 times" in row["doubts"][0]
    four, _, one, rest = unrolled(costs["sm_90", "unrolled", 4])
    assert total(costs["sm_90", "unrolled", 4]) == rest + 2 * four + one


def test_what_is_moved_out_of_a_loop_counts_as_often_as_it_begins(
    costs: dict[tuple[str, str, int], dict[str, Any]],
) -> None:
    row = costs["sm_90", "chosen", 4]
    reached = [block for block in row["blocks"] if block["reached"]]
    before = next(place for place, block in enumerate(reached) if block["loop"] is not None)
    rows = [text for block in reached[1:before] for text in block["rows"]]
    assert any("MUFU.EX2" in text for text in rows) and all(block["count"] == 0.25 for block in reached[1:before])
    # 6 turns in one sample of four are 4 and 2; the last instruction ends the program.
    four, two, _, rest = unrolled(row)
    assert total(row) == pytest.approx(len(reached[0]["rows"]) * 0.75 + (rest + four + two) / 4, abs=1)


def test_doubled_turns_double_the_loop_on_amd(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    row, twice = costs["gfx942", "looped", 4], costs["gfx942", "looped twice as often", 4]
    [loop] = [block for block in row["blocks"] if block["loop"] is not None]
    [double] = [block for block in twice["blocks"] if block["loop"] is not None]
    assert loop["rows"] == double["rows"] and (loop["count"], double["count"]) == (5, 10)
    assert total(row) == sum(len(block["rows"]) for block in row["blocks"]) + 4 * len(loop["rows"])
    assert total(twice) - total(row) == 5 * len(loop["rows"])
    [loop] = [block for block in costs["gfx942", "chosen", 4]["blocks"] if block["loop"] is not None]
    assert loop["count"] == 6 / 4


def test_more_warps_do_not_look_cheaper(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    assert 8 * total(costs["sm_90", "looped", 8]) > 4 * total(costs["sm_90", "looped", 4])


def test_a_turn_waits_once_for_loads_and_for_both_barriers(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Both loads of a turn are on their way together, and two barriers follow."""
    row, twice = (costs["sm_90", name, 4]["cycles"] for name in ("looped", "looped twice as often"))
    assert (twice[waits.LOADS] - row[waits.LOADS]) / 5 == pytest.approx(waits.LOAD, rel=0.1)
    assert (twice[waits.BARRIERS] - row[waits.BARRIERS]) / 5 == pytest.approx(2 * waits.BARRIER, rel=0.3)
    # AMD leaves no such bits.
    assert costs["gfx942", "looped", 4]["cycles"] == {}


def test_parts_add_up(costs: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    for row in costs.values():
        assert total(row) == pytest.approx(sum(len(block["rows"]) * block["count"] for block in row["blocks"]))
        assert set(row["parts"]) <= set(parts.ORDER)


def test_statements_are_counted_by_call_path(tmp_path: Path) -> None:
    path, made, lines = executed(tmp_path)
    calls = lines["total += inner("]
    loop, last = SOURCE.splitlines().index("    for i in range(n):") + 1, lines["while total > 0:"]

    # 1 + 2 + 3 = 6 are two turns of the second loop.
    found = trips(lambda: [made["outer"](3), made["outer"](3)], tmp_path, 2)
    assert found.calls == {"outer": 1}
    assert found.entries == {(("small.py", loop),): 1, (("small.py", last),): 1}
    assert found.counts[(("small.py", loop),)] == 4 and found.counts[(("small.py", last),)] == 3
    assert found.counts[(("small.py", calls),)] == 3
    assert found.counts[("small.py", lines["y = x + 1"]), ("small.py", calls)] == 3
    assert found.counts[(("small.py", lines["total += 0"]),)] == 1

    files = Files(path, tmp_path)
    seen = Statements(found, files)
    # The interpreter took the other way, where the compiler decides.
    assert seen.count((("small.py", lines["y = (x +"]), ("small.py", calls))) == 3
    assert seen.count((("small.py", lines["total -= 4"]),)) == 2 == seen.turns((("small.py", last),))
    assert files.chain(f"small.py:{lines['y = (x +'] + 1}:4 @[ small.py:{calls + 1}:8 ]") == (
        ("small.py", lines["y = (x +"]),
        ("small.py", calls),
    )
    assert files.chain("standard.py:293:36 @[ small.py:3:4 ]") == (("small.py", 3),)


def test_copies_of_a_loop_that_the_compiler_unrolls_run_once(tmp_path: Path) -> None:
    _, made, lines = executed(tmp_path)
    called = lines["total += inner(j, True)"]
    found = trips(lambda: [made["unrolled"](3), made["on_the_host"](1)], tmp_path, 1)
    assert found.calls == {"unrolled": 1}
    assert found.counts[(("small.py", called),)] == 3 == found.counts[(("small.py", lines["total -= k"]),)]
    assert found.counts[("small.py", lines["y = x + 1"]), ("small.py", called)] == 3
    # They are no loops of the code.
    assert len(found.entries) == 1 and (("small.py", lines["for j in static_range(4):"]),) not in found.counts


def test_a_loop_in_a_loop_and_a_branch_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    text = "@jit\ndef kernel(n):\n    for i in range(n):\n        a = i\n        for j in range(2 * n):\n"
    path.write_text(text + "            b = j\n" + "        if i > 1:\n            c = i\n")
    made: dict[str, Any] = dict(TRITON)
    exec(compile(path.read_text(), str(path), "exec"), made)
    found = trips(lambda: made["kernel"](3), tmp_path, 1)

    def at(line: int, name: str = "IADD3", to: str | None = None, falls: bool = True) -> Instruction:
        return Instruction(name, name, (("small.py", line + 1),), line, to, falls)

    rows = [
        *(at(1), at(2)),  # before
        *(at(3), at(5), at(5)),  # outer loop; two were moved out of the inner one
        *(at(5), at(5), at(4, "BRA", "inner")),  # inner loop
        *(at(6), at(6, "BRA", "past")),
        at(7),
        at(2, "BRA", "outer"),  # past
        at(1, "EXIT", falls=False),
        at(1, "BRA", "nowhere", False),  # nowhere: no way leads here
    ]
    code = Code(rows, {"outer": 2, "inner": 5, "past": 11, "nowhere": 13})
    seen = flow(code)
    counted = counts(seen, Statements(found, Files(path, tmp_path)), 1)
    assert counted.blocks == [1, 3, 18, 3, 1, 3, 1, 0] and not counted.doubts
    assert [len(block.instructions) for block in seen.blocks] == [2, 3, 3, 2, 1, 1, 1, 1]


def test_every_instruction_of_ptx_gets_a_line() -> None:
    ptx = (
        ".visible .entry kernel(\n\t.param .u64 a\n)\n.maxnreg 255\n{\n\t.reg .b32 %r<3>;\n"
        "\t.loc\t1 10 16 // tokens.py:10:16 @[ gram.py:25:52 ]\n\tmov.u32 \t%r1, %tid.x;\n$L__BB0_1:\n"
        "\t@%p1 bra \t$L__BB0_1;\n\t.loc\t2 0 3 // gram.py:0:3\n\tret;\n}\n\t.section\t.debug\n\t{\n.b8 1\n\t}\n"
    )
    made, comments = renumbered(ptx)
    assert [comment.strip() for comment in comments] == [*2 * ["tokens.py:10:16 @[ gram.py:25:52 ]"], "gram.py:0:3"]
    assert "\t.loc\t1 2 0\n\t@%p1 bra" in made and made.count(".loc") == 3
    unnumbered = [row for row in made.splitlines() if ".loc" not in row]
    assert unnumbered == [row for row in ptx.splitlines() if ".loc" not in row]


def test_jumps_of_sass_and_of_amd(tmp_path: Path) -> None:
    listing = """
.L_x_1:
\t//## File "/kernel.py", line 2
        /*0000*/              @!P0 BRA `(.L_x_1) ;
        /*0010*/                   BRA.U !UP0, `(.L_x_1) ;
        /*0020*/                   BRA.DIV UR4, `(.L_x_2) ;
        /*0030*/               @P0 CALL.REL.NOINC `(.L_x_2) ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0050*/               @P0 EXIT ;
        /*0060*/                   EXIT ;
"""
    one, two = (("kernel.py", 1),), (("kernel.py", 2),)
    code = sass(listing, [one, two])
    assert code.labels == {".L_x_1": 0, ".L_x_2": 5} and all(row.chain == two for row in code.instructions)
    assert [row.to for row in code.instructions] == [".L_x_1", ".L_x_1", None, ".L_x_2", ".L_x_2", None, None]
    assert [row.falls for row in code.instructions] == [True, True, True, True, False, True, False]
    (tmp_path / "kernel.py").write_text("@jit\ndef kernel(n):\n    return n\n")
    text = """
.LBB0_1:
\t.loc\t1 2 5 ; kernel.py:2:5
\tv_add_u32 v0, v0, v1
\t.loc\t1 0 5 ; kernel.py:0:5
\ts_cbranch_scc1 .LBB0_1
\ts_branch .LBB0_2
.LBB0_2:
\ts_endpgm
"""
    code = amd(text, Files(tmp_path / "kernel.py", tmp_path))
    assert [(row.name, row.to, row.falls) for row in code.instructions] == [
        ("v_add_u32", None, True),
        ("s_cbranch_scc1", ".LBB0_1", True),
        ("s_branch", ".LBB0_2", False),
        ("s_endpgm", None, False),
    ]
    assert {row.chain for row in code.instructions} == {two}


def test_parts_name_what_there_is() -> None:
    found = [statement for path in KERNELS.rglob("*.py") for statement in statements(path).values()]
    functions, tests = {statement.function for statement in found}, {statement.test for statement in found}
    assert {*parts.PARTS, *parts.REST} <= functions
    assert set(parts.CONDITIONS) <= tests


def test_programs_that_fit() -> None:
    # An H100's multiprocessor: 65,536 registers, 228 KiB, 2,048 threads.
    assert DEVICES["sm_90"].programs(214, 86016, 4, 32) == (2, 2, 16)
    assert DEVICES["sm_90"].programs(248, 24832, 8, 32) == (1, 9, 8)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    options = ("--targets", "sm_90", "--operations", "kmedoids,attention", "--samples", "1")
    done = run("-m", "benchmarks", "compile", "--cost", *options, "--csv", str(tmp_path / "rows.csv"))
    assert done.returncode == 0, done.stderr
    assert "belongs to none of the source" not in done.stdout
    names, *rows = [line.split(",") for line in (tmp_path / "rows.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["kmedoids", "attention"]
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        assert sum(float(cells[part]) for part in parts.ORDER) == pytest.approx(float(cells["total"]), abs=1)
        assert float(cells["other"]) < 0.05 * float(cells["total"])
