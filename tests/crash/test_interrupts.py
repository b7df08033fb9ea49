"""Ctrl-C at any instant: a KeyboardInterrupt, a usable pool, no process left."""

from __future__ import annotations

import _thread
import ctypes
import operator
import os
import random
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
# interrupted before. Between two calls they are counted only.
SOURCE = """
import random, signal, sys
from fastjob import Parallel, delayed
from fastjob._pool.pool import pool

choose = random.Random(int(sys.argv[1]))
count = int(sys.argv[2])
shots = interrupted = 0
armed = False

def handler(*_):
    global shots
    shots += 1
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, handler)

def work(x, y):
    for i in range(y):
        x + i
    return x

def big(x):
    return bytes(x) * 1000

def one_call(kind):
    if kind == 0:
        r = Parallel(2)(delayed(work)(i, 20) for i in range(2000))
        assert r == list(range(2000))
    elif kind == 1:
        r = Parallel(2, return_as="generator")(delayed(work)(i, 50) for i in range(500))
        assert list(r) == list(range(500))
    elif kind == 2:
        r = Parallel(3, batch_size=1)(delayed(big)(i) for i in range(60))
        assert [len(x) for x in r] == [1000 * i for i in range(60)]
    elif kind == 3:
        pool.shutdown()
        assert Parallel(2)(delayed(work)(i, 1) for i in range(10)) == list(range(10))

def check():
    assert Parallel(2)(delayed(work)(i, 1) for i in range(20)) == list(range(20))

# So that all is imported: an interrupt in the midst of Python's own import system can
# leave its lock taken for ever, and then no other thread can import anything.
for kind in range(4):
    one_call(kind)
pool.shutdown()
print("ready", flush=True)
turn = 0
while shots < count:
    turn += 1
    try:
        try:
            armed = True
            one_call(choose.randrange(4))
            armed = False
        except KeyboardInterrupt:
            armed = False
            interrupted += 1
    except KeyboardInterrupt:
        armed = False
    if turn % 10 == 0:
        check()
check()
assert interrupted > count // 10, interrupted
# Whoever is alive belongs to the pool, and the pool knows it.
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


def interrupt_when_rung(bell, count):
    def wait():
        bell.wait(count)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def ring_and_hold(bell, gate, i):
    bell.ring()
    gate.wait()
    return i


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_interrupt_ends_tasks_that_hang(return_as):
    parallel = Parallel(2, "processes", return_as=return_as, batch_size=1)
    with Gate() as gate, Bell() as bell:
        thread = interrupt_when_rung(bell, 2)
        with pytest.raises(KeyboardInterrupt):
            for _ in parallel(delayed(ring_and_hold)(bell, gate, i) for i in range(6)):
                raise AssertionError("no task can have ended")
        thread.join()
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
        bell.wait(2)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Stop)
        )
        thread.join()
    assert len(caught) == 1


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
            bell.wait(2)
            raise LookupError

        with pytest.raises(interrupt):
            Parallel(2, "processes", batch_size=1)(tasks())
        assert len(pids) == 2
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


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
