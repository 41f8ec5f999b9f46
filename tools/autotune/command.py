"""`python -m benchmarks autotune`: measures configurations of the resident kernels here, keeps those that are faster.

The library reads them from a file, see docs/tuning.md. Its own choice, from shape and limits, stays where no other is
faster by `--gain`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.clustering import cases
from benchmarks.clustering.cases import Case
from benchmarks.errors import Refusal, one_line_of
from benchmarks.timing import Budget, dtype_bytes
from tpkernels.ops.backends import interpreting, regime
from tpkernels.ops.gpu import tuning, tuning_cache
from tpkernels.ops.gpu.limits import limits_of
from tpkernels.ops.gpu.resident_tiles import ResidentConfig

from .tuner import Attempt, Outcome, Tuner, configs_of, key_of

METHODS = ("ward", "kmedoids", "kmeans")
DTYPES = ("bfloat16", "float16", "float32")
# How much longer the heuristic configuration must take, as a share: a smaller gain is noise.
GAIN = 0.02
# N and K where blocks of ViT-S and ViT-B keep 0.7, beside the speed table's.
KEPT = ((196, 137), (96, 67))
CHANNELS = (384, 768)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m benchmarks autotune", description=__doc__)
    root.add_argument("--device", help="cuda or cuda:<index> (default: the first GPU)")
    root.add_argument("--n", type=int, help="tokens of a sample (default: the speed table's cases, ViT-S and ViT-B)")
    root.add_argument("--k", type=int, help="clusters; with --n")
    root.add_argument("--d", type=int, help="channels; with --n")
    root.add_argument("--b", type=int, help="samples to measure with (default: 256); any batch then uses what is found")
    root.add_argument("--method", choices=METHODS, help="default: all of them")
    root.add_argument("--dtype", choices=DTYPES, help="of the tokens (default: bfloat16)")
    root.add_argument(
        "--repeats", type=int, default=100, help="times that each is timed at most (default: %(default)s)"
    )
    root.add_argument(
        "--budget", type=float, default=1.0, help="seconds that its repeats may take (default: %(default)s)"
    )
    root.add_argument("--gain", type=float, default=GAIN, help="share that must be gained (default: %(default)s)")
    root.add_argument("--dry-run", action="store_true", help="list what would be measured, and measure nothing")
    return root


def main(argv: list[str]) -> int:
    """Runs the command; 1 where an answer was wrong or the heuristic configuration failed, 2 where it cannot run."""
    options = parser().parse_args(argv)
    return one_line_of("benchmarks autotune", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    device = _device(options.device)
    chosen = plan(options, device)
    if options.dry_run:
        for case in chosen:
            print("\n".join(_listing(case, device)))
        return 0
    path = _writable(device)
    print(f"{tuning_cache.identity(device)['name']}; configurations go to {path}")
    if device.type == "cpu":
        print("Triton's interpreter: times say nothing about a GPU, and no GPU reads this file.")
    red, begin = 0, time.perf_counter()
    tuner = Tuner(device, Budget(options.repeats, options.budget))
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for case in chosen:
            print(f"\n{case.name}, {case.shape}, {case.dtype}: {key_of(case)}", flush=True)
            outcome = tuner.run(case, _tell)
            print("\n".join(table(outcome)))
            print(f"  {keep(outcome, device, options.gain)}", flush=True)
            red += outcome.red
    print(f"\n{(time.perf_counter() - begin) / 60:.1f} minutes" + (f"; {red} cases wrong or failed" if red else ""))
    return 1 if red else 0


def _device(name: str | None) -> torch.device:
    device = environment.find_device(name)
    if device.type == "cpu" and not interpreting():
        raise Refusal(
            "--device: expected a GPU, got the CPU, which runs no Triton kernels: there is nothing to tune "
            "(TRITON_INTERPRET=1 walks through all of it in Triton's interpreter)"
        )
    return device


def plan(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """The cases to measure, one for each key.

    Raises:
        Refusal: an argument out of range, or without those that it belongs to.
    """
    for name in ("b", "n", "k", "d", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise Refusal(f"--{name}: expected at least 1, got {value}")
    if not 0 < options.budget < float("inf"):
        raise Refusal(f"--budget: expected seconds above 0, got {options.budget}")
    if not 0 <= options.gain < float("inf"):
        raise Refusal(f"--gain: expected a share from 0, got {options.gain}")
    shape = options.n, options.k, options.d
    if any(size is None for size in shape) and any(size is not None for size in shape):
        raise Refusal(f"--n, --k, --d: expected all three or none, got {shape}")
    small = device.type == "cpu"
    if options.n is None:
        found = list(_default_cases())
        found = cases.quick(found) if small else found
        found = [case if options.b is None else replace(case, b=options.b) for case in found]
    else:
        if options.k >= options.n:
            raise Refusal(f"--k: expected less than --n = {options.n}, as many leave nothing to do, got {options.k}")
        found = [_case(method, options.b or (2 if small else 256), *shape) for method in METHODS]
    dtype = options.dtype or ("float32" if small else "bfloat16")
    found = [replace(case, dtype=dtype) for case in found if options.method in (None, case.method)]
    first: dict[str, Case] = {}
    limits = limits_of(device)
    for case in (case for case in found if regime(case.n, case.d, case.method, limits) == "resident"):
        # A key's first case stays: the speed table has large batches first.
        first.setdefault(key_of(case), case)
    if not first:
        raise Refusal(f"--n: expected as many tokens as the resident kernels take on this device, got {options.n}")
    return list(first.values())


def _default_cases() -> Iterator[Case]:
    yield from (case for case in cases.kernels("cuda") if case.tokens == "structured")
    yield from (_case("ward", 256, n, k, d) for d in CHANNELS for n, k in KEPT)


def _case(method: str, b: int, n: int, k: int, d: int) -> Case:
    ward = method == "ward"
    return Case(method, b, n, d, k, iters=0 if ward else 5, weighted=not ward)


def _writable(device: torch.device) -> Path:
    """The file, after a trial write, so that a failure comes before the work and not after it."""
    try:
        return tuning.store(device, {})
    except OSError as error:
        raise Refusal(
            f"{tuning_cache.VARIABLE}: expected a folder to write tuned configurations to, got {error}"
        ) from error


def keep(outcome: Outcome, device: torch.device, gain: float) -> str:
    """Writes the best configuration where it gains enough, else removes an earlier run's; returns a line on which."""
    best = outcome.best
    if best is None:
        return "kept nothing: no configuration could be measured"
    if best is outcome.attempts[0] or outcome.gain <= gain:
        tuning.store(device, {outcome.key: None})
        return f"kept the heuristic: the best gains {outcome.gain:.1%}, expected more than {gain:.1%}"
    tuning.store(device, {outcome.key: best.config._asdict()})
    return f"wrote {_words(best.config)}: gains {outcome.gain:.1%}"


