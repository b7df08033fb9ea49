"""A nursery that dies, or cannot fork: its calls say so, and the next one goes on.

Elsewhere than on Linux there is none; on Linux these tests are about the nursery also
when the rest of the suite runs on spawned workers.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
from gates import Bell, Gate

from fastjob import Parallel, delayed, errors
from fastjob._pool.pool import pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no nursery")


@pytest.fixture(autouse=True)
def with_nursery(monkeypatch):
    """Have a nursery, also where the environment asks for spawned workers."""
    pool.shutdown()
    monkeypatch.setenv("FASTJOB_START_METHOD", "nursery")
    yield
    pool.shutdown()


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def identity(x):
    return x


def nursery_pid():
    return pool._nursery._pids[0]


def test_a_nursery_killed_in_mid_call_is_a_clear_error():
    with Gate() as gate, Bell() as bell:

        def tasks():
            for i in range(4):
                if i == 3:
                    bell.wait(2)
                    os.kill(nursery_pid(), signal.SIGKILL)
                yield delayed(ring_and_hold)(bell, gate, i)

        with pytest.raises(errors.NurseryError, match="was killed"):
            processes(batch_size=1)(tasks())
    assert processes()(delayed(identity)(i) for i in range(10)) == list(range(10))


def ring_and_hold(bell, gate, value):
    bell.ring()
    gate.wait()
    return value


def test_a_nursery_killed_under_two_calls_ends_both_and_no_third():
    with Gate() as gate, Bell() as bell:
        streams = [
            processes(return_as="generator", batch_size=1)(
                delayed(ring_and_hold)(bell, gate, i) for i in range(2)
            )
            for _ in range(2)
        ]
        bell.wait(4)
        os.kill(nursery_pid(), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(errors.NurseryError):
                next(stream)
    assert processes()([delayed(identity)(4)]) == [4]


def test_a_nursery_killed_while_idle_is_replaced_unseen():
    processes()([delayed(identity)(4)])
    pid = nursery_pid()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes()([delayed(identity)(4)] * 4) == [4] * 4
    assert nursery_pid() != pid


def test_a_worker_that_kills_the_nursery_from_a_task():
    with pytest.raises(errors.NurseryError):
        processes()([delayed(kill_parent)()])
    assert processes()([delayed(identity)(4)]) == [4]


def kill_parent():
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


def test_forks_that_fail_in_the_nursery(tmp_path, monkeypatch):
    """The system has no room for another process: the calls go on with fewer."""
    (tmp_path / "no_more_forks.py").write_text(
        "import errno, os\n"
        "fork, left = os.fork, int(os.environ['FORKS_LEFT'])\n"
        "def limited():\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0:\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = limited\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        pool.shutdown()
        monkeypatch.setenv("FORKS_LEFT", "1")
        found = processes(4, preload=["no_more_forks"])(
            delayed(identity)(i) for i in range(100)
        )
        assert found == list(range(100))
        pool.shutdown()
        monkeypatch.setenv("FORKS_LEFT", "0")
        with pytest.raises(errors.NurseryError, match="temporarily unavailable"):
            processes(4, preload=["no_more_forks"])([delayed(identity)(1)] * 4)
    finally:
        pool.shutdown()
    assert processes()([delayed(identity)(4)]) == [4]


def test_a_nursery_that_stands_still_is_given_up(run_python):
    """Nothing but its end ends the wait for it, and that wait has a limit."""
    source = """
import os, signal
from fastjob._pool.launch import Nursery
nursery = Nursery()
nursery.start()
pid = nursery._pids[0]
os.kill(pid, signal.SIGSTOP)
assert not nursery.wait(0.01)
nursery.close()
assert not nursery.wait(0.01)
assert not nursery.wait(0.01)    # once more, without its socket
os.kill(pid, signal.SIGCONT)
os.waitpid(pid, 0)
assert nursery.wait(0)
"""
    done = run_python(source)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_an_error_comes_of_telling_a_dead_nursery(run_python):
    """Not even where the program lets a broken pipe end it."""
    source = """
import os, signal
from fastjob._pool.launch import Nursery
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
nursery = Nursery()
nursery.start()
pid = nursery._pids[0]
os.kill(pid, signal.SIGKILL)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
for _ in range(2):    # once for what it has not read, and from then on
    try:
        nursery.kill(0)
    except OSError as error:
        print(type(error).__name__)
assert not nursery.alive()
nursery.close()
assert nursery.wait(0)
"""
    done = run_python(source)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "ConnectionResetError\nBrokenPipeError\n",
        "",
    )


def test_the_end_of_a_nursery_that_the_system_reaps_is_seen_as_well(run_python):
    source = """
import os, signal
from fastjob._pool.launch import Nursery
signal.signal(signal.SIGCHLD, signal.SIG_IGN)    # the system reaps
nursery = Nursery()
nursery.start()
assert nursery.alive()
nursery.close()
assert nursery.wait(30)
assert not nursery.alive()
"""
    done = run_python(source)
    assert (done.returncode, done.stderr) == (0, "")
