"""Tables of rows from a GPU: planted ones, in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from benchmarks import readme
from benchmarks.clustering.cases import Case
from benchmarks.clustering.providers import Library
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.clustering.runner import blank_row
from benchmarks.device import attention_report
from benchmarks.device.attention_rows import TABLE as attention_rows
from benchmarks.tax.rows import TABLE as tax_rows
from tests.support.tax import row as tax_row

FACTS = {
    "run": "2026-01-01T00:00:00+00:00", "commit": "planted", "library": "0", "python": "3", "torch": "2", "triton": "3",
    "device": "Planted GPU", "threads": 1, "load": 0.0,
}  # fmt: skip
SHAPE = (256, 196, 384, 98)


def timed(case: Case, backend: str, ms: float, graph: float | None = None, group: str = "sweep") -> rows.row:
    row = blank_row(FACTS, "cuda", group, case, Library(backend))
    row.status, row.p50_ms, row.graph_p50_ms, row.over_floor, row.objective_ratio = "ok", ms, graph, 5.0, 1.0
    return row


def test_the_readmes_table_is_of_the_main_cases(tmp_path: Path) -> None:
    ward, means = Case("ward", *SHAPE, iters=0, weighted=False), Case("kmeans", *SHAPE)
    rows.append(
        tmp_path / "planted-gpu.csv",
        [
            timed(Case("ward", *SHAPE, iters=0, weighted=False, tokens="random"), "triton", 9.0),
            timed(Case("ward", 1, 196, 384, 98, iters=0, weighted=False), "triton", 9.0),
            # The same case of a sweep, which has no other backend, gives way.
            timed(ward, "triton", 9.0),
            timed(ward, "triton", 0.5, 0.4, "kernels"),
            timed(ward, "torch", 2.0, None, "kernels"),
            timed(Case("kmeans", *SHAPE, iters=2), "triton", 9.0),
            timed(means, "triton", 0.7),
        ],
    )
    lines = readme.text(tmp_path).splitlines()
    assert lines[0].startswith("| Planted GPU: 256 images")
    # Without a graph of the torch backend both are compared as calls.
    assert lines[2:5] == [
        "| Ward | 500.0 | 400.0 | 5.00 | 4.00x |",
        "| K-Means from top-K, weighted | 700.0 | - | 5.00 | - |",
        "",
    ]


def test_the_readmes_models_are_beside_slicing(tmp_path: Path) -> None:
    here = {"runs_on": "cuda", "device": "Planted GPU", "dtype": "bfloat16"}
    tax_rows.append(
        tmp_path / "planted-gpu-tax.csv",
        [
            tax_row(**here, method="base", tax=None, speedup=1.0),
            tax_row(**here, method="slicing", tax=0.0, speedup=1.5),
            tax_row(**here, method="ward", tax=0.25, speedup=1.2),
            tax_row(**here, b=1, method="slicing", tax=0.0, speedup=1.0),
            tax_row(**here, b=1, method="ward", tax=2.0, speedup=0.33),
        ],
    )
    lines = readme.text(tmp_path).splitlines()
    assert lines[0].startswith("| Planted GPU: DeiT-S, bfloat16 | batch |")
    assert lines[2:5] == [
        "| Ward, blocks 4, 7 and 10 keep 0.7, eager | 1 | +200.0 % | 0.33x | 1.00x |",
        "| Ward, blocks 4, 7 and 10 keep 0.7, eager | 8 | +25.0 % | 1.20x | 1.50x |",
        "",
    ]


def test_rows_of_a_cpu_make_no_claim(tmp_path: Path) -> None:
    row = timed(Case("ward", *SHAPE, iters=0, weighted=False), "triton", 1.0)
    row.runs_on = "cpu"
    rows.append(tmp_path / "planted-cpu.csv", [row])
    assert readme.text(tmp_path) == readme.text(tmp_path / "empty") == readme.NONE


def test_attention_is_shown_beside_torchs(tmp_path: Path) -> None:
    heads = {"dtype": "bfloat16", "b": 256, "h": 6, "n": 197, "d": 64, "status": "ok", "error": 0.004}
    own = {**FACTS, **heads, "provider": "tpkernels triton", "significance": True}
    base = {**FACTS, **heads, "provider": "torch SDPA", "significance": False}
    attention_rows.append(
        tmp_path / "planted-gpu-attention.csv",
        [
            attention_rows.row(**own, p50_ms=9.0, graph_p50_ms=9.0),
            # Of the same shape and provider the last run counts.
            attention_rows.row(**{**own, "run": "2026-01-02"}, p50_ms=0.2, graph_p50_ms=0.15),
            attention_rows.row(**base, p50_ms=0.12, graph_p50_ms=0.1),
            attention_rows.row(**{**own, "n": 97, "status": "wrong: planted", "error": 0.5}),
        ],
    )
    lines = attention_report.text(tmp_path).splitlines()
    assert lines[0] == "### Attention: Planted GPU"
    assert lines[-3:] == [
        "| B=256 H=6 N=197 d=64 | torch SDPA | 120.0 | 100.0 | 1.00 | 4.0e-03 |",
        "| B=256 H=6 N=197 d=64 | tpkernels triton, significance | 200.0 | 150.0 | 1.50 | 4.0e-03 |",
        "| B=256 H=6 N=97 d=64 | tpkernels triton, significance | wrong: planted | - | - | - |",
    ]
    shown = [line for line in readme.text(tmp_path).splitlines() if line.startswith("| batch")]
    assert shown == ["| batch 256, 6 heads of 64, 197 tokens | - | 1.50 |"]
