"""Tuned configurations: keys, the file that holds them and everything that can be wrong with it, lookups, overrides."""

from __future__ import annotations

import contextvars
import errno
import inspect
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.programs import ROOT, environment, run
from tpkernels.ops.gpu import tuning, tuning_cache
from tpkernels.ops.gpu.limits import INTERPRETER, Limits
from tpkernels.ops.gpu.resident_tiles import ResidentConfig, candidates, resident_config

GPU = torch.device("cuda", 0)
HOPPER = Limits(132, 227 << 10, 50 << 20, 32)
# Consumer cards, the oldest cards, wavefronts of 64 lanes.
OTHERS = (Limits(84, 99 << 10, 6 << 20, 32), Limits(40, 64 << 10, 4 << 20, 32), Limits(304, 64 << 10, 4 << 20, 64))
IDENTITY = {
    "name": "Planted GPU", "architecture": "sm_90", "processors": 132, "shared_bytes": 227 << 10, "torch": "2",
    "triton": "3",
}  # fmt: skip
KEY = "resident/ward/bfloat16/n256/k128/d512"
CONFIG, OTHER = (config._asdict() for config in candidates(256, 128, torch.bfloat16, HOPPER)[:2])
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a GPU that is not there, in an empty folder."""
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tuning_cache, "identity", lambda device: dict(IDENTITY))
    monkeypatch.setattr(tuning_cache, "limits_of", lambda device: HOPPER)
    tuning.reload()
    yield tuning_cache.path_of(GPU)
    tuning.reload()


def content(**changes: object) -> dict:
    """What a good file holds, with changes."""
    return {"schema": 3, "device": dict(IDENTITY), "configs": {KEY: dict(CONFIG)}, **changes}


def put(path: Path, what: bytes | dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())


def with_config(**changes: object) -> dict:
    return content(configs={KEY: {**CONFIG, **changes}})


# Keys.


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 4096), st.sampled_from(DTYPES))
def test_a_key_is_its_bucket(n: int, k: int, d: int, dtype: torch.dtype) -> None:
    def bucket(size: int) -> int:
        return next(1 << power for power in range(4, 14) if size <= 1 << power)

    key = tuning.resident_key(n, k, d, dtype, "ward")
    assert key == tuning.resident_key(bucket(n), bucket(k), bucket(d), dtype, "ward")
    assert key != tuning.resident_key(2 * bucket(n), k, d, dtype, "ward")
    assert key != tuning.resident_key(n, 2 * bucket(k), d, dtype, "ward")
    assert key != tuning.resident_key(n, k, 2 * bucket(d), dtype, "ward")
    assert key != tuning.resident_key(n, k, d, dtype, "kmeans")
    assert len({tuning.resident_key(n, k, d, other, "ward") for other in DTYPES}) == len(DTYPES)


def test_the_batch_is_no_part_of_a_key() -> None:
    assert list(inspect.signature(tuning.resident_key).parameters) == ["n", "k", "d", "dtype", "method"]


@pytest.mark.parametrize("limits", [HOPPER, *OTHERS, INTERPRETER])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whatever_is_measured_may_be_kept(limits: Limits, dtype: torch.dtype) -> None:
    for n in (1, 16, 49, 196, 576, 1024, 1030, 4096):
        key = tuning.resident_key(n, max(1, n // 2), 384, dtype, "kmedoids")
        for config in candidates(n, max(1, n // 2), dtype, limits):
            tuning_cache.check(key, config._asdict(), limits)
        heuristic = resident_config(n, max(1, n // 2), dtype, limits, interpreted=True)
        tuning_cache.check(key, heuristic._asdict())


def test_ranges_are_of_the_configurations_fields() -> None:
    assert tuple(tuning_cache.RANGES) == ResidentConfig._fields


# Where the file lies.


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TPKERNELS_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"TPKERNELS_CACHE": "~/b", "HOME": "/h"}, "/h/b"),
        ({"TPKERNELS_CACHE": "b", "HOME": "/h"}, os.path.abspath("b")),
        ({"TPKERNELS_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/tpkernels"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/tpkernels"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/tpkernels"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/tpkernels"),
        ({"HOME": "/h"}, "/h/.cache/tpkernels"),
    ],
)
def test_folder(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("TPKERNELS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tuning_cache.folder() == Path(expected)
    assert tuning_cache.path_of("cpu").parent == Path(expected)


def test_without_a_home_nothing_is_read_and_writing_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPKERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert tuning_cache.path_of("cpu") is None and tuning_cache.read("cpu") == {}
    with pytest.raises(FileNotFoundError, match="TPKERNELS_CACHE"):
        tuning_cache.write("cpu", {})


@pytest.mark.parametrize("name", IDENTITY)
def test_each_device_and_version_has_its_own_file(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tuning.store(GPU, {KEY: CONFIG})
    changed = {**IDENTITY, name: 7 if isinstance(IDENTITY[name], int) else "../else"}
    monkeypatch.setattr(tuning_cache, "identity", lambda device: changed)
    path = tuning_cache.path_of(GPU)
    assert path != cache and path.parent == cache.parent
    tuning.reload()
    assert tuning.lookup(KEY, GPU) is None


def test_identity_of_the_interpreter_names_the_versions() -> None:
    found = tuning_cache.identity("cpu")
    assert found["torch"] == torch.__version__ and set(found) == set(IDENTITY)
    assert found["triton"] != "unknown" or sys.platform != "linux"


# Lookups.


def test_what_is_stored_is_found(cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.lookup(KEY, GPU) is None
        assert tuning.store(GPU, {KEY: CONFIG}) == cache
        assert tuning.lookup(KEY, GPU) == CONFIG
        assert tuning.lookup(KEY.replace("ward", "kmeans"), GPU) is None
        tuning.lookup(KEY, GPU)["tile"] = 7
        assert tuning.lookup(KEY, GPU) == CONFIG
        tuning.store(GPU, {KEY: None})
        assert tuning.lookup(KEY, GPU) is None


def test_the_file_is_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, content())
    reads, read = [], tuning_cache.read
    monkeypatch.setattr(tuning_cache, "read", lambda device: reads.append(device) or read(device))
    assert not reads
    for _ in range(3):
        assert tuning.lookup(KEY, GPU) == CONFIG
    assert reads == [GPU]
    put(cache, content(configs={KEY: OTHER}))
    assert tuning.lookup(KEY, GPU) == CONFIG
    tuning.reload()
    assert tuning.lookup(KEY, GPU) == OTHER and reads == [GPU, GPU]


def test_no_lookup_off_the_gpu(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, content())
    monkeypatch.setattr(tuning_cache, "read", lambda device: pytest.fail("a file was read"))
    for kind in ("cpu", "meta", "mps"):
        assert tuning.lookup(KEY, torch.device(kind)) is None


def test_importing_and_clustering_on_a_cpu_opens_no_cache(tmp_path: Path) -> None:
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.listdir") else None)
import torch, tpkernels
for backend in ("torch", "triton"):
    tpkernels.ward(torch.randn(1, 9, 3), 4, backend=backend)
assert opened, "the hook sees nothing"
print([path for path in opened if path.startswith(sys.argv[1])])
"""
    tuning_files = tmp_path / "cache"
    tuning_files.mkdir()
    done = run("-c", code, str(tuning_files), TPKERNELS_CACHE=str(tuning_files), TRITON_INTERPRET="1")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Bad files.

