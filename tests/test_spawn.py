"""Workers that are interpreters of their own, wherever the tests run.

``ci/portable.sh`` runs the whole suite on them; here is what only they do.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from gates import Bell, Gate, until

from fastjob import Parallel, TerminatedWorkerError, delayed, errors
from fastjob._core.lifeline import Descriptor
from fastjob._core.wire import pair
from fastjob._pool import starter
from fastjob._pool.pool import new_starter, pool
from fastjob._pool.spawn import Spawner


@pytest.fixture(autouse=True)
def spawning(monkeypatch):
    """Run this module's calls on spawned workers, and end them afterwards."""
    pool.shutdown()
    monkeypatch.setenv("FASTJOB_START_METHOD", "spawn")
    yield
    pool.shutdown()


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def double(x):
    return 2 * x


def whereabouts(i):
    return os.getpid(), os.getppid(), os.getpgrp(), sys.stdin.read()


def test_each_worker_is_a_child_of_the_caller_in_a_group_of_its_own():
    found = processes()(delayed(whereabouts)(i) for i in range(8))
    assert type(pool._nursery) is Spawner
    for pid, parent, group, given in found:
        assert (parent, group, given) == (os.getpid(), pid, "")


@pytest.mark.parametrize("method", ["fork", "SPAWN", "spawn "])
def test_an_unknown_start_method_is_refused(monkeypatch, method):
    monkeypatch.setenv("FASTJOB_START_METHOD", method)
    with pytest.raises(ValueError, match="it can be 'nursery' or 'spawn'"):
        processes()([delayed(double)(1)] * 2)


def test_linux_has_a_nursery_and_other_systems_spawn(monkeypatch):
    monkeypatch.setenv("FASTJOB_START_METHOD", "")
    for platform, method in [("linux", "nursery"), ("darwin", "spawn")]:
        monkeypatch.setattr(starter.sys, "platform", platform)
        assert starter.start_method() == method
        assert (type(new_starter()) is Spawner) == (method == "spawn")


def orders(words):
    return list(set(words)), os.getpid()


def test_all_workers_put_sets_into_the_same_order():
    words = [f"word {i}" for i in range(50)]
    with Gate() as gate, Bell() as bell:
        stream = processes(batch_size=1, return_as="generator")(
            delayed(orders_together)(words, bell, gate) for _ in range(2)
        )
        bell.wait(2)
        gate.open()
        (first, one), (second, other) = stream
    assert one != other
    assert first == second


def orders_together(words, bell, gate):
    bell.ring()
    gate.wait()
    return orders(words)


def exit_with(code):
    os._exit(code)


def test_the_status_of_a_worker_that_ends_is_told():
    with pytest.raises(TerminatedWorkerError) as caught:
        processes()([delayed(exit_with)(7)] * 2)
    assert caught.value.exitcode == 7
    assert caught.value.peak_memory > 1_000_000
    assert processes()([delayed(double)(4)] * 2) == [8, 8]


def test_a_worker_whose_status_the_user_has_taken_is_known_to_have_ended():
    """As far as SIGCHLD is ignored, the system reaps the workers itself."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(TerminatedWorkerError) as caught:
            processes()([delayed(exit_with)(7)] * 2)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert caught.value.exitcode is None
    assert processes()([delayed(double)(4)] * 2) == [8, 8]


def start_program(bell):
    program = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    bell.ring(f"{program.pid:08d}".encode())
    os._exit(1)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_program_that_a_task_has_started_ends_with_its_worker():
    with Bell() as bell:
        with pytest.raises(TerminatedWorkerError):
            processes()([delayed(start_program)(bell), delayed(double)(1)])
        program = int(bell.wait(8))
        until(lambda: gone(program))


CALLER = """
import os, subprocess, sys
from fastjob import Parallel, delayed

def hold(path):
    program = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    with open(path, "wb", 0) as fifo:
        fifo.write(f"{os.getpid():08d}{program.pid:08d}".encode())
    while True:
        pass

def keep_the_interpreter(path):
    import ctypes
    with open(path, "wb", 0) as fifo:
        fifo.write(f"{os.getpid():08d}".encode())
    ctypes.PyDLL(None).pause()  # holds the interpreter's lock meanwhile

Parallel(2, "processes", batch_size=1)(
    [delayed(hold)(sys.argv[1]), delayed(keep_the_interpreter)(sys.argv[1])]
)
"""


def test_a_killed_caller_leaves_nothing_behind(tmp_path):
    """One task spins, with a program beside it, and one never gives the lock away."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    with Bell() as bell:
        caller = subprocess.Popen(
            [sys.executable, str(script), bell.path], stdin=subprocess.DEVNULL
        )
        digits = bell.wait(24).decode()
        left = {int(digits[at : at + 8]) for at in range(0, 24, 8)}
        assert len(left) == 3
        caller.kill()
        caller.wait()
        until(lambda: all(map(gone, left)))


def test_an_idle_worker_of_a_killed_caller_ends_by_itself(run_python, tmp_path):
    """It runs what its tasks have registered with atexit, as any interpreter."""
    done = run_python(
        "import atexit, os, signal, sys\n"
        "from fastjob import Parallel, delayed\n"
        "def register(path):\n"
        "    atexit.register(open, path, 'w')\n"
        "Parallel(2, 'processes')([delayed(register)(sys.argv[1])] * 2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        str(tmp_path / "ended"),
    )
    assert done.returncode == -signal.SIGKILL
    until((tmp_path / "ended").exists)


