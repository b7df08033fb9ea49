"""The engine that runs tasks in threads, and the threads that it leases."""

from __future__ import annotations

import contextvars
import ctypes
import gc
import itertools
import os
import random
import signal
import threading
import time
import weakref

import pytest
from gates import until

from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob._core.threads import ThreadEngine
from fastjob._core.warm_threads import count_idle_threads, end_idle_threads
from fastjob.backends.threading import ThreadingBackend
from fastjob.errors import RemoteTraceback, TaskError, TaskTimeoutError
from fastjob.recorder import Recorder

WAIT = 30.0


def call_of(n_jobs=2, **options):
    options.setdefault("ahead", 2 * n_jobs)
    return Call(n_jobs, **options)


def engine(n_jobs=2, **options):
    return ThreadEngine(call_of(n_jobs, **options))


def square(x):
    return x * x


def end_threads():
    """End all threads of the pool; they have then left the calls that they served."""
    threads = [t for t in threading.enumerate() if t.name.startswith("fastjob-thread")]
    end_idle_threads()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


class Value:
    """Something that can be watched going away."""


class Asynchronous(Exception):
    """Set in a thread by another one."""


class Gate:
    """Tasks that stay inside until the gate is opened."""

    def __init__(self, n=1):
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def task(self, value=None):
        self.entered.release()
        assert self.open.wait(WAIT)
        return value

    def await_entry(self, n=1):
        for _ in range(n):
            assert self.entered.acquire(timeout=WAIT)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def in_thread(function):
    """Start a thread; return what waits for it and gives its result."""
    box = []

    def run():
        try:
            box.append(function())
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(WAIT)
        assert not thread.is_alive()
        return box[0]

    join.ident = thread.ident
    return join


class TestResults:
    @pytest.mark.parametrize("n_jobs", [1, 2, 7])
    @pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
    def test_come_in_order(self, n_jobs, n):
        expected = [square(i) for i in range(n)]
        tasks = [delayed(square)(i) for i in range(n)]
        assert engine(n_jobs).run(iter(tasks)) == expected
        assert list(engine(n_jobs).stream(tasks)) == expected
        assert sorted(engine(n_jobs, ordered=False).stream(tasks)) == expected

    @pytest.mark.parametrize("ahead", [0, 1, 3, 100])
    @pytest.mark.parametrize("ahead_in_batches", [True, False])
    @pytest.mark.parametrize("batch_size", [0, 1, 5])
    def test_come_in_order_whatever_the_window(
        self, ahead, ahead_in_batches, batch_size
    ):
        options = {
            "ahead": ahead,
            "ahead_in_batches": ahead_in_batches,
            "batch_size": batch_size,
        }
        call = call_of(3, **options)
        results = ThreadEngine(call).run(delayed(square)(i) for i in range(100))
        assert results == [square(i) for i in range(100)]
        assert call.counters.dispatched_tasks == call.counters.completed_tasks == 100
        assert call.counters.dispatched_batches == 100 // max(1, batch_size)

    def test_come_as_they_are_ready_if_the_order_does_not_matter(self, gate):
        tasks = [delayed(gate.task)("slow"), delayed(square)(3)]
        stream = engine(ordered=False).stream(tasks)
        assert next(stream) == 9
        gate.open.set()
        assert list(stream) == ["slow"]

    def test_are_dropped_when_they_are_handed_over(self):
        stream = engine().stream(delayed(Value)() for _ in range(10))
        for value in stream:
            gone = weakref.ref(value)
            del value
            assert gone() is None

    def test_come_from_as_many_threads_as_asked_for(self):
        barrier = threading.Barrier(5)
        idents = engine(5).run(
            delayed(lambda: (barrier.wait(WAIT), threading.get_ident())[1])()
            for _ in range(10)
        )
        assert len(set(idents)) == 5
        assert threading.get_ident() not in idents

    def test_an_engine_runs_one_call(self):
        used = engine()
        used.run([])
        with pytest.raises(RuntimeError, match="one call"):
            used.run([])


