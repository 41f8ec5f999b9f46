"""Runs that are cut short: workers that die or hang, devices that are lost, deadlines, and rows that are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import environment, isolation, results, timing
from benchmarks.__main__ import main
from benchmarks.clustering.cases import Case
from benchmarks.clustering.providers import Library
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.clustering.runner import Runner
from benchmarks.context import Context
from benchmarks.deadline import Deadline, Until
from benchmarks.errors import DeviceLost
from benchmarks.ledger import Ledger
from benchmarks.progress import Place, Progress, read
from benchmarks.tax import report as tax_report
from benchmarks.tax import runner as tax_runner
from benchmarks.tax.cases import BASE, SCHEDULES, SLICING, Problem
from benchmarks.tax.rows import TABLE as tax_rows
from benchmarks.tax.runner import Runner as TaxRunner
from benchmarks.timing import LEAST, Budget
from tests.support import faulty
from tests.support.programs import ROOT, run

CPU = torch.device("cpu")
CASE = Case("kmeans", 2, 24, 8, 6, iters=2)
PROBLEM = Problem("deit-nano", SCHEDULES["three"], 1, "float32")
FACTS = {**environment.facts(CPU), "run": "this"}
TAX_FACTS = {**FACTS, "runs_on": "cpu", "allocator": "default"}


def statuses(path: Path, table: Any = rows) -> dict[str, str]:
    """Of every subject; none has two rows."""
    found = [(record[table.row.KEY[-1]], record["status"]) for record in table.read(path)]
    assert len(found) == len(dict(found))
    return dict(found)


# Workers.

BEGIN = """if True:
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from benchmarks import isolation, processes
    from benchmarks.progress import Progress
    progress = Progress(Path(sys.argv[1]))
    progress.begin(3)
    progress("someone", "a step")
"""


def command(code: str) -> Callable[[Path], list[str]]:
    return lambda path: [
        sys.executable,
        "-c",
        BEGIN + "\n".join(f"    {line}" for line in code.splitlines()),
        str(path),
    ]


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os.abort()", "process killed by SIGABRT"),
        ("os._exit(0)", "process ended with exit code 0"),
        ("isolation.end_lost()", "lost the device"),
        ("time.sleep(3600)", "killed after 0.5 s"),
    ],
)
def test_where_and_how_a_worker_is_lost(at_root: None, code: str, how: str) -> None:
    told: list[tuple[Place, str]] = []

    def lost(place: Place, how: str) -> bool:
        told.append((place, how))
        return len(told) < 2

    isolation.supervise(command(code), 0.5, lost)
    assert told == [(Place(3, "someone", "a step", 2), how)] * 2


def test_a_worker_that_comes_to_its_end_is_the_last(at_root: None) -> None:
    # The limit is for a step: all of them together take longer.
    code = 'for _ in range(8):\n    time.sleep(0.2)\n    progress("someone", "another step")\nprogress.end()'
    told: list[object] = []
    isolation.supervise(command(code), 1.0, lambda *given: bool(told.append(given)))
    assert told == []


def test_what_a_worker_has_started_ends_with_it(at_root: None, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = 'child = subprocess.Popen(["sleep", "3600"])\n'
    code += f"Path({str(note)!r}).write_text(str(child.pid))\nprogress.end()"
    isolation.supervise(command(code), 5.0, lambda *given: False)
    assert gone(int(note.read_text()))


def gone(process: int) -> bool:
    """Whether a process ends within seconds; a zombie that nobody waits for has ended."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_parent(at_root: None, tmp_path: Path, number: signal.Signals) -> None:
    note = tmp_path / "pid"
    code = f"processes.end_with_parent()\nPath({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(3600)"
    (tmp_path / "parent.py").write_text(
        f"from benchmarks import isolation\nCODE = {command(code)(Path('MARK'))!r}\n"
        "isolation.supervise(lambda path: [*CODE[:-1], str(path)], 60.0, lambda *given: False)\n"
    )
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")])
    try:
        while not note.exists() or not note.read_text():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(10) == (128 + number if number == signal.SIGTERM else -number)
        assert gone(int(note.read_text()))
    finally:
        parent.kill()


