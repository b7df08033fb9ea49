"""Worker interpreters on POSIX: how `spawn.Spawner` starts one and sees its end.

    caller ──private socketpair──▶ worker      (descriptor 0)
       ├──── status page ────────▶             (3)
       └──── lifeline ───────────▶             (4; never written to)

A worker leads a process group of its own: Ctrl-C at a terminal does not reach it, and
with it ends what its tasks have started. When the caller closes its lifeline, or dies,
a worker without a task ends by itself; in any other a thread kills its group after a
moment (``lifeline.pyx``).
"""

from __future__ import annotations

import fcntl
import os
import sys
from _socket import socket

from fastjob._core.lifeline import Descriptor
from fastjob._core.status import StatusPage
from fastjob._pool import child
from fastjob._pool.starter import FAREWELL, end

#: Places of a worker's descriptors.
PAGE, LIFELINE = 3, 4

#: Descriptors from here on cannot be in the way of those that a worker is given.
FIRST_FREE = 10

#: The status of a worker that somebody else has reaped.
UNKNOWN = -1

#: What the system counts peak memory in, in KiB.
PEAK_UNIT = 1024 if sys.platform == "darwin" else 1


def copy_above(fd: int) -> int:
    """A copy of a descriptor that no place of a worker's can collide with."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)


class Process:
    """A worker process.

    Attributes
    ----------
    pid : int
    handle : int
        0: descriptors come over the socket.
    """

    handle = 0

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def begin(self) -> None:
        """Let it run; it does."""

    def wait(self) -> tuple[int, int]:
        """Wait for its end; its status, and its peak memory in KiB."""
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            return UNKNOWN, 0
        return status, usage.ru_maxrss // PEAK_UNIT

    def end(self) -> None:
        """Kill it, and what its tasks have started."""
        end(self.pid)


class Host:
    """What all workers of a spawner are given.

    Parameters
    ----------
    page : StatusPage
    """

    def __init__(self, page: StatusPage) -> None:
        read, self._lifeline = map(Descriptor, os.pipe())
        self._given = [
            (Descriptor(copy_above(fd)), place)
            for fd, place in ((read.fd, LIFELINE), (page.fd, PAGE))
        ]

    def copy(self, fd: int) -> socket:
        """A copy of the worker's end of its socket."""
        return socket(fileno=copy_above(fd))

    def ends(self) -> tuple[int, ...]:
        """What a worker is told of its descriptors: nothing, it knows their places."""
        return ()

    def start(self, link: socket, argv: list[str], environ: dict[str, str]) -> Process:
        """Start a worker.

        Raises
        ------
        OSError
            If the system does not.
        """
        places = [(link.fileno(), 0), *((given.fd, at) for given, at in self._given)]
        pid = os.posix_spawn(
            argv[0],
            argv,
            environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, *place) for place in places],
            setpgroup=0,
            setsigmask=(),
        )
        return Process(pid)

    def sever(self) -> None:
        """Have all workers end; may be called again."""
        self._lifeline.close()

    def close(self) -> None:
        """Close what is given to new workers: there will be none."""
        for given, _ in self._given:
            given.close()


def take_over(slot: int) -> tuple[int, int, int] | None:
    """In the worker: take what lies in its places, and let go of all else.

    Returns
    -------
    tuple or None
        Descriptors of its socket and of the page, and 0 for the caller's process; None
        if there is no thread to watch for the caller's end, as the page now says.
    """
    from fastjob._core.lifeline import hold

    try:
        hold(LIFELINE, FAREWELL)
    except OSError as error:
        StatusPage(PAGE).cannot_begin(slot, error.errno or 0)
        return None
    link = child.take_over(LIFELINE + 1)
    for fd in (PAGE, LIFELINE):
        os.set_inheritable(fd, False)
    return link, PAGE, 0