def test_a_fork_of_the_caller_has_nothing_of_its_workers():
    processes()([delayed(double)(1)] * 2)
    spawner = pool._nursery
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        kept = [spawner._host, pool._nursery]
        kept += [link.fileno() for link in spawner._links.values()]
        os.write(write, json.dumps(kept).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(read, 1000)) == [None, None, -1, -1]
    os.close(read)
    os.close(write)
    # and what the child did is nothing to the workers of its parent
    assert pool._nursery is spawner
    started = pool.n_started
    assert processes()([delayed(double)(1)] * 2) == [2, 2]
    assert pool.n_started == started


def test_a_kill_before_the_birth_is_not_lost(monkeypatch):
    """The request to kill comes while the thread has not started the process yet."""
    spawner = Spawner()
    spawner.start()
    asked = threading.Event()
    spawn = os.posix_spawn

    def late(*args, **kwargs):
        asked.wait()
        return spawn(*args, **kwargs)

    monkeypatch.setattr(os, "posix_spawn", late)
    ours, theirs = pair()
    spawner.page.clear(0)
    spawner.fork(0, theirs.fd)
    theirs.close()
    spawner.kill(0)
    asked.set()
    until(lambda: spawner.page.ended(0))
    assert not spawner.wait(10)  # it is not closed
    spawner.close()
    assert spawner.wait(10)
    ours.close()


def test_closing_ends_workers_that_stand_still():
    """A stopped process reads no end of anything: it is killed."""
    with Bell() as bell:
        stream = processes(return_as="generator", batch_size=1)(
            delayed(stop_oneself)(bell) for _ in range(2)
        )
        pids = {int(bell.wait(8)) for _ in range(2)}
        until(lambda: all(psutil.Process(pid).status() == "stopped" for pid in pids))
        spawner = pool._nursery
        spawner.close()
        assert spawner.wait(10)
        assert all(map(gone, pids))
        with pytest.raises(TerminatedWorkerError) as caught:
            list(stream)
    assert caught.value.exitcode == -signal.SIGKILL


def stop_oneself(bell):
    bell.ring(f"{os.getpid():08d}".encode())
    os.kill(os.getpid(), signal.SIGSTOP)


def test_an_interpreter_that_is_not_there_is_the_error_of_the_call(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(errors.NurseryError, match="Cannot start /no/such/python"):
        processes()([delayed(double)(1)] * 2)


def test_an_interpreter_that_cannot_be_started_is_the_error_of_the_call(
    monkeypatch, tmp_path
):
    program = tmp_path / "python"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(errors.NurseryError, match="No such file"):
        processes()([delayed(double)(1)] * 2)


def test_a_thread_that_cannot_be_started_is_the_error_of_the_call(monkeypatch):
    def refuse(*args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("fastjob._pool.spawn.start_bare_thread", refuse)
    with pytest.raises(errors.NurseryError) as caught:
        processes()([delayed(double)(1)] * 2)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EAGAIN


CANNOT_BEGIN = """
import errno, os
from fastjob._core.peer import Peer
from fastjob._core.status import StatusPage
from fastjob._core.lifeline import Descriptor
from fastjob._core.wire import pair
from fastjob._core import lifeline
from fastjob._pool import spawned
from fastjob._pool.hosting_posix import PAGE

def refuse(*args):
    raise BlockingIOError(errno.EAGAIN, "no thread")

page = StatusPage()
page.clear(5)
child = os.fork()
if child == 0:
    os.dup2(page.fd, PAGE)
    lifeline.hold = refuse
    spawned.main(5, (), False)
page.born(5, child)
_, status = os.waitpid(child, 0)
page.exited(5, status, 100)
print(Peer(pair()[0], page, 5, None).fate() == ("unborn", child, errno.EAGAIN, 100))
"""


def test_a_worker_that_cannot_watch_its_caller_does_not_begin(run_python):
    done = run_python(CANNOT_BEGIN)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_module_is_preloaded_by_each_worker(tmp_path, monkeypatch):
    (tmp_path / "spawned_early.py").write_text("import os\nPID = os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = processes(preload=["spawned_early"])([delayed(home_of)()] * 6)
    assert all(home == pid for home, pid in found)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        processes(preload=["no_such_module"])([delayed(double)(1)] * 2)


def home_of():
    return sys.modules["spawned_early"].PID, os.getpid()


def test_an_interrupt_while_a_lifeline_is_closed_leaves_nothing_half_done(monkeypatch):
    processes()(delayed(double)(i) for i in range(4))
    close = os.close

    def close_and_interrupt(fd):
        # As a signal handler may, between two instructions.
        monkeypatch.undo()
        close(fd)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", close_and_interrupt)
    try:
        pool.shutdown()
    except KeyboardInterrupt:
        pool.shutdown()
    monkeypatch.undo()
    monkeypatch.setenv("FASTJOB_START_METHOD", "spawn")
    assert processes()(delayed(double)(i) for i in range(4)) == [0, 2, 4, 6]


def test_a_descriptor_that_was_closed_is_not_closed_for_somebody_else():
    read, write = os.pipe()
    mine = Descriptor(read)
    mine.close()
    other = os.open(os.devnull, os.O_RDONLY)
    try:
        assert other == read
        mine.close()
        del mine
        os.fstat(other)
    finally:
        os.close(other)
        os.close(write)
