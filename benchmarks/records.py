"""Records as CSV: a file with a fixed header that is only ever appended to."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import Refusal


def text(value: object) -> str:
    """A value as a cell; None is empty, numbers have six digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def encode(columns: Sequence[str], records: Sequence[Mapping[str, object]], header: bool = False) -> str:
    """Records as lines of CSV."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([text(record[name]) for name in columns] for record in records)
    return lines.getvalue()


def append(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, object]]) -> None:
    """Adds records to a file, all of them or none; a new file gets the header.

    They are written in one piece at the end, so that two runs do not cut each other's lines, and are on the disk when
    this returns, so that a run that is killed afterwards has them.

    Raises:
        Refusal: the file has another header, or its last line was cut off.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        check(path, columns)
    append_whole(path, encode(columns, records, header=new).encode())


def append_whole(path: Path, data: bytes) -> None:
    """Adds bytes to the end of a file, all of them or none; they are on the disk when this returns.

    Raises:
        OSError: they cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        written = os.write(handle, data)
        if written != len(data):
            os.ftruncate(handle, size)
            raise OSError(f"{path}: {written} of {len(data)} bytes could be written, none were kept")
        os.fsync(handle)
    finally:
        os.close(handle)


def check(path: Path, columns: Sequence[str]) -> None:
    """Raises Refusal where a file of records is of another make or is cut off."""
    with path.open("rb") as file:
        header = file.readline().decode(errors="replace").rstrip("\r\n")
        file.seek(-1, os.SEEK_END)
        whole = file.read(1) == b"\n"
    if header != ",".join(columns):
        shown = header if len(header) <= 120 else header[:117] + "..."
        raise Refusal(
            f"{path}: its header is not that of this version, which writes {len(columns)} columns from {columns[0]} to "
            f"{columns[-1]}; move it away to begin a new file. It has: {shown}"
        )
    if not whole:
        raise Refusal(f"{path}: its last line is cut off; remove that line")


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The records of a file as text by column.

    Raises:
        Refusal: as `check`.
    """
    check(path, columns)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
