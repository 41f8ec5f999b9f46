"""Schedule files: tokens per block as JSON, with what they were made for and how; written whole or not at all.

{"format": "tpkernels schedule", "version": 1, "tokens": [196, 140, 98], "num_patches": 196, "facts": {...}}

Version 2 has the distances below which clusters merge beside the tokens, which are then the most that a block leaves:
{..., "version": 2, "tokens": [196, 152, 121], "distance": [null, 3.1, 4.5], ...}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import replace
from .distance import check_distances
from .shapes import check_integer

FORMAT = "tpkernels schedule"
# A schedule of a thousand blocks takes a few kilobytes.
MOST_BYTES = 1 << 20
_KEYS = {"format", "version", "tokens", "num_patches", "facts"}
# By version.
_NAMES = {1: _KEYS, 2: _KEYS | {"distance"}}


@dataclass(frozen=True)
class Schedule:
    """What a schedule file holds.

    Args:
        tokens: patch tokens left after each block, none above the one before it; the most, where there are distances.
        num_patches: patch tokens that enter the first block of the model that it was made for.
        facts: how it was made: JSON values by name.
        distance: for each block the distance below which its clusters merge, None where it does not pool; None where
            every image keeps the same number of tokens.
    """

    tokens: tuple[int, ...]
    num_patches: int
    facts: dict[str, Any] = field(default_factory=dict)
    distance: tuple[float | None, ...] | None = None

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
        if self.distance is not None:
            check_distances(self.distance, len(self.tokens))
            before = (self.num_patches, *self.tokens)
            for block, (one, came, count) in enumerate(zip(self.distance, before, self.tokens, strict=False)):
                if one is None and count != came:
                    raise ValueError(
                        f"tokens[{block}] must be the {came} tokens that come, where distance[{block}] is None, "
                        f"got {count}"
                    )


def save_schedule(
    path: str | os.PathLike[str],
    tokens: Sequence[int] | Schedule,
    *,
    num_patches: int | None = None,
    distance: Sequence[float | None] | None = None,
    **facts: Any,
) -> Schedule:
    """Writes a schedule file, which `tpkernels.patch(model, keep=path)` reads; a kill or full disk leaves the old one.

    Args:
        path: the file; a missing folder is made.
        tokens: patch tokens left after each block, as `solve_schedule`, `resolve_keep` and `resolve_budget` return; or
            a whole Schedule, to whose facts those given here are added.
        num_patches: patch tokens that enter the first block; None beside a Schedule, which tells.
        distance: for each block the distance below which clusters merge, None where it does not pool; `tokens` are then
            the most that it leaves. None beside a Schedule.
        facts: how it was made (method, budget, MACs, ...): JSON values by name.

    Returns:
        What was written: version 2 where there are distances, else version 1.

    Raises:
        TypeError: counts that are no integers, distances that are no numbers, or facts that are no JSON values.
        ValueError: counts out of range or rising, distances that are negative or not finite or not one per block, a
            block without a distance that leaves fewer tokens than it gets, or facts that hold NaN or infinity.
        OSError: the file cannot be written.
    """
    if isinstance(tokens, Schedule):
        if num_patches is not None or distance is not None:
            raise ValueError("num_patches and distance must be None beside a Schedule, which has its own")
        facts = {**tokens.facts, **facts}
        return save_schedule(path, tokens.tokens, num_patches=tokens.num_patches, distance=tokens.distance, **facts)
    given = Schedule(tokens, num_patches, facts, distance)  # type: ignore[arg-type]
    schedule = Schedule(
        tuple(int(count) for count in given.tokens),
        int(given.num_patches),
        facts,
        None if distance is None else check_distances(distance, len(given.tokens)),
    )
    whole: dict[str, Any] = {
        "format": FORMAT,
        "version": 1 if distance is None else 2,
        "tokens": list(schedule.tokens),
        **({} if schedule.distance is None else {"distance": list(schedule.distance)}),
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


def fitting_schedule(given: Schedule | str | os.PathLike[str], depth: int, num_patches: int) -> Schedule:
    """A schedule, or that of a file, for a model of `depth` blocks that `num_patches` patch tokens enter.

    Raises:
        OSError, ValueError: as `load_schedule`, and where the schedule is for a model of another shape.
    """
    found = given if isinstance(given, Schedule) else load_schedule(given)
    if (len(found.tokens), found.num_patches) != (depth, num_patches):
        name = "the Schedule" if isinstance(given, Schedule) else os.fspath(given)
        raise ValueError(
            f"{name} must fit a model of {depth} blocks and {num_patches} patch tokens, got a schedule for "
            f"{len(found.tokens)} blocks and {found.num_patches} patch tokens"
        )
    return found


def read_tokens(path: str | os.PathLike[str], depth: int, num_patches: int) -> list[int]:
    """The tokens of a schedule file, the same for every image. Arguments and errors are those of `fitting_schedule`.

    Raises:
        ValueError: also where the schedule has distances.
    """
    found = fitting_schedule(path, depth, num_patches)
    if found.distance is not None:
        raise ValueError(f"{os.fspath(path)} must hold one number of tokens for all images, got one with distances")
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
    version = found.get("version")
    # True == 1 in Python.
    if isinstance(version, bool) or version not in (1, 2):
        raise ValueError(f"expected version 1 or 2, got {_short(version)}")
    if set(found) != _NAMES[version]:
        raise ValueError(f"expected {', '.join(sorted(_NAMES[version]))}, got {_short(sorted(found))}")
    if not isinstance(found["tokens"], list):
        raise ValueError(f"expected a list of tokens, got {_short(found['tokens'])}")
    distance = None
    if version == 2:
        if not isinstance(found["distance"], list):
            raise ValueError(f"expected a list of distance, got {_short(found['distance'])}")
        distance = check_distances(found["distance"], len(found["tokens"]))
    return Schedule(tuple(found["tokens"]), found["num_patches"], found["facts"], distance)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
