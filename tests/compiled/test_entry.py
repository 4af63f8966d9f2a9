"""What numba compiles is compiled once, by one process, and kept; and what if it cannot be."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="the compiled backend needs numba")

import numba

from streamenc_kernels.compiled import entry, interpreter

COMPILING = "compiling the steps of models"


def small(stamp: int) -> Callable[..., int]:
    """In place of the interpreter, which takes half a minute."""

    def enter(program, count, lanes, threads, board, scratch):  # type: ignore[no-untyped-def]
        return 0 if stamp == 0 else program + count

    return enter


@pytest.fixture
def folder(tmp_path, monkeypatch, caplog):
    """Where it is kept; no process has it yet."""
    caplog.set_level(logging.INFO)
    # What other tests changed of the environment is read now, and not in the middle of a
    # compilation, which would undo the line below.
    numba.config.reload_config()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(interpreter, "enter_function", small)
    forget(monkeypatch)
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_entry", None)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_it_is_compiled_once_and_says_so_first(folder, monkeypatch, caplog):
    assert entry.entry()(40, 2, 0, 0, 0, 0) == 42
    assert COMPILING in caplog.text and len(kept(folder)) == 1
    caplog.clear()
    forget(monkeypatch)
    assert entry.entry()(40, 2, 0, 0, 0, 0) == 42
    assert COMPILING not in caplog.text and len(kept(folder)) == 1
    assert entry.entry() is entry.entry()


def test_threads_get_the_same(folder, caplog):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: entry.entry(), range(4)))
    assert len(set(map(id, found))) == 1 and caplog.text.count(COMPILING) == 1


def hold(path: Path, seconds: float, started: Any) -> None:
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started.set()
        time.sleep(seconds)


def test_it_waits_for_another_process_that_compiles(folder, monkeypatch):
    entry.entry()
    (lock,) = folder.rglob(entry.LOCK_FILE)
    for path in kept(folder):
        path.unlink()
    forget(monkeypatch)
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    other = spawn.Process(target=hold, args=(lock, 1.0, started))
    other.start()
    assert started.wait(60)
    begin = time.perf_counter()
    assert entry.entry()(1, 1, 0, 0, 0, 0) == 2
    assert time.perf_counter() - begin > 0.7
    other.join()


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_is_damaged_is_compiled_anew(ending, folder, monkeypatch, caplog):
    entry.entry()
    (damaged,) = folder.rglob(f"*.{ending}")
    damaged.write_bytes(b"no such thing")
    forget(monkeypatch)
    assert entry.entry()(40, 2, 0, 0, 0, 0) == 42
    assert "cannot be read" in caplog.text
    caplog.clear()
    forget(monkeypatch)
    entry.entry()
    assert not caplog.text  # it is whole again


def test_a_disk_that_takes_nothing(folder, monkeypatch, caplog):
    from numba.core.caching import IndexDataCacheFile

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    assert entry.entry()(40, 2, 0, 0, 0, 0) == 42
    assert "is not kept on disk: [Errno 28]" in caplog.text


def test_no_folder_to_write_to(folder, monkeypatch, caplog):
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert entry.entry()(40, 2, 0, 0, 0, 0) == 42
    assert "in each process" in caplog.text and "NUMBA_CACHE_DIR" in caplog.text


def test_what_numba_cannot_compile_is_one_error(folder, monkeypatch):
    def impossible(stamp: int) -> Callable[..., int]:
        def enter(program, count, lanes, threads, board, scratch):  # type: ignore[no-untyped-def]
            return program.nothing

        return enter

    monkeypatch.setattr(interpreter, "enter_function", impossible)
    with pytest.raises(entry.CannotCompile, match="numba fails to compile here: TypingError"):
        entry.entry()


def test_numba_that_may_not_compile(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert entry.why_not_compiled() == "NUMBA_DISABLE_JIT is set"
