"""A run that ends anywhere leaves the old index or none, and the same command makes the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from tests.support.indexes import FORMATS, content, documents, save
from tests.support.programs import run
from tpkernels.retrieval.command import main
from tpkernels.retrieval.index import job

LENGTHS = [9, 4, 0, 17, 10, 2, 11, 8]
POOL = ("--pool-factor", "3", "--buffer-tokens", "40")
NAMES = {"safetensors": "out.safetensors", "npz": "out.npz", "folder": "out"}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the program that ends runs forks")


def ended(folder: Path, scenes: list[tuple[str, ...]]) -> list[list[dict[str, Any]]]:
    """What is found after runs that end: scenes are of (way, IN's format, OUT, option...)."""
    wanted = []
    for number, (way, form, *rest) in enumerate(scenes):
        place = folder / str(number)
        place.mkdir()
        source = save(place, form, *documents(LENGTHS))
        if "--overwrite" in rest:
            old = save(folder, {".npz": "npz", "": "folder"}.get(Path(rest[0]).suffix, "safetensors"), *documents([3]))
            old.rename(place / rest[0])
        wanted.append([str(place), way, source.name, *rest])
    done = run("-m", "tests.support.interrupted", json.dumps(wanted))
    assert done.returncode == 0, done.stderr
    # One line for each run that says something.
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def check(found: list[dict[str, Any]], out: str, source: str, before: str, least: int) -> None:
    assert len(found) >= least
    for entry in found:
        # Between the two renames of folders there is neither; what is seen is never anything else.
        assert entry["seen"] in (before, "whole", "nothing" if Path(out).suffix == "" else before), entry
        assert entry["then"] == "whole" and entry["left"] == sorted([source, out]), entry
        # Once nothing is left of a run but its index, the same command is told that it exists.
        assert entry["again"] == 0 or (entry["again"] == 1 and entry["seen"] == "whole"), entry


def check_full(found: list[dict[str, Any]], out: str, source: str) -> None:
    """A file that can't grow ends a run with status 1, and what it had done is of use."""
    assert all(entry["status"] == 1 and entry["again"] == 0 for entry in found)
    check(found, out, source, "nothing", 8)


@forks
def test_killed_at_every_sixth_operation(tmp_path: Path) -> None:
    (found,) = ended(tmp_path, [("some operations", "npz", "out.npz", *POOL)])
    assert all(entry["status"] == -9 for entry in found) and sum(entry["again"] for entry in found) <= 1
    check(found, "out.npz", FORMATS["npz"], "nothing", 6)


@forks
@pytest.mark.slow
@pytest.mark.parametrize("out", NAMES.values())
def test_killed_at_any_time_or_out_of_space_or_while_it_replaces_an_index(tmp_path: Path, out: str) -> None:
    scenes = [
        ("times", "safetensors", out, *POOL),
        ("operations", "compressed", out, *POOL, "--overwrite"),
        ("operations", "safetensors", out, *POOL),
        ("sizes", "folder", out, *POOL),
    ]
    forms = [FORMATS[scene[1]] for scene in scenes]
    times, replaced, killed, full = ended(tmp_path, scenes)
    assert all(entry["status"] < 0 for entry in (*times, *replaced, *killed))
    check(times, out, forms[0], "nothing", 3)
    check(replaced, out, forms[1], "old", 30)
    check(killed, out, forms[2], "nothing", 30)
    check_full(full, out, forms[3])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path, "safetensors", *documents(LENGTHS))