class TestWindow:
    def test_the_input_is_taken_as_tasks_complete(self):
        log = []

        def produce():
            for _ in range(8):
                log.append("taken")
                yield delayed(log.append)("completed")

        engine(2, ahead=3, ahead_in_batches=False).run(produce())
        assert log[:4] == ["taken"] * 3 + ["completed"]
        for i in range(len(log)):
            assert log[:i].count("taken") <= 3 + log[:i].count("completed")
        assert log.count("completed") == 8

    def test_without_limit_all_is_taken_before_a_task_is_done(self, gate):
        taken = []

        def produce():
            for i in range(200):
                taken.append(i)
                yield delayed(gate.task)(i)
            gate.open.set()

        assert engine(2, ahead=0).run(produce()) == taken

    def test_a_slow_reader_holds_the_tasks_up(self):
        taken = []

        def produce():
            for i in range(1000):
                taken.append(i)
                yield delayed(square)(i)

        stream = engine(2, ahead=4).stream(produce())
        for i in range(1000):
            assert next(stream) == square(i)
            assert len(taken) <= i + 1 + 4
        assert list(stream) == []

    def test_tasks_go_on_while_the_reader_is_away(self):
        ran = threading.Semaphore(0)
        stream = engine(2, ahead=4).stream(delayed(ran.release)() for _ in range(50))
        for _ in range(4):
            assert ran.acquire(timeout=WAIT)
        stream.close()

    def test_arguments_are_dropped_with_their_task(self):
        live = weakref.WeakSet()

        def produce():
            for _ in range(50):
                value = Value()
                live.add(value)
                yield delayed(lambda value: len(live))(value)
                del value

        assert max(engine(1, ahead=2, ahead_in_batches=False).run(produce())) <= 3

    def test_the_input_is_not_entered_twice_at_a_time(self):
        inside = threading.Lock()

        def produce():
            for i in range(500):
                assert inside.acquire(blocking=False)
                inside.release()
                yield delayed(square)(i)

        assert len(engine(4).run(produce())) == 500

    def test_one_thread_more_makes_up_for_a_slow_input(self, gate):
        # The input waits until two tasks run at the same time as it does.
        together = []

        def produce():
            for i in range(200):
                inside.clear()
                if i > 100 and not together:
                    if sum(running) == 2:
                        together.append(i)
                    inside.wait(1e-3)
                else:
                    inside.wait(1e-3)
                yield delayed(task)(i)

        def task(i):
            running.append(1)
            peak.append(sum(running))
            inside.wait(3e-3)
            running.append(-1)
            return i

        running, peak = [], []
        inside = threading.Event()
        assert engine(2).run(produce()) == list(range(200))
        assert together
        assert max(peak) <= 2


