"""The caller's side of the nursery: start it, and tell it what to do.

The nursery is spawned, never forked: the caller may have threads, a BLAS with locks
held, a GPU context. Its standard input is one end of a packet socket; the caller
writes requests into the other end and never reads: everything that it has to learn
comes through the status page and the end of a worker's stream. So any number of
threads can ask for workers with one lock, and none waits for an answer.

Requests can be written before the nursery has come up: the socket holds them.
"""

from __future__ import annotations

import marshal
import os
import sys
from _signal import SIGINT  # type: ignore[import-not-found]  # signal is slower
from _socket import (  # socket itself costs 5 ms to import
    AF_UNIX,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SHUT_WR,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)
from functools import partial

from fastjob._pool.starter import (
    ONE_THREAD,
    Starter,
    interpreter_options,
    needs_site,
    search_path,
)
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable
    from typing import Any

BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from fastjob._pool.nursery import main; main({site!r})"
)


class Nursery(Starter):
    """The starter whose workers are forked by a nursery."""

    def __init__(self) -> None:
        super().__init__()
        self._pids: list[int] = []
        self._control: socket | None = None
        self._ready = False

    def start(self) -> None:
        self._control, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        boot = BOOT.format(path=search_path(), site=needs_site())
        spawn = partial(
            os.posix_spawn,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
            # Ctrl-C reaches it too, and must not end it before it has a handler.
            setsigmask=(SIGINT,),
        )
        argv = [sys.executable, *interpreter_options(), "-c", boot]
        environ = {**os.environ, **ONE_THREAD}
        try:
            # In one call of C code, which no signal handler can interrupt between the
            # start of the process and the moment when its number is known.
            self._pids.extend(map(spawn, [sys.executable], [argv], [environ]))
        except OSError as error:
            raise NurseryError(
                f"Cannot start {sys.executable} to make worker processes: {error}."
            ) from error
        finally:
            theirs.close()
        self._tell(("page",), self.page.fd)
        self._ready = True

    def _tell(self, message: tuple[Any, ...], fd: int = -1) -> None:
        assert self._control is not None, "started"
        passed = (
            [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        )
        # Without a signal, which ends programs that handle SIGPIPE as others do.
        self._control.sendmsg([marshal.dumps(message)], passed, MSG_NOSIGNAL)

    def preload(self, modules: Iterable[str]) -> None:
        names = tuple(modules)
        self._tell(("preload", names, search_path()))
        self.preloaded.update(names)

    def fork(self, slot: int, fd: int) -> None:
        self._tell(("fork", slot), fd)

    def kill(self, slot: int) -> None:
        self._tell(("kill", slot))

    def close(self) -> None:
        self._ready = False
        if self._control is None:
            return
        try:
            # Not closed yet: its end is what `wait` waits for.
            self._control.shutdown(SHUT_WR)
        except OSError:
            return  # the nursery has gone already

    def forget(self) -> None:
        self._ready = False
        if self._control is not None:
            self._control.close()

    def wait(self, seconds: float) -> bool:
        gone = self._seen_gone(seconds)
        if not self._ready and self._control is not None:
            self._control.close()
        return gone

    def _seen_gone(self, seconds: float) -> bool:
        """Wait for the end of the nursery at its end of the control socket.

        Nobody else has that, and it keeps it to the last. A descriptor of the process
        itself (``pidfd_open``) would tell the same, but not every system has those.
        """
        if not self._running():
            return True
        if self._control is None or self._control.fileno() < 0:
            return False  # it was given up already
        import select

        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
        try:
            os.waitpid(self._pids[0], 0)  # it is about to end
        except ChildProcessError:
            return True  # reaped by code of the user, or by the system
        return True

    def alive(self) -> bool:
        return self._ready and self._running()

    def _running(self) -> bool:
        if not self._pids:
            return False
        try:
            return os.waitpid(self._pids[0], os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False  # reaped: here, by code of the user, or by the system
