"""Worker interpreters on Windows: how `spawn.Spawner` starts one and sees its end.

    caller ──socket over loopback──▶ worker      (described on its standard input)
       ├──── status page ──────────▶             (inherited)
       └──── handle of the caller ─▶             (inherited)

A worker inherits these two handles and no others, and is told their values. Its socket
it makes from a description that only it can use, which needs its number; so it begins
suspended. It is in a job of its own (``jobs.pyx``), which ends with the caller, and in
a process group of its own, which Ctrl-C does not reach.
"""

from __future__ import annotations

import _winapi
import os
import sys
from _socket import dup, socket

from fastjob._core.jobs import Job, peak_memory

# What follows is there for nobody else, type checkers included.
assert sys.platform == "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from fastjob._core.status import StatusPage

CREATE_SUSPENDED = 0x4
PROCESS_DUP_HANDLE = 0x40

#: The exit code of a worker that was killed on purpose.
KILLED = 9


def inheritable(handle: int, access: int | None = None) -> int:
    """A copy of a handle of this process that a child may be given."""
    here = _winapi.GetCurrentProcess()
    options = _winapi.DUPLICATE_SAME_ACCESS if access is None else 0
    return _winapi.DuplicateHandle(here, handle, here, access or 0, True, options)


class Process:
    """A worker process, suspended until it begins.

    Attributes
    ----------
    pid : int
    handle : int
        Of the process, for as long as this object lives.
    """

    def __init__(self, handle: int, thread: int, pid: int, job: Job) -> None:
        self.pid = pid
        self.handle = handle
        self._thread = thread
        self._job = job

    def begin(self) -> None:
        """Let it run."""
        self._job.begin(self.handle, self._thread)
        _winapi.CloseHandle(self._thread)

    def wait(self) -> tuple[int, int]:
        """Wait for its end; its exit code, and its peak memory in KiB."""
        _winapi.WaitForSingleObject(self.handle, _winapi.INFINITE)
        code = _winapi.GetExitCodeProcess(self.handle)
        signed = code - (1 << 32) if code >> 31 else code  # the page's 32 bits
        return signed, peak_memory(self.handle) >> 10

    def end(self) -> None:
        """Kill it, and what its tasks have started."""
        self._job.kill(KILLED)
        try:
            # By itself too: within a job that allows no other it has none.
            _winapi.TerminateProcess(self.handle, KILLED)
        except PermissionError:
            return  # it has ended

    def __del__(self, close: Callable[[int], None] = _winapi.CloseHandle) -> None:
        # Not sooner: the number of a process is given out again once nobody has a
        # handle of it, and what it has sent is fetched through this one.
        close(self.handle)


class Host:
    """What all workers of a spawner are given.

    Parameters
    ----------
    page : StatusPage
    """

    def __init__(self, page: StatusPage) -> None:
        self._given = [
            inheritable(page.fd),
            inheritable(_winapi.GetCurrentProcess(), PROCESS_DUP_HANDLE),
        ]

    def copy(self, fd: int) -> socket:
        """A copy of the worker's end of its socket."""
        return socket(fileno=dup(fd))

    def ends(self) -> tuple[int, ...]:
        """What a worker is told of its handles: page, caller."""
        return tuple(self._given)

    def start(self, link: socket, argv: list[str], environ: dict[str, str]) -> Process:
        """Start a worker, suspended.

        Raises
        ------
        OSError
            If the system does not.
        """
        from subprocess import STARTUPINFO, list2cmdline

        # In a virtual environment the program only starts another one, which is the
        # interpreter, and is told so by a variable.
        program = getattr(sys, "_base_executable", argv[0])
        if program != argv[0]:
            environ = {**environ, "__PYVENV_LAUNCHER__": argv[0]}
        job = Job()
        read, write = _winapi.CreatePipe(None, 0)
        try:
            standard = [inheritable(read)]
            _winapi.CloseHandle(read)
            for which in (_winapi.STD_OUTPUT_HANDLE, _winapi.STD_ERROR_HANDLE):
                standard.append(stream(which))
            inherited = [*self._given, *filter(None, standard)]
            info = STARTUPINFO(
                dwFlags=_winapi.STARTF_USESTDHANDLES,
                hStdInput=standard[0],
                hStdOutput=standard[1],
                hStdError=standard[2],
                lpAttributeList={"handle_list": inherited},
            )
            try:
                handle, thread, pid, _ = _winapi.CreateProcess(
                    program,
                    list2cmdline([program, *argv[1:]]),
                    None,
                    None,
                    True,
                    _winapi.CREATE_NEW_PROCESS_GROUP | CREATE_SUSPENDED,
                    environ,
                    None,
                    info,
                )
            finally:
                for copy in filter(None, standard):
                    _winapi.CloseHandle(copy)
            process = Process(handle, thread, pid, job)
            try:
                # Less than a pipe holds: it does not wait for the reader.
                _winapi.WriteFile(write, link.share(pid))
            except OSError:
                process.begin()
                process.end()
                raise
            return process
        finally:
            _winapi.CloseHandle(write)

    def sever(self) -> None:
        """Have all workers end: their sockets are closed, and their jobs with us."""

    def close(self) -> None:
        """Close what is given to new workers: there will be none."""
        while self._given:
            _winapi.CloseHandle(self._given.pop())


def stream(which: int) -> int:
    """An inheritable copy of a standard stream; 0 if there is none."""
    try:
        handle = _winapi.GetStdHandle(which)
        return inheritable(handle) if handle else 0
    except OSError:
        return 0


def take_over(slot: int, page: int, caller: int) -> tuple[int, int, int]:
    """In the worker: make its socket; its standard input is empty from now on.

    Returns
    -------
    tuple
        Handles of its socket, of the page and of the caller's process.
    """
    for handle in (page, caller):
        os.set_handle_inheritable(handle, False)  # the children of tasks need neither
    description = b""
    while part := os.read(0, 4096):
        description += part
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    return socket(0, 0, 0, description).detach(), page, caller
