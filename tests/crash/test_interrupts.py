"""Ctrl-C at any instant: a KeyboardInterrupt, a usable pool, no process left."""

from __future__ import annotations

import _thread
import ctypes
import operator
import os
import random
import re
import signal
import sys
import threading
import weakref

import pytest
from gates import Bell, Gate, until
from scripts import Script

from fastjob import Parallel, delayed
from fastjob._core.ending import Ending
from fastjob._pool.pool import pool

# Interrupts come from outside, at random, in whatever the program does: starting the
# pool, feeding, waiting, decoding, reading a generator, ending a call that was
# interrupted before. Between two calls they are ignored, and not counted.
SOURCE = """
import os, random, signal, sys
import numpy as np
import psutil
from fastjob import Parallel, TaskError, delayed
from fastjob._pool.pool import pool
from gates import Bell, Gate, until

choose = random.Random(int(sys.argv[1]))
count = int(sys.argv[2])
MOST = 5  # interrupts of one call; the later ones meet its end
left = 0

def handler(*_):
    global left
    if left:
        left -= 1
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, handler)

def interrupted(call, n=MOST):
    # There are as many `except` as there can be interrupts: each may be hit by one.
    global left
    try:
        if n:
            return interrupted(call, n - 1)
        left = MOST
        call()
        assert left == MOST, "an interrupt was swallowed"
        left = 0
        return False
    except KeyboardInterrupt:
        left = 0
        return True

def work(x, y):
    for i in range(y):
        x + i
    return x

def big(x):
    return bytes(x) * 1000

def shared(array, data):
    return array + 1, data + b"."

def fail_at_each_third(i):
    if i % 3 == 0:
        raise LookupError(i)
    return i

def a_list():
    r = Parallel(2)(delayed(work)(i, 20) for i in range(2000))
    assert r == list(range(2000))

def a_generator():
    r = Parallel(2, return_as="generator")(delayed(work)(i, 50) for i in range(500))
    assert list(r) == list(range(500))

def as_they_come():
    r = Parallel(2, return_as="generator_unordered")(
        delayed(work)(i, 50) for i in range(500))
    assert sorted(r) == list(range(500))

def dropped_in_the_middle():
    r = Parallel(2, return_as="generator")(delayed(work)(i, 50) for i in range(500))
    for i in range(250):
        assert next(r) == i

def through_sockets():
    r = Parallel(3, batch_size=1)(delayed(big)(i) for i in range(60))
    assert [len(x) for x in r] == [1000 * i for i in range(60)]

def through_shared_memory():
    r = Parallel(2, batch_size=1)(
        delayed(shared)(np.full(150_000, i), bytes([i]) * 1_200_000) for i in range(8))
    for i, (array, data) in enumerate(r):
        assert (array == i + 1).all() and data == bytes([i]) * 1_200_000 + b"."

def with_failures():
    r = Parallel(2, on_error="return")(
        delayed(fail_at_each_third)(i) for i in range(300))
    for i, x in enumerate(r):
        assert x.index == i if type(x) is TaskError else x == i
    assert sum(type(x) is TaskError for x in r) == 100

def with_a_new_pool():
    pool.shutdown()
    check()

def check():
    assert Parallel(2)(delayed(work)(i, 1) for i in range(20)) == list(range(20))

def workers():
    nursery = getattr(pool._nursery, "_pids", [])
    return {p.pid for p in psutil.Process().children(recursive=True)} - {*nursery}

def meet(bell, gate):
    bell.ring()
    gate.wait()
    return os.getpid()

# So that all is imported: an interrupt in the midst of Python's own import system can
# leave its lock taken for ever, and then no other thread can import anything.
calls = [a_list, a_generator, as_they_come, dropped_in_the_middle, through_sockets,
         through_shared_memory, with_failures, with_a_new_pool]
for call in calls:
    call()
pool.shutdown()
print("ready", flush=True)
turn = done = 0
while done < count:
    turn += 1
    done += interrupted(choose.choice(calls))
    if turn % 10 == 0:
        check()
check()
# Whoever is alive belongs to the pool, which knows that it is idle, and it is: all of
# them take a task at the same time.
until(lambda: workers() == {peer.pid for peer in pool._idle})
idle = workers()
with Gate() as gate, Bell() as bell:
    r = Parallel(len(idle), batch_size=1, return_as="generator")(
        delayed(meet)(bell, gate) for _ in idle)
    bell.wait(len(idle))
    gate.open()
    assert set(r) == idle
pool.end()
print("survived", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_interrupts_at_random_instants(seed):
    choose = random.Random(seed)
    survived = threading.Event()
    with Script(SOURCE, [str(seed), "100"]) as script:
        script.expect("ready")

        def shoot():
            while not survived.is_set():
                survived.wait(choose.random() * choose.choice([0.001, 0.01, 0.05]))
                script.process.send_signal(signal.SIGINT)

        thread = threading.Thread(target=shoot)
        thread.start()
        try:
            script.expect("survived")
        finally:
            survived.set()
            thread.join()
        assert script.survivors() == []
        out, err, code = script.finish()
    assert (out, err, code) == ("", "", 0), f"seed {seed}"


def ring_and_hold(bell, gate, i):
    bell.ring(b"%8d" % os.getpid())
    gate.wait()
    return i


def rung(bell, count):
    """Wait for so many tasks that hold; the numbers of their processes."""
    return [int(pid) for pid in re.findall(b".{8}", bell.wait(8 * count))]


def gone(pids):
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_interrupt_ends_tasks_that_hang(return_as):
    pids = []
    parallel = Parallel(2, "processes", return_as=return_as, batch_size=1)
    with Gate() as gate, Bell() as bell:

        def interrupt():
            pids.extend(rung(bell, 2))
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in parallel(delayed(ring_and_hold)(bell, gate, i) for i in range(6)):
                raise AssertionError("no task can have ended")
        thread.join()
        until(lambda: gone(pids))
        assert len(set(pids)) == 2
        assert Parallel(2, "processes")(delayed(abs)(-i) for i in range(9)) == list(
            range(9)
        )


def test_an_exception_set_by_another_thread_ends_a_call():
    caught = []

    class Stop(BaseException):
        pass

    with Gate() as gate, Bell() as bell:

        def call():
            try:
                Parallel(2, "processes")(
                    delayed(ring_and_hold)(bell, gate, i) for i in range(2)
                )
            except Stop as error:
                caught.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        pids = rung(bell, 2)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Stop)
        )
        thread.join()
        until(lambda: gone(pids))
    assert len(caught) == 1
    assert Parallel(2, "processes")(delayed(abs)(-i) for i in range(9)) == list(
        range(9)
    )


class Stop(BaseException):
    pass


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Stop])
def test_an_interrupt_while_workers_are_killed_spares_none(monkeypatch, interrupt):
    kill, left = pool.kill, [interrupt, interrupt]

    def interrupted(peer):
        if left:
            raise left.pop()
        pids.append(peer.pid)
        kill(peer)

    monkeypatch.setattr(pool, "kill", interrupted)
    pids = []
    with Gate() as gate, Bell() as bell:

        def tasks():
            for _ in range(2):
                yield delayed(ring_and_hold)(bell, gate, 1)
            rung(bell, 2)
            raise LookupError

        with pytest.raises(interrupt):
            Parallel(2, "processes", batch_size=1)(tasks())
        assert len(pids) == 2
        until(lambda: gone(pids))


@pytest.mark.parametrize("backend", ["processes", "threading"])
def test_an_interrupt_on_the_way_into_a_destructor_is_raised_behind_it(backend):
    """Nothing looks for signals between the interrupt and the drop: all of it is C."""
    stream = Parallel(2, backend, return_as="generator")(
        delayed(abs)(i) for i in range(100)
    )
    assert next(stream) == 0
    held = {1: stream}
    end = weakref.ref(stream)
    del stream
    called = operator.methodcaller("__call__")
    with pytest.raises(KeyboardInterrupt):
        list(map(called, [_thread.interrupt_main, held.clear]))
    assert not held
    assert end() is None
    assert Parallel(2, backend)(delayed(abs)(i) for i in (-1, -2)) == [1, 2]


def test_an_ordinary_error_of_a_destructor_is_printed_with_what_it_says(monkeypatch):
    """Raised behind it, by its type alone, it would mislead; the end is repeated."""
    printed, tries = [], []

    class Once(Ending):
        def _end(self, early):
            tries.append(early)
            if len(tries) == 1:
                raise ValueError("what it says")

    monkeypatch.setattr(sys, "unraisablehook", lambda u: printed.append(u.exc_value))
    Once()
    assert tries == [True, True]
    assert [str(error) for error in printed] == ["what it says"]


def test_ctrl_c_at_a_terminal_reaches_the_caller_alone():
    """The whole process group gets it; nursery and workers say nothing."""
    source = (
        "import signal\n"
        "from fastjob import Parallel, delayed\n"
        "from gates import Bell\n"
        "bell = Bell()\n"
        "def hang(i):\n"
        "    bell.ring()\n"
        "    signal.pause()\n"
        "def tasks():\n"
        "    for i in range(4):\n"
        "        if i == 3:\n"
        "            bell.wait(2)\n"
        "            print('ready', flush=True)\n"
        "        yield delayed(hang)(i)\n"
        "try:\n"
        "    Parallel(2, batch_size=1)(tasks())\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "print(Parallel(2)(delayed(abs)(-i) for i in range(3)))\n"
    )
    with Script(source, start_new_session=True) as script:
        script.expect("ready")
        os.killpg(script.process.pid, signal.SIGINT)
        script.expect("interrupted")
        assert script.finish() == ("[0, 1, 2]\n", "", 0)


def test_ctrl_c_while_the_nursery_starts_prints_nothing_of_it():
    source = (
        "import os, signal\n"
        "from fastjob import Parallel, delayed\n"
        "from fastjob._pool.launch import Nursery\n"
        "nursery = Nursery()\n"
        "nursery.start()\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "assert not nursery.wait(0.3), 'it should live on'\n"
        "nursery.close()\n"
        "assert nursery.wait(10)\n"
    )
    with Script(source, start_new_session=True) as script:
        script.expect("ready")
        os.killpg(script.process.pid, signal.SIGINT)
        assert script.finish() == ("", "", 0)
