"""The plain loop."""

from __future__ import annotations

import itertools
import signal
import threading
import weakref

import pytest

from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob._core.sequential import SequentialEngine
from fastjob.backends.sequential import SequentialBackend
from fastjob.errors import RemoteTraceback, TaskError


def engine(**options):
    return SequentialEngine(Call(1, **options))


def square(x):
    return x * x


class Value:
    """Something that can be watched going away."""


class Failing:
    """Fails the first few times that it is called."""

    def __init__(self, failures, error=None):
        self.failures = failures
        self.error = error or ValueError("not yet")
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_results_in_order(n):
    expected = [square(i) for i in range(n)]
    assert engine().run(delayed(square)(i) for i in range(n)) == expected
    assert list(engine().stream(delayed(square)(i) for i in range(n))) == expected


def test_tasks_run_in_the_calling_thread_one_by_one_as_they_are_taken():
    log = []

    def produce():
        for i in range(3):
            log.append(f"take {i}")
            yield delayed(log.append)(f"run {i}")

    engine(ahead=2).run(produce())
    assert log == ["take 0", "run 0", "take 1", "run 1", "take 2", "run 2"]
    assert engine().run([delayed(threading.get_ident)()]) == [threading.get_ident()]


def test_a_stream_computes_what_is_asked_for():
    ran = []
    stream = engine().stream(delayed(ran.append)(i) for i in range(9))
    assert ran == []
    next(stream)
    next(stream)
    assert ran == [0, 1]
    stream.close()
    assert list(stream) == []
    assert ran == [0, 1]


def test_closing_a_stream_closes_the_input():
    closed = []

    def produce():
        try:
            while True:
                yield delayed(square)(1)
        finally:
            closed.append(True)

    stream = engine().stream(produce())
    next(stream)
    stream.close()
    assert closed == [True]


def test_a_task_and_its_arguments_are_dropped_before_the_next_one():
    gone = []

    def produce():
        for _ in range(3):
            value = Value()
            gone.append(weakref.ref(value))
            task = delayed(lambda value: None)(value)
            del value
            yield task
            del task
            assert gone[-1]() is None

    engine().run(produce())
    assert len(gone) == 3


def test_the_error_of_a_task_ends_the_call():
    ran = []

    def run(i):
        ran.append(i)
        if i == 2:
            raise KeyError("two")

    with pytest.raises(KeyError, match="two") as info:
        engine().run(delayed(run)(i) for i in range(9))
    assert ran == [0, 1, 2]
    assert isinstance(info.value.__cause__, RemoteTraceback)
    assert "task 2" in str(info.value.__cause__)


def test_values_can_be_kept_out_of_the_traceback():
    def run(secret):
        raise KeyError

    with pytest.raises(KeyError) as info:
        engine(show_values=False).run([delayed(run)("pass" + "word")])
    assert "password" not in str(info.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_ends_the_call_in_any_case(error):
    failing = Failing(9, error)
    with pytest.raises(type(error)):
        engine(return_errors=True, retries=5).run([delayed(failing)()])
    assert failing.calls == 1


def test_an_error_of_the_input_comes_as_it_is():
    def produce():
        yield delayed(square)(1)
        raise KeyError("input")

    with pytest.raises(KeyError, match="input") as info:
        engine(return_errors=True).run(produce())
    assert info.value.__cause__ is None


def test_an_error_in_a_stream_ends_it():
    stream = engine().stream([delayed(square)(1), delayed(square)("x")] * 2)
    assert next(stream) == 1
    with pytest.raises(TypeError):
        next(stream)
    assert list(stream) == []


def test_errors_can_be_returned():
    tasks = [delayed(square)(2), delayed(square)("x"), delayed(square)(3)]
    call = Call(1, return_errors=True)
    first, error, last = SequentialEngine(call).run(tasks)
    assert (first, last) == (4, 9)
    assert isinstance(error, TaskError)
    assert (error.index, error.attempts) == (1, 1)
    assert isinstance(error.exception, TypeError)
    assert "square" in error.traceback
    assert error.elapsed > 0
    assert call.counters.failed_tasks == 1
    assert call.counters.completed_tasks == 3


@pytest.mark.parametrize(("failures", "retries"), [(0, 0), (1, 1), (2, 2), (1, 5)])
def test_a_failed_task_is_run_again(failures, retries):
    call = Call(1, retries=retries)
    assert SequentialEngine(call).run([delayed(Failing(failures))()]) == [failures + 1]
    assert call.counters.retried_tasks == failures


def test_retries_run_out():
    failing = Failing(9)
    with pytest.raises(ValueError, match="not yet"):
        engine(retries=2).run([delayed(failing)()])
    assert failing.calls == 3
    (error,) = engine(retries=2, return_errors=True).run([delayed(Failing(9))()])
    assert error.attempts == 3


def test_completions_are_reported():
    call = None
    seen = []

    def on_batch(n):
        seen.append((n, call.counters.completed_tasks))

    call = Call(1, on_batch=on_batch)
    SequentialEngine(call).run(delayed(square)(i) for i in range(3))
    assert seen == [(1, 1), (1, 2), (1, 3)]


def test_an_error_of_the_report_ends_the_call():
    def on_batch(n):
        raise OSError("report")

    with pytest.raises(OSError, match="report"):
        engine(on_batch=on_batch, return_errors=True).run([delayed(square)(1)] * 3)


@pytest.mark.parametrize(("batch_size", "batches"), [(0, 10), (1, 10), (3, 4), (99, 1)])
def test_tasks_and_batches_are_counted(batch_size, batches):
    call = Call(1, batch_size=batch_size)
    SequentialEngine(call).run(delayed(square)(i) for i in range(10))
    assert call.counters.dispatched_tasks == call.counters.completed_tasks == 10
    assert call.counters.dispatched_batches == batches


def test_a_stream_that_is_computing_refuses_a_second_reader():
    stream = None

    def read_own_stream():
        return next(stream)

    stream = engine().stream([delayed(read_own_stream)()])
    with pytest.raises(ValueError, match="already being computed"):
        next(stream)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_signal_is_heard_though_no_bytecode_runs():
    n = 5_000_000
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        call = Call(1)
        tasks = itertools.repeat((abs, (1,), {}), n)
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            SequentialEngine(call).run(tasks)
        assert call.counters.completed_tasks < n
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestBackend:
    def test_it_has_one_worker(self):
        backend = SequentialBackend(nesting_level=0)
        assert [backend.effective_n_jobs(n) for n in (None, 1, 8, -1)] == [1] * 4
        with pytest.raises(ValueError, match="has no meaning"):
            backend.effective_n_jobs(0)

    def test_it_runs_calls(self):
        run = SequentialBackend().open_call(Call(1)).run
        assert run([delayed(square)(3)]) == [9]

    def test_what_it_supports(self):
        backend = SequentialBackend()
        assert backend.supports_sharedmem
        assert backend.uses_threads
        assert backend.supports_return_generator
        assert not backend.supports_timeout

    def test_it_has_no_options(self):
        with pytest.raises(TypeError, match="no option"):
            SequentialBackend(idle_worker_timeout=3)
