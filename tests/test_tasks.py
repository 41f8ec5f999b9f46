"""The task file and the hooks do what `.ci/run` does."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support.programs import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_lint_is_what_ci_runs() -> None:
    lines = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [line.removeprefix(".venv/bin/python -m ") for line in lines.splitlines()]
    there = re.findall(r'^"\$bin/(ruff|mypy)"(.*)$', (ROOT / ".ci" / "run").read_text(), flags=re.M)
    assert found == [name + arguments for name, arguments in there]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("task", ["test", "test-all", "docs", "bench"])
def test_tasks_pass_arguments_on(task: str) -> None:
    command = ["make", "-n", task, "PYTHON=python3", "ARGS=--one-more"]
    line = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert line.startswith("python3 -m ") and line.endswith(" --one-more") and "\n" not in line


def test_hooks_run_the_environments_ruff() -> None:
    entries = re.findall(r"entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), flags=re.M)
    assert [entry.split(" --")[0] for entry in entries] == [".venv/bin/ruff check", ".venv/bin/ruff format"]