def _tell(attempt: Attempt) -> None:
    """Prints an attempt once it has run, so that a run that is cut short has told what it tried; the table says why
    one was left out."""
    found = f"first call {attempt.cold_s or 0:.1f} s" if attempt.why_not is None else "left out"
    first = "" if attempt.ms is None else f", then {attempt.ms:.4f} ms"
    print(f"  tried {_words(attempt.config)}: {found}{first}", flush=True)


def _words(config: ResidentConfig) -> str:
    return " ".join(f"{name}={value}" for name, value in config._asdict().items())


def _listing(case: Case, device: torch.device) -> list[str]:
    limits, element = limits_of(device), dtype_bytes(case.dtype)
    lines = [f"{key_of(case)} ({case.shape}); {limits.shared_bytes} bytes of shared memory"]
    for config in configs_of(case, device):
        lines.append(f"  {_words(config)}: {config.shared_bytes(element)} bytes")
    return lines


def table(outcome: Outcome) -> list[str]:
    """The attempts as lines: fields, seconds of the first call, milliseconds, and times the heuristic's."""
    names = ResidentConfig._fields
    lines = ["  " + "  ".join([*names, " cold s", "        ms", "heuristic = 1"])]
    base = outcome.attempts[0].ms
    return lines + [f"  {_line(attempt, names, base)}" for attempt in outcome.attempts]


def _line(attempt: Attempt, names: tuple[str, ...], base: float | None) -> str:
    cells = [f"{value:>{len(name)}}" for name, value in zip(names, attempt.config, strict=True)]
    if attempt.why_not is not None or attempt.ms is None:
        return "  ".join([*cells, attempt.why_not or "not measured"])
    ratio = "" if base is None else f"{attempt.ms / base:.3f}"
    return "  ".join([*cells, f"{attempt.cold_s or 0:7.1f}", f"{attempt.ms:10.4f}", ratio])