class TestErrors:
    def test_an_error_of_a_task_ends_the_call_at_once(self, gate):
        def fail():
            gate.await_entry()
            raise KeyError("task")

        tasks = [delayed(gate.task)(), delayed(fail)(), *[delayed(square)(1)] * 9]
        call = call_of(2)
        with pytest.raises(KeyError, match="task") as info:
            ThreadEngine(call).run(tasks)
        assert isinstance(info.value.__cause__, RemoteTraceback)
        assert "task 1" in str(info.value.__cause__)
        assert call.counters.completed_tasks == 0
        assert call.counters.failed_tasks == 1

    def test_a_failed_call_starts_no_further_task(self):
        ran = []

        def task(i):
            if i == 3:
                raise KeyError
            ran.append(i)

        with pytest.raises(KeyError):
            engine(1).run(delayed(task)(i) for i in range(100))
        assert ran == [0, 1, 2]

    def test_results_that_come_too_late_go_to_nobody(self, gate):
        def fail():
            gate.await_entry()
            raise KeyError

        with pytest.raises(KeyError):
            engine(2).run([delayed(gate.task)("late"), delayed(fail)()])
        gate.open.set()
        for _ in range(20):
            assert engine(2).run([delayed(square)(2), delayed(square)(3)]) == [4, 9]

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
    def test_what_is_no_exception_reaches_the_caller_in_any_case(self, error):
        def task():
            raise error

        with pytest.raises(type(error)):
            engine(return_errors=True, retries=3).run([delayed(task)()])

    @pytest.mark.parametrize("n", [0, 1, 50])
    def test_an_error_of_the_input_ends_the_call(self, n):
        def produce():
            for i in range(n):
                yield delayed(square)(i)
            raise KeyError("input")

        with pytest.raises(KeyError, match="input") as info:
            engine(return_errors=True).run(produce())
        assert info.value.__cause__ is None
        with pytest.raises(KeyError, match="input"):
            list(engine(return_errors=True).stream(produce()))

    def test_what_is_no_task_ends_the_call(self):
        with pytest.raises(TypeError, match="Task 20 of the input is not a task"):
            engine().run([*[delayed(square)(1)] * 20, square])
        with pytest.raises(TypeError, match="iterable"):
            engine().run(3)

    def test_an_error_comes_before_results_that_are_unread(self):
        def produce():
            yield delayed(square)(1)
            yield delayed(square)("x")

        stream = engine(1).stream(produce())
        with pytest.raises(TypeError):
            for _ in range(2):
                next(stream)
        assert list(stream) == []

    def test_errors_can_be_returned(self):
        call = call_of(2, return_errors=True)
        tasks = [delayed(square)("x" if i % 3 == 0 else i) for i in range(9)]
        results = ThreadEngine(call).run(tasks)
        errors = results[::3]
        assert all(isinstance(error, TaskError) for error in errors)
        assert [error.index for error in errors] == [0, 3, 6]
        assert all("square" in error.traceback for error in errors)
        assert [r for i, r in enumerate(results) if i % 3] == [1, 4, 16, 25, 49, 64]
        assert call.counters.failed_tasks == 3
        assert call.counters.completed_tasks == 9

    def test_failed_tasks_are_run_again(self):
        lock, calls = threading.Lock(), {}

        def task(i):
            with lock:
                calls[i] = calls.get(i, 0) + 1
            if calls[i] <= i % 3:
                raise OSError("flaky")
            return i

        call = call_of(3, retries=2)
        assert ThreadEngine(call).run(delayed(task)(i) for i in range(30)) == list(
            range(30)
        )
        assert call.counters.retried_tasks == 30
        assert calls == {i: i % 3 + 1 for i in range(30)}
        calls.clear()
        call = call_of(3, retries=1, return_errors=True)
        results = ThreadEngine(call).run(delayed(task)(i) for i in range(30))
        assert [r.attempts for r in results[2::3]] == [2] * 10

    def test_completions_are_reported_one_at_a_time(self):
        inside, seen = threading.Lock(), []

        def on_batch(n):
            assert inside.acquire(blocking=False)
            seen.append(call.counters.completed_tasks)
            inside.release()
            assert n == 1

        call = call_of(4, on_batch=on_batch)
        ThreadEngine(call).run(delayed(square)(i) for i in range(500))
        assert len(seen) == 500
        assert seen == sorted(seen)
        assert seen[-1] == 500

    def test_all_is_reported_when_the_call_returns(self):
        for _ in range(50):
            seen = []
            engine(4, on_batch=seen.append).run([delayed(square)(1)] * 8)
            assert len(seen) == 8

    def test_an_error_of_the_report_ends_the_call(self):
        def on_batch(n):
            raise OSError("report")

        with pytest.raises(OSError, match="report"):
            engine(on_batch=on_batch, return_errors=True).run([delayed(square)(1)] * 9)

    @pytest.mark.parametrize("n_jobs", [1, 3])
    def test_no_thread_to_be_had_is_an_error(self, n_jobs, monkeypatch):
        def start(self):
            raise RuntimeError("can't start new thread")

        end_threads()
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            engine(n_jobs).run([delayed(square)(1)] * 5)

    def test_a_call_goes_on_with_the_threads_it_can_have(self, monkeypatch):
        start, started = threading.Thread.start, []

        def start_one(self):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
            start(self)

        end_threads()
        monkeypatch.setattr(threading.Thread, "start", start_one)
        tasks = (delayed(square)(i) for i in range(50))
        assert engine(4).run(tasks) == [square(i) for i in range(50)]


