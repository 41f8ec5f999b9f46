"""The parts of an operation, by the device function that an instruction comes from.

The outermost function of a call path that stands in `PARTS` decides; then, also from outside, `REST`. A function that
stands in neither belongs to what calls it.
"""

from __future__ import annotations

from pathlib import Path

from .chains import Chain, Files
from .sources import statements

PARTS = {
    "channel_pivots": "center",
    "center_rows": "center",
    "gram_tile": "gram",
    "gram_matrix": "gram",
    "start_labels": "start",
    "first_costs": "first costs",
    "total_error": "first costs",
    "_merge_pairs": "rounds",
    "_merge_costs": "merges",
    "_scan": "scans",
    "wanted_height": "rounds",
    "round_limit": "rounds",
    "cut_labels": "cut",
    "ordered_mergers": "cut",
    "_name_clusters": "dendrogram",
    "update_medoids": "updates",
    "update_means": "updates",
    "member_costs": "updates",
    "assign_nearest": "assignments",
    "_number_slots": "numbering",
    "sort_members": "sorting",
    "slot_totals": "sorting",
    "sort_slots": "sorting",
    "pool_sample": "pooling",
    "attend_rows_kernel": "attention",
    "attend_stream_kernel": "attention",
    "received_kernel": "attention",
    "sum_parts_kernel": "sum of parts",
}
# What is left of functions whose callees have parts of their own.
REST = {"ward_rounds": "rounds", "_iterate": "assignments"}
# Conditions that have a part to themselves.
CONDITIONS = {"inexact > 0": "exact pass"}
OTHER = "other"
ORDER = (*dict.fromkeys([*PARTS.values(), *REST.values(), *CONDITIONS.values()]), OTHER)


def part(chain: Chain, files: Files) -> str:
    """The part that a chain belongs to."""
    path = [(place, statement) for place in reversed(chain) if (statement := files.statement(place)) is not None]
    for place, statement in path:
        for line in statement.around:
            around = files.statement((place[0], line))
            if around is not None and around.test in CONDITIONS:
                return CONDITIONS[around.test]
    for table in (PARTS, REST):
        for _, statement in path:
            if statement.function in table:
                return table[statement.function]
    return OTHER


def condition(place: tuple[str, int], folder: Path) -> int | None:
    """The line of the condition of `CONDITIONS` that a statement stands directly below, None for none."""
    for path in folder.rglob(place[0]):
        lines = statements(path)
        if place[1] in lines:
            around = lines[place[1]].around
            return around[0] if around and lines[around[0]].test in CONDITIONS else None
    return None
