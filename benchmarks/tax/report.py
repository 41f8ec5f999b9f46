"""The pooling tax as Markdown: a table for each model, schedule and mode, and the batches from which pooling pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import memory, results
from ..markdown import listed, not_timed, table
from ..results import Record
from .cases import BASE, METHODS, MODELS, MODES, QUICK_MODELS, SCHEDULES, SLICING
from .rows import TABLE

KIND, COMMANDS = TABLE.kind, ("tax",)
BEGIN, END = "<!-- tax:begin -->", "<!-- tax:end -->"
BREAK_EVEN = (
    "The smallest batch, of those measured, at which the model is faster than the base model in at least four rounds "
    "out of five."
)
ORDER = {
    "model": (*MODELS, *QUICK_MODELS),
    "schedule": tuple(SCHEDULES),
    "mode": MODES,
    "method": (BASE, SLICING, *METHODS),
}
# Columns that make a table.
CASE = ("model", "schedule", "mode", "dtype", "allocator")


def latest(records: Iterable[Record]) -> list[Record]:
    """The last row of every model, schedule, mode, type, batch and method, in reading order."""
    last: dict[tuple[str, ...], Record] = {}
    for record in records:
        key = tuple(record[name] for name in (*CASE, "b", "method"))
        if key not in last or record["run"] >= last[key]["run"]:
            last[key] = record
    return sorted(last.values(), key=_place)


def _place(record: Record) -> tuple:
    known = [ORDER[name].index(record[name]) for name in ("model", "schedule", "mode", "method")]
    return (*known[:3], record["dtype"], known[3], int(record["b"]))


def split(records: Iterable[Record], names: Sequence[str]) -> dict[tuple[str, ...], list[Record]]:
    """Records by the values of these columns, in order."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def batches(records: Iterable[Record]) -> list[int]:
    """The batch sizes that occur, ascending."""
    return sorted({int(record["b"]) for record in records})


def case_table(records: Sequence[Record], on_gpu: bool) -> str:
    """One model with one schedule in one mode: a line for each method, a column for each batch."""
    sizes = batches(records)
    lines = []
    for (method,), found in split(records, ["method"]).items():
        if method == BASE and not on_gpu:
            continue
        by_batch = {int(record["b"]): record for record in found}
        lines.append([method, *(_cell(by_batch.get(size), on_gpu) for size in sizes)])
    return table(["method", *(f"B={size}" for size in sizes)], lines)


def _cell(record: Record | None, on_gpu: bool) -> str:
    if record is None or record["status"] != "ok":
        return "-"
    parts = []
    if record["method"] not in (BASE, SLICING):
        low, middle, high = (100 * float(record[name]) for name in ("tax_p20", "tax", "tax_p80"))
        parts.append(f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})")
    if record["method"] != BASE:
        parts.append(f"{float(record['speedup']):.2f}x")
    if on_gpu:
        parts.append(f"{float(record['p50_ms']):.3f} ms")
    return ", ".join(parts)


def pays(record: Record) -> bool:
    """Whether a model was faster than its base in at least four rounds out of five."""
    return record["status"] == "ok" and float(record["speedup_p20"]) > 1


def break_even(records: Sequence[Record]) -> str:
    """For each model, schedule and mode the smallest batch that was measured at which pooling pays."""
    methods = [name for name in ORDER["method"] if name != BASE and any(r["method"] == name for r in records)]
    lines = []
    for case, found in split(records, CASE).items():
        cells = []
        for method in methods:
            timed = [record for record in found if record["method"] == method and record["status"] == "ok"]
            paying = batches(record for record in timed if pays(record))
            cells.append("-" if not timed else str(paying[0]) if paying else "never")
        lines.append([_title(case), *cells])
    return table(["model, schedule, way to run", *methods], lines)


def _title(case: Sequence[str]) -> str:
    model, schedule, mode, dtype, allocator = case
    kept = "" if allocator == memory.KEPT else f", allocator: {allocator}"
    return f"{model}, {SCHEDULES[schedule].title}, {mode}, {dtype}{kept}"


def section(records: Sequence[Record]) -> str:
    """All of one device."""
    on_gpu = any(record["runs_on"] == "cuda" for record in records)
    parts = [f"### Pooling tax: {records[0]['device']}", listed(results.facts(records))]
    what = "tax (p20 to p80 of the rounds), speed-up over the base model"
    parts.append(f"Cells: {what}{', p50' if on_gpu else ''}.")
    for case, found in split(records, CASE).items():
        rounds = sorted({f"{float(record['ward_rounds']):.1f}" for record in found if record["ward_rounds"]})
        hard = f" (Ward takes {' to '.join(dict.fromkeys((rounds[0], rounds[-1])))} rounds)" if rounds else ""
        parts += [f"**{_title(case)}**{hard}", case_table(found, on_gpu)]
    parts += ["#### From which batch on pooling pays", BREAK_EVEN, break_even(records)]
    left = not_timed(records, ["model", "method"], "time")
    return "\n\n".join([*parts, *(["#### Without a tax", "\n".join(left)] if left else [])])


def text(folder: Path, quick: bool = False) -> str:
    """The tables of every device in a folder; Refusal where a file is of another make."""
    return "\n\n".join(section(latest(TABLE.read(path))) for path in results.files(folder, quick, KIND))
