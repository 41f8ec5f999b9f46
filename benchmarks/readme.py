"""What the README says of GPUs: tables of the rows that stand in the repository, or that there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import results
from .clustering import measured as clusterings
from .clustering.measured import Measured
from .device import attention_report as attention
from .markdown import ratio, table, us
from .reports import replace_between
from .results import Record, number
from .tax import report as tax
from .tax.cases import BASE, SCHEDULES, SLICING
from .tax.rows import TABLE

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NONE = (
    "No row from a GPU stands in this repository yet: nothing is claimed of the kernels' speed.\n"
    "`python -m benchmarks device` measures it in minutes ([how](docs/benchmarks.md#a-gpu-for-some-minutes))."
)
NOTE = (
    "Medians; a graph is a replayed CUDA graph, in which launching costs nothing. The yardstick is the\n"
    "[floor](docs/benchmarks.md#what-is-measured), the longer of one matrix product and of memory traffic; the torch\n"
    "backend launches thousands of small kernels. Pooling tax: time over that of the same model whose tokens are cut\n"
    "to the same counts by slicing, less 1. [All rows](docs/benchmarks.md#results)."
)
# The speed table's main shape, and the model of the second table.
SHAPE, ITERATIONS, GROUPS = (256, 196, 384, 98), 5, ("kernels", "sweep")
MODEL = "deit-s"
TITLES = {"ward": "Ward", "kmedoids": "K-Medoids from top-K, weighted", "kmeans": "K-Means from top-K, weighted"}
KERNELS, TORCH = "tpkernels triton", "tpkernels torch"
Line = list[str]


def text(folder: Path) -> str:
    """Tables for each GPU with committed rows; Refusal where a file is of another make."""
    parts = []
    for path in results.files(folder):
        measured = [case for case in clusterings.read(path) if any(one["runs_on"] == "cuda" for one in case.records)]
        if lines := clustering(measured):
            what = f"{measured[0].records[0]['device']}: 256 images of 196 tokens, 384 channels, to 98; bfloat16"
            parts.append(table([what, "us a call", "us in a graph", "over floor", "torch backend takes"], lines))
    for path in results.files(folder, kind=tax.KIND):
        records = [one for one in tax.latest(TABLE.read(path)) if one["runs_on"] == "cuda"]
        if lines := models(records):
            header = ["batch", "pooling tax", "speed over unpooled", "of slicing"]
            parts.append(table([f"{records[0]['device']}: DeiT-S, bfloat16", *header], lines))
    for path in results.files(folder, kind=attention.KIND):
        records = attention.latest(attention.TABLE.read(path))
        if lines := heads(records):
            what = f"{records[0]['device']}: attention, bfloat16; time over torch's SDPA"
            parts.append(table([what, "the same output", "and significance"], lines))
    return "\n\n".join([*parts, NOTE]) if parts else NONE


def clustering(measured: Sequence[Measured]) -> list[Line]:
    """Times of the main cases, over the floor, and how much longer the torch backend takes."""
    lines = []
    for method, title in TITLES.items():
        chosen = sorted((case for case in measured if is_main(case, method)), key=lambda case: GROUPS.index(case.group))
        for case in chosen:
            found = {record["provider"]: record for record in case.ok()}
            ours, torch = found.get(KERNELS), found.get(TORCH)
            if ours is None:
                continue
            slower = "-" if torch is None else f"{ratio(results.over(torch, ours))}x"
            times = us(number(ours, "p50_ms")), us(number(ours, "graph_p50_ms"))
            lines.append([title, *times, ratio(number(ours, "over_floor")), slower])
            break
    return lines


def is_main(case: Measured, method: str) -> bool:
    """Whether this is the speed table's main case of a method."""
    first, iterations = case.records[0], 0 if method == "ward" else ITERATIONS
    shape = (case.b, case.n, case.d, case.k, case.iters) == (*SHAPE, iterations)
    return shape and (first["method"], first["tokens"]) == (method, "structured") and case.group in GROUPS


def models(records: Sequence[Record]) -> list[Line]:
    """Tax and speed-up of pooled models, by schedule, way to run and batch, beside the speed-up of slicing."""
    timed = [one for one in records if (one["model"], one["status"]) == (MODEL, "ok")]
    case = ("schedule", "mode", "dtype", "b")
    sliced = {tuple(one[name] for name in case): one["speedup"] for one in timed if one["method"] == SLICING}
    return [
        [
            f"{TITLES.get(one['method'], one['method'])}, {SCHEDULES[one['schedule']].title}, {one['mode']}",
            one["b"],
            f"{100 * float(one['tax']):+.1f} %",
            f"{float(one['speedup']):.2f}x",
            f"{float(sliced[tuple(one[name] for name in case)]):.2f}x",
        ]
        for one in timed
        if one["method"] not in (BASE, SLICING) and one["tax"]
    ]


def heads(records: Sequence[Record]) -> list[Line]:
    """Time of attention over torch's, by shape, without and with what each key received."""
    timed: dict[str, dict[tuple[str, str], Record]] = {}
    for one in records:
        if one["status"] == "ok":
            shape = f"batch {one['b']}, {one['h']} heads of {one['d']}, {one['n']} tokens"
            timed.setdefault(shape, {})[one["provider"], one["significance"]] = one
    lines = []
    for shape, found in timed.items():
        base = found.get((attention.BASE, "False"))
        ours = [found.get((KERNELS, significance)) for significance in ("False", "True")]
        if base is not None and any(ours):
            lines.append([shape, *(ratio(None if one is None else results.over(one, base)) for one in ours)])
    return lines


def write(folder: Path, document: Path) -> str:
    """The tables, put between the README's markers; Refusal where these are missing."""
    tables = text(folder)
    document.write_text(replace_between(document.read_text(), tables, BEGIN, END))
    return tables
