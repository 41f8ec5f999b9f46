"""Tables of rows: one CSV a device and kind of results, which is only ever appended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

from . import records


@dataclass(kw_only=True)
class Row:
    """What every row begins with: which run it is of, the code and the packages.

    A kind of row adds its columns, `status` ("ok", "skipped: ...", "wrong: ..." or "failed: ...") among them.

    Attributes:
        KEY: columns that tell a row from the others of its run, the subject's last.
        TIMES: columns that only a row that is ok may fill.
    """

    KEY: ClassVar[tuple[str, ...]] = ()
    TIMES: ClassVar[tuple[str, ...]] = ()

    run: str
    commit: str
    library: str
    python: str
    torch: str
    triton: str

    @property
    def subject(self) -> str:
        """What is measured: a provider or a method."""
        return getattr(self, self.KEY[-1])

    @property
    def part(self) -> str:
        """The part of its case that is measured together; by default all of it."""
        return ""

    @property
    def title(self) -> str:
        """The row as messages call it."""
        return self.subject

    def drop_times(self) -> None:
        """Leaves the columns of times empty."""
        for name in self.TIMES:
            setattr(self, name, None)

    @staticmethod
    def red(subject: str, status: str) -> bool:
        """Whether a row of this status is a fault."""
        return status.startswith(("wrong", "failed"))


class Table:
    """The files of one kind of row.

    Args:
        row: the kind.
        kind: what its files' names say between the device and the ending, see `results.file_name`.
    """

    def __init__(self, row: type[Row], kind: str = "") -> None:
        self.row, self.kind = row, kind
        self.columns = tuple(field.name for field in fields(row))

    def key(self, row: Row) -> tuple[str, ...]:
        """What tells a row from the others of its run, as text."""
        return tuple(records.text(getattr(row, name)) for name in self.row.KEY)

    def append(self, path: Path, rows: Sequence[Row]) -> None:
        """Adds rows to a file, as `records.append`.

        Raises:
            ValueError: a row that is not ok carries a time.
            Refusal, OSError: as `records.append`.
        """
        for row in rows:
            if row.status != "ok" and any(getattr(row, name) is not None for name in row.TIMES):
                raise ValueError(f"{row.title}: a row that is {row.status!r} must not carry times")
        records.append(path, self.columns, [asdict(row) for row in rows])

    def check(self, path: Path) -> None:
        """Raises Refusal where a file of rows is of another make or is cut off."""
        records.check(path, self.columns)

    def read(self, path: Path) -> list[dict[str, str]]:
        """The rows of a file as text by column; Refusal as `check`."""
        return records.read(path, self.columns)
