"""Calls over worker processes: what a user is promised."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import psutil
import pytest
from gates import Bell, Gate, until

from fastjob import Parallel, TaskError, TerminatedWorkerError, delayed, errors
from fastjob._core.history import recalled, remember
from fastjob._pool.memory import store_for
from fastjob._pool.pool import pool
from fastjob._pool.starter import start_method


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def double(x):
    return 2 * x


def identity(x):
    return x


def add(x, y=0, *, z=0):
    return x + y + z


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def times(self, x):
        return self.factor * x

    def __call__(self, x):
        return self.factor * x

    @classmethod
    def name(cls, x):
        return cls.__name__, x

    @staticmethod
    def plus_one(x):
        return x + 1


# -- results --------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 1, 7, 1000])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 3, 500])
def test_results_are_in_task_order(n_tasks, batch_size):
    found = processes(3, batch_size=batch_size)(
        delayed(double)(i) for i in range(n_tasks)
    )
    assert found == [2 * i for i in range(n_tasks)]


@pytest.mark.parametrize("pre_dispatch", ["all", 1, 3, "1.5*n_jobs"])
def test_every_window_gives_the_same_results(pre_dispatch):
    found = processes(pre_dispatch=pre_dispatch)(delayed(double)(i) for i in range(200))
    assert found == [2 * i for i in range(200)]


def test_more_workers_than_tasks():
    assert processes(12)(delayed(double)(i) for i in range(5)) == [0, 2, 4, 6, 8]


@pytest.mark.posix
def test_tasks_run_in_other_processes_side_by_side(tmp_path):
    """Two tasks that wait for each other can only end if both run."""
    with Bell() as first, Bell() as second:
        found = processes()(
            [delayed(meet)(first, second), delayed(meet)(second, first)]
        )
    assert os.getpid() not in found
    assert len(set(found)) == 2


def meet(mine, other):
    mine.ring()
    fd = os.open(other.path, os.O_RDONLY)
    assert os.read(fd, 1)
    os.close(fd)
    return os.getpid()


def test_arguments_of_every_kind_arrive():
    tasks = [
        delayed(add)(1),
        delayed(add)(1, 2),
        delayed(add)(1, y=2, z=3),
        delayed(add)([1], [2], z=[3]),
        delayed(identity)(None),
        delayed(identity)((1, ("a", b"b", 2.5, 1j))),
        delayed(identity)({"a": {1, 2}}),
        delayed(identity)("x" * 100_000),
    ]
    assert processes()(tasks) == [
        1,
        3,
        6,
        [1, 2, 3],
        None,
        (1, ("a", b"b", 2.5, 1j)),
        {"a": {1, 2}},
        "x" * 100_000,
    ]


def test_bare_tuples_are_tasks():
    assert processes()([(double, (4,), {}), (add, [1, 2], {"z": 3})]) == [8, 6]


def test_many_functions_in_one_call():
    scale = Scale(3)
    functions = [
        double,
        lambda x: x - 1,
        functools.partial(add, 10, z=1),
        scale.times,
        scale,
        Scale.name,
        Scale.plus_one,
        len,
        operator.neg,
        "abc".join,
    ]
    arguments = [1, 1, 1, 1, 1, 1, 1, "xyz", 5, ["1", "2"]]
    found = processes()(
        delayed(f)(x)
        for _ in range(30)
        for f, x in zip(functions, arguments, strict=True)
    )
    expected = [2, 0, 12, 3, 3, ("Scale", 1), 2, 3, -5, "1abc2"]
    assert found == expected * 30


def test_more_callables_than_the_table_holds():
    found = processes()(delayed(Scale(i))(2) for i in range(300))
    assert found == [2 * i for i in range(300)]


def test_closures_keep_their_own_values():
    def make(k):
        def inner(x):
            return k * x

        return inner

    found = processes()(delayed(make(k))(10) for k in range(100))
    assert found == [10 * k for k in range(100)]


# -- the input --------------------------------------------------------------------


def test_the_input_is_taken_no_further_ahead_than_pre_dispatch_says():
    """1.5*n_jobs of 2: three before the first completion, then one for each."""
    with Gate() as gate:
        taken = []
        completed = []

        def tasks():
            for i in range(20):
                taken.append(i)
                assert i < 3 + len(completed)
                yield delayed(hold)(gate, i)

        stream = processes(
            pre_dispatch="1.5*n_jobs", batch_size=1, return_as="generator_unordered"
        )(tasks())
        until(lambda: len(taken) == 3)
        completed.extend(range(20))  # from here on only the results matter
        gate.open()
        assert sorted(stream) == list(range(20))


def hold(gate, value):
    gate.wait()
    return value


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_a_task_has_the_arguments_that_it_was_made_with(batch_size):
    """A generator that fills the same list, dict and bytearray again and again."""
    buffer, table, raw = [0] * 5, {}, bytearray(3)

    def tasks():
        for i in range(300):
            buffer[:] = [i] * 5
            table["i"] = i
            raw[0] = i % 256
            yield delayed(seen)(buffer, table, raw=raw)

    found = processes(batch_size=batch_size)(tasks())
    assert found == [(5 * i, i, i % 256) for i in range(300)]


def seen(numbers, table, raw):
    return sum(numbers), table["i"], raw[0]


def test_a_method_sees_its_object_as_it_was():
    scale = Scale(0)

    def tasks():
        for i in range(200):
            scale.factor = i
            yield delayed(scale.times)(2)

    assert processes()(tasks()) == [2 * i for i in range(200)]


def test_a_large_shared_argument_may_change_between_tasks():
    shared = {"key": list(range(20_000)), "version": 0}

    def tasks():
        for i in range(30):
            if i % 10 == 0:
                shared["version"] = i
                shared["key"][5] = -i
            yield delayed(version)(shared)

    assert processes()(tasks()) == [(i - i % 10, i % 10 - i) for i in range(30)]


def version(table):
    return table["version"], table["key"][5]


def test_an_error_of_the_input_ends_the_call_as_it_is():
    def tasks():
        for i in range(50):
            yield delayed(double)(i)
        raise LookupError("input", 7)

    with pytest.raises(LookupError) as caught:
        processes()(tasks())
    assert caught.value.args == ("input", 7)
    assert processes()([delayed(double)(4)]) == [8]


@pytest.mark.parametrize("task", [5, (double,), (double, 3), ("no", (1,), {})])
def test_what_is_no_task_is_refused_by_its_number(task):
    with pytest.raises(TypeError, match="task 2"):
        processes()([delayed(double)(0), delayed(double)(1), task])


# -- failures ---------------------------------------------------------------------


class TwoPartError(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


def fail_at(i, at, error=ValueError):
    if i == at:
        raise error("bad", i)
    return i


def fail_specially(i):
    if i == 7:
        raise TwoPartError(7, hint="try again")
    return i


@pytest.mark.parametrize("batch_size", ["auto", 1, 16])
def test_an_exception_of_a_task_arrives_as_it_was(batch_size):
    with pytest.raises(ValueError) as caught:
        processes(batch_size=batch_size)(delayed(fail_at)(i, 77) for i in range(200))
    assert caught.value.args == ("bad", 77)
    remote = str(caught.value.__cause__)
    assert "fail_at" in remote and "task 77" in remote
    assert processes()([delayed(double)(4)]) == [8]


def test_an_exception_with_a_signature_of_its_own_arrives():
    with pytest.raises(TwoPartError) as caught:
        processes()(delayed(fail_specially)(i) for i in range(20))
    assert (caught.value.code, caught.value.hint) == (7, "try again")


def test_a_failure_does_not_wait_for_tasks_that_run():
    with Gate() as gate:
        tasks = [delayed(hold)(gate, 0), delayed(fail_at)(1, 1)]
        with pytest.raises(ValueError):
            processes(batch_size=1)(tasks)
        assert processes()(delayed(double)(i) for i in range(20)) == [
            2 * i for i in range(20)
        ]


def test_the_next_call_reads_nothing_of_the_failed_one():
    for round in range(40):
        with pytest.raises(ValueError):
            processes(3)(delayed(fail_at)(i, round % 7) for i in range(300))
        found = processes(3)(delayed(add)(i, round) for i in range(100))
        assert found == [i + round for i in range(100)]


def test_errors_returned_in_place():
    found = processes(on_error="return")(delayed(fail_at)(i, 40) for i in range(200))
    error = found[40]
    assert isinstance(error, TaskError)
    assert (error.index, error.attempts) == (40, 1)
    assert error.exception.args == ("bad", 40)
    assert "fail_at" in error.traceback
    assert found[:40] + found[41:] == [i for i in range(200) if i != 40]


def fail_until(path, i, n_failures):
    """Fail the first `n_failures` times that task `i` is run."""
    name = f"{path}/{i}"
    with open(name, "ab") as file:
        file.write(b".")
    runs = os.path.getsize(name)
    if runs <= n_failures:
        raise RuntimeError(f"run {runs}")
    return i, runs


@pytest.mark.parametrize("batch_size", ["auto", 1, 25])
@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_a_failed_task_is_run_again(tmp_path, batch_size, on_error):
    found = processes(retries=2, batch_size=batch_size, on_error=on_error)(
        delayed(fail_until)(str(tmp_path), i, i % 3) for i in range(60)
    )
    assert found == [(i, i % 3 + 1) for i in range(60)]


def test_a_task_that_always_fails_is_run_once_more_for_each_retry(tmp_path):
    with pytest.raises(RuntimeError, match="run 4"):
        processes(retries=3)([delayed(fail_until)(str(tmp_path), 0, 99)] * 1)
    found = processes(retries=1, on_error="return")(
        [delayed(fail_until)(str(tmp_path), 1, 99), delayed(double)(1)]
    )
    assert found[0].attempts == 2
    assert found[1] == 2


class Unpicklable:
    """Has a text of its own, to be found in the message."""

    def __reduce__(self):
        raise TypeError("this one stays here")


class BadHere:
    """Can be pickled, and rebuilt in no other process than `home`."""

    def __init__(self, home):
        self.home = home

    def __setstate__(self, state):
        if os.getpid() != state["home"]:
            raise LookupError("not at home")
        self.__dict__.update(state)


@pytest.mark.parametrize(
    ("task", "part"),
    [
        (delayed(add)(1, Unpicklable()), 1),
        (delayed(add)(1, y=Unpicklable()), "y"),
        (delayed(add)([Unpicklable()]), 0),
        (delayed(Scale(Unpicklable()))(1), None),
    ],
    ids=["position", "keyword", "inside", "function"],
)
def test_an_argument_that_cannot_be_pickled_is_named(task, part):
    tasks = [delayed(add)(i) for i in range(20)]
    with pytest.raises(errors.TaskPicklingError) as caught:
        processes()([*tasks, task, *tasks])
    assert caught.value.index == 20
    assert caught.value.part == part
    assert "stays here" in str(caught.value)
    assert processes()([delayed(double)(4)]) == [8]


@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("bad", [{0}, {7, 8, 19}, set(range(20))], ids=len)
def test_only_the_tasks_that_cannot_be_sent_are_lost(bad, return_as, batch_size):
    parallel = processes(
        on_error="return", retries=1, return_as=return_as, batch_size=batch_size
    )
    found = parallel(
        delayed(identity)([Unpicklable()] if i in bad else i) for i in range(20)
    )
    failed = {}
    rest = []
    for place, value in enumerate(found):
        if isinstance(value, TaskError):
            assert value.index == place or return_as == "generator_unordered"
            failed[value.index] = value
        else:
            rest.append(value)
    assert sorted(rest) == [i for i in range(20) if i not in bad]
    assert set(failed) == bad
    for index, value in failed.items():
        assert isinstance(value.exception, errors.TaskPicklingError)
        assert (value.exception.index, value.exception.part) == (index, 0)
        assert (value.attempts, value.elapsed) == (1, 0.0)


def test_a_function_that_cannot_be_sent_is_lost_alone():
    tasks = [delayed(double)(1), delayed(Scale(Unpicklable()))(1), delayed(double)(2)]
    one, wrong, two = processes(on_error="return")(tasks)
    assert (one, two) == (2, 4)
    assert isinstance(wrong.exception, errors.TaskPicklingError)
    with pytest.raises(TypeError, match="task 1: int is not callable"):
        processes(on_error="return")([delayed(double)(1), (5, (), {})])


class FailsWithoutReason:
    """As if a signal handler had raised while it was pickled."""

    def __init__(self):
        self.failures = 1

    def __reduce__(self):
        if self.failures:
            self.failures -= 1
            raise TimeoutError("of a handler")
        return FailsWithoutReason, ()


def test_what_is_raised_from_outside_while_a_task_is_pickled_ends_the_call():
    with pytest.raises(TimeoutError, match="of a handler"):
        processes(on_error="return")([delayed(identity)([FailsWithoutReason()])])


def unpicklable_result(i):
    return Unpicklable() if i == 13 else i


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_a_result_that_cannot_be_pickled_is_named(batch_size):
    with pytest.raises(errors.ResultPicklingError) as caught:
        processes(batch_size=batch_size)(
            delayed(unpicklable_result)(i) for i in range(30)
        )
    error = caught.value
    assert (error.index, error.arguments) == (13, "13")
    assert error.function.endswith("unpicklable_result")
    assert error.type_name.endswith("Unpicklable")
    assert "stays here" in error.reason
    assert processes()([delayed(double)(4)]) == [8]


def test_only_the_result_that_cannot_be_pickled_is_lost():
    found = processes(on_error="return", batch_size=10)(
        delayed(unpicklable_result)(i) for i in range(30)
    )
    assert found[13].index == 13
    assert isinstance(found[13].exception, errors.ResultPicklingError)
    assert found[:13] + found[14:] == [i for i in range(30) if i != 13]


def result_from_home(i, bad):
    return BadHere(os.getpid()) if i in bad else i


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_a_result_that_cannot_be_rebuilt_here_is_named(batch_size):
    with pytest.raises(errors.ResultUnpicklingError) as caught:
        processes(batch_size=batch_size)(
            delayed(result_from_home)(i, (13,)) for i in range(30)
        )
    error = caught.value
    assert (error.index, error.arguments) == (13, "13, (13,)")
    assert error.function.endswith("result_from_home")
    assert isinstance(error.__cause__, LookupError)
    assert processes()([delayed(double)(4)]) == [8]


def test_only_the_results_that_cannot_be_rebuilt_are_lost():
    bad = (3, 4, 29)
    found = processes(on_error="return", batch_size=10)(
        delayed(result_from_home)(i, bad) for i in range(30)
    )
    for i in range(30):
        if i in bad:
            assert isinstance(found[i].exception, errors.ResultUnpicklingError)
            assert found[i].index == i
        else:
            assert found[i] == i


@pytest.mark.parametrize("batch_size", [1, 10])
def test_an_argument_that_cannot_be_rebuilt_fails_its_own_task(batch_size):
    home = os.getpid()
    tasks = [delayed(identity)(BadHere(home) if i == 5 else i) for i in range(20)]
    found = processes(on_error="return", batch_size=batch_size)(tasks)
    assert isinstance(found[5].exception, LookupError)
    assert "identity(<BadHere object>)" in found[5].traceback
    assert found[:5] + found[6:] == [i for i in range(20) if i != 5]


def exit_politely(i):
    if i == 3:
        sys.exit("enough")
    return i


def test_sys_exit_in_a_task_is_its_failure():
    with pytest.raises(SystemExit, match="enough"):
        processes()(delayed(exit_politely)(i) for i in range(10))


@pytest.mark.posix
def test_a_task_that_sends_itself_ctrl_c_fails_alone():
    found = processes(on_error="return")(delayed(interrupt_self)(i) for i in range(10))
    assert isinstance(found[4].exception, KeyboardInterrupt)
    assert found[:4] + found[5:] == [i for i in range(10) if i != 4]


def interrupt_self(i):
    if i == 4:
        os.kill(os.getpid(), signal.SIGINT)
        functools.reduce(operator.add, range(1000))
    return i


# -- time limits ------------------------------------------------------------------


def task_began():
    """In a worker: what its slot of the status page says about the running task."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            size = os.fstat(fd).st_size
        except OSError:
            continue  # the descriptor of the listing itself
        if size != 4096 * 128:  # the page has no name where memory has none
            continue
        for at in range(0, size, 128):
            started, _, _, pid = struct.unpack("qIii", os.pread(fd, 20, at + 16))
            if pid == os.getpid():
                return started
    raise LookupError("no page, or no slot in it")


