"""Reports of single tasks: together while they are due rarely, and none is lost."""

import pytest

from fastjob import Parallel, delayed
from fastjob._core.call import Call
from fastjob._core.sequential import SequentialEngine
from fastjob._core.threads import ThreadEngine

ENGINES = [(SequentialEngine, 1), (ThreadEngine, 1), (ThreadEngine, 3)]
N = 10_000


def tasks(n):
    return iter([(abs, (i,), {}) for i in range(n)])


@pytest.mark.parametrize(("engine", "n_jobs"), ENGINES)
@pytest.mark.parametrize("ahead", [0, 4])
def test_reports_that_are_not_due_come_together_at_the_end(engine, n_jobs, ahead):
    seen = []
    call = Call(n_jobs, on_batch=seen.append, report_interval=3600.0, ahead=ahead)
    assert engine(call).run(tasks(N)) == list(range(N))
    assert sum(seen) == N
    assert len(seen) <= n_jobs


@pytest.mark.parametrize(("engine", "n_jobs"), ENGINES)
def test_each_task_is_reported_where_that_is_asked_for(engine, n_jobs):
    seen = []
    engine(Call(n_jobs, on_batch=seen.append)).run(tasks(100))
    assert seen == [1] * 100


@pytest.mark.parametrize(("engine", "n_jobs"), ENGINES)
def test_reports_that_are_due_come_on_the_way(engine, n_jobs):
    # Due at each tick of the clock: the tasks are run until it has ticked twice.
    seen = []

    def endless():
        i = 0
        while len(seen) < 2:
            yield abs, (i,), {}
            i += 1

    call = Call(n_jobs, on_batch=seen.append, report_interval=1e-9, ahead=4)
    results = engine(call).run(endless())
    assert sum(seen) == len(results)
    assert seen[0] < len(results)


@pytest.mark.parametrize(("engine", "n_jobs"), ENGINES)
def test_an_error_of_a_late_report_ends_the_call(engine, n_jobs):
    def fail(n):
        raise RuntimeError("stop")

    call = Call(n_jobs, on_batch=fail, report_interval=3600.0)
    with pytest.raises(RuntimeError, match="stop"):
        engine(call).run(tasks(50))


def test_a_stream_reports_what_is_left_at_its_end():
    seen = []
    call = Call(1, on_batch=seen.append, report_interval=3600.0)
    assert list(SequentialEngine(call).stream(tasks(7))) == list(range(7))
    assert seen == [7]


def test_progress_alone_asks_for_few_reports_and_ends_exact(backend):
    seen = []
    Parallel(n_jobs=2, backend=backend, progress=seen.append)(
        delayed(abs)(i) for i in range(1000)
    )
    assert seen[-1].done == 1000
    assert seen[-1].failed == 0


def fail_at_seven(i):
    if i == 7:
        raise ValueError(i)


def test_progress_counts_failures(backend):
    seen = []
    Parallel(n_jobs=2, backend=backend, progress=seen.append, on_error="return")(
        [delayed(fail_at_seven)(i) for i in range(10)]
    )
    assert (seen[-1].done, seen[-1].total, seen[-1].failed) == (10, 10, 1)


@pytest.mark.parametrize("how", ["generator", "generator_unordered"])
def test_progress_follows_a_stream(backend, how):
    seen = []
    out = Parallel(n_jobs=2, backend=backend, progress=seen.append, return_as=how)(
        [delayed(abs)(i) for i in range(10)]
    )
    assert sorted(out) == list(range(10))
    assert seen[-1].done == 10


def test_progress_is_closed_when_a_call_fails(backend):
    seen = []
    with pytest.raises(ValueError, match="7"):
        Parallel(n_jobs=2, backend=backend, progress=seen.append)(
            [delayed(fail_at_seven)(i) for i in range(10)]
        )
    assert all(state.done < 10 for state in seen)
