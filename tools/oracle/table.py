"""The document: a table for each library, from the verdicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .candidate import Candidate
from .verdict import DOES_NOT_RUN, REFUSED, RIGHT, UNBUILT, WRONG, Verdict

INTRODUCTION = """\
# Models that `patch` takes

What `tpkernels.patch` makes of every vision model of three libraries: `python -m tools.oracle` writes this page, and
`--check` says whether it holds for the versions that are installed.

Made on {date} with {versions}.

- **pools**: a small model of this structure with random weights, pooled by Ward to 0.7 at two blocks, returns to a
  millionth what an oracle makes of the unpatched model. The oracle (`tools/oracle/`) shares no code with `patch`, and
  knows no names of a model's parts: it runs the model operation by operation, and pools where tokens are between
  attention and MLP. Prefix tokens (class, distillation, register), which are never pooled, are counted by what an
  image changes.
- **refused**: `patch` raises a TypeError with this reason, and the model stays as it was; or, "when called", the
  patched model raises a ValueError.
- **not built**: the class cannot be made small from its configuration's defaults here, or not be run.

{counts}
"""
WORDS = {RIGHT: "pools", REFUSED: "refused", WRONG: "WRONG", UNBUILT: "not built"}
MADE_ON = re.compile(r"^Made on [\d-]+ with ", re.MULTILINE)


class Judged(NamedTuple):
    """A model of the list with its verdict."""

    candidate: Candidate
    verdict: Verdict

    @property
    def names(self) -> tuple[str, ...]:
        """What a user looks up: the architectures, or the class where there are none."""
        return self.candidate.names or (self.candidate.kind,)


def document(date: str, versions: str, judged: Sequence[Judged], others: Mapping[str, int]) -> str:
    """The whole page.

    Args:
        others: timm's architectures without attention, by class.
    """
    libraries = list(dict.fromkeys(one.candidate.library for one in judged))
    parts = [INTRODUCTION.format(date=date, versions=versions, counts=counts(judged))]
    for library in libraries:
        parts.append(f"## {library}\n\n{table([one for one in judged if one.candidate.library == library])}\n")
        if library == "timm" and others:
            listed = ", ".join(f"{kind} {count}" for kind, count in others.items())
            parts.append(
                f"No attention over tokens, and so nothing to pool, have {sum(others.values())} architectures of these "
                f"classes: {listed}.\n"
            )
    return "\n".join(parts)


def counts(judged: Sequence[Judged]) -> str:
    """A table of how many models there are of each kind."""
    found = Counter((one.candidate.library, one.verdict.state) for one in judged for _ in one.names)
    structures = Counter(one.candidate.library for one in judged)
    lines = ["| library | structures tried | pool | refused | not built |", "|---|---|---|---|---|"]
    for library, tried in structures.items():
        named = (found[library, state] for state in (RIGHT, REFUSED, UNBUILT))
        lines.append(f"| {library} | {tried} | {' | '.join(map(str, named))} |")
    return "\n".join(lines)


def table(judged: Sequence[Judged]) -> str:
    """A row for each group of models with the same verdict; long lists of names are folded."""
    rows: dict[tuple[str, str, int | None], list[str]] = {}
    for one in sorted(judged, key=lambda one: (one.candidate.group.lower(), one.verdict.state != RIGHT)):
        why = unbuilt(one.verdict.reason) if one.verdict.state == UNBUILT else plain(one.verdict.reason)
        said = WORDS[one.verdict.state] + (f": {why}" if why else "")
        rows.setdefault((one.candidate.group, said, one.verdict.prefix), []).extend(one.names)
    lines = ["| model | verdict | prefix tokens | names |", "|---|---|---|---|"]
    for (group, said, prefix), names in rows.items():
        lines.append(f"| {group} | {said} | {'' if prefix is None else prefix} | {folded(sorted(names))} |")
    return "\n".join(lines)


def folded(names: Sequence[str]) -> str:
    """Names in one cell."""
    listed = ", ".join(f"`{name}`" for name in names)
    return listed if len(names) < 6 else f"<details><summary>{len(names)} names</summary>{listed}</details>"


def plain(reason: str) -> str:
    """A reason's own clause, as a cell of a table."""
    if "model_or_shape must be" in reason:
        reason = reason.rsplit(" (", 1)[-1].rstrip(")")
    # Where in a model a tower is, and what it could be called with, the message says.
    reason = re.sub(r"^its [\w.]+ is an? \w+: ", "", reason)
    reason = re.sub(r"(holds several towers), .*", r"\1, of which `tower` has to name one", reason)
    reason = re.sub(r" of `embeddings`, with .*", "", reason)
    reason = re.sub(r"(`[^`]*`) \([^()]*\)\)", r"\1)", reason)
    reason = re.split(r", (?:which|that|got|and what|so that)\b|: masks, |: pooled ", reason)[0]
    reason = re.sub(r" \((?!`)[^`()]*\)", "", reason)
    reason = re.sub(r" \((?!`)[^`]*$", "", reason)
    return reason.replace("|", "\\|").replace("\n", " ")


def unbuilt(reason: str) -> str:
    """Why a model was not made or run, without the library's own words."""
    package = re.search(r"requires the (\S+) library", reason)
    if package is not None:
        return f"needs the package {package[1]}"
    if reason.startswith(DOES_NOT_RUN):
        return "needs more inputs, or other sizes, than are tried"
    return plain(reason) if reason and ":" not in reason else "the defaults of its configuration make no model"


def pooled_in(text: str) -> set[str]:
    """The names in a document that pool."""
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| pools |" in line]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[-1])}


def versions_in(text: str) -> str:
    """The versions that a document was made with."""
    line = next((line for line in text.splitlines() if MADE_ON.match(line)), "")
    return MADE_ON.sub("", line).rstrip(".")


def undated(text: str) -> str:
    """A document without its date."""
    return MADE_ON.sub("Made with ", text)
