"""The pooling tax: rows, tables, the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import reports
from benchmarks.__main__ import main
from benchmarks.errors import Refusal
from benchmarks.tax import command as tax
from benchmarks.tax import report as tax_report
from benchmarks.tax.cases import BASE, SLICING
from benchmarks.tax.rows import TABLE as tax_rows
from tests.benchmarks.tax.test_runner import planted
from tests.support.programs import ROOT
from tests.support.tax import Changed, row, without_times


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "box.csv"
    tax_rows.append(path, [row(), without_times(method="topk", status='wrong: say "no"\nagain')])
    tax_rows.append(path, [row(tax=0.123456789)])
    first, second, third = tax_rows.read(path)
    assert (first["tax"], first["keep"], first["p50_ms"]) == ("0.034", "0.7", "2")
    assert second["status"] == 'wrong: say "no" again' and second["tax"] == "" and third["tax"] == "0.123457"
    assert path.read_text().count("\n") == 4 and path.read_text().startswith("run,commit,")
    with pytest.raises(ValueError, match="must not carry times"):
        tax_rows.append(path, [row(status="wrong: it is")])
    assert len(tax_rows.read(path)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,value\na,1\n", "its header is not that of this version"),
        (",".join(tax_rows.columns) + "\n2031,abc", "last line is cut off"),
    ],
)
def test_files_of_another_make_are_refused_and_left_alone(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "box.csv"
    path.write_text(content)
    with pytest.raises(Refusal, match=said):
        tax_rows.append(path, [row()])
    with pytest.raises(Refusal, match=said):
        tax_rows.read(path)
    assert path.read_text() == content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a CPU and of a GPU, made up."""
    slow = {"speedup": 0.9, "speedup_p20": 0.8, "speedup_p80": 1.1}
    # The median alone does not decide: less than four rounds of five.
    close = {"speedup": 1.01, "speedup_p20": 0.99, "speedup_p80": 1.03}
    old = row(run="2030-01-01T00:00:00+00:00", tax=9.99)
    found = [
        old,
        row(b=32),
        row(b=1, **slow),
        row(),
        row(method=BASE, tax=None, tax_p20=None, tax_p80=None, speedup=1.0),
    ]
    found += [row(method=SLICING, b=b, tax=0.0, speedup=1.4) for b in (1, 8, 32)]
    found += [row(method="kmeans", b=b, **slow) for b in (1, 8)] + [row(method="kmeans", b=32, **close)]
    found += [without_times(method="topk", b=b, status="skipped: it rains") for b in (1, 8)]
    found += [without_times(method="bipartite", status="wrong: it is"), row(method="bipartite", b=32, tax=-0.01)]
    tax_rows.append(tmp_path / "box-2-tax.csv", found)
    gpu_row = {"device": "Big GPU", "runs_on": "cuda", "dtype": "bfloat16", "schedule": "every"}
    tax_rows.append(tmp_path / "gpu-tax.csv", [row(**gpu_row, mode=mode) for mode in ("CUDA graph", "compiled")])
    # Files of the other kind are not even opened.
    (tmp_path / "gpu.csv").write_text("of another make\n")
    return tmp_path


def test_tables(folder: Path) -> None:
    text = tax_report.text(folder)
    box, big = text.split("### Pooling tax: Big GPU")
    assert "999" not in text and "run 2031-02-03." in box and "2030" not in box
    title = "deit-s, blocks 4, 7 and 10 keep 0.7, eager, float32"
    assert f"**{title}** (Ward takes 5.5 rounds)" in box and "| method | B=1 | B=8 | B=32 |" in box
    cell = "+3.4 % (+3.0 to +5.0), "
    assert f"| ward | {cell}0.90x | {cell}1.25x | {cell}1.25x |" in box
    assert "| slicing | 1.40x | 1.40x | 1.40x |" in box and "| base |" not in box
    assert "| bipartite | - | -1.0 % (+3.0 to +5.0), 1.25x |" in box or "| bipartite | - | - | -1.0 %" in box
    header = "| model, schedule, way to run | slicing | ward | kmeans | bipartite | topk |"
    assert header in box and f"| {title} | 1 | 8 | never | 32 | - |" in box
    assert box.index("bipartite, 1 time: wrong: it is") < box.index("topk, 2 times: skipped: it rains")
    assert f"| ward | {cell}1.25x, 2.000 ms |" in big
    assert big.index("every block keeps 0.9, compiled") < big.index("every block keeps 0.9, CUDA graph")


def test_tables_go_between_the_markers(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{tax_report.BEGIN}\nold\n{tax_report.END}\nafter\n")
    for _ in range(2):
        reports.write([tax_report], folder, document)
        text = document.read_text()
        assert text.startswith("before\n") and text.endswith(f"{tax_report.END}\nafter\n")
        assert "old" not in text and text.count("### Pooling tax: Box") == 1
    document.write_text("no markers")
    with pytest.raises(Refusal, match="--document: expected one"):
        reports.write([tax_report], folder, document)
    with pytest.raises(Refusal, match="--document: no file"):
        reports.write([tax_report], folder, tmp_path / "none.md")
    with pytest.raises(Refusal, match="--output"):
        reports.write([tax_report], tmp_path / "nothing", None)


def test_the_documents_markers_stand() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.count(tax_report.BEGIN) == text.count(tax_report.END) == 1
    assert text.index(tax_report.BEGIN) < text.index(tax_report.END)


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    chosen = ["tax", "--quick", "--device", "cpu", "--threads", "1", "--batch", "2", "--output", str(tmp_path)]
    assert main([*chosen, "--method", "topk", "bipartite", "topk"]) == 0
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "deit-nano, every block keeps 0.9, B=2" in shown and "#### From which batch on pooling pays" in shown
    (path,) = tmp_path.glob("*-tax-quick.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(one["schedule"], one["method"], one["status"]) for one in found] == [
        (schedule, method, "ok") for schedule in ("every", "three") for method in (BASE, SLICING, "topk", "bipartite")
    ]
    document = tmp_path / "doc.md"
    document.write_text(f"{tax_report.BEGIN}{tax_report.END}")
    again = ["tax", "--quick", "--report", "--output", str(tmp_path)]
    assert main([*again, "--document", str(document)]) == 0 and main(again) == 0
    assert "| topk |" in document.read_text() and "3 rounds" not in capsys.readouterr().out
    assert len(tax_rows.read(path)) == len(found)


def test_a_red_row_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, topk=lambda module: Changed(module, lambda y: y / 0))
    chosen = ["--quick", "--device", "cpu", "--batch", "1", "--method", "topk", "--schedule", "three"]
    assert main(["tax", *chosen, "--output", str(tmp_path)]) == 1
    found = {one["method"]: one["status"] for one in tax_rows.read(next(tmp_path.glob("*-tax-quick.csv")))}
    assert found.pop("topk").startswith("wrong: ") and found == {BASE: "ok", SLICING: "ok"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99"], "torch sees"),
        (["--device", "cpu", "--model", "resnet"], "--model: expected names of deit-ti"),
        (["--device", "cpu", "--quick", "--model", "deit-s"], "--model: expected names of deit-nano"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--budget", "0"], "--budget: expected seconds above 0"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--report"], "run tax first"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert tax.main([*arguments, "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("benchmarks tax: ") and said in line and "\n" not in line


def test_help_says_what_all_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "no part of all" in " ".join(capsys.readouterr().out.split())
