"""The state with which a run goes on after a kill: written whole after every epoch, checked before it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common.files import write_atomically
from deit.checkpoint import CheckpointError, save_weights
from torch import nn

STATE, WEIGHTS, AVERAGE, LOG = "state.pt", "model.safetensors", "ema.safetensors", "log.jsonl"
KEYS = {"facts", "epoch", "rows", "model", "optimizer", "scaler", "ema"}


@dataclass
class Run:
    """A training run: all that changes from epoch to epoch. `ema` is the averaged model, None without one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Any
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.rows)


def save(folder: Path, run: Run) -> None:
    """Writes the state, then log and weights, each whole or not at all; the state alone is enough to go on."""
    state = {
        "facts": run.facts,
        "epoch": run.epoch,
        "rows": run.rows,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "ema": None if run.ema is None else run.ema.state_dict(),
    }
    write_atomically(folder / STATE, lambda path: _save(state, path))
    write_reports(folder, run)


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        # What torch's writer makes of a full disk.
        raise OSError(f"the training state could not be written to {path.parent} ({error})") from error


def write_reports(folder: Path, run: Run) -> None:
    """The log, a line an epoch, and the weights with how they came about."""
    lines = "".join(json.dumps(row) + "\n" for row in run.rows)
    write_atomically(folder / LOG, lambda path: path.write_text(lines))
    told = {**run.facts, **run.rows[-1], "torch": torch.__version__}
    told = {name: value for name, value in told.items() if value is not None}
    save_weights(folder / WEIGHTS, run.model, told)
    if run.ema is not None:
        save_weights(folder / AVERAGE, run.ema.module, told)


def load(folder: Path, run: Run, device: torch.device) -> None:
    """Puts a saved state into `run`.

    Raises:
        CheckpointError: no state, a damaged or foreign file, or one of a run with other arguments.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # Damaged bytes can raise any exception in torch's reader. Its message is left out: it advises to load the file
        # unsafely.
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); expected a whole training state of deit_train.py"
        ) from None
    if not isinstance(state, dict) or set(state) != KEYS or not isinstance(state["facts"], dict):
        raise CheckpointError(f"{path} is no training state of deit_train.py: expected {', '.join(sorted(KEYS))}")
    for name in sorted({*state["facts"], *run.facts}):
        old, new = state["facts"].get(name), run.facts.get(name)
        if old != new:
            raise CheckpointError(f"{path} was made with {name} {old!r}; --resume expects the same, got {new!r}")
    try:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        if run.ema is not None:
            run.ema.load_state_dict(state["ema"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit the model: {' '.join(str(error).split())[:300]}") from None
    run.rows[:] = state["rows"]
