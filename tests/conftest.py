"""Fixtures of the whole suite.

Each test runs in an empty folder of its own, so that a child interpreter finds the
installed package and never the checkout's sources.  Nothing may be left behind: see
``leaks.py``.  The warm workers of fastjob's pool may stay from one test of a module
to the next, and must be gone, with all that they used, after the module.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import leaks
import pytest

try:
    import fastjob
except ImportError as error:
    raise pytest.UsageError(
        f"fastjob cannot be imported ({error}). Run `pip install '.[test]' && pytest`, "
        "or build in place: `python setup.py build_ext --inplace`."
    ) from error

PACKAGE = Path(fastjob.__file__).parent
CHECKOUT = Path(__file__).parents[1]
BACKENDS = ["sequential", "threading", "processes", "multiprocessing"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--leaks-each",
        action="store_true",
        help="end the pool after each test: finds which test of a module leaks",
    )


def pytest_configure(config: pytest.Config) -> None:
    leaks.mark_environment()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has started the tests in the background; children would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if PACKAGE.parent == CHECKOUT:
        # Built in place: child interpreters must find the same package.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])
        )


def _settle() -> None:
    """Let later collections look at new objects only.

    The check after each test collects garbage, which took 90 ms with all that the
    tests import, and takes 0.1 ms without.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform == "win32":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip(reason="uses what only POSIX has"))


def pytest_collection_finish() -> None:
    _settle()


@pytest.fixture(scope="session", autouse=True)
def temp_folder(tmp_path_factory):
    """A temporary folder that only this test run writes to."""
    folder = tmp_path_factory.mktemp("temp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def _fail_on(found: list[str]) -> None:
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind_by_module(temp_folder):
    before = leaks.Snapshot.take()
    yield
    fastjob.shutdown()
    _fail_on(leaks.left_behind(before, pool_may_stay=False))
    _settle()  # what the module has imported


@pytest.fixture(autouse=True)
def nothing_left_behind(request, temp_folder):
    each = request.config.getoption("--leaks-each")
    before = leaks.Snapshot.take()
    yield
    if each:
        fastjob.shutdown()
    _fail_on(leaks.left_behind(before, pool_may_stay=not each))


@pytest.fixture(autouse=True)
def empty_folder(nothing_left_behind, tmp_path, monkeypatch):
    # The check comes first, so that it ends last: after monkeypatch has put back
    # whatever a test has replaced.
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Each native backend by name."""
    return request.param


@pytest.fixture(params=["threading", "processes", "multiprocessing"])
def parallel_backend(request) -> str:
    """Each native backend that runs tasks side by side."""
    return request.param


@pytest.fixture
def run_python(tmp_path):
    """Run a script, or ``-m``/``-c`` arguments, in a fresh interpreter.

    Called as ``run_python(source)`` with the text of a script, or as
    ``run_python("-m", "fastjob", "demo")``. Keyword arguments go to
    ``subprocess.run``; output is captured as text, 60 seconds are the limit.
    """

    def run(*args: str, **options) -> subprocess.CompletedProcess[str]:
        if not args[0].startswith("-"):
            script = tmp_path / "script.py"
            script.write_text(args[0], encoding="utf-8")
            args = (str(script), *args[1:])
        settings = {
            "capture_output": True,
            "text": True,
            "timeout": 60,
            "stdin": subprocess.DEVNULL,
            **options,
        }
        return subprocess.run([sys.executable, *args], check=False, **settings)

    return run


@pytest.fixture
def run_captured(monkeypatch):
    """Run tasks in processes: the `Capture` that pickled them, and the results."""
    from fastjob.backends import process_engine

    real, made = process_engine.Capture, []

    def capture(*args):
        made.append(real(*args))
        return made[-1]

    def run(tasks):
        results = fastjob.Parallel(2, "processes")(tasks)
        return made[-1], results

    monkeypatch.setattr(process_engine, "Capture", capture)
    return run
