"""Rows, tables and pictures of the clustering benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import reports, results
from benchmarks.__main__ import main
from benchmarks.clustering import plots, report
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.errors import Refusal
from benchmarks.tax import report as tax_report
from tests.support.clustering import row, skipped
from tests.support.programs import ROOT


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "box.csv"
    rows.append(path, [row(), skipped(provider="a, b", note='say "no"\nagain')])
    rows.append(path, [row(p50_ms=0.123456789)])
    first, second, third = rows.read(path)
    assert first["p50_ms"] == "2" and first["graph_p50_ms"] == "" and first["weighted"] == "True"
    assert second["provider"] == "a, b" and second["note"] == 'say "no" again' and second["p50_ms"] == ""
    assert third["p50_ms"] == "0.123457"
    assert path.read_text().count("\n") == 4 and path.read_text().startswith("run,commit,")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,value\na,1\n", "its header is not that of this version"),
        (",".join(rows.columns[:-1]) + "\n", "its header is not that of this version"),
        (",".join(rows.columns) + "\n2031,abc", "last line is cut off"),
    ],
)
def test_files_of_another_make_are_refused_and_left_alone(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "box.csv"
    path.write_text(content)
    with pytest.raises(Refusal, match=said):
        rows.append(path, [row()])
    with pytest.raises(Refusal, match=said):
        rows.read(path)
    assert path.read_text() == content


def test_no_time_beside_a_red_gate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not carry times"):
        rows.append(tmp_path / "box.csv", [row(status="wrong: it is")])
    assert not (tmp_path / "box.csv").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a CPU and of a GPU, made up."""
    old = row(run="2030-01-01T00:00:00+00:00", provider="forgotten", over_floor=999.0)
    cpu = [old, row(), row(provider="peer", p50_ms=7.0, over_floor=7.0, objective_ratio=1.25)]
    cpu += [skipped(provider="absent"), skipped(provider="bad", status="wrong: it is")]
    rows.append(tmp_path / "box-2.csv", cpu)
    gpu_row = {"device": "Big GPU", "runs_on": "cuda", "memory_floor_ms": 0.5}
    found = [row(**gpu_row, provider="tpkernels triton", graph_p50_ms=0.5, over_floor=0.5, launches=1)]
    found.append(row(**gpu_row, provider="flash", p50_ms=8.0, over_floor=8.0, launches=40))
    large = {"group": "scaling", "case": "kmeans from strided, structured", "iters": 5, **gpu_row}
    for n in (1024, 2048):
        found += [row(**large, b=1, n=n, k=n // 32, p50_ms=n / 100, provider=p) for p in ("tpkernels triton", "flash")]
    found += [row(**large, b=b, n=4096, k=100, p50_ms=float(b), provider="tpkernels triton") for b in (1, 2, 4)]
    rows.append(tmp_path / "gpu.csv", found)
    # Files of the other kind are not even opened.
    (tmp_path / "gpu-tax.csv").write_text("of another make\n")
    return tmp_path


def test_tables(folder: Path) -> None:
    text = report.text(folder)
    box, big = text.split("### Big GPU")
    assert "### Box, 2" in box and "forgotten" not in text and "999" not in text
    assert "| tpkernels torch | 2.00 | 1.00 | 1.0000 | 4.0 |" in box
    assert "| peer | 7.00 | 3.50 | 1.2500 | 4.0 |" in box and "p50 ms" not in box
    assert box.index("bad, 1 case: wrong") < box.index("absent, 1 case: skipped: it rains")
    assert "| tpkernels triton | 0.50 | 1.00 | 1.0000 | 4.0 | 2.000 | 0.5000 | 1 |" in big
    # Without a graph of its own it is compared as a call: 8 ms over 2.
    assert "| flash | 8.00 | 4.00 | 1.0000 | 4.0 | 8.000 | - | 40 |" in big
    assert "| 1 | 2,048 | 64 | 4.096 ms, 2.00x, 4 MB | 4.096 ms, 2.00x, 4 MB |" in big
    assert "| 4 | 4,096 | 100 | 0.8000 ms, 2.00x, 4 MB | - |" in big


def test_tables_go_between_the_markers(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        reports.write([report], folder, document)
        text = document.read_text()
        assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text and text.count("### Box") == 1
    document.write_text("no markers")
    with pytest.raises(Refusal, match="--document: expected one"):
        reports.write([report], folder, document)
    with pytest.raises(Refusal, match="--document: no file"):
        reports.write([report], folder, tmp_path / "none.md")
    with pytest.raises(Refusal, match="--output"):
        reports.write([report], tmp_path / "nothing", None)


def test_a_report_of_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = ROOT / "benchmarks" / "results"
    document = tmp_path / "doc.md"
    fresh = f"{report.BEGIN}{report.END}\nbetween\n{tax_report.BEGIN}{tax_report.END}"
    folder = tmp_path / "results"
    folder.mkdir()
    command = ["report", "--output", str(folder), "--document", str(document)]
    document.write_text(fresh)
    assert main(command) == 2 and document.read_text() == fresh
    plain = next(path for path in results.files(committed) if path.stem.startswith("amd"))
    (folder / plain.name).write_bytes(plain.read_bytes())
    assert main(command) == 0
    first, second = document.read_text().split("\nbetween\n")
    assert "### AMD EPYC, 2 cores" in first and second == f"{tax_report.BEGIN}{tax_report.END}"
    tax = next(path for path in results.files(committed, kind="tax") if path.stem.startswith("amd"))
    (folder / tax.name).write_bytes(tax.read_bytes())
    capsys.readouterr()
    assert main(command) == 0
    again, second = document.read_text().split("\nbetween\n")
    assert again == first and "### Pooling tax: AMD EPYC, 2 cores" in second
    shown = capsys.readouterr().out
    assert shown.index("#### Large samples") < shown.index("### Pooling tax")
    # A document that lacks one kind's markers keeps all that it has.
    half = f"{report.BEGIN}{report.END}"
    document.write_text(half)
    assert main(command) == 2 and document.read_text() == half
    assert "expected one <!-- tax:begin -->" in capsys.readouterr().err
    (folder / plain.name).unlink()
    document.write_text(f"{tax_report.BEGIN}{tax_report.END}")
    assert main(command) == 0 and document.read_text() == second


def test_pictures(folder: Path) -> None:
    drawn = plots.draw(folder)
    names = {path.name for path in drawn}
    assert names == {"box-2-kernels.png", "gpu-kernels.png", "gpu-scaling-n.png", "gpu-scaling-b.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    with pytest.raises(Refusal, match="--output"):
        plots.draw(folder / "nothing")


def test_the_documents_markers_stand() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "\n\nmade anew\n\n" in reports.replace_between(text, "made anew", report.BEGIN, report.END)
