"""What `patch` makes of a model: right, refused, wrong, or not to be built here."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tpkernels import patch, unpatch

from .blocks import close, find_tower
from .candidate import Candidate, spread
from .pooled import run_pooled
from .program import NoPlace

KEEP = 0.7
DOES_NOT_RUN = "does not run: "
RIGHT, REFUSED, WRONG, UNBUILT = "right", "refused", "wrong", "unbuilt"


class Verdict(NamedTuple):
    """What became of a model, why where it is not right, and how many prefix tokens it has where it is."""

    state: str
    reason: str = ""
    prefix: int | None = None


def judge(candidate: Candidate) -> Verdict:
    """Patches a model, and compares it with the oracle where `patch` takes it."""
    try:
        with torch.device("meta"):
            model = candidate.build().eval()
    except Exception as error:
        return Verdict(UNBUILT, said(error))
    try:
        patch(model, KEEP)
    except TypeError as error:
        return Verdict(REFUSED, clause(str(error), type(model).__name__))
    except Exception as error:
        return Verdict(WRONG, f"patch raises {said(error)}")
    try:
        model = candidate.build().eval()
        spread(model)
    except Exception as error:
        return Verdict(UNBUILT, said(error))
    verdict = compare(model.double(), candidate.ask, 1e-6)
    if verdict.reason.startswith(DOES_NOT_RUN):
        # Some write numbers of float32's range into what they take for float32.
        verdict = compare(model.float(), candidate.ask, 1e-3)
    return verdict


def compare(model: nn.Module, ask: Any, tolerance: float) -> Verdict:
    """Compares a patched model with what the oracle makes of the unpatched one."""
    try:
        with torch.no_grad():
            own = numbers(ask(model, 0))
    except Exception as error:
        return Verdict(UNBUILT, f"{DOES_NOT_RUN}{said(error)}")
    try:
        tower = find_tower(model, ask)
    except NoPlace as error:
        return Verdict(WRONG, f"is taken, but has {error}")
    if not all(call.moves for call in tower.calls):
        return Verdict(WRONG, "is taken, but a block's result depends on its tokens' order")
    depth = len(tower.calls)
    layers = sorted({min(1, depth - 1), depth - 1})
    try:
        if not agree(numbers(run_pooled(model, ask, tower, 1.0, layers)), own, tolerance):
            return Verdict(UNBUILT, "the oracle changes it without pooling")
        expected = numbers(run_pooled(model, ask, tower, KEEP, layers))
    except Exception as error:
        return Verdict(WRONG, f"is taken, but does not run pooled: {said(error)}")
    if agree(expected, own, 1e-3):
        return Verdict(UNBUILT, "what it returns does not depend on pooling")
    patch(model, KEEP, layers=layers)
    try:
        with torch.no_grad():
            found = numbers(ask(model, 0))
    except ValueError as error:
        # Some inputs are refused in each call.
        return Verdict(REFUSED if " must " in str(error) else WRONG, f"when called: {error}")
    except Exception as error:
        return Verdict(WRONG, f"is taken, but raises {said(error)}")
    finally:
        unpatch(model)
    if not agree(found, expected, tolerance):
        return Verdict(WRONG, "returns other numbers than pooling gives")
    return Verdict(RIGHT, "", tower.prefix)


def numbers(out: Any) -> list[Tensor]:
    """The tensors of numbers that a model returns."""
    out = out.to_tuple() if hasattr(out, "to_tuple") else out
    return [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    """Whether two models returned the same."""
    return len(found) == len(expected) and all(close(x, y, tolerance) for x, y in zip(found, expected, strict=True))


def said(error: Exception) -> str:
    """An error's type and first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def clause(message: str, kind: str) -> str:
    """The reason in a message of `patch`, without what is supported."""
    return message.split(f"got {kind}: ", 1)[-1]
