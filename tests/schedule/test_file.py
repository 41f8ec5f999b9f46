"""Schedule files: written whole, read with suspicion, and taken by `patch` where they fit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tpkernels
from tests.support.models import facts, make_timm
from tpkernels.schedule.file import MOST_BYTES, Schedule, load_schedule, save_schedule

TOKENS = [64, 40, 40, 9]
GOOD = {"format": "tpkernels schedule", "version": 1, "tokens": TOKENS, "num_patches": 64, "facts": {}}


DISTANCE = [None, 1.5, None, 0]


def changed(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


def by_distance(**changes: Any) -> str:
    return changed(version=2, **changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made" / "schedule.json"
    given = save_schedule(path, TOKENS, num_patches=64, method="ward", budget=0.58, layers=None)
    found = load_schedule(str(path))
    assert found == given == Schedule((64, 40, 40, 9), 64, {"method": "ward", "budget": 0.58, "layers": None})
    assert [one.name for one in path.parent.iterdir()] == ["schedule.json"]
    # Numbers of numpy and tensors are counts too.
    save_schedule(path, tuple(torch.tensor(TOKENS).numpy()), num_patches=64)
    assert load_schedule(path).tokens == (64, 40, 40, 9)


def test_distances_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    given = save_schedule(path, TOKENS, num_patches=64, distance=DISTANCE, method="ward")
    assert given == load_schedule(path) == Schedule((64, 40, 40, 9), 64, {"method": "ward"}, (None, 1.5, None, 0.0))
    assert json.loads(path.read_bytes())["version"] == 2
    # A whole schedule, and more to say of it.
    assert save_schedule(path, given, images=3).facts == {"method": "ward", "images": 3}
    assert load_schedule(path) == Schedule(given.tokens, 64, {"method": "ward", "images": 3}, given.distance)
    with pytest.raises(ValueError, match="num_patches and distance must be None beside a Schedule"):
        save_schedule(path, given, num_patches=64)


def test_without_distances_the_file_is_that_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    expected = (
        '{"format": "tpkernels schedule",\n "version": 1,\n "tokens": [64, 40, 40, 9],\n "num_patches": 64,\n '
        '"facts": {"method": "ward"}}\n'
    )
    save_schedule(path, TOKENS, num_patches=64, method="ward")
    assert path.read_text() == expected
    save_schedule(path, Schedule(tuple(TOKENS), 64, {"method": "ward"}))
    assert path.read_text() == expected


@pytest.mark.parametrize("kind", [str, Path])
def test_patch_reads_it(timm: ModuleType, tmp_path: Path, kind: type) -> None:
    path = tmp_path / "schedule.json"
    save_schedule(path, TOKENS, num_patches=64)
    model, images = make_timm(timm), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        listed = tpkernels.patch(model, TOKENS)(images)
        tpkernels.unpatch(model)
        read = tpkernels.patch(model, kind(path), method="ward")(images)
    assert tpkernels.schedule_of(model) == TOKENS and torch.equal(listed, read)


BAD = {
    "empty": ("", "expected JSON"),
    "truncated": (changed()[:-9], "expected JSON"),
    "not UTF-8": (b"\xff\xfe\x00{", "expected JSON"),
    "nested": ("[" * 100_000, "recursion"),
    "long number": (changed().replace("9]", "9" * 9000 + "]"), "expected JSON"),
    "list": ("[1, 2]", "expected an object with format 'tpkernels schedule', got \\[1, 2\\]"),
    "foreign": (changed(format="other"), "expected an object with format 'tpkernels schedule', got 'other'"),
    "version": (changed(version=3), "expected version 1 or 2, got 3"),
    "true version": (changed(version=True), "expected version 1 or 2, got True"),
    "no distance": (changed(version=2), "expected distance, facts, format, num_patches, tokens, version, got .*facts"),
    "distance too early": (changed(distance=DISTANCE), "expected facts, format, .*, version, got .*distance"),
    "distance as number": (by_distance(distance=1.5), "expected a list of distance, got 1.5"),
    "few distances": (by_distance(distance=[1.5]), "distance must have 4 entries, one per block, got 1"),
    "word": (by_distance(distance=[None, "1", None, 2]), r"distance\[1\] must be a finite number .*, got '1'"),
    "true distance": (by_distance(distance=[None, True, None, 2]), r"distance\[1\] must be a finite .*, got True"),
    "negative": (by_distance(distance=[None, -1.0, None, 2]), r"distance\[1\] must be a finite number .*, got -1.0"),
    "infinite": (by_distance(distance=[None, 1e999, None, 2]), r"distance\[1\] must be a finite number .*, got inf"),
    "not a number": (by_distance(distance=[None, math.nan, None, 2]), r"distance\[1\] must be a finite .*, got nan"),
    "huge": (by_distance(distance=[None, 10**400, None, 2]), r"distance\[1\] must be a finite number .*, got 1000"),
    "undistanced": (
        by_distance(distance=[None, 1.5, 1.5, None]),
        r"tokens\[3\] must be the 40 tokens that come, where distance\[3\] is None, got 9",
    ),
    "no count": (json.dumps({name: GOOD[name] for name in GOOD if name != "num_patches"}), "num_patches"),
    "more": (changed(more=1), "expected facts, format, num_patches, tokens, version, got .*more"),
    "string": (changed(tokens="64"), "expected a list of tokens, got '64'"),
    "none": (changed(tokens=[]), "tokens must hold one count per block"),
    "float": (changed(tokens=[64, 40.0]), r"tokens\[1\] must be an integer of at least 1, got 40.0"),
    "true": (changed(tokens=[True, 1]), r"tokens\[0\] must be an integer of at least 1, got True"),
    "zero": (changed(tokens=[64, 0]), r"tokens\[1\] must be an integer of at least 1, got 0"),
    "rising": (changed(tokens=[40, 41]), r"tokens\[1\] must be at most the 40 tokens that are left, got 41"),
    "above": (changed(tokens=[65]), r"tokens\[0\] must be at most the 64 tokens"),
    "patches": (changed(num_patches="64"), "num_patches must be an integer of at least 1, got '64'"),
    "facts": (changed(facts=[1]), r"facts must be an object, got \[1\]"),
    "too large": (changed(facts={"x": "y" * MOST_BYTES}), "expected at most 1048576 bytes"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"bad.json must be a schedule file of save_schedule: .*{message}") as caught:
        load_schedule(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_does_not_fit_changes_nothing(timm: ModuleType, tmp_path: Path) -> None:
    model, path = make_timm(timm), tmp_path / "schedule.json"
    before = facts(model)
    save_schedule(path, TOKENS[:3], num_patches=64)
    with pytest.raises(ValueError, match=r"schedule.json must fit a model of 4 blocks and 64 patch tokens, got .* 3 "):
        tpkernels.patch(model, path)
    save_schedule(path, TOKENS, num_patches=196)
    with pytest.raises(ValueError, match=r"schedule.json must fit .* got a schedule for 4 blocks and 196 patch tokens"):
        tpkernels.patch(model, path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"schedule.json must be a schedule file"):
        tpkernels.patch(model, path)
    with pytest.raises(FileNotFoundError, match=r"absent.json"):
        tpkernels.patch(model, tmp_path / "absent.json")
    save_schedule(path, TOKENS, num_patches=64)
    with pytest.raises(ValueError, match=r"layers must be None beside a schedule file, .* got \[1\]"):
        tpkernels.patch(model, path, layers=[1])
    with pytest.raises(ValueError, match=r"keep or budget must be given, and not both"):
        tpkernels.patch(model, path, budget=0.5)
    assert facts(model) == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "schedule.json"
    save_schedule(path, TOKENS, num_patches=64, method="ward")
    old = path.read_bytes()
    with pytest.raises(ValueError, match=r"tokens\[2\] must be at most the 40 tokens"):
        save_schedule(path, [64, 40, 41, 9], num_patches=64)
    with pytest.raises(TypeError, match=r"tokens must list the patch tokens left after each block, got 64"):
        save_schedule(path, 64, num_patches=64)
    with pytest.raises(TypeError, match=r"facts must be JSON values"):
        save_schedule(path, TOKENS, num_patches=64, made=Path("x"))
    with pytest.raises(ValueError, match=r"facts must be JSON values"):
        save_schedule(path, TOKENS, num_patches=64, error=float("nan"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        save_schedule(path, [64, 1, 1, 1], num_patches=64)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