class SeesTheClock:
    """Notes whether a time limit would run while it is rebuilt."""

    def __init__(self, folder=None):
        self.folder = folder

    def __setstate__(self, state):
        self.folder = state["folder"]
        self.when_rebuilt = task_began()


def clocks(argument, array=None):
    return argument.when_rebuilt, task_began()


@pytest.mark.posix
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("with_array", [False, True])
def test_the_clock_of_a_time_limit_does_not_run_while_arguments_are_rebuilt(
    batch_size, with_array
):
    """A slow import is no fault of the task that happens to be the first."""
    numpy = pytest.importorskip("numpy")
    more = [numpy.zeros(1000)] if with_array else []
    found = processes(batch_size=batch_size, max_nbytes=100)(
        delayed(clocks)(SeesTheClock(), *more) for _ in range(8)
    )
    now = time.monotonic_ns()
    for while_rebuilt, while_running in found:
        assert -now < while_rebuilt < 0 < while_running < now
        assert -while_rebuilt <= while_running


class HeldWhileRebuilt:
    def __init__(self, bell, gate):
        self.bell, self.gate = bell, gate

    def __setstate__(self, state):
        state["bell"].ring()
        state["gate"].wait()
        with open("rebuilt", "x"):
            pass


def wait_at(gate, held):
    if held is None:
        gate.wait()