BAD = {
    "empty": (b"", "expected JSON"),
    "truncated": (json.dumps(content()).encode()[:-9], "expected JSON"),
    "pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "UTF-8"),
    "latin": ('{"schema": "é"}'.encode("latin-1"), "UTF-8"),
    "nested": (b"[" * 200_000, "expected JSON"),
    "digits": (b'{"schema": ' + b"1" * 10_000 + b"}", "expected JSON"),
    "too large": (json.dumps(content()).encode() + b" " * (1 << 20), "expected at most 1048576 bytes"),
    "list": (b"[]", "expected an object of schema, device and configs, got 'list'"),
    "fields": (b'{"configs": {}}', "got ['configs']"),
    "more fields": (content(extra=1), "'extra'"),
    "schema": (content(schema=2), "schema: expected 3, got 2"),
    "schema type": (content(schema=True), "schema: expected 3, got True"),
    "schema float": (content(schema=3.0), "schema: expected 3, got 3.0"),
    "foreign device": (content(device={**IDENTITY, "name": "Another"}), "device: expected"),
    "foreign torch": (content(device={**IDENTITY, "torch": "1"}), "device: expected"),
    "no device": (content(device=None), "device: expected"),
    "configs": (content(configs=[]), "configs: expected an object, got list"),
    "key": (content(configs={"../../etc": CONFIG}), "key: expected resident/"),
    "key's size": (content(configs={"resident/ward/bfloat16/n196/k128/d512": CONFIG}), "key: expected"),
    "key's dtype": (content(configs={"resident/ward/float64/n256/k128/d512": CONFIG}), "key: expected"),
    "config": (content(configs={KEY: 3}), "got 'int'"),
    "fewer fields": (content(configs={KEY: {"tile": 64}}), "got ['tile']"),
    "text": (with_config(tile="64"), "tile: expected a power of two from 16 to 256, got '64'"),
    "float": (with_config(tile=64.0), "got 64.0"),
    "true": (with_config(num_stages=True), "num_stages: expected an integer from 1 to 8, got True"),
    "NaN": (json.dumps(with_config(tile=float("nan"))).encode(), "got nan"),
    "null": (with_config(rows=None), "got None"),
    "zero": (with_config(per_processor=0), "per_processor: expected an integer from 1 to 32, got 0"),
    "negative": (with_config(num_warps=-4), "num_warps: expected a power of two from 1 to 32, got -4"),
    "no power": (with_config(rows=24), "rows: expected a power of two from 2 to 256, got 24"),
    "huge": (with_config(block_d=1 << 40), "block_d: expected"),
    "wider than the sample": (with_config(rows=512), "rows: expected a power of two from 2 to 256, got 512"),
    "shared memory": (with_config(tile=256, block_d=128), "expected tiles within 232448 bytes of shared memory"),
}


