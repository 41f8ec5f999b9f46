"""Attention timed beside `scaled_dot_product_attention`, after a check of its output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import tpkernels

from .. import environment, gpu
from ..rehearsal import rehearsing
from ..session import results_path
from ..timing import Budget, Timed, alternate, quantile, wall_ms
from .attention_rows import TABLE, Row
from .children import Run
from .problems import TIMED_HEADS, Heads, device

SETS = 4
BUDGET = Budget(repeats=50, seconds=0.5)
# The largest error of the output in bfloat16, relative to float64.
MOST_ERROR = 1e-2
Attend = Callable[[tuple[Tensor, Tensor, Tensor]], Tensor]
PROVIDERS: tuple[tuple[str, bool, Attend], ...] = (
    ("tpkernels triton", True, lambda qkv: tpkernels.attention(*qkv, backend="triton", need_significance=True)[0]),
    ("tpkernels triton", False, lambda qkv: tpkernels.attention(*qkv, backend="triton", need_significance=False)[0]),
    ("torch SDPA", False, lambda qkv: scaled_dot_product_attention(*qkv)),
)


def time(run: Run) -> None:
    """A row for each provider and shape, in the journal and in the device's CSV."""
    where = device()
    facts = environment.facts(where)
    path = results_path(run.folder, where, rehearsing(), TABLE.kind)
    watch = gpu.Stopwatch(where) if where.type == "cuda" else None
    with torch.inference_mode():
        for heads in TIMED_HEADS:
            sets = [qkv_of(heads, seed) for seed in range(SETS)]
            found = _rows(facts, heads, sets, watch)
            TABLE.append(path, found)
            for row in found:
                told = {name: getattr(row, name) for name in ("error", "p20_ms", "p50_ms", "graph_p50_ms")}
                what = f"{row.provider}{', significance' if row.significance else ''}, {heads.shape}"
                run.journal.tell(what=what, **told, red="" if row.status == "ok" else row.status)


def qkv_of(heads: Heads, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as one linear layer makes them."""
    b, h, n, d = heads.shape
    generator = torch.Generator(device()).manual_seed(seed)
    qkv = torch.randn(b, n, 3, h, d, device=device(), generator=generator).to(torch.bfloat16)
    return tuple(qkv.permute(2, 0, 3, 1, 4))


def _rows(facts: dict, heads: Heads, sets: list, watch: gpu.Stopwatch | None) -> list[Row]:
    """All providers on one shape, by turns."""
    b, h, n, d = heads.shape
    found, calls, timed = [], [], []
    for provider, significance, attend in PROVIDERS:
        shape = {"b": b, "h": h, "n": n, "d": d, "dtype": "bfloat16"}
        row = Row(**facts, provider=provider, significance=significance, **shape, status="ok")
        row.error = _error(attend, sets[0])
        if row.error > MOST_ERROR:
            row.status = f"wrong: expected an error up to {MOST_ERROR:g}, got {row.error:.2e}"
        found.append(row)
        calls.append([lambda qkv=qkv, attend=attend: attend(qkv) for qkv in sets])
        timed.append(Timed(lambda turn, own=calls[-1]: own[turn % len(own)]()))
    right = [i for i, row in enumerate(found) if row.status == "ok"]
    alternate([timed[i] for i in right], BUDGET, watch.event_ms if watch else wall_ms)
    for i in right:
        row, ms = found[i], timed[i].ms
        row.repeats, row.p20_ms, row.p50_ms = len(ms), quantile(ms, 0.2), quantile(ms, 0.5)
        if watch is not None:
            row.graph_p50_ms = quantile(watch.graph_ms(calls[i], BUDGET), 0.5)
    return found


def _error(attend: Attend, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    """The error of the first samples' outputs, relative to softmax in float64."""
    q, k, v = (x[:2].double() for x in qkv)
    exact = (q @ k.mT * q.shape[3] ** -0.5).softmax(-1) @ v
    return relative_error(attend(qkv)[:2], exact)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The norm of what is wrong over the norm of what is right, in float64; infinite where that is no number."""
    exact = exact.detach().double()
    error = float((found.detach().double() - exact).norm() / exact.norm())
    return error if error == error else float("inf")