@pytest.fixture
def interrupted(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments of a run that Ctrl-C ended in its second buffer."""
    arguments = ["pool", str(source), str(source.with_name("out.npz")), *POOL]
    real, calls = job.pool_embeddings, 0

    def pool(embeddings: tuple[Tensor, Tensor], **options: Any) -> Any:
        nonlocal calls
        calls += len(embeddings[1]) > 0
        if calls == 2:
            raise KeyboardInterrupt
        return real(embeddings, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job, "COMMIT_SECONDS", 0.0)
        patch.setattr(job, "pool_embeddings", pool)
        assert main(arguments) == 130
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.endswith(": interrupted; what is done is kept, the same command continues\n")
    return arguments


def test_ctrl_c_and_on(interrupted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(interrupted[2])
    assert not out.exists()
    assert main(interrupted) == 0
    assert "8, 5 of them in an earlier run" in capsys.readouterr().out
    again = out.with_name("again.npz")
    assert main([*interrupted[:2], str(again), *interrupted[3:]]) == 0
    assert content(out) == content(again)


def summary(said: str) -> list[str]:
    return [line for line in said.splitlines() if not line.startswith(("documents", "seconds"))]


def test_the_summary_is_of_all_runs(interrupted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(interrupted) == 0
    first = summary(capsys.readouterr().out)
    assert main([*interrupted, "--overwrite"]) == 0
    assert summary(capsys.readouterr().out) == first and len(first) == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--pool-factor", "2"], "begun with --pool-factor 3, not 2"),
        (["--protected", "1"], "begun with protected None, not 1"),
        (["--dtype", "float16"], "begun with dtype float32, not float16"),
        (["--buffer-tokens", "41"], "begun with --buffer-tokens 40, not 41"),
    ],
)
def test_a_run_of_other_arguments(
    interrupted: list[str], capsys: pytest.CaptureFixture[str], change: list[str], told: str
) -> None:
    assert main([*interrupted, *change]) == 1
    error = capsys.readouterr().err
    assert told in error and error.endswith("; --restart drops it\n") and error.count("\n") == 1
    # What there was is still there.
    assert main(interrupted) == 0


@pytest.mark.parametrize("same_size", [False, True])
def test_another_input(
    interrupted: list[str], source: Path, capsys: pytest.CaptureFixture[str], same_size: bool
) -> None:
    source.unlink()
    save(source.parent, "safetensors", *documents(LENGTHS if same_size else [4, 4], seed=1))
    assert main(interrupted) == 1
    assert "a run that was begun from another input; --restart drops it" in capsys.readouterr().err
    assert main([*interrupted, "--restart"]) == 0
    out, fresh = Path(interrupted[2]), source.with_name("fresh.npz")
    assert main([*interrupted[:2], str(fresh), *POOL]) == 0
    assert content(out) == content(fresh) and not out.with_name("out.npz.partial").exists()


DAMAGE = {
    "no JSON": ("progress.json", lambda path: path.write_text("{")),
    "no numbers": ("progress.json", lambda path: path.write_text(path.read_text().replace("5,", '"5",'))),
    "too far": (
        "progress.json",
        lambda path: path.write_text(path.read_text().replace('"documents": 5', '"documents": 9')),
    ),
    "vectors cut": ("vectors", lambda path: os.truncate(path, path.stat().st_size - 1)),
    "counts cut": ("counts", lambda path: os.truncate(path, 8)),
    "vectors gone": ("vectors", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state(interrupted: list[str], capsys: pytest.CaptureFixture[str], damage: str) -> None:
    name, spoil = DAMAGE[damage]
    spoil(Path(interrupted[2]).with_name("out.npz.partial") / name)
    assert main(interrupted) == 1
    error = capsys.readouterr().err
    assert "--restart begins anew" in error and error.count("\n") == 1
    assert main([*interrupted, "--restart"]) == 0


def test_two_at_once(interrupted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    partial = Path(interrupted[2]).with_name("out.npz.partial")
    with FileLock(partial / "lock"):
        assert main(interrupted) == 1
    assert "in use by another process" in capsys.readouterr().err
    assert main(interrupted) == 0


def test_the_input_changes_meanwhile(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = job.document_errors

    def touched(*arguments: Tensor) -> Tensor:
        os.utime(source, ns=(1, 1))
        return real(*arguments)

    monkeypatch.setattr(job, "document_errors", touched)
    assert main(["pool", str(source), str(source.with_name("out")), *POOL]) == 1
    assert "changed while it was read" in capsys.readouterr().err and not source.with_name("out").exists()


def test_memory_that_is_short(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pool(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("much\ntext")

    monkeypatch.setattr(job, "pool_embeddings", pool)
    assert main(["pool", str(source), str(source.with_name("out")), *POOL]) == 1
    assert "choose a smaller --buffer-tokens" in capsys.readouterr().err