def test_a_worker_that_never_begins_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(isolation, "COMMAND", (sys.executable, "-c", "raise SystemExit(5)"))
    assert main(["kernels", "--quick", "--device", "cpu", "--isolate", "--output", str(tmp_path)]) == 2
    assert "lost before it measured anything, process ended with exit code 5" in capfd.readouterr().err


def test_a_note_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    assert read(path) == Place()
    progress = Progress(path)
    progress.begin(7)
    progress("a provider with a long name", "and a long step")
    progress("x")
    assert read(path) == progress.place == Place(7, "x", "", 3)


# From end to end.


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faulty providers and models here, where rows are made, and in workers, where they run."""
    faulty.plant(monkeypatch.setattr)
    monkeypatch.setattr(isolation, "COMMAND", faulty.COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


KERNELS = ["kernels", "--quick", "--threads", "1", "--case", "kmeans from topk"]


@pytest.mark.slow
def test_a_faulty_provider_costs_its_own_row(planted: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    chosen = [*KERNELS, "--device", "cpu", "--provider", "planted", "--isolate", "--limit", "5"]
    assert main([*chosen, "--output", str(tmp_path)]) == 1
    torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.csv")
    assert statuses(path) == {
        "planted, right": "ok",
        "planted, aborts": "failed: process killed by SIGABRT in the first call",
        "planted, exits in a repeat": "failed: process ended with exit code 0 in the repeats",
        "planted, hangs": "failed: killed after 5 s in the first call",
        "planted, raises": "failed: RuntimeError: it broke",
        "planted, raises in a repeat": "failed: RuntimeError: it broke",
        "planted too, right": "ok",
    }
    records = rows.read(path)
    assert len({(record["run"], record["load"], record["threads"]) for record in records}) == 1
    good = [record for record in records if record["status"] == "ok"]
    assert all(record["repeats"] == "3" and float(record["objective_ratio"]) < 1.01 for record in good)
    out = capfd.readouterr().out
    assert "5 wrong or failed" in out and "Not measured" not in out


@pytest.mark.slow
def test_a_faulty_model_costs_its_own_row(planted: None, tmp_path: Path) -> None:
    methods = ["--method", "ward", "topk", "bipartite"]
    chosen = ["tax", "--quick", "--device", "cpu", "--batch", "1", "--schedule", "three", "--isolate", *methods]
    assert main([*chosen, "--output", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*-tax-quick.csv")
    assert statuses(path, tax_rows) == {
        BASE: "ok",
        SLICING: "ok",
        "ward": "ok",
        "topk": "failed: process killed by SIGABRT in the repeats, eager",
        "bipartite": "failed: RuntimeError: it broke",
    }
    assert "### Pooling tax" in tax_report.text(tmp_path, quick=True)


@pytest.mark.slow
def test_a_killed_run_keeps_the_cases_before(tmp_path: Path) -> None:
    arguments = [*KERNELS[:-1], "from topk", "--device", "cpu", "--provider", "killed", "--repeats", "1"]
    done = run(*faulty.COMMAND[1:], *arguments, "--output", str(tmp_path))
    assert done.returncode == -signal.SIGKILL
    assert statuses(next(tmp_path.glob("*.csv"))) == {"killed": "ok"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_lost_gpu_costs_one_row(planted: None, tmp_path: Path) -> None:
    assert main([*KERNELS, "--provider", "lost", "--output", str(tmp_path)]) == 1
    found = statuses(next(tmp_path.glob("*.csv")))
    assert found.pop("lost, loses").startswith("failed: ")
    assert found == {"lost, right": "ok", "lost, right as well": "ok"}


# Rows as soon as they are known.


def test_a_mode_is_on_disk_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box-tax.csv"
    seen: list[list[tuple[str, str, str]]] = []

    def look() -> None:
        found = tax_rows.read(path) if path.exists() else []
        seen.append([(one["mode"], one["method"], one["status"]) for one in found])

    monkeypatch.setattr(tax_runner, "compiled", lambda module: look() or module)
    monkeypatch.setattr(tax_runner.gate, "differs", lambda logits, expected: None)
    ledger = Ledger(tax_rows, path, "this")
    with torch.inference_mode():
        TaxRunner(CPU, Budget(1), TAX_FACTS, Context(ledger)).run(PROBLEM, ["eager", "compiled"], ["topk"])
    assert seen == [[("eager", name, "ok") for name in (BASE, SLICING, "topk")]] * 3
    assert len(tax_rows.read(path)) == len(ledger) == 6


def test_red_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "box.csv"
    seen: list[dict[str, str]] = []

    class Looks(Library):
        def prepare(self, inputs: Any) -> Callable:
            seen.append(statuses(path))
            return super().prepare(inputs)

    bad, after = faulty.Faulty("bad", faulty.FIRST), Looks("torch")
    Runner(CPU, Budget(1), FACTS, Context(Ledger(rows, path, "this"))).run("kernels", CASE, [bad, after])
    assert seen == [{"bad": "failed: RuntimeError: it broke"}]
    assert statuses(path) == {**seen[0], "tpkernels torch": "ok"}


def test_rows_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    rows.append(tmp_path / "box.csv", [])
    assert flushed == [(tmp_path / "box.csv").stat().st_size] and flushed[0] > 0


def test_what_a_run_has_written_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "box-tax.csv"

    def run(modes: list[str], facts: dict[str, Any] = TAX_FACTS) -> list[tax_rows.row]:
        ledger = Ledger(tax_rows, path, facts["run"])
        ledger.load()
        with torch.inference_mode():
            return TaxRunner(CPU, Budget(1), facts, Context(ledger)).run(PROBLEM, modes, ["topk"])

    assert [one.method for one in run(["eager"])] == [BASE, SLICING, "topk"]
    assert run(["eager"]) == [] and len(tax_rows.read(path)) == 3
    assert len(run(["eager"], {**TAX_FACTS, "run": "another"})) == 3


def test_a_model_that_breaks_in_a_repeat_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.plant(monkeypatch.setattr)
    with torch.inference_mode():
        found = TaxRunner(CPU, Budget(2)).run(PROBLEM, ["eager"], ["kmeans", "ward"])
    assert [one.status for one in found] == ["ok", "ok", "failed: RuntimeError: it broke", "ok"]
    assert [one.rounds for one in found] == [2, 2, 0, 2] and found[2].cold_ms is None


def test_memory_that_another_ran_out_of_is_not_red() -> None:
    assert rows.row.red("tpkernels torch", "failed: out of memory, 1 GB") and rows.row.red("peer", "failed: it broke")
    assert not rows.row.red("peer", "failed: out of memory, 1 GB") and not rows.row.red(
        "peer", "skipped: failed before"
    )


# Devices that are lost.


def test_a_lost_device_ends_the_process_after_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_lost", lambda device: True)
    path = tmp_path / "box.csv"
    context = Context(Ledger(rows, path, "this"))
    good, bad = faulty.Faulty("good"), faulty.Faulty("bad", faulty.REPEAT)
    with pytest.raises(DeviceLost, match=r"bad, kmeans .*it broke"):
        Runner(CPU, Budget(2), FACTS, context).run("kernels", CASE, [good, bad])
    assert statuses(path) == {"bad": "failed: RuntimeError: it broke"} and context.progress.place.subject == "bad"
    faulty.plant(monkeypatch.setattr)
    path = tmp_path / "box-tax.csv"
    context = Context(Ledger(tax_rows, path, "this"))
    with torch.inference_mode(), pytest.raises(DeviceLost, match="bipartite, deit-nano: failed"):
        TaxRunner(CPU, Budget(2), TAX_FACTS, context).run(PROBLEM, ["eager"], ["bipartite"])
    assert statuses(path, tax_rows) == {"bipartite": "failed: RuntimeError: it broke"}
    assert context.progress.place.subject == "bipartite"


def test_without_workers_a_lost_device_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty.plant(monkeypatch.setattr)
    monkeypatch.setattr(environment, "is_lost", lambda device: True)
    monkeypatch.setattr(faulty.PLANTED[0], "number", faulty.FIRST)
    chosen = [*KERNELS[:-1], "from topk", "--device", "cpu", "--provider", faulty.PLANTED[0].name]
    monkeypatch.setattr(faulty.PLANTED[0], "calls", 0)
    assert main([*chosen, "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "The device is lost: planted, right, kmedoids from topk" in out
    assert "\nNot measured: kernels: kmeans from topk" in out and "1 wrong or failed" in out


@pytest.mark.parametrize(
    ("error", "lost"), [(None, False), (torch.OutOfMemoryError("full"), False), (RuntimeError("illegal access"), True)]
)
def test_whether_a_device_is_lost(error: Exception | None, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.is_lost(CPU)

    def synchronize(device: torch.device) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    assert environment.is_lost(torch.device("cuda", 0)) is lost


# Deadlines.


def test_rounds_end_at_the_deadline() -> None:
    begin = time.monotonic()
    assert not Deadline().over and Deadline(5, begin - 3).left() == pytest.approx(2, abs=0.5)
    assert Deadline(5, begin - 6).over and Deadline(5, begin - 6).left() == 0
    soon = Deadline(0.3, begin)
    count: list[int] = []

    def measure(call: Callable[[], object]) -> float:
        time.sleep(0.02)
        count.append(1)
        return 1.0

    (ms,) = tax_runner.by_turns([lambda: None], Until(Budget(1000, 60), soon), measure)
    assert LEAST < len(ms) == len(count) < 20
    late = timing.Timed(lambda turn: None)
    timing.alternate([late], Until(Budget(1000, 60), soon), measure)
    assert len(late.ms) == LEAST


def test_a_mode_is_not_begun_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box-tax.csv"
    over: list[bool] = []
    monkeypatch.setattr(Deadline, "left", lambda self: 0.0 if over else 1.0)
    monkeypatch.setattr(tax_runner, "complete", lambda row, *given: over.append(True) or setattr(row, "status", "ok"))
    context = Context(Ledger(tax_rows, path, "this"))
    with torch.inference_mode():
        TaxRunner(CPU, Budget(1), TAX_FACTS, context).run(PROBLEM, ["eager", "compiled"], [])
    assert [one["mode"] for one in tax_rows.read(path)] == ["eager", "eager"]


@pytest.mark.parametrize("isolate", ["--isolate", "--no-isolate"])
def test_what_the_deadline_left_out_is_said(
    isolate: str, tmp_path: Path, planted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*KERNELS, "--device", "cpu", "--provider", "planted too", "--deadline", "0.001", isolate]
    assert main([*chosen, "--output", str(tmp_path)]) == 0
    assert "\nNot measured, the time was over: kernels: kmeans from topk, weighted" in capsys.readouterr().out
    assert main(["tax", "--quick", "--device", "cpu", "--deadline", "0.001", isolate, "--output", str(tmp_path)]) == 0
    assert "; deit-nano, every block keeps 0.9, B=2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# Files side by side.


def test_kinds_of_results_share_a_folder(tmp_path: Path) -> None:
    names = {("", False): "gpu.csv", ("", True): "gpu-quick.csv"}
    names |= {("tax", False): "gpu-tax.csv", ("tax", True): "gpu-tax-quick.csv"}
    for (kind, quick), name in names.items():
        assert results.file_name("gpu", quick, kind) == name
        (tmp_path / name).write_text("")
    for (kind, quick), name in names.items():
        assert results.files(tmp_path, quick, kind) == [tmp_path / name]