def test_a_task_whose_arguments_take_long_to_rebuild_is_not_ended():
    """Another one, which began later, was too slow before it."""
    with Gate() as gate, Bell() as bell:

        def tasks():
            yield delayed(wait_at)(gate, HeldWhileRebuilt(bell, gate))
            bell.wait()
            yield delayed(wait_at)(gate, None)

        stream = processes(
            timeout=0.2,
            on_error="return",
            return_as="generator_unordered",
            batch_size=1,
        )(tasks())
        error = next(stream)
        assert isinstance(error.exception, errors.TaskTimeoutError)
        assert (error.index, os.path.exists("rebuilt")) == (1, False)
        gate.open()
        assert len(list(stream)) == 1
    assert os.path.exists("rebuilt")


def block_signals_and_hang(i, at, gate):
    if i == at:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
        gate.wait()
    return i


@pytest.mark.posix
@pytest.mark.parametrize("batch_size", ["auto", 1, 5])
def test_a_task_that_takes_too_long_is_ended(batch_size):
    with Gate() as gate:
        found = processes(timeout=1, on_error="return", batch_size=batch_size)(
            delayed(block_signals_and_hang)(i, 3, gate) for i in range(20)
        )
        error = found[3].exception
        assert isinstance(error, errors.TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert error.index == 3
        assert error.function.endswith("block_signals_and_hang")
        assert found[:3] + found[4:] == [i for i in range(20) if i != 3]


@pytest.mark.posix
def test_a_time_limit_raises_and_leaves_the_pool_usable():
    with Gate() as gate:
        with pytest.raises(errors.TaskTimeoutError):
            processes(timeout=0.5)(
                delayed(block_signals_and_hang)(i, 0, gate) for i in range(4)
            )
        assert processes()([delayed(double)(4)]) == [8]


def ring_and_wait(bell, gate, i):
    bell.ring()
    gate.wait()
    return i


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, sys.maxsize])
def test_a_time_limit_beyond_all_integers_is_none(timeout):
    with Gate() as gate, Bell() as bell:

        def tasks():
            yield delayed(ring_and_wait)(bell, gate, 1)
            bell.wait()
            yield delayed(identity)(2)

        stream = processes(
            timeout=timeout, batch_size=1, return_as="generator_unordered"
        )(tasks())
        assert next(stream) == 2  # and the caller has looked at the clock
        gate.open()
        assert next(stream) == 1


