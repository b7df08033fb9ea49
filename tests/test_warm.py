"""Ending the warm workers."""

import os

from gates import Bell, Gate, until
from psutil import pid_exists

import fastjob
from fastjob import Parallel, delayed
from fastjob._core.warm_threads import count_idle_threads


def ring_and_wait(bell, gate):
    bell.ring()
    gate.wait()
    return os.getpid()


def held(backend):
    """A call whose two tasks run and wait, and what they wait for."""
    gate = Gate()
    with Bell() as bell:
        stream = Parallel(2, backend, batch_size=1, return_as="generator")(
            delayed(ring_and_wait)(bell, gate) for _ in range(2)
        )
        bell.wait(2)
    return stream, gate


def test_shutdown_ends_all_idle_workers_and_the_next_call_starts_new_ones():
    pids = set()
    for backend in ("processes", "threading"):
        stream, gate = held(backend)
        gate.open()
        pids |= set(stream)
    pids.remove(os.getpid())
    assert len(pids) == 2
    until(lambda: count_idle_threads() == 2)
    fastjob.shutdown()
    assert not any(map(pid_exists, pids))
    assert count_idle_threads() == 0
    for backend in ("processes", "threading"):
        assert Parallel(2, backend)(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]


def test_shutdown_spares_the_workers_of_a_call_until_it_ends():
    stream, gate = held("processes")
    fastjob.shutdown()
    gate.open()
    pids = list(stream)
    until(lambda: not any(map(pid_exists, pids)))


def test_shutdown_without_workers_does_nothing(run_python):
    done = run_python(
        "import sys, fastjob\n"
        "fastjob.shutdown()\n"
        "fastjob.shutdown()\n"
        "print('fastjob._pool.pool' in sys.modules)\n"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
