"""Ending the warm workers."""

import psutil
from gates import Bell, Gate, until

import fastjob
from fastjob import Parallel, delayed
from fastjob._core.warm_threads import count_idle_threads


def children():
    return psutil.Process().children(recursive=True)


def ring_and_wait(bell, gate, i):
    bell.ring()
    gate.wait()
    return i


def test_shutdown_ends_all_idle_workers_and_the_next_call_starts_new_ones():
    for backend in ("processes", "threading"):
        Parallel(2, backend, batch_size=1)(delayed(abs)(-i) for i in range(4))
    workers = children()
    assert workers
    assert count_idle_threads() > 0
    fastjob.shutdown()
    assert not any(p.is_running() for p in workers)
    assert count_idle_threads() == 0
    for backend in ("processes", "threading"):
        assert Parallel(2, backend)(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]


def test_shutdown_spares_the_workers_of_a_call_until_it_ends():
    with Gate() as gate, Bell() as bell:
        stream = Parallel(2, "processes", batch_size=1, return_as="generator")(
            delayed(ring_and_wait)(bell, gate, i) for i in range(2)
        )
        bell.wait(2)
        fastjob.shutdown()
        gate.open()
        assert list(stream) == [0, 1]
    until(lambda: not children())


def test_shutdown_without_workers_does_nothing(run_python):
    done = run_python(
        "import sys, fastjob\n"
        "fastjob.shutdown()\n"
        "fastjob.shutdown()\n"
        "print('fastjob._pool.pool' in sys.modules)\n"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
