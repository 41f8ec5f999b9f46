"""Rows as CSV: one file a device, only ever appended to."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .errors import Refusal


@dataclass(kw_only=True)
class Row:
    """What one provider did in one case. Times are milliseconds of the whole call; empty where not measured.

    run: when the run began (UTC), and load: the machine's load average then, shared by its rows. runs_on: cpu or cuda,
    where the provider computes. status: "ok", "skipped: ...", "wrong: ..." or "failed: ...". p20, p50, p99: warm, over
    `repeats`. graph_p50_ms: of a captured CUDA graph, launch cost left out. cold_ms: the first call, compilation
    included (less what a cache on disk held). peak_mb: 10^6 bytes beyond the inputs. objective: mean of the samples
    that were checked. objective_ratio: to the reference's. floor_ms: on a CPU the measured product of the distances,
    on a GPU the larger of that and of memory_floor_ms. over_floor: p50 (graph_p50 where there is one) over it.
    """

    run: str
    commit: str
    library: str
    python: str
    torch: str
    triton: str
    package: str = ""
    device: str
    runs_on: str
    threads: int
    load: float
    group: str
    case: str
    provider: str
    solves: str
    method: str
    init: str
    weighted: bool
    tokens: str
    dtype: str
    b: int
    n: int
    d: int
    k: int
    iters: int
    status: str
    repeats: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    graph_p50_ms: float | None = None
    cold_ms: float | None = None
    peak_mb: float | None = None
    launches: int | None = None
    objective: float | None = None
    objective_ratio: float | None = None
    product_floor_ms: float | None = None
    memory_floor_ms: float | None = None
    floor_ms: float | None = None
    over_floor: float | None = None
    note: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
TIMES = ("p20_ms", "p50_ms", "p99_ms", "graph_p50_ms", "cold_ms", "over_floor")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def encode(rows: Sequence[Row], header: bool = False) -> str:
    """Rows as lines of CSV.

    Raises:
        ValueError: a row that is not ok carries a time.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for row in rows:
        values = asdict(row)
        if row.status != "ok" and any(values[name] is not None for name in TIMES):
            raise ValueError(f"{row.provider}, {row.case}: a row that is {row.status!r} must not carry times")
        writer.writerow([_text(values[name]) for name in COLUMNS])
    return text.getvalue()


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, all of them or none; a new file gets the header.

    They are written in one piece at the end, so that two runs do not cut each other's lines.

    Raises:
        Refusal: the file has another header, or its last line was cut off.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        check(path)
    data = encode(rows, header=new).encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        written = os.write(handle, data)
        if written != len(data):
            os.ftruncate(handle, size)
            raise OSError(f"{path}: {written} of {len(data)} bytes could be written, none were kept")
    finally:
        os.close(handle)


def check(path: Path) -> None:
    """Raises Refusal where a file of rows is of another make or is cut off."""
    with path.open("rb") as file:
        header = file.readline().decode(errors="replace").rstrip("\r\n")
        file.seek(-1, os.SEEK_END)
        whole = file.read(1) == b"\n"
    if header != ",".join(COLUMNS):
        shown = header if len(header) <= 120 else header[:117] + "..."
        raise Refusal(
            f"{path}: its header is not that of this version, which writes {len(COLUMNS)} columns from {COLUMNS[0]} to "
            f"{COLUMNS[-1]}; move it away to begin a new file. It has: {shown}"
        )
    if not whole:
        raise Refusal(f"{path}: its last line is cut off; remove that line")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file as text by column.

    Raises:
        Refusal: as `check`.
    """
    check(path)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
