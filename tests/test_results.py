"""The stream of results between the threads of an engine and its reader."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import threading
import weakref

import pytest

from fastjob._core.results import ResultIterator, ResultStream, feed
from fastjob._pool.pump import Pump

WAIT = 30.0


class Value:
    """Something that can be watched going away."""


class Asynchronous(Exception):
    """Set in a thread by another one."""


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


def waiting_stream(**options):
    """A stream and an event that is set once its reader waits."""
    waits = threading.Event()

    def watch():
        waits.set()
        return 60.0

    return ResultStream(watch=watch, **options), waits


def test_ordered_results_come_by_index():
    stream = ResultStream(ordered=True)
    for index in (2, 0, 1):
        stream.put(index, f"r{index}")
    stream.finish()
    assert list(stream) == ["r0", "r1", "r2"]


def test_unordered_results_come_as_they_arrive():
    stream = ResultStream(ordered=False)
    for index in (2, 0, 1):
        stream.put(index, index)
    stream.finish()
    assert list(stream) == [2, 0, 1]


@pytest.mark.parametrize("ordered", [True, False])
def test_batches_and_scattered_results(ordered):
    stream = ResultStream(ordered=ordered)
    stream.put_many(3, ["d", "e"])
    stream.put_scattered([2, 0, 1], ["c", "a", "b"])
    stream.put_many(5, [])
    stream.finish()
    assert list(stream) == (list("abcde") if ordered else list("decab"))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000])
def test_the_ring_grows(n):
    stream = ResultStream()
    for index in reversed(range(n)):
        stream.put(index, index)
    stream.finish()
    assert stream.take_all() == list(range(n))


def test_the_ring_wraps_and_grows_when_it_is_half_read():
    stream = ResultStream()
    stream.put_many(0, list(range(12)))
    read = [next(stream) for _ in range(10)]
    stream.put_many(12, list(range(12, 60)))
    stream.finish()
    assert read + list(stream) == list(range(60))


def test_each_result_is_dropped_when_it_is_handed_over():
    stream = ResultStream()
    value = Value()
    gone = weakref.ref(value)
    stream.put(0, value)
    del value
    assert gone() is not None
    next(stream)
    assert gone() is None


@pytest.mark.parametrize("how", ["close", "drop"])
def test_unread_results_are_dropped_at_the_end(how):
    stream = ResultStream()
    values = [Value() for _ in range(20)]
    gone = [weakref.ref(value) for value in values]
    stream.put_many(0, values)
    del values
    if how == "close":
        stream.close()
    else:
        del stream
    gc.collect()
    assert [ref() for ref in gone] == [None] * 20


def test_an_index_has_one_result():
    stream = ResultStream()
    stream.put(0, 1)
    with pytest.raises(RuntimeError, match=r"Task 0 has two results.*report"):
        stream.put(0, 2)
    next(stream)
    with pytest.raises(RuntimeError, match="Task 0 has two results"):
        stream.put_many(0, [1])


def test_an_error_comes_at_once_and_ends_the_stream():
    stream = ResultStream()
    stream.put(0, "unread")
    stream.fail(KeyError("first"))
    stream.fail(KeyError("second"))
    stream.put(1, "late")
    with pytest.raises(KeyError, match="first"):
        next(stream)
    assert list(stream) == []
    assert not stream.wanted()


def test_an_error_after_the_end_is_not_heard():
    stream = ResultStream()
    stream.put(0, 1)
    stream.finish()
    stream.fail(KeyError("late"))
    assert stream.take_all() == [1]


@pytest.mark.parametrize("wake", ["put", "finish", "fail", "close"])
def test_a_waiting_reader_is_woken(wake):
    stream, waits = waiting_stream()
    join = in_thread(lambda: next(stream, "end"))
    assert waits.wait(WAIT)
    if wake == "put":
        stream.put(0, "value")
        assert join() == "value"
    elif wake == "fail":
        stream.fail(ZeroDivisionError())
        assert isinstance(join(), ZeroDivisionError)
    else:
        getattr(stream, wake)()
        assert join() == "end"


def test_a_reader_of_ordered_results_waits_for_the_right_one():
    stream, waits = waiting_stream()
    join = in_thread(lambda: next(stream))
    assert waits.wait(WAIT)
    stream.put(1, "second")
    stream.put(0, "first")
    assert join() == "first"


def test_taking_all_waits_for_the_end():
    stream, waits = waiting_stream()
    join = in_thread(stream.take_all)
    assert waits.wait(WAIT)
    stream.put_many(0, [1, 2])
    stream.finish()
    assert join() == [1, 2]


def test_a_second_reader_is_refused():
    stream, waits = waiting_stream()
    join = in_thread(lambda: next(stream))
    assert waits.wait(WAIT)
    with pytest.raises(ValueError, match="another thread is waiting"):
        next(stream)
    with pytest.raises(ValueError, match="another thread is waiting"):
        stream.take_all()
    stream.put(0, "value")
    assert join() == "value"


def test_an_error_of_the_watch_ends_the_stream():
    def watch():
        raise OSError("seen by the watch")

    stream = ResultStream(watch=watch)
    with pytest.raises(OSError, match="seen by the watch"):
        next(stream)
    assert not stream.wanted()
    assert list(stream) == []


def test_the_watch_is_called_again_after_as_long_as_it_says():
    calls = []

    def watch():
        calls.append(None)
        if len(calls) == 3:
            stream.put(0, "value")
        return 0.0

    stream = ResultStream(watch=watch)
    assert next(stream) == "value"
    assert len(calls) == 3


class TestRoom:
    def test_without_bounds_there_is_always_room(self):
        stream = ResultStream()
        stream.put_many(0, [0] * 100, 10**12)
        assert stream.room(100) > 10**9

    def test_it_counts_from_the_taking_of_a_task(self):
        stream = ResultStream(capacity=4)
        assert [stream.room(taken) for taken in range(6)] == [4, 3, 2, 1, 0, 0]
        stream.put_many(0, [0, 1, 2])
        assert stream.room(4) == 0
        next(stream)
        assert stream.room(4) == 1

    def test_the_producer_hears_of_it_when_half_is_free(self):
        calls = []
        stream = ResultStream(capacity=4, on_room=lambda: calls.append(None))
        stream.put_many(0, [0, 1, 2, 3])
        assert stream.room(4) == 0
        heard = []
        for _ in range(4):
            next(stream)
            heard.append(len(calls))
        assert heard == [0, 1, 1, 1]

    def test_nobody_is_told_who_was_not_refused(self):
        calls = []
        stream = ResultStream(capacity=4, on_room=lambda: calls.append(None))
        stream.put_many(0, [0, 1, 2, 3])
        for _ in range(4):
            next(stream)
        assert calls == []

    def test_bytes_are_bounded_too(self):
        calls = []
        stream = ResultStream(max_bytes=100, on_room=lambda: calls.append(None))
        stream.put(0, "a", 60)
        assert stream.room(1) > 0
        stream.put(1, "b", 60)
        assert stream.room(2) == 0
        next(stream)
        assert calls == []  # still more than half
        next(stream)
        assert len(calls) == 1
        assert stream.room(2) > 0

    def test_a_closed_stream_has_none_and_says_so_once(self):
        calls = []
        stream = ResultStream(capacity=4, on_room=lambda: calls.append(None))
        stream.close()
        stream.close()
        assert stream.room(0) == 0
        assert len(calls) == 1
        stream.put(0, "dropped")
        assert list(stream) == []

    def test_a_producer_at_the_bound_loses_no_wake_up(self):
        n = 3000
        room = threading.Semaphore(0)
        stream = ResultStream(capacity=3, on_room=room.release)

        def produce():
            for index in range(n):
                while not stream.room(index):
                    assert room.acquire(timeout=WAIT)
                stream.put(index, index)
            stream.finish()

        join = in_thread(produce)
        assert list(stream) == list(range(n))
        assert join() is None


def test_many_producers_one_reader():
    n, n_threads = 4000, 4
    stream = ResultStream()

    def produce(first):
        for index in range(first, n, n_threads):
            stream.put(index, index)

    joins = [in_thread(lambda first=k: produce(first)) for k in range(n_threads)]
    assert [next(stream) for _ in range(n)] == list(range(n))
    assert [join() for join in joins] == [None] * n_threads


class TestIterator:
    def test_it_reads_the_stream(self):
        stream = ResultStream()
        stream.put_many(0, [1, 2])
        stream.finish()
        iterator = ResultIterator(stream)
        assert iter(iterator) is iterator
        assert list(iterator) == [1, 2]

    @pytest.mark.parametrize("in_cycle", [False, True])
    def test_dropping_it_closes_the_stream(self, in_cycle):
        calls = []
        stream = ResultStream(capacity=1, on_room=lambda: calls.append(None))
        holder = [ResultIterator(stream)]
        if in_cycle:
            holder.append(holder)
        del holder
        gc.collect()
        assert not stream.wanted()
        assert len(calls) == 1

    def test_closing_it_closes_the_stream(self):
        stream = ResultStream()
        ResultIterator(stream).close()
        assert not stream.wanted()


class TestInterrupts:
    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthreads")
    def test_a_signal_ends_the_wait_of_the_main_thread(self):
        stream, waits = waiting_stream()
        main = threading.main_thread().ident

        def interrupt():
            assert waits.wait(WAIT)
            signal.pthread_kill(main, signal.SIGINT)

        join = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        join()
        assert not stream.wanted()
        assert list(stream) == []

    def test_an_exception_set_by_another_thread_ends_the_wait(self):
        stream, waits = waiting_stream()
        join = in_thread(lambda: next(stream))
        assert waits.wait(WAIT)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(join.ident), ctypes.py_object(Asynchronous)
        )
        assert isinstance(join(), Asynchronous)
        assert not stream.wanted()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_that_the_results_are_not_its_own():
    stream = ResultStream()
    stream.put(0, 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            next(ResultIterator(stream))
        except RuntimeError as error:
            code = 0 if "forked from" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert next(stream) == 1


def test_an_exception_that_is_there_before_the_thread_starts_ends_the_stream():
    """It is raised by the first instruction of Python that the thread comes to."""
    pump = Pump(ordered=True)
    pump.ended.acquire()
    set_exception = functools.partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc,
        ctypes.c_ulong(threading.get_ident()),
        ctypes.py_object(Asynchronous),
    )

    def run(stream, wake):
        raise AssertionError("it was not there")

    steps = map(
        functools.partial.__call__, [set_exception, functools.partial(feed, pump, run)]
    )
    assert list(steps) == [1, None]
    assert pump.ended.acquire(blocking=False)
    with pytest.raises(Asynchronous):
        next(ResultIterator(pump.stream))
