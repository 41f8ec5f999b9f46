"""Schedule files: tokens per block as JSON, with what they were made for and how; written whole or not at all.

{"format": "tpkernels schedule", "version": 1, "tokens": [196, 140, 98], "num_patches": 196, "facts": {...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import replace
from .shapes import check_integer

FORMAT, VERSION = "tpkernels schedule", 1
# A schedule of a thousand blocks takes a few kilobytes.
MOST_BYTES = 1 << 20
_KEYS = {"format", "version", "tokens", "num_patches", "facts"}


@dataclass(frozen=True)
class Schedule:
    """What a schedule file holds.

    Args:
        tokens: patch tokens left after each block, none above the one before it.
        num_patches: patch tokens that enter the first block of the model that it was made for.
        facts: how it was made: JSON values by name.
    """

    tokens: tuple[int, ...]
    num_patches: int
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.tokens, (str, bytes)) or not isinstance(self.tokens, Sequence):
            raise TypeError(f"tokens must list the patch tokens left after each block, got {_short(self.tokens)}")
        if not self.tokens:
            raise ValueError("tokens must hold one count per block, got none")
        left = check_integer("num_patches", self.num_patches, 1)
        for block, count in enumerate(self.tokens):
            if check_integer(f"tokens[{block}]", count, 1) > left:
                raise ValueError(f"tokens[{block}] must be at most the {left} tokens that are left, got {count}")
            left = int(count)
        if not isinstance(self.facts, dict):
            raise TypeError(f"facts must be an object, got {_short(self.facts)}")


def save_schedule(path: str | os.PathLike[str], tokens: Sequence[int], *, num_patches: int, **facts: Any) -> Schedule:
    """Writes a schedule file, which `tpkernels.patch(model, keep=path)` reads; a kill or full disk leaves the old one.

    Args:
        path: the file; a missing folder is made.
        tokens: patch tokens left after each block, as `solve_schedule`, `resolve_keep` and `resolve_budget` return.
        num_patches: patch tokens that enter the first block.
        facts: how it was made (method, budget, MACs, ...): JSON values by name.

    Returns:
        What was written.

    Raises:
        TypeError: counts that are no integers, or facts that are no JSON values.
        ValueError: counts out of range or rising, or facts that hold NaN or infinity.
        OSError: the file cannot be written.
    """
    given = Schedule(tokens, num_patches, facts)  # type: ignore[arg-type]
    schedule = Schedule(tuple(int(count) for count in given.tokens), int(num_patches), facts)
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "tokens": list(schedule.tokens),
        "num_patches": schedule.num_patches,
        "facts": facts,
    }
    try:
        # One line for each name.
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in whole.items()]
    except (TypeError, ValueError) as error:
        raise type(error)(f"facts must be JSON values, got {facts!r} ({error})") from None
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, ("{" + ",\n ".join(lines) + "}\n").encode())
    return schedule


def load_schedule(path: str | os.PathLike[str]) -> Schedule:
    """Reads a file that `save_schedule` wrote; everything in it is checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no schedule file, of another version, damaged, or larger than 1 MB; the message, one line,
            names the file and what was expected.
    """
    with open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    try:
        return _parse(raw)
    # Integers of thousands of digits and brackets nested by the thousand are JSON too.
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{os.fspath(path)} must be a schedule file of save_schedule: {reason}") from None


def read_tokens(path: str | os.PathLike[str], depth: int, num_patches: int) -> list[int]:
    """The tokens of a schedule file, for a model of `depth` blocks that `num_patches` patch tokens enter.

    Raises:
        OSError, ValueError: as `load_schedule`, and where the schedule is for a model of another shape.
    """
    found = load_schedule(path)
    if (len(found.tokens), found.num_patches) != (depth, num_patches):
        raise ValueError(
            f"{os.fspath(path)} must fit a model of {depth} blocks and {num_patches} patch tokens, got a schedule for "
            f"{len(found.tokens)} blocks and {found.num_patches} patch tokens"
        )
    return list(found.tokens)


def _parse(raw: bytes) -> Schedule:
    if len(raw) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got more")
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"expected JSON, got something else ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else found
        raise ValueError(f"expected an object with format {FORMAT!r}, got {_short(got)}")
    # True == 1 in Python.
    if isinstance(found.get("version"), bool) or found.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}, got {_short(found.get('version'))}")
    if set(found) != _KEYS:
        raise ValueError(f"expected {', '.join(sorted(_KEYS))}, got {_short(sorted(found))}")
    if not isinstance(found["tokens"], list):
        raise ValueError(f"expected a list of tokens, got {_short(found['tokens'])}")
    return Schedule(tuple(found["tokens"]), found["num_patches"], found["facts"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
