"""Stored loops: two processes that compile at once, damaged files, a full disk, no folder at all."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

import numba
from filelock import FileLock, Timeout
from numba.core.caching import FunctionCache, IndexDataCacheFile

from tpkernels.ops.cpu import jit
from tpkernels.ops.cpu.loop_store import LOCK_NAME, LoopStore


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Compiles one function of one file, as a process that has just started does, and stores it beside the file."""
    # What NUMBA_CACHE_DIR has set.
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    path = tmp_path / "loops.py"
    path.write_text("def double(x):\n    return 2 * x\n")

    def build() -> Any:
        spec = importlib.util.spec_from_file_location("loops", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return jit.jit(module.double)

    return build


def hits(loop: Any) -> int:
    return sum(loop.stats.cache_hits.values())


def test_a_stored_loop_is_read_by_the_next(load: Callable[[], Any]) -> None:
    first, second = load(), load()
    assert first(2.0) == 4.0 and hits(first) == 0
    assert second(2.0) == 4.0 and hits(second) == 1
    assert second(3) == 6 and hits(second) == 1


def test_nobody_comes_between_the_two_files(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between writing the index and the code, nor between reading them."""
    seen = []

    def held(name: str) -> None:
        original = getattr(IndexDataCacheFile, name)

        def looked_at(self: Any, *arguments: Any) -> Any:
            with pytest.raises(Timeout):
                FileLock(Path(self._cache_path) / LOCK_NAME, timeout=0, is_singleton=False).acquire()
            seen.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(IndexDataCacheFile, name, looked_at)

    for name in ("_save_index", "_save_data", "_load_data"):
        held(name)
    assert load()(2.0) == load()(2.0) == 4.0
    assert seen == ["_save_index", "_save_data", "_load_data"]


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04 not a pickle", None], ids=["empty", "foreign", "cut"])
def test_a_damaged_file_is_written_anew(load: Callable[[], Any], tmp_path: Path, ending: str, content: bytes) -> None:
    load()(2.0)
    (path,) = tmp_path.rglob(f"*.{ending}")
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    second, third = load(), load()
    assert second(2.0) == 4.0 and hits(second) == 0
    assert third(2.0) == 4.0 and hits(third) == 1


def test_a_full_disk_is_said_once_and_no_error(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", full)
    with pytest.warns(RuntimeWarning, match=r"cannot be stored in .*No space left"):
        assert load()(2.0) == 4.0
    monkeypatch.undo()
    second = load()
    assert second(2.0) == 4.0 and hits(second) == 0


def test_a_lock_that_is_never_given_back(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpkernels.ops.cpu.loop_store.LOCK_SECONDS", 0.0)
    first = load()
    folder = Path(first._cache.cache_path)
    folder.mkdir(exist_ok=True)
    with FileLock(folder / LOCK_NAME, is_singleton=False), pytest.warns(RuntimeWarning, match=r"tpkernels\.lock"):
        assert first(2.0) == 4.0


def test_nowhere_to_store(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose file system is read-only, without a home."""
    assert isinstance(load()._cache, LoopStore)
    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    loop = load()
    assert not isinstance(loop._cache, LoopStore) and loop(2.0) == 4.0
