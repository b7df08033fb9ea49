"""What is done by other means on Windows: sockets, handles, jobs, interrupts."""

from __future__ import annotations

import _socket
import _thread
import os
import socket
import subprocess
import sys
import threading
from typing import ClassVar

import psutil
import pytest
from gates import Bell, Gate, until

import fastjob
from fastjob import Parallel, delayed
from fastjob._core import sockets
from fastjob._pool.starter import start_method

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="not Windows")

MB = 1 << 20


class Overtaken(_socket.socket):
    """Listens, and somebody else is the first to connect."""

    strangers: ClassVar = []

    def listen(self):
        super().listen()
        stranger = socket.create_connection(self.getsockname())
        self.strangers.append(stranger)


def test_a_stranger_who_connects_first_is_turned_away(monkeypatch):
    monkeypatch.setattr(sockets._socket, "socket", Overtaken)
    ours, theirs = (_socket.socket(fileno=fd) for fd in sockets.stream_pair())
    assert ours.getpeername() == theirs.getsockname()
    theirs.send(b"in")
    assert ours.recv(10) == b"in"
    (stranger,) = Overtaken.strangers
    assert stranger.recv(10) == b""
    for end in (ours, theirs, stranger):
        end.close()


def total(array):
    return float(array.sum())


def full(n):
    return np.full(n, 2.0)


def test_calls_leave_no_handles_and_no_memory_behind():
    me = psutil.Process()
    array = np.ones(2 * MB)

    def calls(n):
        for _ in range(n):
            assert (
                Parallel(2)(delayed(total)(array) for _ in range(4)) == [2.0 * MB] * 4
            )
            found = Parallel(2)(delayed(full)(MB) for _ in range(4))
            assert all(total(each) == 2.0 * MB for each in found)

    calls(5)
    handles, memory = me.num_handles(), me.memory_info().private
    calls(15)
    assert me.num_handles() <= handles + 5
    assert me.memory_info().private <= memory + 64 * MB


def write(array, value):
    array[:] = value
    return total(array)


def test_a_private_copy_is_private():
    array = np.ones(MB)
    private = Parallel(2, mmap_mode="c", batch_size=1)
    assert private(delayed(write)(array, i) for i in range(4)) == [
        i * MB for i in range(4)
    ]
    assert total(array) == MB


def test_a_folder_for_shared_memory_is_not_needed(tmp_path):
    large = Parallel(2, temp_folder=tmp_path)
    assert large(delayed(total)(np.ones(MB)) for _ in range(3)) == [MB] * 3
    assert list(tmp_path.iterdir()) == []


def program():
    return sys.executable, os.getppid()


def test_in_a_virtual_environment_the_interpreter_itself_is_started(
    tmp_path, monkeypatch
):
    """The program of such an environment starts the interpreter as its child."""
    launcher = tmp_path / "python.exe"
    launcher.touch()
    fastjob.shutdown()
    monkeypatch.setattr(sys, "_base_executable", sys.executable)
    monkeypatch.setattr(sys, "executable", str(launcher))
    (found,) = Parallel(2)([delayed(program)()])
    assert found == (str(launcher), os.getpid())
    fastjob.shutdown()


def wait_at(gate, bell):
    bell.ring()
    gate.wait()


@pytest.mark.parametrize("backend", ["processes", "threading"])
def test_an_interrupt_ends_a_wait_for_workers(backend):
    """Nothing of Windows ends the wait itself."""
    with Gate() as gate, Bell() as bell:

        def interrupt():
            bell.wait(2)
            _thread.interrupt_main()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            Parallel(2, backend)(delayed(wait_at)(gate, bell) for _ in range(2))
        thread.join()
    assert Parallel(2, backend)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def start_program(bell):
    """Start a program that would run on, and tell its number."""
    program = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        stdin=subprocess.DEVNULL,
    )
    bell.ring(f"{os.getpid()} {program.pid}\n".encode())
    program.wait()


def rung(bell, n):
    """The numbers of `n` workers and of their programs."""
    told = b""
    while told.count(b"\n") < n:
        told += bell.wait()
    return [int(pid) for pid in told.split()]


def test_what_a_task_has_started_ends_with_its_worker():
    with Bell() as bell:
        limited = Parallel(2, timeout=5, on_error="return")
        limited([delayed(start_program)(bell)] * 2)
        for pid in rung(bell, 2):
            until(lambda pid=pid: not psutil.pid_exists(pid))


CALLER = """
import sys
sys.path.insert(0, sys.argv[1])
from gates import Bell
from test_windows import start_program
from fastjob import Parallel, delayed
bell = Bell.__new__(Bell)
bell.path = sys.argv[2]
Parallel(2)([delayed(start_program)(bell)] * 2)
"""


def test_workers_and_their_programs_end_with_a_killed_caller(tmp_path):
    with Bell() as bell:
        here = os.path.dirname(os.path.abspath(__file__))
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, here, bell.path], stdin=subprocess.DEVNULL
        )
        pids = rung(bell, 2)
        caller.kill()
        caller.wait()
        for pid in pids:
            until(lambda pid=pid: not psutil.pid_exists(pid))


def test_a_nursery_is_refused(monkeypatch):
    monkeypatch.setenv("FASTJOB_START_METHOD", "nursery")
    with pytest.raises(ValueError, match="Windows has 'spawn' only"):
        start_method()