@pytest.mark.filterwarnings("ignore:A thread cannot be stopped:RuntimeWarning")
class TestTimeout:
    def test_a_stuck_task_fails_the_call(self, gate):
        with (
            pytest.warns(RuntimeWarning, match=r"task 1, .*task, was given up"),
            pytest.raises(TaskTimeoutError, match=r"task 1: .* timeout=0\.05") as info,
        ):
            engine(2, timeout=0.05).run([delayed(square)(1), delayed(gate.task)()])
        assert isinstance(info.value, TimeoutError)
        assert info.value.index == 1

    def test_time_in_the_queue_does_not_count(self, gate):
        def task():
            return threading.Event().wait(0.02)

        assert engine(1, timeout=0.5).run([delayed(task)()] * 40) == [False] * 40

    def test_others_take_the_place_of_threads_given_up(self, gate):
        tasks = [*[delayed(gate.task)()] * 5, delayed(square)(3)]
        call = call_of(2, timeout=0.02, return_errors=True)
        *errors, last = ThreadEngine(call).run(tasks)
        assert last == 9
        assert [type(error.exception) for error in errors] == [TaskTimeoutError] * 5
        assert call.counters.failed_tasks == 5

    def test_a_task_that_is_stuck_once_is_run_again(self, gate):
        calls = []

        def task():
            calls.append(None)
            if len(calls) == 1:
                gate.task()
            return "second"

        call = call_of(1, timeout=0.05, retries=1)
        assert ThreadEngine(call).run([delayed(task)()]) == ["second"]
        assert call.counters.retried_tasks == 1

    def test_a_task_that_overran_while_nobody_looked_has_failed(self):
        done = threading.Event()

        def task():
            threading.Event().wait(0.05)
            done.set()

        stream = engine(1, timeout=0.001).stream([delayed(task)()])
        assert done.wait(WAIT)
        with pytest.raises(TaskTimeoutError):
            next(stream)

    def test_a_late_result_is_dropped(self, gate):
        tasks = [delayed(gate.task)("late")]
        (error,) = engine(1, timeout=0.02, return_errors=True).run(tasks)
        gate.open.set()
        assert isinstance(error, TaskError)
        assert engine(1).run([delayed(square)(2)]) == [4]

    def test_tasks_in_time_are_left_alone(self):
        call = call_of(2, timeout=WAIT)
        tasks = (delayed(square)(i) for i in range(100))
        assert ThreadEngine(call).run(tasks) == [square(i) for i in range(100)]


class TestStreams:
    @pytest.mark.parametrize("how", ["drop", "close", "cycle"])
    def test_one_that_is_left_half_read_stops(self, how):
        closed = threading.Event()

        def produce():
            try:
                for i in itertools.count():
                    yield delayed(square)(i)
            finally:
                closed.set()

        stream = engine(2).stream(produce())
        assert [next(stream) for _ in range(10)] == [square(i) for i in range(10)]
        if how == "close":
            stream.close()
            assert list(stream) == []
        elif how == "cycle":
            cycle = [stream]
            cycle.append(cycle)
            del cycle
        del stream
        gc.collect()
        assert closed.wait(WAIT)

    def test_dropping_one_waits_for_nothing(self, gate):
        stream = engine(2).stream([delayed(gate.task)(), delayed(gate.task)()])
        gate.await_entry(2)
        del stream
        assert engine(2).run([delayed(square)(2)]) == [4]

    def test_two_can_be_read_in_turn(self):
        first = engine(2).stream(delayed(square)(i) for i in range(100))
        second = engine(2).stream(delayed(square)(-i) for i in range(100))
        pairs = list(zip(first, second, strict=True))
        assert pairs == [(square(i), square(i)) for i in range(100)]

    def test_an_error_of_the_first_tasks_input_is_raised_when_it_is_made(self):
        def produce():
            raise KeyError("first")
            yield

        with pytest.raises(KeyError, match="first"):
            engine().stream(produce())


class TestContext:
    variable = contextvars.ContextVar("variable", default="unset")

    def test_tasks_see_the_variables_of_the_caller(self):
        token = self.variable.set("caller's")
        try:
            assert engine().run([delayed(self.variable.get)()] * 5) == ["caller's"] * 5
        finally:
            self.variable.reset(token)
        assert engine().run([delayed(self.variable.get)()]) == ["unset"]

    def test_changes_in_a_task_stay_there(self):
        engine(1).run([delayed(self.variable.set)("changed")])
        assert self.variable.get() == "unset"
        assert engine(1).run([delayed(self.variable.get)()]) == ["unset"]

    def test_what_is_nested_is_entered_once_a_call(self):
        entered = []

        def enter(nested):
            entered.append(nested)
            self.variable.set(nested)

        call = call_of(2, nested="inner")
        results = ThreadEngine(call, enter).run([delayed(self.variable.get)()] * 9)
        assert results == ["inner"] * 9
        assert entered == ["inner"]
        assert self.variable.get() == "unset"

    def test_inner_threads_are_limited_while_a_task_runs(self, monkeypatch):
        from fastjob import inner_threads

        events = []

        class Limits:
            def __init__(self, limit, common):
                events.append(limit)

            def __enter__(self):
                return self

            def refresh(self):
                events.append("refresh")

            def __exit__(self, *exc_info):
                events.append("exit")

        monkeypatch.setattr(inner_threads, "limit_inner_threads", Limits)
        run = engine(1, inner_max_num_threads=3).run
        run([delayed(events.append)("task")] * 2)
        end_threads()
        assert events == [3, "refresh", "task", "refresh", "task", "exit"]