@pytest.mark.parametrize(("what", "said"), BAD.values(), ids=list(BAD))
def test_a_bad_file_is_ignored_with_one_warning_and_replaced(cache: Path, what: bytes | dict, said: str) -> None:
    put(cache, what)
    with pytest.warns(RuntimeWarning) as caught:
        assert [tuning.lookup(KEY, GPU) for _ in range(3)] == [None] * 3
    (warning,) = caught
    text = str(warning.message)
    assert str(cache) in text and said in text and "ignored" in text and len(text) < 1500
    with pytest.warns(RuntimeWarning, match="ignored"):
        tuning.store(GPU, {KEY: OTHER})
    assert tuning.lookup(KEY, GPU) == OTHER
    assert json.loads(cache.read_text()) == content(configs={KEY: OTHER})


def test_lanes_are_counted_by_the_devices_warps() -> None:
    config = {**CONFIG, "num_warps": 32, "registers": 64}
    tuning_cache.check(KEY, config, HOPPER)
    with pytest.raises(ValueError, match="expected 16 warps at most, got 2048 lanes"):
        tuning_cache.check(KEY, config, HOPPER._replace(warp=64))


@pytest.mark.parametrize("kind", ["folder", "pipe", "file in the way", "unreadable"])
def test_what_is_no_file_is_ignored_with_a_warning(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "file in the way":
        put(cache.parent, b"")
    elif kind == "folder":
        cache.mkdir(parents=True)
    elif kind == "pipe":
        cache.parent.mkdir(parents=True)
        os.mkfifo(cache)
    else:
        put(cache, content())

        def refuse(*arguments: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(cache))

        # The administrator, whom tests may run as, reads everything.
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.warns(RuntimeWarning, match="is ignored") as caught:
        assert [tuning.lookup(KEY, GPU) for _ in range(3)] == [None] * 3
    assert len(caught) == 1 and str(cache) in str(caught[0].message)


def test_threads_that_ask_first_together_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, content())
    reads, read = [], tuning_cache.read

    def slow(device: torch.device) -> tuning_cache.Configs:
        reads.append(device)
        time.sleep(0.05)
        return read(device)

    monkeypatch.setattr(tuning_cache, "read", slow)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(tuning.lookup(KEY, GPU))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONFIG] * 8 and len(reads) == 1


