"""`python -m tpkernels.retrieval` at the command line: options, messages, what it prints, and its memory."""

from __future__ import annotations

import os
import runpy
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch

from tests.support.indexes import documents, load, save, told
from tests.support.programs import run
from tpkernels.retrieval import bar, pool_embeddings
from tpkernels.retrieval.command import main
from tpkernels.retrieval.index import state, target

LENGTHS = [9, 4, 0, 17, 2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path, "npz", *documents(LENGTHS))


@pytest.mark.parametrize("command", [["--help"], ["pool", "--help"]])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    assert (
        "python -m tpkernels.retrieval pool docs.safetensors pooled.safetensors --pool-factor 3"
        in capsys.readouterr().out
    )


def test_the_summary(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("out.safetensors")
    monkeypatch.setattr(sys, "argv", ["retrieval", "pool", str(source), str(out), "--pool-factor", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("tpkernels.retrieval", run_name="__main__")
    assert stop.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["documents", "5"] and lines[1] == ["vectors", "32", "->", "10", "(3.20x)"]
    assert [line[0] for line in lines] == ["documents", "vectors", "MB", "error", "not", "seconds"]
    assert len(load(out)[0]) == 10


@pytest.mark.parametrize("name", ["numpy", "safetensors"])
def test_a_package_that_is_not_installed(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    line = told(capsys, source, source.with_name("out"), "--pool-factor", 3)
    assert name in line and line.endswith(": pip install 'tpkernels[retrieval]'")
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_the_error_that_is_printed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", str(source), str(source.with_name("out")), "--pool-factor", "3"]) == 0
    x, lengths = documents(LENGTHS)
    *_, labels = pool_embeddings((x, lengths), 3, return_labels=True)
    errors = []
    for part, own in zip(x.double().split(LENGTHS), labels.split(LENGTHS), strict=True):
        means = {c: part[own == c].mean(0) for c in own.tolist()}
        within = sum(float((row - means[c]).square().sum()) for row, c in zip(part, own.tolist(), strict=True))
        errors.append(within / float((part - part.mean(0)).square().sum()) if len(part) else 0.0)
    worst = max(range(5), key=errors.__getitem__)
    wanted = f"error       {sum(errors) / 5:.4f} mean, {errors[worst]:.4f} worst (document {worst})"
    assert wanted in capsys.readouterr().out


OPTIONS = {
    "--pool-factor 2.5 --protected 1 --protected-at end": {"pool_factor": 2.5, "protected": 1, "protected_at": "end"},
    "--max-tokens 3 --distance cosine --no-normalize": {"max_tokens": 3, "distance": "cosine", "normalize": False},
    "--distance-threshold 0.5 --normalize all": {"distance_threshold": 0.5, "normalize": "all"},
    "--max-error 0.25 --normalize false": {"max_error": 0.25, "normalize": False},
    "--pool-factor 2 --preset colbert": {"pool_factor": 2, "preset": "colbert"},
    "--pool-factor 2 --rounding nearest --normalize true": {"pool_factor": 2, "rounding": "nearest"},
    "--pool-factor 2 --preset sentence-transformers --protected 0": {
        "pool_factor": 2,
        "preset": "sentence-transformers",
        "protected": 0,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_arguments(source: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    out = source.with_name("out.npz")
    assert main(["pool", str(source), str(out), *options.split(), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    vectors, counts = pool_embeddings(documents(LENGTHS), **OPTIONS[options])
    found = load(out)
    assert torch.equal(found[0], vectors) and torch.equal(found[1], counts)


def test_colpali_takes_whole_factors_and_no_short_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = save(tmp_path, "safetensors", *documents([5, 1, 3])), tmp_path / "out"
    line = told(capsys, source, out, "--pool-factor", 2, "--preset", "colpali")
    assert line == f"{source}: documents must have 2 to 4096 tokens, got 1 in document 1"
    assert "--pool-factor must be an int" in told(capsys, source, out, "--pool-factor", 2.5, "--preset", "colpali")


BAD = {
    "--pool-factor 0.5": "--pool-factor must be at least 1 and finite, got 0.5",
    "": "one of --pool-factor, --max-tokens, --distance-threshold and --max-error must be given, got none",
    "--max-tokens 2 --protected 2": "--max-tokens must be more than the 2 protected tokens, got 2",
    "--pool-factor 2 --protected -1": "--protected must be at least 0, got -1",
    "--max-error 1.5": "--max-error must lie in [0, 1), got 1.5",
    "--max-error 0.1 --distance dot": '--max-error must be None unless distance is "euclidean"',
    "--pool-factor 2 --distance l1": "--distance must be one of euclidean, cosine",
    "--pool-factor 2 --device tpu": "--device must be cpu or cuda, got 'tpu'",
    "--pool-factor 2 --device meta": "--device must be cpu or cuda, got 'meta'",
    "--pool-factor 2 --device cuda:99": "--device cuda:99 is not there",
    "--pool-factor 2 --threads 0": "--threads must be at least 1, got 0",
    "--pool-factor 2 --buffer-tokens 0": "--buffer-tokens must be at least 1, got 0",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_values(source: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    assert told(capsys, source, source.with_name("out"), *options.split()).startswith(BAD[options])
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize(
    "options",
    ["", "pool", "pool in", "swim in out", "pool in out --pool-factor 2 --max-tokens 3", "pool in out --pool-factor x",
     "pool in out --preset qdrant", "pool in out --dtype int8", "pool in out --protected-at top"],
)  # fmt: skip
def test_bad_command_lines(capsys: pytest.CaptureFixture[str], options: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options.split())
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out and said.err.count("\n") == 1
    assert said.err.startswith("python -m tpkernels.retrieval")


def test_files_that_are_not_there_or_in_the_way(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, factor = source.parent, ("--pool-factor", 2)
    assert told(capsys, folder / "no.npz", folder / "out", *factor) == f"{folder}/no.npz: No such file or directory"
    assert "embeddings.npy: No such file" in told(capsys, folder, folder.parent / "out", *factor)
    assert "must end in .safetensors or .npz" in told(capsys, folder / "no.pt", folder / "out", *factor)
    assert "must end in .safetensors or .npz" in told(capsys, source, folder / "out.pt", *factor)
    assert told(capsys, source, folder / "no" / "out.npz", *factor) == f"{folder}/no: no such folder"
    assert "must not be the index that is read" in told(capsys, source, source, *factor, "--overwrite")
    (folder / "link.npz").symlink_to(source)
    assert "must not be the index that is read" in told(capsys, source, folder / "link.npz", *factor, "--overwrite")
    (folder / "out.npz").write_text("mine")
    line = told(capsys, source, folder / "out.npz", *factor)
    assert line == f"{folder}/out.npz exists already; --overwrite replaces it"
    assert (folder / "out.npz").read_text() == "mine"
    assert main(["pool", str(source), str(folder / "out.npz"), "--pool-factor", "2", "--overwrite", "--quiet"]) == 0
    assert len(load(folder / "out.npz")[0]) == 15


def test_folders_of_other_things_are_not_replaced(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, command = source.parent, ["--pool-factor", "2", "--overwrite"]
    for name in ("out", "other.partial"):
        (folder / name).mkdir()
        (folder / name / "letter.txt").write_text("mine")
    assert "is a folder of more than embeddings.npy" in told(capsys, source, folder / "out", *command)
    assert "in the way: it holds no state" in told(capsys, source, folder / "other", *command)
    assert (folder / "out" / "letter.txt").read_text() == (folder / "other.partial" / "letter.txt").read_text()
    # A folder that is read may be named as that of a state.
    inside = save(folder, "folder", *documents(LENGTHS)).rename(folder / "x.partial")
    assert "must not be the index that is read" in told(capsys, inside, folder / "x", *command)
    assert load(inside)[1].tolist() == LENGTHS


def test_a_folder_replaces_a_folder(source: Path) -> None:
    out = save(source.parent, "folder", *documents([3, 3]))
    assert main(["pool", str(source), str(out), "--pool-factor", "2", "--overwrite", "--quiet"]) == 0
    assert len(load(out)[0]) == 15 and {path.name for path in source.parent.iterdir()} == {source.name, out.name}


def test_a_folder_that_cannot_be_written(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    out = source.with_name("out.npz")
    assert told(capsys, source, out, "--pool-factor", 2) == f"{out}.partial: Permission denied"


@pytest.mark.parametrize("place", [(state.State, "append"), (target.shutil, "copyfileobj")], ids=lambda place: place[1])
def test_a_disk_that_is_full(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: tuple[object, str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = source.with_name("out.npz")
    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        line = told(capsys, source, out, "--pool-factor", 2)
    kept = "what is done is kept, the same command continues"
    assert line == f"{out}: No space left on device; {kept}" and not out.exists()
    assert main(["pool", str(source), str(out), "--pool-factor", "2"]) == 0


def test_vectors_that_a_dtype_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, lengths = documents([4])
    source, out = save(tmp_path, "safetensors", 1e7 * x, lengths), tmp_path / "out.npz"
    line = told(capsys, source, out, "--max-tokens", 2, "--no-normalize", "--dtype", "float16")
    assert line == "the vectors exceed float16: choose a wider --dtype"
    assert "cannot hold bfloat16, which NumPy lacks" in told(
        capsys, source, out, "--max-tokens", 2, "--dtype", "bfloat16"
    )


def test_documents_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path, "npz", torch.zeros(4104, 1), torch.tensor([7, 4097]))
    line = told(capsys, source, tmp_path / "out.npz", "--pool-factor", 2)
    assert line == f"{source}: documents must have 0 to 4096 tokens, got 4097 in document 1"
    assert not (tmp_path / "out.npz.partial").exists()


MEASURED = """
import resource, sys
from tpkernels.retrieval.command import main

peaks = []
for source in sys.argv[1:]:
    options = ["--max-tokens", "1", "--buffer-tokens", "256", "--threads", "1"]
    assert main(["pool", source, source + ".out.npz", *options]) == 0
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize("form", ["safetensors", pytest.param("npz", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_index(tmp_path: Path, form: str) -> None:
    """An index of 64 MB takes hardly more than one of 8 MB."""
    sources = []
    for number, count in enumerate((64, 512)):
        (tmp_path / str(number)).mkdir()
        x = torch.zeros(count * 16, 4096, dtype=torch.float16)
        x[:, 0] = torch.arange(len(x)) % 7
        sources.append(save(tmp_path / str(number), form, x, torch.full((count,), 16)))
    done = run("-c", MEASURED, *map(str, sources))
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.splitlines()[-1].split())
    assert large - small < 16, (small, large)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("installed", [True, False])
def test_a_bar_on_a_terminal(source: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["pool", str(source), str(source.with_name("out")), "--pool-factor", "2"]) == 0
    assert ("100%" in sys.stderr.getvalue() and "32.0/32.0" in sys.stderr.getvalue()) == installed
    assert bool(sys.stderr.getvalue()) == installed


def test_lines_for_logs(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bar, "_SECONDS", 0.0)
    assert main(["pool", str(source), str(source.with_name("out")), "--pool-factor", "2", "--buffer-tokens", "13"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{done} of 32 tokens" for done in (0, 13, 30, 32)]
