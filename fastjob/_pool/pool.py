"""The worker processes of this process: leased to calls, kept warm in between.

    call ── lease ──▶ peers (idle ones first, then new ones) ── release ──▶ idle

One lock guards the lists; it is held for a few list operations and a write to the
control socket, never while waiting for a worker. A call alone talks to the workers
that it has leased. A call that finds none idle gets new ones, so calls from several
threads never wait for each other.

A worker ends by itself when its caller closes the socket, when it has been idle for
too long, or when it has reached a limit; the pool finds such a one when it looks at
its socket, at the latest when a call loses it and takes another.

After a fork of the user's process the child owns none of this: it closes its copies
of the sockets, without a word to the workers, and starts from nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from _socket import socketpair
from _thread import allocate_lock
from _weakref import ref

from fastjob._core.dispatch import Peer
from fastjob._core.wire import Channel
from fastjob._pool.launch import Nursery
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds that the interpreter's exit waits for the workers to be gone.
EXIT_PATIENCE = 2.0


class Pool:
    """All worker processes that this process owns."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._idle: list[Peer] = []
        self._nursery: Nursery | None = None
        self._owners: dict[int, ref[Peer]] = {}  # slot -> who uses it
        self._next_slot = 0
        self._generation = 0
        self._ooms = -1
        #: Workers started so far.
        self.n_started = 0

    def lease(self, n: int, peers: list[Peer], options: dict[str, Any]) -> None:
        """Append `n` workers to `peers`; they are the caller's until released.

        They are appended one by one, so that an interruption loses none.
        """
        profile = profile_of(options)
        with self._lock:
            nursery = self._nursery
            if nursery is None:
                nursery = self._start()
            wanted = list(options.get("preload") or ())
            if "numpy" in sys.modules:
                wanted.append("numpy")
            if not nursery.preloaded.issuperset(wanted):
                nursery.preload(m for m in wanted if m not in nursery.preloaded)
                # Workers from before share none of it: let them go.
                self._generation += 1
                self._idle.clear()
            profile = (self._generation, *profile)
            want = len(peers) + n
            for at in range(len(self._idle) - 1, -1, -1):
                if len(peers) == want:
                    break
                if self._idle[at].profile == profile:
                    peer = self._idle.pop(at)
                    if not peer.poll_closed():
                        peers.append(peer)
            while len(peers) < want:
                peers.append(self._fork(nursery, profile))

    def _start(self) -> Nursery:
        nursery = self._nursery = Nursery()
        self._ooms = oom_kills()
        return nursery

    def _fork(self, nursery: Nursery, profile: object) -> Peer:
        """Ask for a new worker; it can be written to at once."""
        slot = self._free_slot(nursery)
        ours, theirs = socketpair()
        try:
            nursery.page.clear(slot)
            nursery.fork(slot, theirs.fileno())
        except OSError as error:
            ours.close()
            self._nursery = None
            nursery.close()
            raise NurseryError(f"The worker starter is gone ({error}).") from error
        finally:
            theirs.close()
        peer = Peer(Channel(ours.detach()), nursery.page, slot, profile)
        self._owners[slot] = ref(peer)
        self.n_started += 1
        return peer

    def _free_slot(self, nursery: Nursery) -> int:
        """A slot that no living worker writes to."""
        page = nursery.page
        for step in range(page.n_slots):
            slot = (self._next_slot + step) % page.n_slots
            owner = self._owners.get(slot)
            if owner is None or (owner() is None and page.ended(slot)):
                self._next_slot = slot + 1
                return slot
        raise NurseryError(
            f"All {page.n_slots} places for worker processes are taken.",
            "Use fewer workers, or fewer calls at the same time.",
        )

    def release(self, peers: list[Peer]) -> None:
        """Take workers back; those that cannot be used again end."""
        with self._lock:
            for peer in peers:
                if peer.usable() and peer.page is self._page():
                    self._idle.append(peer)
                else:
                    peer.close()

    def _page(self) -> Any:
        return None if self._nursery is None else self._nursery.page

    def kill(self, peer: Peer) -> None:
        """Have a worker killed, with the programs that its task has started."""
        with self._lock:
            nursery = self._nursery
            if nursery is not None and nursery.page is peer.page:
                try:
                    nursery.kill(peer.number)
                except OSError:
                    return  # the nursery is dead, and the worker with it

    def explain(self, peer: Peer) -> dict[str, Any]:
        """Why a worker's stream has ended.

        Raises
        ------
        NurseryError
            If nobody is left to say why: the nursery has died.
        """
        life, pid, status, peak = peer.fate()
        if life == "unborn":
            return {"unborn": os.strerror(status)}
        if life != "ended":
            with self._lock:
                nursery = self._nursery
                if nursery is not None and nursery.page is peer.page:
                    self._nursery = None
                    self._idle.clear()
                    nursery.close()
                    nursery.wait(EXIT_PATIENCE)
            raise NurseryError(
                "The process that starts the workers was killed, and its workers "
                "with it."
            )
        exitcode = os.waitstatus_to_exitcode(status)
        probably_oom = False
        if exitcode == -9:
            ooms = oom_kills()
            probably_oom = ooms > self._ooms >= 0
            self._ooms = ooms
        return {
            "pid": pid,
            "exitcode": exitcode,
            "peak_memory": peak * 1024,
            "probably_oom": probably_oom,
        }

    def shutdown(self, patience: float = EXIT_PATIENCE) -> None:
        """End all idle workers and the nursery; wait until they are gone."""
        with self._lock:
            nursery, self._nursery = self._nursery, None
            for peer in self._idle:
                peer.close()
            self._idle.clear()
            self._owners.clear()
        if nursery is not None:
            nursery.close()
            nursery.wait(patience)

    def forget(self) -> None:
        """In a forked child: none of this belongs to it."""
        for owner in self._owners.values():
            peer = owner()
            if peer is not None:
                peer.forget()
        if self._nursery is not None:
            self._nursery.close()
        self.__init__()  # type: ignore[misc]


def profile_of(options: dict[str, Any]) -> tuple[Any, ...]:
    """What a worker must have been made for to serve a call with these options."""
    if "initializer" not in options:
        return ()
    return (options["initializer"], options.get("initargs", ()))


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory; -1 if unknown."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return -1
    return -1


pool = Pool()
os.register_at_fork(after_in_child=pool.forget)
atexit.register(pool.shutdown)