class TestInterrupts:
    @pytest.mark.posix
    def test_ctrl_c_leaves_a_call_whose_tasks_are_stuck(self, gate):
        main = threading.main_thread().ident

        def interrupt():
            gate.await_entry(2)
            signal.pthread_kill(main, signal.SIGINT)

        join = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine(2).run([delayed(gate.task)()] * 9)
        join()
        assert engine(2).run([delayed(square)(2)]) == [4]

    def test_an_exception_set_by_another_thread_does_too(self, gate):
        join = in_thread(lambda: engine(2).run([delayed(gate.task)()] * 9))
        gate.await_entry(2)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(join.ident), ctypes.py_object(Asynchronous)
        )
        assert isinstance(join(), Asynchronous)

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
    def test_signals_at_random_instants(self):
        rng = random.Random(20)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        try:
            for _ in range(200):
                n = 10 ** rng.randrange(5)
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 5e-3))
                    while True:
                        if rng.random() < 0.5:
                            engine(2).run(delayed(square)(i) for i in range(n))
                        else:
                            for _ in engine(2).stream([delayed(square)(2)] * n):
                                pass
                except KeyboardInterrupt:
                    interrupted += 1
                assert engine(2).run([delayed(square)(3)]) == [9]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted == 200


class TestThreads:
    def test_are_reused(self):
        end_threads()
        first = set(engine(1).run([delayed(threading.get_ident)()] * 3))
        for _ in range(20):
            while not count_idle_threads():
                pass
            assert set(engine(1).run([delayed(threading.get_ident)()])) == first

    def test_have_a_name_and_are_daemons(self):
        (thread,) = engine(1).run([delayed(threading.current_thread)()])
        assert thread.name.startswith("fastjob-thread-")
        assert thread.daemon

    def test_end_after_their_idle_time(self):
        end_threads()
        call = call_of(1, options={"idle_worker_timeout": 0.01})
        (thread,) = ThreadEngine(call).run([delayed(threading.current_thread)()])
        thread.join(WAIT)
        assert not thread.is_alive()
        assert count_idle_threads() == 0

    def test_can_be_told_to_end(self):
        (thread,) = engine(1).run([delayed(threading.current_thread)()])
        while not count_idle_threads():
            pass
        end_idle_threads()
        thread.join(WAIT)
        assert not thread.is_alive()

    def test_leases_that_meet_the_end_of_the_idle_time_are_not_lost(self):
        call = {"options": {"idle_worker_timeout": 1e-5}}
        for i in range(300):
            assert engine(2, **call).run([delayed(square)(i)] * 2) == [square(i)] * 2

    def test_an_idle_thread_keeps_nothing_of_a_call(self):
        end_threads()
        value = Value()
        gone = weakref.ref(value)
        engine(1).run([delayed(lambda value: None)(value)])
        while not count_idle_threads():
            pass
        del value
        gc.collect()
        assert gone() is None

    def test_calls_nest(self):
        def outer(i):
            return engine(2).run(delayed(middle)(i, j) for j in range(3))

        def middle(i, j):
            return sum(engine(2).run(delayed(square)(i + j + k) for k in range(3)))

        expected = [
            [sum(square(i + j + k) for k in range(3)) for j in range(3)]
            for i in range(3)
        ]
        assert engine(2).run(delayed(outer)(i) for i in range(3)) == expected

    def test_many_callers_at_once(self):
        def caller(seed):
            rng = random.Random(seed)
            for _ in range(40):
                n, n_jobs = rng.choice([0, 1, 3, 50, 200]), rng.choice([1, 2, 5])
                expected = [square(i) for i in range(n)]
                tasks = (delayed(square)(i) for i in range(n))
                kind = rng.randrange(4)
                if kind == 0:
                    assert engine(n_jobs).run(tasks) == expected
                elif kind == 1:
                    stream = engine(n_jobs, ordered=False).stream(tasks)
                    assert sorted(stream) == expected
                elif kind == 2:
                    stream = engine(n_jobs).stream(tasks)
                    assert list(itertools.islice(stream, 7)) == expected[:7]
                    del stream
                else:
                    bad = rng.randrange(n + 1)
                    tasks = (delayed(square)("x" if i == bad else i) for i in range(n))
                    if bad < n:
                        with pytest.raises(TypeError):
                            engine(n_jobs).run(tasks)
                    else:
                        assert engine(n_jobs).run(tasks) == expected

        joins = [in_thread(lambda seed=seed: caller(seed)) for seed in range(16)]
        assert [join() for join in joins] == [None] * 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
