"""The steps of `python -m benchmarks device`, rehearsed; and that a wrong kernel does not pass them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from benchmarks import readme, results
from benchmarks.device import journal
from benchmarks.device.plan import known
from tests.support.programs import ROOT, run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# A kernel's line, and what is planted for it: costs that leave out masses, and a tenth of the output.
WRONG = {
    "smoke-ward": (
        "resident/ward.py",
        "b_sum = (b_a + b_c) * tl.load(p_a + o_c[None, :])",
        "b_sum = b_a * tl.load(p_a + o_c[None, :])",
    ),
    "smoke-attention": ("attention/rows.py", "b_out = product(", "b_out = 0.9 * product("),
}


@pytest.mark.slow
@pytest.mark.interpreter
def test_the_rehearsal_is_green(tmp_path: Path) -> None:
    """Every step's own code on tiny sizes: each ends well and leaves rows, which say that they are a rehearsal's."""
    done = run("-m", "benchmarks", "device", "--rehearse", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    found = journal.read(tmp_path)
    steps = [row for row in found if row["step"] == journal.SUPERVISOR]
    assert [row["what"] for row in steps] == list(known())
    assert all(row["rows"] > 0 and "red" not in row for row in steps)
    assert all(row.get("rehearsal") for row in found)
    # No file that could be taken for measurements of a GPU.
    assert all("quick" in path.stem for path in tmp_path.glob("*.csv"))
    assert len(done.stdout[done.stdout.index("step  ") :]) < 12_000


@pytest.mark.slow
@pytest.mark.interpreter
def test_what_the_steps_launch_is_compiled_ahead(tmp_path: Path) -> None:
    """By kernel and flags: what is missing would be compiled in the minutes that there are."""
    rehearsal = {"TPKERNELS_REHEARSAL": "1", "TRITON_INTERPRET": "1"}
    launched = run("-m", "tests.support.kinds", "launched", str(tmp_path), **rehearsal)
    assert launched.returncode == 0, launched.stderr[-3000:]
    compiled = run("-m", "tests.support.kinds", "compiled")
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    variants = {line for line in launched.stdout.splitlines() if line.startswith("[")}
    assert len(variants) > 30
    assert variants <= set(compiled.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_kernel_turns_smoke_red(part: str, tmp_path: Path) -> None:
    name, line, planted = WRONG[part]
    for folder in ("tpkernels", "benchmarks", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    kernel = tmp_path / "tpkernels" / "kernels" / name
    text = kernel.read_text()
    assert line in text
    kernel.write_text(text.replace(line, planted))
    output = tmp_path / "rows"
    output.mkdir()
    rehearsal = {"TPKERNELS_REHEARSAL": "1", "TRITON_INTERPRET": "1", "TPKERNELS_COMMIT": "planted"}
    child = ("-m", "benchmarks", "device", "--child", part, "--output", str(output))
    done = run(*child, root=tmp_path, **rehearsal)
    assert done.returncode == 1, done.stdout + done.stderr
    red = [row for row in journal.read(output) if "red" in row]
    assert red and all(row["step"] == "smoke" and "expected" in row["red"] for row in red)


def test_the_readme_says_of_gpus_what_rows_say() -> None:
    """What stands between its markers is what `benchmarks report` makes of the committed rows."""
    text = (ROOT / "README.md").read_text()
    said = text.split(readme.BEGIN)[1].split(readme.END)[0].strip()
    assert said == readme.text(ROOT / "benchmarks" / "results")
    devices = [path.stem for path in results.files(ROOT / "benchmarks" / "results")]
    assert (said == readme.NONE) is not any("nvidia" in name for name in devices)
