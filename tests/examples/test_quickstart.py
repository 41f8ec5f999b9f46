"""`examples/quickstart.py`: what it prints is what the model has."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.support.programs import EXAMPLES


def last_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()[-1]


def test_what_it_saves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # timm is for those who name one of its models.
    monkeypatch.setitem(sys.modules, "timm", None)
    assert last_line([], monkeypatch, capsys) == "196 tokens end as 67: 34.6% of the MACs saved"


def test_a_model_of_timm(timm: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(["vit_small_patch32_224"], monkeypatch, capsys).startswith("49 tokens end as 17: ")
