"""Results as Markdown: ratios from a CPU, whose absolute times say little about another; times from a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import results
from ..markdown import listed, ms, not_timed, ratio, table, us
from ..results import Record, number, time_ms
from .measured import Measured, facts, read

KIND, COMMANDS = "", ("kernels", "scaling", "peers")
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
TITLES = {
    "kernels": "Batches of images",
    "peers": "Other packages",
    "scaling": "Large samples",
    "large": "Samples of several launches",
    "sweep": "What the main cases' time follows",
}
OURS = "tpkernels"


def _ours(records: Sequence[Record]) -> Record | None:
    """The row of this library's faster backend."""
    return min((record for record in records if record["provider"].startswith(OURS)), key=time_ms, default=None)


def case_table(measured: Measured, on_gpu: bool) -> str:
    """One case: every provider that could be timed, fastest first."""
    records = sorted(measured.ok(), key=time_ms)
    ours = _ours(records)
    header = ["provider", "over floor", f"over {OURS}", "objective", "peak MB"]
    header += ["p50 ms", "graph p50 ms", "launches"] if on_gpu else []
    lines = []
    for record in records:
        against = None if ours is None else results.over(record, ours)
        cells = [record["provider"], ratio(number(record, "over_floor")), ratio(against)]
        cells += [f"{float(record['objective_ratio']):.4f}", f"{float(record['peak_mb']):,.1f}"]
        if on_gpu:
            launches = number(record, "launches")
            cells += [ms(number(record, "p50_ms")), ms(number(record, "graph_p50_ms"))]
            cells.append("-" if launches is None else f"{launches:,.0f}")
        lines.append(cells)
    return table(header, lines)


def scaling_table(measured: Sequence[Measured], on_gpu: bool) -> str:
    """Cases of one method by size: each provider's time over the floor (which grows as N K) and its peak memory."""
    providers = list(dict.fromkeys(record["provider"] for case in measured for record in case.ok()))
    lines = []
    for case in measured:
        found = {record["provider"]: record for record in case.ok()}
        cells = [f"{case.b}", f"{case.n:,}", f"{case.k:,}"]
        for name in providers:
            cells.append(_scaling_cell(found[name], case.iters, on_gpu) if name in found else "-")
        lines.append(cells)
    return table(["B", "N", "K", *providers], lines)


def _scaling_cell(record: Record, iters: int, on_gpu: bool) -> str:
    parts = [f"{ratio(number(record, 'over_floor'))}x", f"{float(record['peak_mb']):,.0f} MB"]
    if on_gpu:
        parts.insert(0, f"{ms(time_ms(record) / max(1, iters))} ms")
    return ", ".join(parts)


def sweep_table(measured: Sequence[Measured], on_gpu: bool) -> str:
    """Cases that run one compiled kernel: this library's time over the floor, on a GPU in microseconds too."""
    header = ["B", "N", "D", "K", "iterations", "tokens", "over floor", "objective"]
    header += ["p50 us", "graph p50 us"] if on_gpu else []
    lines = []
    for case in measured:
        for record in (one for one in case.ok() if one["provider"].startswith(OURS)):
            iterations = "-" if record["method"] == "ward" else f"{case.iters}"
            cells = [f"{case.b}", f"{case.n}", f"{case.d}", f"{case.k}", iterations, record["tokens"]]
            cells += [ratio(number(record, "over_floor")), f"{float(record['objective_ratio']):.4f}"]
            if on_gpu:
                cells += [us(number(record, "p50_ms")), us(number(record, "graph_p50_ms"))]
            lines.append(cells)
    return table(header, lines)


def section(measured: Sequence[Measured]) -> str:
    """All of one device."""
    records = [record for case in measured for record in case.records]
    told = facts(measured)
    on_gpu = any(record["runs_on"] == "cuda" for record in records)
    parts = [f"### {told.pop('device')}", listed(told)]
    if not on_gpu:
        parts.append("Ratios only: absolute times are stated from a GPU alone. The CSV has them.")
    for group, title in TITLES.items():
        cases = [case for case in measured if case.group == group and case.ok()]
        if cases:
            parts.append(f"#### {title}")
        if group == "sweep":
            for method in dict.fromkeys(case.records[0]["method"] for case in cases):
                chosen = [case for case in cases if case.records[0]["method"] == method]
                parts += [f"**{method}**, {chosen[0].dtype}", sweep_table(chosen, on_gpu)]
            continue
        if group != "scaling":
            parts += [part for case in cases for part in (_heading(case), case_table(case, on_gpu))]
            continue
        for name in dict.fromkeys((case.case, case.d, case.iters, case.dtype) for case in cases):
            chosen = [case for case in cases if (case.case, case.d, case.iters, case.dtype) == name]
            what = "time per iteration, over the floor, peak memory" if on_gpu else "time over the floor, peak memory"
            parts.append(f"**{name[0]}**, D={name[1]}, {name[2]} iterations, {name[3]}: {what}")
            parts.append(scaling_table(sorted(chosen, key=lambda case: (case.n, case.b)), on_gpu))
    left = not_timed(records, ["provider"], "case")
    if left:
        parts += ["#### Not timed", "\n".join(left)]
    return "\n\n".join(parts)


def _heading(case: Measured) -> str:
    iterations = f", {case.iters} iterations" if case.iters else ""
    return f"**{case.case}**, {case.shape}{iterations}, {case.dtype}"


def text(folder: Path, quick: bool = False) -> str:
    """The tables of every device in a folder; Refusal where a file is of another make."""
    return "\n\n".join(section(read(path)) for path in results.files(folder, quick, KIND))
