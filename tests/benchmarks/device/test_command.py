"""`python -m benchmarks device`: nothing is lost when a step hangs, crashes, floods its output or passes its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes
from benchmarks.device import journal, summary
from benchmarks.device.journal import Journal
from benchmarks.device.plan import FIRST, known, plan
from benchmarks.errors import Refusal
from tests.support.programs import ROOT, environment

ENV = environment()
# Planted steps: what a process of each does. FOLDER is the run's.
GOOD = (
    "from benchmarks.device.journal import Journal; from pathlib import Path; Journal(Path(FOLDER), NAME).tell(what=1)"
)
PLANTED = {
    "good": GOOD,
    "hangs": f"{GOOD}; import time; time.sleep(60)",
    # Its child has left the group, as a server would, and hangs on to the output.
    "leaves": f"{GOOD}; import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
    " start_new_session=True)",
    "crashes": f"{GOOD}; import os; os.abort()",
    "floods": f"{GOOD}; print(('x' * 1000 + chr(10)) * 20000); print('the end')",
    "ignores": f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {GOOD}; import time; time.sleep(60)",
    "silent": "pass",
    "raises": f"{GOOD}; raise RuntimeError('planted')",
}
DRIVER = """
    import sys
    from pathlib import Path
    from benchmarks.device.plan import Step
    from benchmarks.device.supervisor import supervise
    from benchmarks.device import summary

    folder, deadline, names, planted = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split(","), eval(sys.argv[4])
    def step(name):
        code = f"FOLDER, NAME = {str(folder)!r}, {name!r}\\n" + planted[name]
        return Step(name, lambda output, seconds: [[sys.executable, "-c", code]], 3.0, 1.0)
    good = supervise([step(name) for name in names], folder, deadline)
    print(summary.text(folder))
    sys.exit(0 if good else 1)
"""


def run(folder: Path, *names: str, deadline: float = 60.0) -> tuple[subprocess.CompletedProcess[str], dict[str, dict]]:
    """Supervises planted steps in a process of its own; what it printed, and the supervisor's row of each step."""
    command = driver(folder, str(deadline), ",".join(names))
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=100)
    rows = [row for row in journal.read(folder) if row["step"] == journal.SUPERVISOR]
    assert len(rows) == len(names), done.stderr
    return done, {row["what"]: row for row in rows}


def driver(folder: Path, deadline: str, names: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), deadline, names, repr(PLANTED)]