# Writers.

WRITER = """
import sys, time
from pathlib import Path
from tpkernels.ops.gpu import tuning_cache
number, config = int(sys.argv[1]), {name: least for name, (least, _, _) in tuning_cache.RANGES.items()}
Path(sys.argv[2], f"ready{number}").touch()
while not Path(sys.argv[2], "go").exists():
    time.sleep(0.001)
for step in range(8):
    tuning_cache.write("cpu", {f"resident/ward/float16/n{16 << step}/k{16 << number}/d16": config})
"""


@pytest.mark.slow
def test_no_writer_loses_what_another_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path / "cache"))
    commands = [[sys.executable, "-c", WRITER, str(i), str(tmp_path)] for i in range(4)]
    writers = [subprocess.Popen(command, env=environment(), cwd=ROOT) for command in commands]
    while not all((tmp_path / f"ready{i}").exists() for i in range(4)):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    sizes = [0]
    with warnings.catch_warnings():
        # A file that is seen half-written would be a warning.
        warnings.simplefilter("error")
        while any(writer.poll() is None for writer in writers):
            sizes.append(len(tuning_cache.read("cpu")))
        found = tuning_cache.read("cpu")
    assert [writer.returncode for writer in writers] == [0] * 4
    expected = {f"resident/ward/float16/n{16 << step}/k{16 << i}/d16" for step in range(8) for i in range(4)}
    assert set(found) == expected
    assert sizes == sorted(sizes)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".json", ".lock"}


def test_a_write_that_fails_leaves_the_file_as_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.store(GPU, {KEY: CONFIG})
    before = cache.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tuning.store(GPU, {KEY: OTHER})
    assert cache.read_bytes() == before and tuning.lookup(KEY, GPU) == CONFIG
    assert sorted(path.suffix for path in cache.parent.iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize(
    ("key", "config"), [("anything", CONFIG), (KEY, {**CONFIG, "tile": 3}), (KEY, {**CONFIG, "num_warps": 64})]
)
def test_nothing_is_written_that_would_not_be_read(cache: Path, key: str, config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        tuning.store(GPU, {KEY: CONFIG, key: config})
    assert not cache.exists()


# Overrides.


def test_an_override_is_honoured_and_counted_and_ends(cache: Path) -> None:
    put(cache, content())
    with tuning.override(KEY, OTHER) as outer:
        assert tuning.lookup(KEY, GPU) == tuning.lookup(KEY, torch.device("cpu")) == OTHER
        assert tuning.lookup(KEY.replace("ward", "kmeans"), GPU) is None
        with tuning.override(KEY, CONFIG) as inner, tuning.override(KEY.replace("ward", "kmeans"), OTHER):
            assert tuning.lookup(KEY, torch.device("cpu")) == CONFIG
        assert tuning.lookup(KEY, torch.device("cpu")) == OTHER
    assert (outer.used, inner.used) == (3, 1)
    assert tuning.lookup(KEY, torch.device("cpu")) is None and tuning.lookup(KEY, GPU) == CONFIG


def test_an_override_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), tuning.override(KEY, OTHER):
        raise KeyError
    assert tuning.lookup(KEY, torch.device("cpu")) is None


def test_an_override_is_of_its_thread() -> None:
    found: dict[str, object] = {}

    def ask(name: str) -> None:
        found[name] = tuning.lookup(KEY, torch.device("cpu"))

    with tuning.override(KEY, OTHER):
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=ask, args=("alone",)),
            threading.Thread(target=context.run, args=(ask, "handed on")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {"alone": None, "handed on": OTHER}


@pytest.mark.parametrize("config", [{}, {**CONFIG, "tile": 0}, {**CONFIG, "rows": 512}])
def test_an_override_takes_configurations_alone(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"), tuning.override(KEY, config):
        pass
