"""The command line of the clustering benchmarks."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.clustering import providers
from benchmarks.clustering.rows import TABLE as rows
from tests.support.clustering import Planted
from tests.support.programs import run


@pytest.mark.slow
def test_kernels_from_end_to_end(tmp_path: Path) -> None:
    # Ward would compile its loop for many seconds where numba is installed.
    chosen = ["--quick", "--device", "cpu", "--threads", "1", "--provider", "tpkernels", "--case", "from topk"]
    done = run("-m", "benchmarks", "kernels", *chosen, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "skipped: Triton" in done.stdout and "p50" in done.stdout and "STAGE" not in done.stderr
    (path,) = tmp_path.glob("*-quick.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert {record["status"] for record in found if record["provider"] == "tpkernels torch"} == {"ok"}
    assert {record["method"] for record in found} == {"kmedoids", "kmeans"}
    assert all(float(record["objective_ratio"]) < 1.01 for record in found if record["status"] == "ok")
    assert main(["report", "--quick", "--output", str(tmp_path)]) == 0
    assert main(["plots", "--quick", "--output", str(tmp_path)]) == 0
    assert list(tmp_path.glob("*-quick-kernels.png"))


def test_a_red_row_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "OWN", (Planted(lambda label: label.roll(1, 1)),))
    arguments = ["kernels", "--quick", "--device", "cpu", "--case", "kmeans from topk", "--provider", "planted"]
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    assert rows.read(next(tmp_path.glob("*.csv")))[0]["status"].startswith("wrong: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernels", "--device", "cuda:99"], "torch sees"),
        (["kernels", "--device", "cpu", "--case", "nothing"], "--case: none of"),
        (["peers", "--device", "cpu", "--provider", "nobody"], "--provider: none of"),
        (["plots"], "run kernels, scaling or peers first"),
        (["report"], "run kernels, scaling, peers, device or tax first"),
        (["kernels", "--deadline", "0"], "--deadline: expected seconds above 0"),
        (["kernels", "--limit", "-1"], "--limit: expected seconds above 0"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("benchmarks: ") and said in line and "\n" not in line


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--budget", "0"], ["--threads", "0"]])
def test_numbers_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=arguments[0]):
        main(["kernels", *arguments])


@pytest.mark.parametrize(("name", "tool"), [("compile", "compile_gate"), ("autotune", "autotune")])
@pytest.mark.parametrize(("given", "expected"), [(None, 0), (0, 0), (3, 3)])
def test_tools_get_their_arguments(
    name: str, tool: str, given: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    command = importlib.import_module(f"tools.{tool}.command")
    monkeypatch.setattr(command, "main", lambda arguments: seen.append(arguments) or given)
    assert main([name, "--help", "--targets", "sm_90"]) == expected
    assert seen == [["--help", "--targets", "sm_90"]]
