"""What the README says of GPUs: a table of the rows that stand in the repository, or that there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import results
from .clustering import measured as clusterings
from .clustering.measured import Measured
from .markdown import ratio, table
from .reports import replace_between
from .results import number, time_ms
from .tax import report as tax
from .tax.rows import TABLE

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NONE = (
    "No row from a GPU stands in this repository yet: nothing is claimed of the kernels' speed.\n"
    "`python -m benchmarks device` measures it in minutes ([how](docs/benchmarks.md#a-gpu-for-some-minutes))."
)
# The speed table's main shape, and the problem of whole models.
SHAPE, ITERATIONS, GROUPS = (256, 196, 384, 98), 5, ("kernels", "sweep")
MODEL, BATCH = "deit-s", "256"
TITLES = {"ward": "Ward", "kmedoids": "K-Medoids from top-K, weighted", "kmeans": "K-Means from top-K, weighted"}
KERNELS, TORCH = "tpkernels triton", "tpkernels torch"
Line = list[str]


def text(folder: Path) -> str:
    """A table for each GPU with committed rows; Refusal where a file is of another make."""
    parts = []
    for path in results.files(folder):
        measured = [case for case in clusterings.read(path) if any(one["runs_on"] == "cuda" for one in case.records)]
        if lines := clustering(measured):
            device = measured[0].records[0]["device"]
            shape = "256 images of 196 tokens, 384 channels, to 98; bfloat16"
            header = [f"{device}, {shape}", "us", "over floor", "torch backend"]
            parts.append(table(header, lines))
    for path in results.files(folder, kind=tax.KIND):
        records = [one for one in tax.latest(TABLE.read(path)) if one["runs_on"] == "cuda"]
        if lines := models(records):
            header = [f"{records[0]['device']}, DeiT-S, batch 256, bfloat16", "pooling tax", "over the unpooled model"]
            parts.append(table(header, lines))
    return "\n\n".join(parts) or NONE


def clustering(measured: Sequence[Measured]) -> list[Line]:
    """Time of a whole call without launch cost, over the floor, and how much longer the torch backend takes."""
    lines = []
    for method, title in TITLES.items():
        for case in measured:
            found = {record["provider"]: record for record in case.ok()}
            ours, torch = found.get(KERNELS), found.get(TORCH)
            if ours is None or not is_main(case, method):
                continue
            ms = time_ms(ours)
            slower = "-" if torch is None else f"{time_ms(torch) / ms:.1f}x"
            lines.append([title, f"{1e3 * ms:,.0f}", ratio(number(ours, "over_floor")), slower])
            break
    return lines


def is_main(case: Measured, method: str) -> bool:
    """Whether this is the speed table's main case of a method."""
    first, iterations = case.records[0], 0 if method == "ward" else ITERATIONS
    shape = (case.b, case.n, case.d, case.k, case.iters) == (*SHAPE, iterations)
    return shape and (first["method"], first["tokens"]) == (method, "structured") and case.group in GROUPS


def models(records: Sequence[dict[str, str]]) -> list[Line]:
    """Tax and speed-up of pooled models, by schedule and way to run."""
    return [
        [
            f"{record['method']}, {record['schedule']}, {record['mode']}",
            f"{100 * float(record['tax']):+.1f} %",
            f"{float(record['speedup']):.2f}x",
        ]
        for record in records
        if (record["model"], record["b"], record["status"]) == (MODEL, BATCH, "ok") and record["tax"]
        if record["method"] not in ("base", "slicing")
    ]


def write(folder: Path, document: Path) -> str:
    """The tables, put between the README's markers; Refusal where these are missing."""
    tables = text(folder)
    document.write_text(replace_between(document.read_text(), tables, BEGIN, END))
    return tables
