"""The nursery: a clean, single-threaded interpreter that forks the workers.

It does three things: import what the workers will need, fork, and reap. No code of
the user runs in it but the modules that it is asked to preload.

    control socket (stdin) ──▶ page, preload, fork, kill; end of stream: end all
    SIGCHLD ──▶ reap: status into the page, then shut the worker's socket down

Why it keeps a copy of every worker's socket: the caller must see the end of the
stream when the worker ends, neither earlier (before the exit status is in the page)
nor later (because a process that a task has started holds a copy). Its ``shutdown``
gives exactly that moment.

No way of dying leaves a process behind:

- the caller dies or closes the control socket: end of stream here; the workers see
  the end of theirs, and what is left after a moment is killed;
- the nursery dies: the kernel kills the workers (parent-death signal), and their
  sockets end;
- a worker dies: reaped here, and its process group is killed with it, so that a
  program started by its task does not outlive it.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # it alone needs no enum
import errno
import gc
import marshal
import os
import resource  # noqa: F401  os.wait4 imports it: not when there is no descriptor left
import select
import sys
from _socket import CMSG_LEN, SCM_RIGHTS, SHUT_RDWR, SOL_SOCKET, socket

from fastjob._core.status import StatusPage
from fastjob._pool import child
from fastjob._pool.holes import fill_holes
from fastjob._pool.modules import note_modules
from fastjob._pool.starter import FAREWELL, end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Nursery:
    """The state of the nursery process."""

    def __init__(self, control: socket) -> None:
        self.control = control
        self.page: StatusPage | None = None
        self.slots: dict[int, int] = {}  # pid -> slot
        self.pids: dict[int, int] = {}  # slot -> pid
        self.sockets: dict[int, socket] = {}  # slot -> copy of the worker's end
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        # Ctrl-C at a terminal reaches every process of the group; the caller decides.
        # Until now it was blocked, see `launch.Nursery.start`.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def serve(self) -> None:
        """Work until the caller closes the control socket."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.wake_read, select.POLLIN)
        control = self.control.fileno()
        self.settle()
        while True:
            for fd, _ in poller.poll():
                if fd != control:
                    self.reap()
                elif not self.obey():
                    self.farewell(poller)
                    return

    def obey(self) -> bool:
        """Carry out one request; False at the end of the stream."""
        data, passed, _, _ = self.control.recvmsg(1 << 16, CMSG_LEN(8))
        fd = -1
        for level, kind, content in passed:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                fd = int.from_bytes(content[:4], sys.byteorder)
        if not data:
            return False
        message = marshal.loads(data)
        if message[0] == "fork" and fd < 0:
            # The kernel had no descriptor left for it, and has closed the socket.
            assert self.page is not None, "the page comes first"
            self.page.failed(message[1], errno.EMFILE)
        elif message[0] == "fork":
            self.fork(message[1], socket(fileno=fd))
        elif message[0] == "kill":
            self.kill(message[1])
        elif message[0] == "preload":
            self.preload(*message[1:])
        elif message[0] == "page":
            os.set_inheritable(fd, False)
            self.page = StatusPage(fd)
        return True

    def preload(self, names: tuple[str, ...], path: list[str]) -> None:
        """Import modules, found by `path`, so that the workers share their memory."""
        sys.path[:] = path
        child.preload(names)
        gc.collect()
        fill_holes()
        self.settle()

    def settle(self) -> None:
        """See to it that the workers write to few of the pages that they share."""
        note_modules()
        gc.freeze()

    def fork(self, slot: int, link: socket) -> None:
        """Fork a worker for a slot."""
        page = self.page
        assert page is not None, "the page comes first"
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            page.failed(slot, error.errno or 0)
            link.shutdown(SHUT_RDWR)
            link.close()
            return
        if pid == 0:
            self.become_worker(parent, slot, link)
        page.born(slot, pid)
        self.slots[pid] = slot
        self.pids[slot] = pid
        self.sockets[slot] = link

    def become_worker(self, parent: int, slot: int, link: socket) -> None:
        """In the child: let go of everything of the nursery, and serve."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self.control.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            for other in self.sockets.values():
                other.close()
            assert self.page is not None
            code = child.main(parent, link.detach(), self.page, slot)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            child.flush_streams()
            os._exit(code)

    def kill(self, slot: int) -> None:
        """Kill a worker and what its tasks have started."""
        pid = self.pids.get(slot)
        if pid is not None:
            end(pid)

    def reap(self) -> None:
        """Collect the workers that have ended, and say so."""
        try:
            while os.read(self.wake_read, 512):
                pass
        except BlockingIOError:
            pass
        while self.slots:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            slot = self.slots.pop(pid, None)
            if slot is None:
                continue
            del self.pids[slot]
            end(pid)  # the rest of its group
            assert self.page is not None
            self.page.exited(slot, status, usage.ru_maxrss)
            link = self.sockets.pop(slot)
            try:
                link.shutdown(SHUT_RDWR)
            except OSError:
                pass  # the caller has closed its end
            link.close()

    def farewell(self, poller: Any) -> None:
        """The caller is gone: let the workers end, then see to it that they have."""
        # Not closed: its end tells the caller that all is over.
        poller.unregister(self.control)
        for link in self.sockets.values():
            try:
                link.shutdown(SHUT_RDWR)
            except OSError:
                pass
        import time

        deadline = time.monotonic() + FAREWELL
        self.reap()
        while self.slots and (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self.reap()
        for pid in list(self.slots):
            end(pid)
        while self.slots:
            poller.poll(1000)
            self.reap()


def main(with_site: bool) -> None:
    """Run the nursery; standard input is the control socket."""
    if with_site:
        child.use_site()
    control = child.take_over(3)
    try:
        nursery = Nursery(socket(fileno=control))
        nursery.serve()
    finally:
        os._exit(0)  # with the socket open until now: its end is what the caller sees
