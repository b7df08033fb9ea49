"""Forks of the caller, at rest and in mid-call: the child owns none of it."""

from __future__ import annotations

import atexit
import os
import signal
import threading

import pytest
from gates import Bell, Gate, until
from scripts import run

from fastjob import Parallel, delayed, share, shutdown
from fastjob._pool import memory
from fastjob._pool.pool import pool
from fastjob.sharing import current


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def in_child(function):
    """Run a function in a forked child: its answer, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = repr(function())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


def ring_and_hold(bell, gate, i):
    bell.ring()
    gate.wait()
    return i


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_call_after_a_fork_works_in_both():
    def call():
        return processes()(delayed(divmod)(i, 3) for i in range(20))

    right = call()
    started = pool.n_started
    assert in_child(call) == repr(right)
    assert call() == right
    assert pool.n_started == started  # the parent's workers are still warm


def test_a_child_forked_in_mid_call_cannot_go_on_with_it():
    answers = []

    def tasks():
        for i in range(40):
            if i == 20:
                pid = os.fork()
                if pid == 0:
                    forked.append(True)
                else:
                    answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            yield delayed(divmod)(i, 3)

    forked = []
    try:
        found = processes(batch_size=1)(tasks())
    except BaseException as error:
        if forked:
            os._exit(7 if "belongs to the parent" in str(error) else 8)
        raise
    if forked:
        os._exit(9)
    assert answers == [7]
    assert found == [divmod(i, 3) for i in range(40)]


def test_a_generator_in_a_forked_child_says_whose_it_is():
    with Gate() as gate, Bell() as bell:
        stream = processes(return_as="generator", batch_size=1)(
            delayed(ring_and_hold)(bell, gate, i) for i in range(4)
        )
        bell.wait(2)
        answer = in_child(lambda: next(stream))
        assert answer.startswith("RuntimeError: these results belong to the process")
        gate.open()
        assert list(stream) == [0, 1, 2, 3]


def test_a_fork_while_another_thread_is_in_a_call():
    found = []
    with Gate() as gate, Bell() as bell:
        thread = threading.Thread(
            target=lambda: found.extend(
                processes()(delayed(ring_and_hold)(bell, gate, i) for i in range(3))
            )
        )
        thread.start()
        bell.wait(2)
        answer = in_child(lambda: processes()(delayed(divmod)(i, 3) for i in range(3)))
        assert answer == "[(0, 0), (0, 1), (0, 2)]"
        gate.open()
        thread.join()
    assert found == [0, 1, 2]


def test_a_child_that_lives_on_does_not_keep_the_callers_workers_alive():
    source = """
import os, signal
from fastjob import Parallel, delayed, shutdown
assert Parallel(2)(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]
from fastjob._pool.pool import pool
starter = pool._nursery
nursery = starter._pids[0] if hasattr(starter, "_pids") else starter._living[0].pid
watch = os.pidfd_open(nursery)
read, write = os.pipe()
if os.fork() == 0:
    # The parent is gone; its nursery must go, although this copy of it lives.
    os.close(write)
    os.read(read, 1)
    import select
    ended = select.select([watch], [], [], 20)[0]
    print("ended" if ended else "lives", flush=True)
    os._exit(0)
os._exit(0)
"""
    assert run(source) == ("ended\n", "", 0)


def test_a_child_keeps_results_that_its_parent_drops_after_their_workers_have_ended():
    np = pytest.importorskip("numpy")
    results = processes(batch_size=1)(delayed(np.full)(10**6, 7.0) for _ in range(3))
    shutdown()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent has dropped them
        os._exit(not all((array == 7).all() for array in results))
    del results
    os.close(read)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_does_not_use_the_shared_memory_of_its_parents_shares():
    """The parent may use it for something else at any time."""
    import numpy

    array = numpy.ones(200_000)
    with share(array):

        def call():
            before = current()
            return before, processes()([delayed(numpy.sum)(array)] * 2)

        assert len(current()[0]) == 1
        assert in_child(call) == repr((({}, set()), [array.sum()] * 2))
        assert processes()([delayed(numpy.sum)(array)] * 2) == [array.sum()] * 2
    shutdown()


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def fork(gate, when, array):
    """Fork a child that has the array until the gate opens, or until `end`."""
    pid = os.fork()
    if pid == 0:
        gate.wait()
        os._exit(0)
    if when == "now":
        end(pid)
    elif when == "at exit":
        atexit.register(end, pid)
    return float(array[0])


def lent(stores):
    for store in stores:
        store.collect()
    return sum(store.live_blocks for store in stores)


@pytest.mark.parametrize(
    ("when", "limit"), [("now", 1), ("now", None), ("idle", None), ("at exit", 1)]
)
def test_what_a_task_left_to_its_child_is_taken_back_when_that_has_ended(when, limit):
    np = pytest.importorskip("numpy")
    arrays = [np.full(200_000, float(i)) for i in range(4)]
    with Gate() as gate:
        call = processes(batch_size=1, max_tasks_per_worker=limit)
        found = call(delayed(fork)(gate, when, array) for array in arrays)
        assert found == [0, 1, 2, 3]
        stores = list(memory._stores.values())
        if when == "idle":
            assert lent(stores) > 0
            gate.open()
            until(lambda: lent(stores) == 0)
        elif when == "at exit":
            shutdown()
        assert lent(stores) == 0
    shutdown()