class TestFork:
    @staticmethod
    def in_child(function):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = function()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @staticmethod
    def run_call():
        results = engine(3).run(delayed(square)(i) for i in range(20))
        return 0 if results == [square(i) for i in range(20)] else 3

    def test_the_child_can_make_calls(self):
        self.run_call()
        assert self.in_child(self.run_call) == 0
        assert self.run_call() == 0

    def test_so_can_a_child_forked_in_a_task(self):
        codes = engine(2).run(delayed(self.in_child)(self.run_call) for _ in range(3))
        assert codes == [0, 0, 0]

    def test_a_child_with_its_parents_stream_can_drop_it(self, gate):
        stream = engine(2).stream([delayed(gate.task)(i) for i in range(2)])

        def drop():
            nonlocal stream
            try:
                next(stream)
            except RuntimeError:
                del stream
                return self.run_call()

        assert self.in_child(drop) == 0
        gate.open.set()
        assert list(stream) == [0, 1]


class TestExit:
    @pytest.mark.parametrize(
        "state",
        [
            "list(engine.stream(tasks(9)))",
            "stream = engine.stream(tasks(10**9)); next(stream)",
            "engine.stream([delayed(threading.Event().wait)()] * 2)",
            "keep = engine.stream([delayed(threading.Event().wait)()] * 2)",
            "import sys; next(engine.stream(tasks(10**9))); sys.exit(0)",
        ],
    )
    def test_the_interpreter_ends_in_any_state(self, run_python, state):
        done = run_python(
            f"""
import threading
from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob._core.threads import ThreadEngine

def tasks(n):
    return (delayed(abs)(i) for i in range(n))

engine = ThreadEngine(Call(2, ahead=4))
{state}
"""
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestBackend:
    def test_n_jobs(self):
        backend = ThreadingBackend(nesting_level=0)
        assert backend.effective_n_jobs(None) == 1
        assert backend.effective_n_jobs(100) == 100
        assert backend.effective_n_jobs(-1) >= 1
        with pytest.raises(ValueError, match="has no meaning"):
            backend.effective_n_jobs(0)

    def test_it_runs_calls(self):
        run = ThreadingBackend().open_call(call_of(2)).run
        assert run([delayed(square)(3)] * 3) == [9] * 3

    def test_it_holds_inner_threads_down(self):
        call = call_of(2, inner_max_num_threads=1)
        run = ThreadingBackend().open_call(call).run
        assert run([delayed(square)(3)] * 3) == [9] * 3

    def test_what_it_supports(self):
        backend = ThreadingBackend()
        assert backend.supports_sharedmem
        assert backend.uses_threads
        assert backend.supports_return_generator
        assert backend.supports_timeout
        assert backend.supports_inner_max_num_threads

    def test_its_options(self):
        ThreadingBackend(idle_worker_timeout=3)
        with pytest.raises(TypeError, match="idle_worker_timeout"):
            ThreadingBackend(initializer=print)


# -- the timeline ----------------------------------------------------------------------


def recorded(tmp_path, tasks, n_jobs=2, stream=False, **options):
    """Run tasks with a timeline; its data, and the results."""
    made = Recorder(tmp_path / "run.json")
    call = made.begin_call("threading", n_jobs, None)
    one = engine(n_jobs, timeline=call, **options)
    try:
        results = list(one.stream(tasks)) if stream else one.run(tasks)
    except ValueError as error:
        results = error
    # No thread may be waited for here: the call is over, so all is written.
    call.end()
    return made.data(), results


def totals(data, name):
    at = data["columns"].index(name)
    return sum(span[at] for span in data["spans"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n_tasks", [0, 1, 7, 20_000])
def test_the_timeline_has_every_task_when_the_call_is_over(tmp_path, n_tasks, stream):
    tasks = [(abs, (-i,), {}) for i in range(n_tasks)]
    data, results = recorded(tmp_path, tasks, 3, stream)
    assert results == list(range(n_tasks))
    assert totals(data, "tasks") == data["totals"]["tasks"] == n_tasks
    assert len(data["lanes"]) <= 3
    assert all(lane["worker"] != threading.get_native_id() for lane in data["lanes"])


def test_tiny_tasks_do_not_cost_a_span_each(tmp_path):
    data, _ = recorded(tmp_path, [(abs, (i,), {}) for i in range(20_000)])
    assert totals(data, "batches") < 10_000


def test_the_timeline_shows_who_ran_what_side_by_side(tmp_path):
    both = threading.Barrier(2)

    def meet():
        both.wait(WAIT)
        return threading.get_native_id()

    data, results = recorded(tmp_path, [(meet, (), {})] * 2)
    assert sorted(lane["worker"] for lane in data["lanes"]) == sorted(results)
    assert [lane["tasks"] for lane in data["lanes"]] == [1, 1]
    start, end = (data["columns"].index(name) for name in ("start", "end"))
    first, second = data["spans"]
    assert max(first[start], second[start]) <= min(first[end], second[end])


def test_waiting_for_the_input_is_not_work(tmp_path, gate):
    """The only thread waits for the gate, which opens long after its first task."""
    pause = 0.03

    def tasks():
        yield abs, (1,), {}
        yield abs, (2,), {}
        end = time.monotonic() + pause
        while time.monotonic() < end:
            pass
        yield abs, (3,), {}

    data, results = recorded(tmp_path, tasks(), 1, ahead=1)
    assert results == [1, 2, 3]
    elapsed = data["calls"][0]["end"] - data["calls"][0]["start"]
    assert totals(data, "busy") <= elapsed - 0.5 * pause * 1e9


def refuse(i):
    raise ValueError(i)


def test_errors_and_retries_of_threads_are_events(tmp_path):
    tasks = [(abs, (1,), {}), (refuse, (2,), {})]
    data, results = recorded(tmp_path, tasks, 1, return_errors=True, retries=2)
    assert type(results[1]) is TaskError
    assert [event["kind"] for event in data["events"]] == ["retry", "retry", "error"]
    assert data["events"][0]["text"] == "task 1, attempt 2"
    assert "ValueError in task 1: " in data["events"][-1]["text"]
    assert totals(data, "tasks") == 4


def test_what_ran_before_a_failure_of_its_thread_is_in_the_timeline(tmp_path):
    tasks = [*[(abs, (i,), {}) for i in range(5)], (refuse, (5,), {})]
    data, results = recorded(tmp_path, tasks, 1)
    assert type(results) is ValueError
    assert totals(data, "tasks") == 6
    assert data["event_counts"] == {"error": 1}


@pytest.mark.filterwarnings("ignore:A thread cannot be stopped:RuntimeWarning")
def test_a_thread_that_was_given_up_does_not_hold_up_the_timeline(tmp_path, gate):
    tasks = [(abs, (1,), {}), (gate.task, (), {}), (abs, (3,), {})]
    data, results = recorded(tmp_path, tasks, 1, timeout=0.05, return_errors=True)
    assert [results[0], results[2]] == [1, 3]
    assert [event["kind"] for event in data["events"]] == ["timeout", "error"]
    assert totals(data, "tasks") == 2
    gate.open.set()
    end_threads()


@pytest.mark.parametrize("timeline", [False, True])
@pytest.mark.parametrize("where", ["input", "progress"])
def test_a_thread_that_a_call_has_failed_in_serves_the_next_one(
    tmp_path, where, timeline
):
    """It did not come to write what it had run in the call that failed."""

    def failing():
        for i in range(5):
            yield abs, (i,), {}
        raise ValueError(where)

    end_threads()
    on_batch = refuse if where == "progress" else None
    _, error = recorded(tmp_path, failing(), 1, ahead=1, on_batch=on_batch)
    assert type(error) is ValueError
    until(lambda: count_idle_threads() == 1)
    tasks = [(abs, (-i,), {}) for i in range(10)]
    if timeline:
        data, results = recorded(tmp_path, tasks, 1)
        assert totals(data, "tasks") == 10
    else:
        results = engine(1).run(tasks)
    assert results == list(range(10))


def test_a_timeline_that_fails_ends_the_call():
    class Broken:
        def batch(self, *args):
            raise OSError("disk")

        def event(self, *args):
            raise AssertionError("nothing to tell")

    with pytest.raises(OSError, match="disk"):
        engine(timeline=Broken()).run([(abs, (i,), {}) for i in range(10)])
    end_threads()
