"""The study in a document: what pooling costs at every size, and what each choice changes at the same size."""

from __future__ import annotations

from collections.abc import Sequence

from .outcome import BOTH, Row
from .ways import DEFAULT


def tables(rows: Sequence[Row]) -> str:
    return f"{sizes(rows)}\n\n{choices(rows)}"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sizes(rows: Sequence[Row]) -> str:
    """The default at every factor: size, and what is found, by the kind of the queries."""
    kinds = [kind for kind in dict.fromkeys(row.queries for row in rows) if kind != BOTH]
    head = ["p", "vectors", "MB", "variance lost %"]
    head += [f"{kind}: {name}" for kind in kinds for name in ("recall@1 %", "recall@10 %", "MRR", "change of MRR")]
    lines = [line(head), line(["---"] * len(head))]
    for factor in dict.fromkeys(row.pool_factor for row in rows):
        some = [row for row in rows if row.pool_factor == factor and row.way in ("none", DEFAULT.name)]
        first = some[0]
        cells = [f"{factor:g}", f"{first.vectors_per_document:.1f}", f"{first.index_mb:.1f}", f"{first.lost or 0:.1f}"]
        for row in (one for kind in kinds for one in some if one.queries == kind):
            cells += [f"{row.recall_at_1:.1f} ± {row.recall_at_1_se:.1f}"]
            cells += [f"{row.recall_at_10:.1f} ± {row.recall_at_10_se:.1f}", f"{row.mrr:.3f} ± {row.mrr_se:.3f}"]
            cells += ["" if row.way == "none" else signed(row.mrr_to_unpooled, row.mrr_to_unpooled_se)]
        lines.append(line(cells))
    return "\n".join(lines)


def choices(rows: Sequence[Row]) -> str:
    """What each way changes of the default's MRR at the same size, and its sum of squares over the default's."""
    some = [row for row in rows if row.queries == BOTH and row.way not in ("none", DEFAULT.name)]
    factors = list(dict.fromkeys(row.pool_factor for row in some))
    head = ["", *(f"p = {factor:g}" for factor in factors), "objective", "same partitions"]
    lines = [line(head), line(["---"] * len(head))]
    for label in dict.fromkeys(row.label for row in some):
        found = {row.pool_factor: row for row in some if row.label == label}
        cells = [signed(found[f].mrr_to_default or 0.0, found[f].mrr_to_default_se or 0.0) for f in factors]
        lost = [row.objective for row in found.values() if row.objective is not None]
        same = [100 * (row.same_partitions or 0) / row.documents for row in found.values()]
        objective = f"{min(lost):.3f} to {max(lost):.3f}" if lost else ""
        lines.append(line([label, *cells, objective, f"{min(same):.1f} to {max(same):.1f} %"]))
    return "\n".join(lines)


def signed(value: float, error: float) -> str:
    """A difference of mean reciprocal ranks in thousandths."""
    return f"{1000 * value:+.1f} ± {1000 * error:.1f}"
