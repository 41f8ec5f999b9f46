"""Presets and drop-ins beside the packages themselves, each in a process of its own, since they need other versions.

`TPKERNELS_RETRIEVAL` names a folder that holds a folder for each of them, to be put before what is installed; `.ci/run`
fills one from `.ci/retrieval.txt`. Without it, those that are installed are taken.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.support.programs import ROOT, run

VARIABLE = "TPKERNELS_RETRIEVAL"
# The file of tests by the package's name, which is its folder's, and its module.
PACKAGES = {
    "colpali-engine": ("colpali", "colpali_engine"),
    "sentence-transformers": ("sentence_transformers", "sentence_transformers"),
    "pylate": ("pylate", "pylate"),
    "colbert-ai": ("colbert", "colbert"),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_beside_the_package(package: str) -> None:
    file, module = PACKAGES[package]
    folder = Path(os.environ.get(VARIABLE, os.devnull)) / package
    if not folder.is_dir() and importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed, and {VARIABLE} names no folder that holds a folder {package}")
    path = os.pathsep.join(map(str, [folder, ROOT] if folder.is_dir() else [ROOT]))
    command = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"tests/retrieval/real/{file}.py")
    done = run(*command, PYTHONPATH=path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_each_package_has_its_tests_and_its_version() -> None:
    names = {line.split("==")[0] for line in (ROOT / ".ci" / "retrieval.txt").read_text().splitlines()}
    assert names == set(PACKAGES)
    files = {path.stem for path in (ROOT / "tests" / "retrieval" / "real").glob("*.py")}
    assert files == {file for file, _ in PACKAGES.values()}
