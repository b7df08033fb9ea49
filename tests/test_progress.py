"""Progress: what is shown, how often, and that the screen is left in order."""

import io
import subprocess
import sys
import threading
import time
import types

import pytest

from fastjob import Parallel, delayed, parallel_config, progress
from fastjob._core.call import Counters
from fastjob.progress import Progress, ProgressBar, format_line
from fastjob.running import REPORT_INTERVAL

pytestmark = pytest.mark.filterwarnings(
    # Python 3.12 and later, where the multiprocessing backend forks beside threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Recording:
    interval = 1.0

    def __init__(self):
        self.states = []
        self.closed = 0

    def show(self, state, retried):
        self.states.append((state, retried))

    def close(self):
        self.closed += 1


@pytest.fixture
def counters():
    return Counters()


def test_states_are_shown_at_intervals_and_at_the_end(counters):
    clock, display = Clock(), Recording()
    bar = ProgressBar(display, counters, 100, clock)
    for _ in range(30):
        clock.now += 0.25
        bar.update(2)
    assert [state.done for state, _ in display.states] == [8, 16, 24, 32, 40, 48, 56]
    bar.close()
    bar.close()
    assert display.states[-1][0] == Progress(60, 100, 0, 7.5)
    assert display.closed == 1


def test_the_last_task_is_shown_at_once_and_only_once(counters):
    clock, display = Clock(), Recording()
    bar = ProgressBar(display, counters, 10, clock)
    bar.update(9)
    assert display.states == []
    bar.update(1)
    bar.close()
    assert [state.done for state, _ in display.states] == [10]


def test_tasks_that_were_never_reported_are_in_the_last_state(counters):
    display = Recording()
    bar = ProgressBar(display, counters, 10, Clock())
    bar.update(3)
    counters.completed_tasks = 5  # the call ended with an error
    bar.close()
    assert [state.done for state, _ in display.states] == [5]


def test_failures_and_retries_are_read_from_the_call(counters):
    clock, display = Clock(), Recording()
    bar = ProgressBar(display, counters, None, clock)
    counters.failed_tasks, counters.retried_tasks = 2, 3
    bar.update(4)
    bar.close()
    assert display.states == [(Progress(4, None, 2, 0.0), 3)]


def test_the_screen_is_left_in_order_when_showing_fails(counters):
    class Failing(Recording):
        def show(self, state, retried):
            raise OSError("closed")

    display = Failing()
    bar = ProgressBar(display, counters, 10, Clock())
    with pytest.raises(OSError, match="closed"):
        bar.close()
    assert display.closed == 1


def test_a_record_computes_rate_and_remaining_time():
    state = Progress(50, 200, 2, 10.0)
    assert (state.rate, state.remaining) == (5.0, 30.0)
    assert Progress(0, 200, 0, 0.0).rate == 0.0
    assert Progress(0, 200, 0, 1.0).remaining is None
    assert Progress(5, None, 0, 1.0).remaining is None


@pytest.mark.parametrize(
    ("state", "retried", "line"),
    [
        (
            Progress(50, 200, 2, 10.0),
            1,
            "50/200 (25%), 5.0 tasks/s, 00:10 elapsed, 00:30 left, 2 failed, 1 retried",
        ),
        (Progress(5, None, 0, 2.0), 0, "5 done, 2.5 tasks/s, 00:02 elapsed"),
        (Progress(1, 1, 0, 3725.0), 0, "1/1 (100%), 0.0 tasks/s, 1:02:05 elapsed"),
    ],
)
def test_a_state_is_written_on_a_line(state, retried, line):
    assert format_line(state, retried) == line
    assert format_line(state, retried, "fit") == f"fit: {line}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_is_rewritten_on_a_terminal(counters, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.start("line", counters, 4, "fit")
    bar.update(4)
    bar.close()
    text = stream.getvalue()
    assert text.startswith("\rfit: 4/4 (100%)")
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_a_log_file_gets_whole_lines(counters, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.start("line", counters, 4)
    bar.update(3)
    bar.close()
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("3/4 (75%)")


def test_a_callable_gets_the_record(counters):
    seen = []
    bar = progress.start(seen.append, counters, 4)
    bar.update(3)
    bar.update(1)
    bar.close()
    assert (seen[-1].done, seen[-1].total, seen[-1].failed) == (4, 4, 0)


@pytest.mark.parametrize("backend", ["processes", "threading", "sequential"])
def test_tiny_tasks_are_counted_in_batches_or_at_intervals(backend, monkeypatch):
    updates = []
    monkeypatch.setattr(ProgressBar, "update", lambda self, n: updates.append(n))
    begin = time.monotonic()
    Parallel(n_jobs=2, backend=backend, batch_size=1000, progress=lambda state: None)(
        delayed(abs)(i) for i in range(20_000)
    )
    elapsed = time.monotonic() - begin
    assert sum(updates) == 20_000
    most = 200 if backend == "processes" else elapsed / REPORT_INTERVAL + 3
    assert len(updates) <= most


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_of_every_kind_of_result(backend, n_jobs, return_as):
    seen = []
    with parallel_config(progress=seen.append):
        parallel = Parallel(n_jobs=n_jobs, backend=backend, return_as=return_as)
        results = parallel(delayed(abs)(i) for i in range(5))
        assert sorted(results) == [0, 1, 2, 3, 4]
    # A generator has no length.
    assert (seen[-1].done, seen[-1].total, seen[-1].failed) == (5, None, 0)


def test_failures_and_retries_so_far_are_shown(backend, capsys):
    parallel = Parallel(
        n_jobs=2, backend=backend, progress="line", on_error="return", retries=1
    )
    parallel([delayed(int)(text) for text in ("1", "one", "2", "two")])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "4/4 (100%), " in last
    assert last.endswith(", 2 failed, 2 retried")


def test_an_error_of_the_callable_reaches_the_engine(counters):
    def fail(state):
        raise RuntimeError("stop")

    bar = progress.start(fail, counters, 4)
    with pytest.raises(RuntimeError, match="stop"):
        bar.update(4)


def test_tqdm_shows_done_failures_and_label_and_starts_no_thread(counters, capsys):
    pytest.importorskip("tqdm")
    before = threading.enumerate()
    bar = progress.start(True, counters, 4, "fit")
    counters.failed_tasks = 1
    bar.update(4)
    assert threading.enumerate() == before
    bar.close()
    shown = capsys.readouterr().err.split("\r")[-1]
    assert shown.startswith("fit: 100%")
    assert "4/4" in shown
    assert "1 failed" in shown


def test_a_plain_line_stands_in_for_tqdm(counters, capsys, monkeypatch):
    for name in ("tqdm", "tqdm.std", "tqdm.notebook"):
        monkeypatch.setitem(sys.modules, name, None)
    bar = progress.start(True, counters, 4)
    bar.update(4)
    bar.close()
    assert capsys.readouterr().err.startswith("4/4 (100%)")
    with pytest.raises(ImportError, match="pip install tqdm"):
        progress.start("tqdm", counters, 4)


def fake_notebook(monkeypatch, widgets):
    class ZMQInteractiveShell:
        pass

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    found = object() if widgets else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_the_widget_if_it_can_show_it(monkeypatch, widgets):
    pytest.importorskip("tqdm")
    fake_notebook(monkeypatch, widgets)
    notebook = types.ModuleType("tqdm.notebook")
    notebook.tqdm = "the widget"
    monkeypatch.setitem(sys.modules, "tqdm.notebook", notebook)
    assert (progress._tqdm_class() == "the widget") == widgets


def test_rich_shows_done_and_failures_and_starts_no_thread(counters, capsys):
    pytest.importorskip("rich")
    before = threading.enumerate()
    bar = progress.start("rich", counters, 4, "fit")
    counters.failed_tasks = 1
    bar.update(4)
    assert threading.enumerate() == before
    bar.close()
    shown = capsys.readouterr().err
    assert "fit" in shown
    assert "4/4" in shown
    assert "1 failed" in shown


def test_a_missing_rich_is_told_with_its_command(counters, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match="pip install rich"):
        progress.start("rich", counters, 4)


@pytest.mark.parametrize("choice", ["fancy", 3, ["tqdm"]])
def test_an_unknown_choice_is_refused(counters, choice):
    with pytest.raises(ValueError, match="progress must be True, False, 'tqdm'"):
        progress.start(choice, counters, 4)


def test_neither_bar_is_imported_before_it_is_asked_for():
    code = (
        "import sys, fastjob.progress; assert not {'tqdm', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
