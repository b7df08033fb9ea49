"""What a test may leave behind: nothing, except the warm pool until its module ends.

``Snapshot.take()`` lists the processes, threads, file descriptors, shared memory
files and temporary files of this moment; ``left_behind(before)`` says in words what
has been added since.

Processes are found in two ways, because each has a gap: by descent from this
process (an orphan is not a descendant any more) and by a marker in the environment
(a plain fork shows the environment that its parent was started with).
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

MARKER = "FASTJOB_TEST_RUN"
MARK = f"{os.getpid()}-{uuid.uuid4().hex}"

# The standard library keeps these until the interpreter exits.
STANDARD_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
STANDARD_TEMP_PREFIX = "pymp-"
SHM = "/dev/shm"
SHM_PREFIXES = ("fastjob", "psm_", "sem.mp-", "sem.fastjob")


def mark_environment() -> None:
    """Make each process that is started from here recognisable as ours."""
    os.environ[MARKER] = MARK


def _marked() -> list[psutil.Process]:
    if not sys.platform.startswith("linux"):
        return []
    wanted = f"{MARKER}={MARK}".encode()
    found = []
    for pid in psutil.pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read():
                    found.append(psutil.Process(pid))
        except (OSError, psutil.NoSuchProcess):
            continue  # not ours to read, or gone since it was listed
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or f"({process.status()} {process.name()})"
    except psutil.NoSuchProcess:
        return ""
    except psutil.ZombieProcess:
        return f"(zombie {process.pid})"
    except (psutil.AccessDenied, OSError):
        if sys.platform != "win32":
            raise
        return f"({process.pid}, which is ending)"


def _processes() -> set[psutil.Process]:
    me = psutil.Process()
    found = set(me.children(recursive=True)) | set(_marked())
    return {
        process
        for process in found - {me}
        if not any(name in _command(process) for name in STANDARD_PROCESSES)
    }


def _is_pool(process: psutil.Process) -> bool:
    return "fastjob._" in _command(process)


def _descriptors() -> set[tuple[int, str]]:
    if not sys.platform.startswith("linux"):
        return set()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found - _standard_descriptors()


def _standard_descriptors() -> set[tuple[int, str]]:
    """The pipes by which ``multiprocessing`` reaches its two standing processes."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    fds = [
        None if tracker is None else tracker._resource_tracker._fd,
        None if server is None else server._forkserver._forkserver_alive_fd,
    ]
    return {(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in fds if fd is not None}


def _shared_memory() -> set[str]:
    names = os.listdir(SHM) if os.path.isdir(SHM) else []
    return {f"{SHM}/{name}" for name in names if name.startswith(SHM_PREFIXES)}


def _held_by_others(names: set[str]) -> set[str]:
    """Those of some files that a process of another test run has mapped."""
    if not names:
        return set()
    ours = {os.getpid(), *(process.pid for process in _processes())}
    held = set()
    for pid in set(psutil.pids()) - ours:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            continue  # not ours to read, or gone since it was listed
        held |= {name for name in names if name in maps}
    return held


def _temporary() -> set[str]:
    folder = tempfile.gettempdir()
    return {
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if not name.startswith(STANDARD_TEMP_PREFIX)
    }


@dataclass(frozen=True)
class Snapshot:
    processes: set[psutil.Process]
    threads: set[threading.Thread]
    descriptors: set[tuple[int, str]]
    files: set[str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            _processes(),
            set(threading.enumerate()),
            _descriptors(),
            _shared_memory() | _temporary(),
        )


def left_behind(
    before: Snapshot, *, pool_may_stay: bool, grace: float = 5.0
) -> list[str]:
    """What exists now and did not exist before, one sentence a thing.

    Parameters
    ----------
    before : Snapshot
        What existed before.
    pool_may_stay : bool
        Whether fastjob's idle workers, and the descriptors they need, may stay.
    grace : float
        Seconds in which a process or thread that is already ending may end, and a
        file of somebody else may go.

    Returns
    -------
    list of str
        Empty when nothing was left behind.
    """
    gc.collect()
    now = Snapshot.take()
    processes = now.processes - before.processes
    # Before 3.13 the stand-in for a thread that was not started by ``threading`` stays
    # when the thread has ended, and cannot be joined.
    threads = {
        thread
        for thread in now.threads - before.threads
        if not isinstance(thread, threading._DummyThread)
        # It watches the time of a test where there is no SIGALRM.
        and not thread.name.startswith("pytest_timeout")
    }
    if pool_may_stay:
        processes = {process for process in processes if not _is_pool(process)}
        threads = {t for t in threads if not t.name.startswith("fastjob")}
    _, running = psutil.wait_procs(processes, timeout=grace)
    if pool_may_stay:
        # One that was just being started still had the command line of its parent.
        running = [process for process in running if not _is_pool(process)]
    for thread in threads:
        thread.join(grace)
    if processes or threads:
        now = Snapshot.take()
    found = [f"process {p.pid}: {_command(p)}" for p in running]
    found += [f"thread {t.name!r}" for t in threads if t.is_alive()]
    if not pool_may_stay:
        new = sorted(now.descriptors - before.descriptors)
        found += [f"file descriptor {fd}: {target}" for fd, target in new]
    files = now.files - before.files
    end = time.monotonic() + grace
    # Others' come and go; what was left behind is still there after a while.
    while files := _ours(files):
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    return found + [f"file {name}" for name in sorted(files)]


def _ours(files: set[str]) -> set[str]:
    files = {name for name in files if os.path.lexists(name)}
    return files - _held_by_others({name for name in files if name.startswith(SHM)})
