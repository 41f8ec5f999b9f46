"""Files of results by device and kind, and what their rows say of where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

QUICK = "-quick"
# Kinds of results beside clustering, each with files of its own.
KINDS = ("tax", "attention")
Record = dict[str, str]
# Columns that tell where rows come from, and their titles.
FACTS = {
    "threads": "CPU threads",
    "load": "load before",
    "commit": "commit",
    "python": "Python",
    "torch": "torch",
    "triton": "Triton",
}


def number(record: Record, column: str) -> float | None:
    """A column as a number; None where it was not measured."""
    return float(record[column]) if record[column] else None


def time_ms(record: Record) -> float:
    """The time that is compared: of the captured graph where there is one, else the call's."""
    return float(record["graph_p50_ms"] or record["p50_ms"])


def over(record: Record, base: Record) -> float:
    """A row's time over another's: of captured graphs where both have one, else of calls."""
    column = "graph_p50_ms" if record["graph_p50_ms"] and base["graph_p50_ms"] else "p50_ms"
    return float(record[column]) / float(base[column])


def facts(records: Iterable[Record], names: Mapping[str, str] = FACTS) -> dict[str, str]:
    """The origin of the rows, by title; several values are joined, and columns that no row fills are left out.

    Of the loads the least and the greatest are given.
    """
    records = list(records)
    values = {title: {one[column] for one in records if one[column]} for column, title in names.items()}
    values["run"] = {one["run"][:10] for one in records}
    found = {title: ", ".join(sorted(some)) for title, some in values.items()}
    if loads := sorted(float(one["load"]) for one in records if "load" in names and one["load"]):
        found[names["load"]] = " to ".join(dict.fromkeys(f"{load:.1f}" for load in (loads[0], loads[-1])))
    return {title: value for title, value in found.items() if value}


def file_name(device: str, quick: bool = False, kind: str = "") -> str:
    """A file of results by its device's slug; quick runs have their own, for their times are of other cases.

    Args:
        kind: of KINDS; "" for clustering.
    """
    return f"{device}{f'-{kind}' if kind else ''}{QUICK if quick else ''}.csv"


def files(folder: Path, quick: bool = False, kind: str = "") -> list[Path]:
    """The files of one kind of results in a folder, quick runs' or the others'."""

    def is_one(stem: str) -> bool:
        named = stem.removesuffix(QUICK)
        kinds = [other for other in KINDS if named.endswith(f"-{other}")]
        return stem.endswith(QUICK) is quick and kinds == ([kind] if kind else [])

    return sorted(path for path in folder.glob("*.csv") if is_one(path.stem))