@pytest.mark.posix
def test_the_time_that_an_ended_task_took_is_told():
    with Gate() as gate:
        slow, dead = processes(timeout=0.3, on_error="return", batch_size=1)(
            [
                delayed(block_signals_and_hang)(0, 0, gate),
                delayed(sleep_and_exit)(0.05),
            ]
        )
    assert slow.elapsed >= 0.3
    assert dead.elapsed >= 0.05


def sleep_and_exit(seconds):
    time.sleep(seconds)
    os._exit(1)


def test_a_time_limit_near_the_length_of_the_tasks_loses_none():
    """The kill and the end of the task race each other."""
    found = processes(timeout=0.02, on_error="return", batch_size=8)(
        delayed(spin)(i, 0.02) for i in range(48)
    )
    for i, value in enumerate(found):
        assert value == i or isinstance(value.exception, errors.TaskTimeoutError)


def spin(i, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        continue
    return i


def labelled(i):
    """Several times the same object, in results of many shapes."""
    name = f"sample-{i}"
    row = [name, name]
    if i % 3 == 0:
        return row, row
    if i % 3 == 1:
        return {"name": name, "rows": [(name, j) for j in range(i % 7)], "id": row}
    return {"id": name, "other": [name, i], "rows": row}


def labelled_arrays(i):
    import numpy

    large, small = numpy.full(20_000, i), numpy.full(3, i)
    return [large, large, small, f"sample-{i}", small, large]


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_results_that_repeat_objects_are_their_own(return_as, batch_size):
    parallel = processes(batch_size=batch_size, return_as=return_as)
    n = 1000
    found = list(parallel(delayed(labelled)(i) for i in range(n)))
    assert found == [labelled(i) for i in range(n)]
    assert all(found[i][0] is found[i][1] for i in range(0, n, 3))
    for i, value in enumerate(parallel(delayed(labelled_arrays)(i) for i in range(50))):
        assert value[3] == f"sample-{i}"
        assert all((array == i).all() for array in value[:3] + value[4:])
        assert value[0] is value[1] is value[5]
        assert value[2] is value[4]


# -- generators -------------------------------------------------------------------


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generators_give_every_result_once(return_as):
    found = list(
        processes(return_as=return_as)(delayed(double)(i) for i in range(3000))
    )
    if return_as == "generator_unordered":
        found.sort()
    assert found == [2 * i for i in range(3000)]


def test_unordered_results_come_as_they_are_ready():
    with Gate() as gate:
        stream = processes(return_as="generator_unordered", batch_size=1)(
            [delayed(hold)(gate, "slow"), *(delayed(identity)(i) for i in range(10))]
        )
        assert sorted(next(stream) for _ in range(10)) == list(range(10))
        gate.open()
        assert list(stream) == ["slow"]


def test_a_generator_goes_on_while_nobody_reads_but_not_for_ever():
    taken = []

    def tasks():
        for i in range(5000):
            taken.append(i)
            yield delayed(identity)(b"x" * 10_000)

    stream = processes(return_as="generator", batch_size=1)(tasks())
    next(stream)
    until(lambda: len(taken) > 4)
    # It stands still when nothing more is taken although every worker is idle.
    settled = settle(taken)
    assert settled < 1000
    stream.close()


def settle(growing):
    """Length of a list once it has not grown for a hundred looks."""
    same, last = 0, -1
    while same < 100:
        same = same + 1 if len(growing) == last else 0
        last = len(growing)
        time.sleep(0.005)
    return last


def test_two_generators_at_once_do_not_disturb_each_other():
    first = processes(return_as="generator")(delayed(add)(i, 1) for i in range(500))
    second = processes(return_as="generator")(delayed(add)(i, 2) for i in range(500))
    pairs = list(zip(first, second, strict=True))
    assert pairs == [(i + 1, i + 2) for i in range(500)]


def test_a_dropped_generator_leaves_its_workers_for_the_next_call():
    stream = processes(return_as="generator")(delayed(double)(i) for i in range(10_000))
    assert [next(stream) for _ in range(5)] == [0, 2, 4, 6, 8]
    del stream
    assert processes()(delayed(double)(i) for i in range(10)) == [
        2 * i for i in range(10)
    ]


def test_a_generator_closed_while_a_task_hangs_has_its_worker_replaced():
    with Gate() as gate, Bell() as bell:
        stream = processes(return_as="generator", batch_size=1)(
            delayed(ring_and_hold)(bell, gate) for _ in range(4)
        )
        bell.wait(2)
        stream.close()
        assert processes()([delayed(double)(4)]) == [8]


def ring_and_hold(bell, gate, value=None):
    bell.ring()
    gate.wait()
    return value


def test_a_generator_raises_where_the_task_failed():
    stream = processes(return_as="generator", batch_size=1)(
        delayed(fail_at)(i, 20) for i in range(1000)
    )
    with pytest.raises(ValueError) as caught:
        for _ in stream:
            continue
    assert caught.value.args == ("bad", 20)
    assert list(stream) == []


# -- several at once --------------------------------------------------------------


def test_calls_of_many_threads_keep_apart():
    wrong = []

    def work(k):
        for round in range(5):
            found = processes()(delayed(add)(i, k, z=round) for i in range(60))
            if found != [i + k + round for i in range(60)]:
                wrong.append((k, round, found))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_shutdown_leaves_the_calls_of_other_threads_alone():
    found = []
    with Gate() as gate, Bell() as bell:
        thread = threading.Thread(
            target=lambda: found.extend(
                processes()(delayed(ring_and_hold)(bell, gate, i) for i in range(3))
            )
        )
        thread.start()
        bell.wait(2)
        pool.shutdown()
        assert processes()([delayed(double)(4)]) == [8]
        gate.open()
        thread.join()
    assert found == [0, 1, 2]


def inner_call(i, backend):
    return sum(Parallel(2, backend)(delayed(double)(j) for j in range(i)))


@pytest.mark.parametrize("backend", [None, "processes", "threading"])
def test_a_call_inside_a_task(backend):
    found = processes()(delayed(inner_call)(i, backend) for i in range(6))
    assert found == [i * (i - 1) for i in range(6)]


def three_levels(depth):
    if depth == 0:
        return 1
    return sum(Parallel(2)(delayed(three_levels)(depth - 1) for _ in range(2)))


def test_three_levels_of_calls():
    assert processes()(delayed(three_levels)(2) for _ in range(2)) == [4, 4]


def test_an_object_can_make_call_after_call_and_not_two_at_once():
    with Gate() as gate:
        parallel = processes(return_as="generator")
        stream = parallel(delayed(hold)(gate, i) for i in range(3))
        with pytest.raises(RuntimeError):
            parallel([delayed(double)(1)])
        gate.open()
        assert list(stream) == [0, 1, 2]
        assert list(parallel([delayed(double)(1)])) == [2]


def test_an_object_as_context_manager():
    with processes() as parallel:
        for round in range(3):
            assert parallel([delayed(add)(round, 1)] * 3) == [round + 1] * 3


# -- counted facts ----------------------------------------------------------------


def test_a_warm_call_starts_no_process():
    processes()([delayed(double)(i) for i in range(4)])
    started = pool.n_started
    for _ in range(20):
        processes()([delayed(double)(i) for i in range(4)])
    assert pool.n_started == started


class Traffic:
    """What the caller has sent to, and read from, each of two warm workers since."""

    def __init__(self):
        pool.shutdown()
        processes()(delayed(double)(i) for i in range(8))
        self.peers = pool._idle[:]
        assert len(self.peers) == 2
        self.before = self.now()

    def now(self):
        return [(c.n_sends, c.n_receives, c.bytes_sent) for c in self.channels()]

    def channels(self):
        return [peer.channel for peer in self.peers]

    def sends(self):
        return sum(n for n, _, _ in self.now()) - sum(n for n, _, _ in self.before)

    def receives(self):
        return sum(n for _, n, _ in self.now()) - sum(n for _, n, _ in self.before)

    def most_bytes(self):
        pairs = zip(self.now(), self.before, strict=True)
        return max(now[2] - before[2] for now, before in pairs)


def test_a_batch_costs_one_send_and_at_most_one_receive():
    traffic = Traffic()
    run = processes(batch_size=1)
    run(delayed(double)(i) for i in range(200))
    assert run.n_dispatched_batches == 200
    # What begins a call, and the function, travel with the first batch.
    assert traffic.sends() == 200
    # One read can bring several answers.
    assert traffic.receives() <= 200


@pytest.mark.posix
def test_a_call_of_two_tiny_tasks_comes_to_wake_one_worker():
    traffic = Traffic()

    def sends():
        before = traffic.sends()
        assert processes()(delayed(double)(i) for i in range(2)) == [0, 2]
        return traffic.sends() - before

    # A worker that was held up makes the function look slow, for some calls.
    until(lambda: sends() == 1)


@pytest.mark.posix
def test_two_tasks_that_wait_for_each_other_run_at_once_though_they_were_fast_before():
    remember(meet, 100.0)
    with Bell() as first, Bell() as second:
        tasks = [(first, second), (second, first)]
        found = processes()(delayed(meet)(*bells) for bells in tasks)
    assert len(set(found)) == 2
    assert recalled(meet) > 100.0  # the next call knows better


class CountedCopies:
    """A callable that counts in this process how often it is pickled."""

    n_pickles = 0

    def __call__(self, x):
        return x + 1

    def __reduce__(self):
        CountedCopies.n_pickles += 1
        return CountedCopies, ()


def test_a_callable_used_by_ten_thousand_tasks_is_pickled_once():
    f = CountedCopies()
    before = CountedCopies.n_pickles
    found = processes()(delayed(f)(i) for i in range(10_000))
    assert found == list(range(1, 10_001))
    assert CountedCopies.n_pickles == before + 1


class CountedTable(dict):
    n_pickles = 0

    def __reduce__(self):
        CountedTable.n_pickles += 1
        return CountedTable, (), None, None, iter(self.items())


def loads_of(table, i):
    return id(table), os.getpid(), table[i]


def test_an_object_passed_to_every_task_is_sent_once_a_worker():
    """Each worker rebuilds it once, so all of its tasks see the same object."""
    table = {i: f"{i:010000d}" for i in range(40)}
    found = processes()(delayed(loads_of)(table, i % 40) for i in range(200))
    assert [value for _, _, value in found] == [table[i % 40] for i in range(200)]
    by_process = {}
    for address, pid, _ in found:
        by_process.setdefault(pid, set()).add(address)
    assert all(len(addresses) == 1 for addresses in by_process.values())


def test_an_object_passed_to_every_task_is_pickled_once_a_call():
    table = CountedTable({i: f"{i:010000d}" for i in range(40)})
    before = CountedTable.n_pickles
    # A list: taking a task from it runs no code that could change the table.
    found = processes()([delayed(loads_of)(table, i % 40) for i in range(200)])
    assert [value for _, _, value in found] == [table[i % 40] for i in range(200)]
    assert CountedTable.n_pickles == before + 1


def test_an_object_passed_to_every_task_of_a_generator_travels_once_a_worker():
    table = {i: f"{i:05000d}" for i in range(40)}  # 200 kB: through the socket
    traffic = Traffic()
    processes()(delayed(loads_of)(table, i % 40) for i in range(200))
    assert traffic.most_bytes() < 300_000


FIRST = """
import sys
from fastjob import Parallel, delayed
from fastjob._pool.pool import Pool
found = []
def prepare(pool, real=Pool.prepare):
    real(pool)
    found.append((pool._nursery is not None, "fastjob._core.dispatch" in sys.modules))
Pool.prepare = prepare
parallel = Parallel(2, "processes")
assert found == []
for _ in range(2):
    assert parallel(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]
print(found)
"""


def test_what_starts_workers_gets_ready_while_the_engine_is_imported():
    """A first call has both to wait for."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[(True, False)]\n"


# -- options ----------------------------------------------------------------------


def count_pid(i):
    return os.getpid()


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_a_worker_is_replaced_after_so_many_tasks(batch_size):
    found = processes(max_tasks_per_worker=3, batch_size=batch_size)(
        delayed(count_pid)(i) for i in range(30)
    )
    assert max(found.count(pid) for pid in found) <= 3


def test_the_count_of_tasks_goes_on_in_the_next_call():
    parallel = processes(max_tasks_per_worker=4, batch_size=1)
    found = [pid for _ in range(6) for pid in parallel([delayed(count_pid)(0)] * 3)]
    assert max(found.count(pid) for pid in found) <= 4


def fail(i):
    raise LookupError(i)


def test_workers_that_are_replaced_after_failed_tasks_do_not_end_the_call():
    """Each attempt costs a worker here, and none of them completes a task."""
    found = processes(
        max_tasks_per_worker=1, retries=7, on_error="return", batch_size=1
    )(delayed(fail)(i) for i in range(3))
    assert [type(value.exception) for value in found] == [LookupError] * 3
    assert [value.attempts for value in found] == [8] * 3


def test_failed_tasks_count_towards_the_replacement_of_a_worker(tmp_path):
    pids = tmp_path / "pids"
    parallel = processes(max_tasks_per_worker=2, retries=5, batch_size=1)
    assert parallel([delayed(fail_up_to)(str(pids), 6)]) == [6]
    found = pids.read_text().split()
    assert len(found) == 6
    assert max(found.count(pid) for pid in found) <= 2


def fail_up_to(path, count):
    """Note where each run happens; fail up to the last one."""
    with open(path, "a+") as file:
        file.write(f"{os.getpid()}\n")
        file.seek(0)
        runs = len(file.read().split())
    if runs < count:
        raise LookupError
    return runs


def hoard(i):
    hoard.kept = b"x" * 60_000_000
    return os.getpid()


def test_a_worker_that_has_grown_too_large_is_replaced():
    found = processes(max_memory_per_worker=50_000_000, batch_size=1)(
        delayed(hoard)(i) for i in range(6)
    )
    assert len(set(found)) == 6


def test_an_idle_worker_ends_after_a_time():
    pool.shutdown()  # workers of other tests would wait for five minutes
    processes(idle_worker_timeout=0.05)([delayed(double)(1)] * 4)
    until(lambda: all(peer.poll_closed() for peer in pool._idle))
    assert processes(idle_worker_timeout=0.05)([delayed(double)(1)] * 4) == [2] * 4


@pytest.mark.parametrize("seconds", [0, float("inf")])
def test_a_worker_that_may_not_idle_takes_messages_that_come_in_pieces(seconds):
    data = os.urandom(150_000)
    assert processes(idle_worker_timeout=seconds, batch_size=1)(
        delayed(length_of)(data, i) for i in range(20)
    ) == [150_000 + i for i in range(20)]


def length_of(data, i):
    return len(data) + i


def set_up(path, value):
    set_up.value = value
    with open(f"{path}/{os.getpid()}", "a") as file:
        file.write(".")


def read_up(i):
    return set_up.value


def test_an_initializer_runs_once_in_each_worker(tmp_path):
    parallel = processes(initializer=set_up, initargs=(str(tmp_path), 5))
    for _ in range(3):
        assert parallel(delayed(read_up)(i) for i in range(10)) == [5] * 10
    counts = [path.read_text() for path in tmp_path.iterdir()]
    assert 1 <= len(counts) <= 2
    assert set(counts) == {"."}


def test_another_initializer_gets_other_workers(tmp_path):
    one = processes(initializer=set_up, initargs=(str(tmp_path), 1))
    two = processes(initializer=set_up, initargs=(str(tmp_path), 2))
    for _ in range(3):
        assert one([delayed(read_up)(0)] * 4) == [1] * 4
        assert two([delayed(read_up)(0)] * 4) == [2] * 4


def test_workers_of_many_initializers_do_not_pile_up(tmp_path):
    for i in range(12):
        run = processes(initializer=set_up, initargs=(str(tmp_path), i))
        assert run([delayed(read_up)(0)] * 4) == [i] * 4
        assert len(pool._idle) <= 4


def plus_one(array):
    return array + 1


@pytest.mark.posix
def test_calls_with_folders_of_their_own_gather_no_descriptors(tmp_path):
    """Neither here nor in workers, which would warn that a folder is gone."""
    import numpy

    counts = []
    for i in range(16):
        folder = tmp_path / str(i)
        folder.mkdir()
        for temp_folder in (folder, None):
            found = processes(temp_folder=temp_folder, batch_size=1)(
                delayed(plus_one)(numpy.full(200_000, i + k)) for k in range(4)
            )
            assert [int(array[-1]) for array in found] == [i + k + 1 for k in range(4)]
            del found
        folder.rmdir()
        counts.append(psutil.Process().num_fds())
    assert max(counts[8:]) <= max(counts[:8])


@pytest.mark.posix
def test_results_of_workers_that_have_ended_keep_no_descriptor_each():
    import numpy

    parallel = processes(max_tasks_per_worker=1, batch_size=1)
    kept = parallel(delayed(plus_one)(numpy.full(20_000, i)) for i in range(4))
    before = psutil.Process().num_fds()
    kept += parallel(delayed(plus_one)(numpy.full(20_000, i)) for i in range(4, 40))
    assert [int(array[0]) for array in kept] == list(range(1, 41))
    assert psutil.Process().num_fds() <= before + 4


def test_the_array_of_a_function_is_let_go_of_when_the_call_ends():
    import numpy

    store = store_for(None)
    before = store.live_blocks
    function = functools.partial(first_and, numpy.ones(200_000))
    assert processes()(delayed(function)(i) for i in range(4)) == [1, 2, 3, 4]

    def given_back():
        store.collect()
        return store.live_blocks == before

    until(given_back)


def first_and(array, i):
    return int(array[0]) + i


def test_arguments_of_an_initializer_may_be_arrays():
    import numpy

    for fill in (1, 2):
        parallel = processes(initializer=keep_array, initargs=(numpy.full(3, fill),))
        for _ in range(2):
            assert parallel([delayed(array_sum)()] * 3) == [3 * fill] * 3


def test_arrays_of_tasks_that_could_not_begin_are_given_back(tmp_path, monkeypatch):
    """The function cannot be rebuilt in a worker; the worker lives on."""
    import numpy

    (tmp_path / "only_here.py").write_text("def f(array): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("only_here").f
    (tmp_path / "only_here.py").unlink()
    importlib.invalidate_caches()
    pool.shutdown()
    store = store_for(None)
    before = store.live_blocks
    found = processes(on_error="return", batch_size=5)(
        delayed(function)(numpy.full(100_000, float(i))) for i in range(10)
    )
    assert {type(value.exception) for value in found} == {ModuleNotFoundError}
    assert [peer.poll_closed() for peer in pool._idle] == [False, False]

    def given_back():
        store.collect()
        return store.live_blocks == before

    until(given_back)


@pytest.mark.parametrize("mmap_mode", ["r", None])
def test_without_max_nbytes_every_task_has_an_array_of_its_own(mmap_mode):
    import numpy

    large = numpy.ones((1000, 12_500))
    parallel = processes(max_nbytes=None, mmap_mode=mmap_mode)
    for sent in (large, numpy.asfortranarray(large)):
        tasks = [delayed(write_up)(sent, i) for i in range(4)]
        order = sent.flags.c_contiguous
        assert parallel(tasks) == [(numpy.ndarray, order, 1.0)] * 4
    assert large.min() == large.max() == 1


def write_up(array, value):
    before = array[-1, -1]
    array[-1, -1] = value + 2
    return type(array), array.flags.c_contiguous, float(before)


def keep_array(array):
    keep_array.value = array


def array_sum():
    return int(keep_array.value.sum())


def broken_initializer():
    raise OSError("no database")


def test_an_error_of_the_initializer_is_the_error_of_the_call():
    with pytest.raises(OSError, match="no database") as caught:
        processes(initializer=broken_initializer)(delayed(double)(i) for i in range(10))
    assert "in broken_initializer" in str(caught.value.__cause__)
    assert processes()([delayed(double)(4)]) == [8]


def deadly_initializer():
    os._exit(3)


def test_an_initializer_that_kills_every_worker_ends_the_call():
    with pytest.raises((errors.NurseryError, TerminatedWorkerError)):
        processes(initializer=deadly_initializer)(delayed(double)(i) for i in range(10))
    assert processes()([delayed(double)(4)]) == [8]


@pytest.mark.skipif(
    start_method() == "spawn", reason="test_spawn.py: each worker imports by itself"
)
def test_a_module_can_be_preloaded(tmp_path, monkeypatch):
    (tmp_path / "loaded_early.py").write_text("import os\nPID = os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    parallel = processes(preload=["loaded_early"])
    found = parallel([delayed(home_of)("loaded_early")] * 6)
    assert len(set(found)) == 1  # all workers inherited one import
    assert found[0] not in (os.getpid(), *pids_of_workers())


def home_of(name):
    return sys.modules[name].PID


def pids_of_workers():
    return [peer.pid for peer in pool._idle]


def test_a_preload_that_fails_is_the_error_of_the_call():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        processes(preload=["no_such_module"])([delayed(double)(1)] * 2)
