"""No lane reads through scratch what another lane wrote, or the other way round, without a barrier in between.

Triton's interpreter runs a program's lanes in lockstep and cannot see that; `hazards` reads it off the compiled TTGIR.
First the checker is held to races planted in small kernels, and to the library's own with a barrier taken out.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.compiled import TARGETS, compiled
from tests.support.once import once
from tests.support.programs import ROOT, environment, run
from tools.races import hazards
from tools.races.ttgir import walk

KERNELS = ROOT / "tpkernels" / "kernels"
# What the checker has to find in the kernels of `planted.py`; nothing in the sound ones.
EXPECTED: dict[str, set[str]] = {
    "missing": {"RAW"},
    "sound": set(),
    "one_branch": {"RAW"},
    "both_branches": set(),
    "back_edge": {"WAR"},
    "back_edge_store": {"RAW"},
    "sound_loop": set(),
    "while_back_edge": {"RAW", "WAR", "WAW"},
    "sound_while": set(),
    "own_lane": set(),
    "own_lane_replicated": {"RAW"},
    "own_tiles": set(),
    "shifted_tiles": {"RAW", "WAR"},
    "other_slice": set(),
    "hidden_zero": {"RAW"},
    "hidden_zero_sound": set(),
    "reaching_slice": {"RAW"},
    "moving_pointer": {"RAW", "WAW"},
    "reaching_down": {"RAW"},
    "early_return": {"RAW"},
    "reduction_hides": {"RAW"},
    "scalar": {"RAW", "WAR"},
    "scalar_in_slice": {"RAW"},
    "atomic": {"RAW"},
    "scatter": {"WAW"},
    "overwritten": {"WAW"},
    "pipelined": {"PIPELINED"},
    "copying": {"PIPELINED"},
    "unpipelined": set(),
}
AHEAD = "written before a barrier that stands before the loop, and not in the loop"
# Findings that are none, by kind and by the second statement's text: what the checker cannot know about each.
ALLOWED = {
    ("WAW", "tl.store(s.gram + o_i[:, None] * z.ld + o_j[None, :]"): "tiles of the lower triangle, each written once",
    ("WAW", "tl.store(s.gram + o_j[:, None] * z.ld + o_i[None, :]"): "their mirror images in the upper triangle",
    ("WAW", "tl.store(s.cost_matrix + o_r[:, None] * z.ld + o_c[None, :]"): "another block of a row's columns",
    ("WAW", "tl.store(p_a + o_c[None, :], b_cost[block]"): "rows of clusters that merge, which have no columns written",
    ("WAW", "tl.store(p_column, b_cost[block]"): "columns, in rows of clusters that do not merge",
    ("WAW", "tl.store(s.cost_matrix + o_c[None, :] * z.ld + o_a[:, None]"): "columns, in rows below those of the pairs",
    ("WAW", "tl.store(s.centered + "): "another block of tokens in every turn of the loop",
    ("WAW", "tl.store(s.begin + b_slot, o_v"): "a slot begins at one place",
    ("WAW", "tl.store(s.end + b_slot, o_v"): "a slot ends at one place",
    ("WAW", "tl.store(s.least + o_r"): "a row is scanned once",
    ("WAW", "tl.store(s.near + o_r"): "a row is scanned once",
    ("WAW", "tl.store(s.other + b_old"): "every writer stores 1",
    ("RAW", "b_new = tl.maximum(b_new - 2 * tl.load(s.gram"): "another block of rows or of columns than was written",
    ("RAW", "b_new = tl.load(s.gram"): "another block of rows or of columns than was written",
    ("RAW", "o_r = tl.load(s.scan"): "neighbors were written, another array",
    ("WAR", "tl.store(s.near + o_r"): "rows to scan were read, another array",
    ("WAW", "tl.store(p_tree + o_v * 4"): "another column of the dendrogram",
    ("WAW", "tl.store(p_out + o_out, b_mean"): "a slot's row is written once",
    ("WAW", "tl.store(p_tokens + o_zero, b_zero"): "rows of slots without members, which the means leave out",
    ("WAW", "tl.store(p_partial + pid * n + o_n, b_received[i]"): "keys beyond those of the store before",
    ("WAW", "tl.store(p_lse + bh * n + o_m, b_lse"): "another block of queries in every turn of the loop",
    ("WAW", "tl.store(p_x + o_x, b_x"): "another block of queries in every turn of the loop",
    ("PIPELINED", "b_gram = _product(tl.load(p_i + (begin_i + c))"): AHEAD,
    ("PIPELINED", "b_member = tl.load(s.order"): AHEAD,
    ("PIPELINED", "b_g = tl.load(s.gram"): AHEAD,
    ("PIPELINED", "b_weight = tl.load(s.ordered_weight"): AHEAD,
    ("PIPELINED", "b_square = tl.load(s.square"): AHEAD,
    ("PIPELINED", "b_row = tl.load(p_row"): AHEAD,
    ("PIPELINED", "b_score = b_square[:, None] - 2 * tl.load(p_rows"): AHEAD,
    ("PIPELINED", "o_r = tl.load(s.scan"): AHEAD,
    ("PIPELINED", "b_cost = tl.load(s.cost_matrix + o_r"): AHEAD,
    ("PIPELINED", "return nearer((b_cost | tl.load(s.gone"): AHEAD,
}

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def plant(folder: Path) -> None:
    done = run("-m", "tests.support.planted", str(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """TTGIR of the kernels of `planted.py` by name."""
    folder = once(tmp_path_factory, "planted", plant)
    return {path.stem: path.read_text() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """TTGIR of the library's kernels for sm_90 and gfx942, by target, kernel and case."""
    rows = [row for row in compiled(tmp_path_factory) if row["text"] is not None]
    assert {row["target"] for row in rows} == set(TARGETS)
    return {f"{row['target']}, {row['kernel']}, {row['case']}": row["text"] for row in rows}


