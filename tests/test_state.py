"""What a worker shares with its caller besides the task: never out of date."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import sys
import warnings

import pytest

from fastjob import Parallel, delayed
from fastjob._pool.pool import pool


def ask(function, *arguments, n_jobs=2):
    """The answers of several tasks, in as many workers as take part."""
    call = delayed(function)(*arguments)
    return Parallel(n_jobs, "processes", batch_size=1)([call] * 4)


def environment(name):
    return os.environ.get(name)


def test_the_environment_follows_the_caller(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("FASTJOB_TEST_VALUE", value)
        assert ask(environment, "FASTJOB_TEST_VALUE") == [value] * 4
    monkeypatch.delenv("FASTJOB_TEST_VALUE")
    assert ask(environment, "FASTJOB_TEST_VALUE") == [None] * 4


def test_the_working_directory_follows_the_caller(tmp_path, monkeypatch):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert ask(os.getcwd) == [str(folder)] * 4


@pytest.mark.posix
def test_a_working_directory_that_is_gone_does_not_matter(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert ask(abs, -1) == [1] * 4


def test_the_directory_of_an_earlier_call_may_have_been_removed(tmp_path, monkeypatch):
    folder = tmp_path / "soon gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert ask(os.getcwd) == [str(folder)] * 4
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    assert ask(os.getcwd) == [str(tmp_path)] * 4


def test_the_caps_of_a_worker_stay_when_the_callers_state_changes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for value in ("one", "two", "three"):
        monkeypatch.setenv("FASTJOB_TEST_VALUE", value)
        found = Parallel(2, "processes", inner_max_num_threads=3)(
            [delayed(environment)("OMP_NUM_THREADS")] * 4
        )
        assert found == ["3"] * 4


def search_path():
    return sys.path


def test_the_search_path_follows_the_caller(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ask(search_path) == [sys.path] * 4
    (tmp_path / "found_late.py").write_text("def f(): return 'found'\n")
    importlib.invalidate_caches()
    found_late = importlib.import_module("found_late")
    try:
        assert ask(found_late.f) == ["found"] * 4
    finally:
        del sys.modules["found_late"]


def warn():
    warnings.warn("careful", UserWarning, stacklevel=1)


def test_warning_filters_follow_the_caller():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="careful"):
            ask(warn)
        warnings.simplefilter("ignore")
        assert ask(warn) == [None] * 4
        warnings.filterwarnings("error", message="care.*")
        with pytest.raises(UserWarning, match="careful"):
            ask(warn)


def spoil(folder):
    os.environ["FASTJOB_TEST_VALUE"] = "spoilt"
    os.environ.pop("PATH", None)
    os.chdir(folder)
    sys.path.insert(0, "/spoilt")


def everything():
    return (
        os.environ.get("FASTJOB_TEST_VALUE"),
        "PATH" in os.environ,
        os.getcwd(),
        "/spoilt" in sys.path,
    )


def test_what_a_task_does_to_its_worker_does_not_reach_the_next_call(tmp_path):
    started = pool.n_started
    ask(spoil, "/")
    assert ask(everything) == [(None, True, os.getcwd(), False)] * 4
    assert pool.n_started <= started + 2


def test_an_edited_module_runs_as_edited(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "often_edited.py"
    module.write_text("def f(): return 0\n")
    importlib.invalidate_caches()
    often_edited = importlib.import_module("often_edited")
    try:
        for version in range(1, 4):
            assert ask(often_edited.f) == [version - 1] * 4
            module.write_text(f"def f(): return {version}  # {'x' * version}\n")
            importlib.invalidate_caches()
            importlib.reload(often_edited)
        assert ask(often_edited.f) == [3] * 4
    finally:
        del sys.modules["often_edited"]


def draw():
    return random.random()


def draw_numpy():
    import numpy

    return float(numpy.random.random())


@pytest.mark.parametrize("source", [draw, draw_numpy])
def test_workers_draw_different_random_numbers(source):
    found = Parallel(4, "processes", batch_size=1)(delayed(source)() for _ in range(40))
    assert len(set(found)) == 40


def test_a_removed_module_of_a_function_is_an_error_of_its_task(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "short_lived.py").write_text("def f(): return 1\n")
    importlib.invalidate_caches()
    short_lived = importlib.import_module("short_lived")
    (tmp_path / "short_lived.py").unlink()
    importlib.invalidate_caches()
    try:
        with pytest.raises(ModuleNotFoundError, match="short_lived"):
            ask(short_lived.f)
        assert ask(abs, -1) == [1] * 4
    finally:
        del sys.modules["short_lived"]


def append(shared, value):
    shared.append(value)


def test_tasks_can_use_the_objects_of_a_manager():
    """Its proxies show the caller's key to the manager, which a worker has to know."""
    ask(abs, -1)  # workers that were there before the manager
    with multiprocessing.Manager() as manager:
        shared = manager.list()
        Parallel(2, "processes", batch_size=1)(
            delayed(append)(shared, i) for i in range(10)
        )
        assert sorted(shared) == list(range(10))