def running(word: str) -> list[str]:
    """Command lines of processes that contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def test_a_good_run_ends_well(tmp_path: Path) -> None:
    done, rows = run(tmp_path, "good")
    assert done.returncode == 0 and "red" not in rows["good"]
    assert rows["good"]["rows"] == 1 and rows["good"]["ended"] == ["ok"]
    assert done.stdout.splitlines()[-1].startswith("good: 1")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("hangs", "over its time"),
        ("ignores", "over its time"),
        pytest.param("crashes", "killed by SIGABRT", marks=pytest.mark.slow),
        pytest.param("raises", "exit code 1", marks=pytest.mark.slow),
        ("silent", "no row"),
    ],
)
def test_a_bad_step_costs_itself(name: str, how: str, tmp_path: Path) -> None:
    """Its row says how it ended, what it had told stays, and the steps after it run."""
    done, rows = run(tmp_path, name, "good")
    assert done.returncode == 1
    assert rows[name]["red"] == how and rows[name]["seconds"] < 5
    assert "red" not in rows["good"]
    told = [row["step"] for row in journal.read(tmp_path) if row["step"] != journal.SUPERVISOR]
    assert told == ([] if name == "silent" else [name]) + ["good"]
    assert f"{name:<16}" in done.stdout and how in done.stdout
    if name == "raises":
        assert "RuntimeError: planted" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who began a process")
def test_what_a_step_leaves_running_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    _, rows = run(tmp_path, "leaves", "good")
    assert time.monotonic() - began < 20 and "red" not in rows["leaves"]
    assert not [line for line in running("time.sleep(60)") if str(tmp_path) not in line and "-c import time" in line]


def test_a_flood_is_cut_and_its_end_is_kept(tmp_path: Path) -> None:
    _, rows = run(tmp_path, "floods", "good")
    assert "red" not in rows["floods"]
    log = (tmp_path / "log.txt").read_text()
    assert len(log) < processes.HEAD_BYTES + processes.TAIL_BYTES + 1000
    assert "bytes left out" in log and "the end" in log


def test_a_step_that_would_pass_the_deadline_does_not_begin(tmp_path: Path) -> None:
    """The one that hangs is killed at the deadline, before its own limit; the next is left out, and says so."""
    done, rows = run(tmp_path, "hangs", "good", deadline=1.5)
    assert done.returncode == 1
    assert rows["hangs"]["red"] == "over its time" and rows["hangs"]["seconds"] < 2.5
    assert "it should take 1 s" in rows["good"]["skipped"] and "skipped" in done.stdout
    assert not [row for row in journal.read(tmp_path) if row["step"] == "good"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who began a process")
def test_a_run_that_is_ended_ends_its_step_and_keeps_its_rows(tmp_path: Path) -> None:
    command = driver(tmp_path, "60", "good,hangs")
    with subprocess.Popen(command, env=ENV, cwd=ROOT, stdout=subprocess.PIPE) as run:
        end = time.monotonic() + 30
        while not [row for row in journal.read(tmp_path) if row["step"] == "hangs"]:
            assert time.monotonic() < end and run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(20) == 128 + signal.SIGTERM
    assert [row["step"] for row in journal.read(tmp_path)] == ["good", journal.SUPERVISOR, "hangs"]
    assert not [line for line in running(str(tmp_path)) if "time.sleep" in line]


def test_a_line_that_was_cut_off_costs_itself(tmp_path: Path) -> None:
    tell = Journal(tmp_path, "smoke").tell
    tell(what="first", ratio=1.0)
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"step": "smoke", "wh')
    tell(what="second", ratio=float("inf"))
    assert [row["what"] for row in journal.read(tmp_path)] == ["first", "second"]


@pytest.mark.skipif(os.name != "posix", reason="no limit on a process' files")
def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    """Steps that cannot write are red and are told of; all of them run."""
    import resource

    def no_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    command = driver(tmp_path, "60", "good,silent")
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=no_files)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["what"], row["rows"], row["red"]) for row in rows] == [
        ("good", 0, "exit code 1; no row"),
        ("silent", 0, "no row"),
    ]


def test_the_summary_is_short_and_begins_with_what_matters(tmp_path: Path) -> None:
    own, tell = Journal(tmp_path, journal.SUPERVISOR).tell, Journal(tmp_path, "smoke").tell
    for number in range(400):
        tell(what=f"case {number}", told="x" * 500, **({"red": "wrong " * 200} if number == 399 else {}))
    own(what="smoke", seconds=12.5, rows=400, ended=["exit code 1"], red="exit code 1", compiled_here=3)
    text = summary.text(tmp_path)
    assert len(text) < 12_000
    lines = text.splitlines()
    assert lines[1].split() == ["smoke", "12.5", "400", "exit", "code", "1,", "compiled_here=3"]
    assert lines[3] == "red: 1" and "case 399: wrong" in lines[4]
    assert "lines more" in lines[-1]


def test_the_first_call_fits_its_time() -> None:
    steps = known()
    assert sum(steps[name].expected for name in FIRST) <= 300
    assert sum(steps[name].expected for name in ("smoke", "rows", "tax")) <= 300
    assert [step.name for step in plan(["tax", "env"])] == ["tax", "env"]
    assert [step.name for step in plan(None)] == list(FIRST)
    with pytest.raises(Refusal, match=r"--steps: expected names of env, smoke, .*got 'nmu'"):
        plan(["nmu"])
    for step in steps.values():
        assert 0 < step.expected <= step.limit
        assert all(command[0] == sys.executable for command in step.commands(Path("folder"), 30.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "env"], "--output: expected a folder"),
        (["--output", "x", "--deadline", "-1"], "--deadline: expected seconds above 0, got -1"),
        (
            ["--output", "x", "--prebuilt", "nowhere"],
            "--prebuilt: expected a file that --prebuild has packed, got nowhere",
        ),
        (["--output", "x", "--steps", "nothing"], "--steps: expected names of"),
    ],
)
def test_what_cannot_run_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from benchmarks.device.command import main

    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_counters_are_read_from_what_ncu_prints() -> None:
    from benchmarks.device.counters import counters

    text = textwrap.dedent(
        """
        ==PROF== Connected to process 12
        {"step": "once", "what": "printed by the program"}
        "ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Description"
        "0","12","resident_kernel","Speed Of Light","Duration","us","812.5",""
        "0","12","resident_kernel","Speed Of Light","Memory Throughput","%","31.0",""
        "0","12","resident_kernel","Speed Of Light","","","","a rule
        over two lines"
        "0","12","resident_kernel","Memory","Memory Throughput","Gbyte/s","1,240.5",""
        "1","12","attend_rows_kernel(int, float)","Speed Of Light","Duration","us","70",""
        """
    )
    assert list(counters(text)) == [
        {
            "kernel": "resident_kernel",
            "Duration": "812.5 us",
            "Memory Throughput": "31.0 %",
            "Memory: Memory Throughput": "1,240.5 Gbyte/s",
        },
        {"kernel": "attend_rows_kernel", "Duration": "70 us"},
    ]
    assert list(counters("==ERROR== no counters")) == []


def test_a_cache_is_packed_and_found_where_it_is_unpacked(tmp_path: Path) -> None:
    from benchmarks.device import cache

    entry = tmp_path / "there" / "KEY"
    entry.mkdir(parents=True)
    files = {name: str(entry / name) for name in ("k.cubin", "k.json", "k.ttir")}
    for name in files:
        (entry / name).write_text(name)
    (entry / "__grp__k.json").write_text(json.dumps({"child_paths": files}))
    packed = tmp_path / "cache.tar.xz"
    assert cache.pack(tmp_path / "there", packed) == 1
    assert cache.unpack(packed, tmp_path / "here") == 1
    found = json.loads((tmp_path / "here" / "KEY" / "__grp__k.json").read_text())["child_paths"]
    assert found["k.cubin"] == str(tmp_path / "here" / "KEY" / "k.cubin")
    assert Path(found["k.cubin"]).read_text() == "k.cubin" and not Path(found["k.ttir"]).exists()
    (tmp_path / "bad").write_text("no archive")
    with pytest.raises(Refusal, match="--prebuilt: expected a file that --prebuild has packed"):
        cache.unpack(tmp_path / "bad", tmp_path / "nowhere")