def statement(access: hazards.Access) -> str:
    """The line of source that an access comes from, "" where it is not one of the library's kernels."""
    found = re.match(r"(\w+/\w+\.py):(\d+)", access.op.where)
    # A place names a file with its folder, which may be that of the kernels.
    paths = [folder / found[1] for folder in (KERNELS, KERNELS.parent) if found]
    lines = next((path.read_text().splitlines() for path in paths if path.is_file()), None)
    return lines[int(found[2]) - 1].strip() if found and lines else ""


def allowed(finding: hazards.Finding) -> tuple[str, str] | None:
    """The entry of ALLOWED that is about the finding."""
    text = statement(finding.second)
    return next((key for key in ALLOWED if key[0] == finding.kind and text.startswith(key[1])), None)


def without_barrier(text: str) -> list[tuple[str, str]]:
    """The text with each of its barriers taken out, and the place of that barrier in the source."""
    lines = text.splitlines()
    found = []
    for op in walk([op for ops in hazards.read(text).blocks.values() for op in ops]):
        if op.text.startswith(hazards.BARRIERS):
            found.append((op.where, "\n".join(lines[: op.line - 1] + lines[op.line :])))
    return found


def test_every_planted_kernel_is_judged(planted: dict[str, str]) -> None:
    assert set(planted) == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_checker_finds_what_is_planted(planted: dict[str, str], name: str) -> None:
    found = hazards.find(planted[name])
    assert {one.kind for one in found} == EXPECTED[name], "\n".join(map(str, found))


def test_a_copy_in_the_background_passes_barriers_until_its_wait(planted: dict[str, str]) -> None:
    text, count = re.subn(r"\n[^\n]*ttg\.async_wait \{num = 0 : i32\}[^\n]*", "", planted["copying"])
    assert count == 1
    assert {one.kind for one in hazards.find(text)} == {"PIPELINED", "WAR"}


def test_a_barrier_for_shared_memory_alone_is_none(planted: dict[str, str]) -> None:
    text, count = re.subn(r"ttg\.barrier all|gpu\.barrier", "ttg.barrier local", planted["sound"])
    assert count == 1
    assert {one.kind for one in hazards.find(text)} == {"RAW"}


@pytest.mark.parametrize(
    "line",
    [
        "tt.call @helper(%p_s) : (!tt.ptr<f32>) -> ()",
        "%q = tt.ptr_to_int %p_s : !tt.ptr<f32> -> i64",
        "ttg.warp_specialize(%p_s) {",
    ],
)
def test_what_the_checker_does_not_know_it_refuses(planted: dict[str, str], line: str) -> None:
    text = planted["sound"].replace("    tt.return", f"    {line}\n    tt.return")
    with pytest.raises(hazards.UnreadableIR):
        hazards.find(text)


@pytest.mark.slow
def test_the_kernels_have_no_races(kernels: dict[str, str]) -> None:
    races, used = defaultdict(list), set()
    for name, text in kernels.items():
        for finding in hazards.find(text):
            key = allowed(finding)
            used |= {key}
            if key is None:
                told = f"{finding.kind}: `{statement(finding.first)}` -> `{statement(finding.second)}`"
                races[told].append(f"{name}: {finding}")
    assert not races, "\n".join(f"{told}\n    {places[0]}" for told, places in races.items())
    assert used - {None} == set(ALLOWED), f"allowed, and found no more: {set(ALLOWED) - used}"


@pytest.mark.slow
def test_the_checker_misses_the_kernels_barriers(kernels: dict[str, str]) -> None:
    """A barrier is needed if some kernel that it is inlined into has more findings without it."""
    needed: dict[str, bool] = {}
    for text in kernels.values():
        before = {(one.kind, one.first.op.where, one.second.op.where) for one in hazards.find(text)}
        for where, rest in without_barrier(text):
            place = where.split(",")[0]
            if not needed.get(place, False):
                after = {(one.kind, one.first.op.where, one.second.op.where) for one in hazards.find(rest)}
                needed[place] = bool(after - before)
    redundant = sorted(place for place, is_needed in needed.items() if not is_needed)
    print(f"{len(needed)} barriers, without which nothing is found: {', '.join(redundant) or 'none'}")
    assert len(needed) >= 10
    assert len(redundant) <= len(needed) // 4, redundant


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    env = environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    command += [sys.executable, "-m", "tests.support.sanitizer_workload"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
