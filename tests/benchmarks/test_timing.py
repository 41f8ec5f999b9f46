"""How times and memory are measured, and where rows come from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import environment, timing
from benchmarks.errors import Refusal
from benchmarks.timing import Budget, Timed


def test_quantiles() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [timing.quantile(values, share) for share in (0, 0.2, 0.5, 1)] == pytest.approx([1, 1.8, 3, 5])
    assert timing.quantile([2.0], 0.99) == 2
    many = np.random.default_rng(0).random(101).tolist()
    assert timing.quantile(many, 0.99) == pytest.approx(np.quantile(many, 0.99))
    for wrong in ([], [1.0]):
        with pytest.raises(ValueError, match="expected values and a share"):
            timing.quantile(wrong, 1.5 if wrong else 0.5)


def test_a_timed_call_follows_one_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a pause before both."""
    told: list[object] = []
    monkeypatch.setattr(timing.time, "sleep", told.append)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: told.append("clock") or 0.25 * len(told))
    assert timing.settled_ms(lambda: told.append("call")) == 500.0
    assert told == [timing.SETTLE_SECONDS, "call", "clock", "call", "clock"]


def test_entries_take_turns_within_their_budget() -> None:
    order: list[str] = []
    fast, slow = Timed(lambda turn: order.append("fast")), Timed(lambda turn: order.append("slow"))

    def measure(call: Callable[[], object]) -> float:
        call()
        return 600.0 if order[-1] == "slow" else 1.0

    timing.alternate([fast, slow], Budget(repeats=6, seconds=1.0), measure)
    # Two calls spend the slow one's second; it still gets its least number of times.
    assert len(fast.ms) == 6 and len(slow.ms) == timing.LEAST
    assert order[:6] == ["fast", "slow", "slow", "fast", "fast", "slow"]


def test_peak_memory_sees_tensors_and_arrays() -> None:
    def tensors() -> Tensor:
        return torch.zeros(1_000_000).add(1)

    def arrays() -> np.ndarray:
        zeros = np.zeros(1_000_000, dtype=np.float32)
        return zeros + np.float32(1)

    for call in (tensors, arrays):
        assert timing.peak_cpu_mb(call) == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        (" AMD EPYC, 2 cores ", "amd-epyc-2-cores"),
        ("x/../y", "x-y"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert environment.slug(name) == expected


def test_slug_of_nothing() -> None:
    with pytest.raises(ValueError, match="letters or digits"):
        environment.slug("//")


def test_commit_says_whether_the_code_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPKERNELS_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    clean = environment.commit(tmp_path)
    assert len(clean) == 12 and int(clean, 16) > 0
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "box.csv").write_text("rows\n")
    assert environment.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2\n")
    assert environment.commit(tmp_path) == f"{clean}+dirty"
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "more.py").write_text("new\n")
    assert environment.commit(tmp_path) == f"{clean}+dirty"
    monkeypatch.setenv("TPKERNELS_COMMIT", "stated")
    assert environment.commit(tmp_path) == "stated"


def test_versions_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.version_of("no-such-package") == ""
    monkeypatch.setattr(environment, "version_of", lambda package: "")
    assert environment.library_version()[0].isdigit()


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(Refusal, match="--device"):
        environment.find_device(name)
