"""What the gate makes of the calls that tests look at: one pass, which the gate's test and the race test share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.once import once
from tests.support.programs import run

# A folder that `python -m benchmarks compile --json FOLDER/rows.json --ttgir FOLDER` has filled already.
VARIABLE = "TPKERNELS_COMPILED"
TARGETS = ("sm_90", "gfx942")


def compiled(factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The gate's rows of the calls marked `smoke`, and one of each kernel that the whole gate has under another call.

    "text" is a kernel's TTGIR, and None where it is another row's.
    """
    from tools.compile_gate.calls import calls

    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else once(factory, "compiled", _compile)
    smoke = {call.name for call in calls() if call.smoke}
    every = [json.loads(line) for line in (folder / "rows.json").read_text().splitlines()]
    here = {(row["kernel"], row["target"]) for row in every if row["case"] in smoke}
    rows, seen = [], set()
    for row in every:
        kernel = row["kernel"], row["target"]
        if row["target"] in TARGETS and (row["case"] in smoke or kernel not in here):
            here.add(kernel)
            name = row.get("ttgir")
            row["text"] = (folder / name).read_text() if name and name not in seen else None
            seen.add(name)
            rows.append(row)
    return rows


def _compile(folder: Path) -> None:
    command = ("-m", "tools.compile_gate", "--smoke", "--targets", ",".join(TARGETS))
    done = run(*command, "--json", str(folder / "rows.json"), "--ttgir", str(folder), CUDA_VISIBLE_DEVICES="")
    # Faults are the rows' to tell.
    assert (folder / "rows.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
