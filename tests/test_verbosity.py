"""The messages of a call: joblib's words, at joblib's moments."""

import io
import re
import sys
import types

import pytest

from fastjob import Parallel, delayed, verbosity
from fastjob._core.call import Counters


def fail():
    raise ValueError


def said(capsys):
    """Return the messages on stderr with durations replaced."""
    return re.sub(r"\d+\.\ds", "0.0s", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "   0.0s"),
        (59.96, "  60.0s"),
        (60, "  60.0s"),
        (60.1, " 1.0min"),
        (600, "10.0min"),
        (36000, "600.0min"),
    ],
)
def test_durations_have_a_fixed_width(seconds, text):
    assert verbosity.short_time(seconds) == text


def test_counts_are_as_wide_as_the_total():
    assert verbosity.consuming(3, 10, 0) == "Done  3 out of 10 | elapsed:    0.0s"
    assert verbosity.consuming(3, 5, 0) == "Done 3 out of 5 | elapsed:    0.0s"
    assert verbosity.consuming(3, None, 0) == "Done   3 tasks      | elapsed:    0.0s"
    assert verbosity.finished(12, None, 90) == (
        "Done  12 out of  12 | elapsed:  1.5min finished"
    )


def test_the_remaining_time_is_what_the_tasks_so_far_suggest():
    assert verbosity.draining(3, 10, None, 3.0, 50, 0) == (
        "Done   3 out of  10 | elapsed:    3.0s remaining:    7.0s"
    )
    assert verbosity.draining(0, 10, None, 3.0, 50, 0).endswith("remaining:   30.0s")


def test_the_last_message_but_one_is_left_out():
    assert verbosity.draining(9, 10, None, 3.0, 50, 0) is None


def test_few_messages_come_while_draining_unless_asked_for():
    shown = [
        verbosity.draining(i, 100, None, 1.0, 10, 4) is not None for i in range(1, 99)
    ]
    assert sum(shown) == 9


@pytest.mark.parametrize("verbose", [1, 2, 5, 10])
def test_messages_come_ever_more_rarely_as_in_joblib(verbose):
    joblib = pytest.importorskip("joblib.parallel")
    for index in range(2000):
        expected = joblib._verbosity_filter(index, verbose)
        assert verbosity.is_quiet(index, verbose) == expected


def test_above_ten_every_completion_is_reported():
    assert not any(verbosity.is_quiet(i, 11) for i in range(100))


@pytest.mark.parametrize("verbose", [1, 5, 11])
@pytest.mark.parametrize("n_tasks", [0, 1, 3, 12, 130])
@pytest.mark.parametrize("sized", [True, False])
def test_a_plain_loop_says_what_joblib_says(verbose, n_tasks, sized, capsys):
    joblib = pytest.importorskip("joblib")
    spoken = []
    for module in (sys.modules["fastjob"], joblib):
        tasks = [module.delayed(abs)(i) for i in range(n_tasks)]
        module.Parallel(n_jobs=1, verbose=verbose)(tasks if sized else iter(tasks))
        spoken.append(said(capsys))
    assert spoken[0] == spoken[1]


def states(total):
    """Every (dispatched, completed, more to come) of a call of so many tasks."""
    for dispatched in range(total + 1):
        for completed in range(dispatched + 1):
            yield dispatched, completed, dispatched < total


@pytest.mark.parametrize("verbose", [1, 2, 5, 10, 11, 49, 50, 100])
@pytest.mark.parametrize("total", [1, 2, 9, 40])
@pytest.mark.parametrize("sized", [True, False])
def test_at_every_moment_of_a_call_the_words_are_joblibs(
    verbose, total, sized, monkeypatch
):
    """Each is brought into the same state, at the same time, and asked to report."""
    joblib = pytest.importorskip("joblib")
    monkeypatch.setattr("fastjob.reporting.time", lambda: 1075.0)
    clock = types.SimpleNamespace(time=lambda: 1075.0)
    monkeypatch.setattr("joblib.parallel.time", clock)
    ours = Parallel(n_jobs=2, verbose=verbose)
    ours._counters = Counters()
    theirs = joblib.Parallel(n_jobs=2, verbose=verbose)
    said = []
    monkeypatch.setattr(Parallel, "_print", lambda self, text: said.append(text))
    monkeypatch.setattr(joblib.Parallel, "_print", lambda self, text: said.append(text))
    n_said = 0
    for dispatched, completed, more in states(total):
        for parallel in (ours, theirs):
            parallel._start_time = 1000.0
            parallel._pre_dispatch_amount = 4
            parallel._original_iterator = parallel if more else None
            parallel.n_tasks = total if sized else None
        ours._counters.dispatched_tasks = theirs.n_dispatched_tasks = dispatched
        ours._counters.dispatched_batches = theirs.n_dispatched_batches = dispatched
        ours._counters.completed_tasks = theirs.n_completed_tasks = completed
        theirs._iterating = more
        theirs._aborting = False
        said.clear()
        ours.print_progress()
        mine = said.copy()
        said.clear()
        theirs.print_progress()
        assert mine == said
        n_said += len(mine)
    assert n_said


def test_a_parallel_call_begins_with_its_backend_and_ends_finished(
    parallel_backend, capsys
):
    Parallel(n_jobs=2, backend=parallel_backend, verbose=1)(
        delayed(abs)(i) for i in range(10)
    )
    lines = said(capsys).splitlines()
    name, rest = lines[0].split("Using backend ")
    assert name == "[Parallel(n_jobs=2)]: "
    assert re.fullmatch(r"\w+Backend with 2 concurrent workers\.", rest)
    assert lines[-1] == (
        "[Parallel(n_jobs=2)]: Done  10 out of  10 | elapsed:    0.0s finished"
    )


def test_every_completion_is_counted_once(parallel_backend, capsys):
    Parallel(n_jobs=2, backend=parallel_backend, verbose=11, batch_size=1)(
        [delayed(abs)(i) for i in range(8)]
    )
    lines = said(capsys).splitlines()
    counts = [int(re.search(r"Done (\d)", line)[1]) for line in lines[1:-1]]
    assert len(counts) >= 6
    assert counts == sorted(set(counts))
    assert lines[-1].endswith("Done 8 out of 8 | elapsed:    0.0s finished")


def test_from_fifty_on_messages_go_to_stdout(capsys):
    Parallel(n_jobs=1, verbose=50)([delayed(abs)(1)])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("[Parallel(n_jobs=1)]: Done 1 out of 1")


def test_a_failed_call_does_not_say_that_it_has_finished(parallel_backend, capsys):
    with pytest.raises(ValueError):
        Parallel(n_jobs=2, backend=parallel_backend, verbose=11)([delayed(fail)()])
    assert "finished" not in capsys.readouterr().err


def test_silence_is_the_default(backend, capsys):
    Parallel(n_jobs=2, backend=backend)(delayed(abs)(i) for i in range(3))
    assert capsys.readouterr() == ("", "")


def test_a_subclass_may_print_elsewhere():
    class Mine(Parallel):
        out = io.StringIO()

        def _print(self, message):
            self.out.write(f"{message}\n")

    Mine(n_jobs=1, verbose=11)([delayed(abs)(1)])
    assert Mine.out.getvalue().splitlines()[0].startswith("Done 1 out of 1 | elapsed:")
