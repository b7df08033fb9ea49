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
from _thread import allocate_lock, get_ident
from _weakref import ref

from fastjob._core.forks import register_at_fork
from fastjob._core.wire import pair
from fastjob._pool.memory import folder_of
from fastjob._pool.starter import Starter, start_method
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastjob._core.call import Call
    from fastjob._core.peer import Peer

#: Seconds that the interpreter's exit waits for the workers to be gone.
EXIT_PATIENCE = 2.0

#: Seconds in which a nursery that seems to have died can be seen to have died.
DEATH_PATIENCE = 0.1


class Pool:
    """All worker processes that this process owns."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._idle: list[Peer] = []
        self._nursery: Starter | None = None
        #: Nurseries that get no more requests to fork; calls still use their workers.
        self._retired: list[Starter] = []
        #: Workers told to end: what they were lent comes back when they have.
        self._leaving: list[Peer] = []
        self._generation = 0
        #: The kernel's count of processes killed for lack of memory, as far as those
        #: are known to be workers, or were before the first of these.
        self._ooms = -1
        self._victims: list[ref[Peer]] = []
        #: The thread that ends the interpreter, once it has begun to.
        self._ending: int | None = None
        #: Workers started so far.
        self.n_started = 0

    def lease(self, n: int, peers: list[Peer], call: Call) -> None:
        """Append `n` workers for a call to `peers`; they are its until released.

        They have no other initializer, and no shared memory in another folder. They
        are appended one by one, so that an interruption loses none. Where the system
        has no descriptors left for so many, there can be fewer, but not none.
        """
        options = call.options
        made_for = b""
        if options.get("initializer") is not None:
            from fastjob._pool.state import pickled_initializer

            made_for = pickled_initializer(options)
        with self._lock:
            self._freeze_at_exit()
            nursery = self._living()
            wanted = list(options.get("preload") or ())
            if "numpy" in sys.modules:
                wanted.append("numpy")
            if not nursery.preloaded.issuperset(wanted):
                nursery.preload(m for m in wanted if m not in nursery.preloaded)
                # Workers from before share none of it: let them go.
                self._generation += 1
                self._close_idle()
            profile = (self._generation, made_for, folder_of(call.temp_folder))
            want = len(peers) + n
            for at in range(len(self._idle) - 1, -1, -1):
                if len(peers) == want:
                    break
                if self._idle[at].profile == profile:
                    peer = self._idle.pop(at)
                    if not peer.poll_closed():
                        peers.append(peer)
                    else:
                        self._dismiss(peer)
            if len(peers) < want:
                self._thin(profile, call.n_jobs)
            while len(peers) < want:
                try:
                    peers.append(self._fork(nursery, profile))
                except OSError as error:
                    if not peers:
                        raise NurseryError(
                            f"No worker process can be started: {error.strerror}."
                        ) from error
                    break

    def prepare(self) -> None:
        """Start what starts workers, if nothing does: a call is about to need some."""
        with self._lock:
            self._freeze_at_exit()
            self._living()

    def _living(self) -> Starter:
        """The nursery to ask for workers; a new one if there is none or it has died."""
        nursery = self._nursery
        if nursery is not None and nursery.alive():
            return nursery
        if nursery is not None:
            self._bury(nursery)
        nursery = self._nursery = new_starter()
        nursery.start()
        self._ooms = oom_kills()
        return nursery

    def _bury(self, nursery: Starter) -> None:
        """End a nursery and all of its workers; an interrupted end can be repeated."""
        nursery.close()
        if nursery is self._nursery:
            self._close_idle()
        nursery.wait(EXIT_PATIENCE)
        for peer in self._leaving[:]:
            if peer.page is nursery.page:
                # The nursery ends after its workers, or they with it.
                peer.part(surely_dead=True)
                self._leaving.remove(peer)
        if nursery is self._nursery:
            self._nursery = None
        if nursery in self._retired:
            self._retired.remove(nursery)

    def _close_idle(self) -> None:
        while self._idle:
            self._dismiss(self._idle[-1])
            self._idle.pop()

    def _thin(self, profile: object, most: int) -> None:
        """Have idle workers end that were made for something else.

        A loop that gives each call another initializer, or folder, would gather them
        without limit. The `most` latest stay, for a program that has two kinds in turn.
        """
        others = [peer for peer in self._idle if peer.profile != profile]
        for at, peer in enumerate(others):
            if at < len(others) - most or peer.poll_closed():
                self._dismiss(peer)
                self._idle.remove(peer)

    def _dismiss(self, peer: Peer) -> None:
        """Have a worker end."""
        self._leaving.append(peer)
        peer.close()

    def _part(self) -> None:
        """See which of the workers that were to end have ended."""
        # A worker without a nursery has died with it, and nobody is left to say so.
        self._leaving = [
            peer
            for peer in self._leaving
            if not peer.part(surely_dead=self._home(peer) is None)
        ]

    def _fork(self, nursery: Starter, profile: object) -> Peer:
        """Ask for a new worker; it can be written to at once."""
        from fastjob._core.peer import Peer

        slot = nursery.free_slot()
        ours, theirs = pair()
        peer = Peer(ours, nursery.page, slot, profile)
        # Noted before the request: an interrupt must not make the slot look free.
        nursery.owners[slot] = ref(peer)
        nursery.page.clear(slot)
        try:
            nursery.fork(slot, theirs.fd)
        finally:
            theirs.close()
        self.n_started += 1
        return peer

    def release(self, peers: list[Peer]) -> None:
        """Take workers back, and empty the list; what cannot be used again ends."""
        try:
            with self._lock:
                page = None if self._nursery is None else self._nursery.page
                while peers:
                    peer = peers[-1]
                    if peer.usable() and peer.page is page:
                        self._idle.append(peer)
                    else:
                        self._dismiss(peer)
                    peers.pop()
                if self._leaving:
                    self._part()
                for nursery in self._retired[:]:
                    if not nursery.in_use():
                        self._bury(nursery)
        except BaseException:
            # Interrupted. The last one may be in both lists: then a lease finds it
            # closed.
            for peer in peers:
                self._dismiss(peer)
            raise

    def _home(self, peer: Peer) -> Starter | None:
        """The nursery of a worker; None once it is known to be dead."""
        for nursery in (self._nursery, *self._retired):
            if nursery is not None and nursery.page is peer.page:
                return nursery
        return None

    def kill(self, peer: Peer) -> None:
        """Have a worker killed, with the programs that its task has started."""
        with self._lock:
            nursery = self._home(peer)
            if nursery is not None:
                try:
                    nursery.kill(peer.number)
                except OSError:
                    return  # the nursery is dead, and the worker with it

    def hear(self, note: bytes) -> None:
        """Show a warning, or handle a log record, of a task."""
        from fastjob._pool.notes import hear

        hear(note)

    def explain(self, peer: Peer) -> dict[str, Any]:
        """Why a worker's stream has ended.

        Raises
        ------
        NurseryError
            If nobody is left to say why: the nursery has died.
        """
        life, pid, status, peak = peer.fate()
        if life == "alive":
            self._question(peer)
            life, pid, status, peak = peer.fate()
        if life == "unborn":
            return {"unborn": os.strerror(status)}
        if life == "alive":
            # A task has shut the worker's own socket down.
            self.kill(peer)
            return {"pid": pid}
        if sys.platform == "win32":
            exitcode = status & 0xFFFFFFFF
        elif status < 0:
            return {"pid": pid}  # somebody else has taken its status
        else:
            exitcode = os.waitstatus_to_exitcode(status)
        return {
            "pid": pid,
            "exitcode": exitcode,
            "peak_memory": peak * 1024,
            "probably_oom": exitcode == -9 and self._lacked_memory(peer),
        }

    def _lacked_memory(self, peer: Peer) -> bool:
        """Whether the kernel counts one more kill; the same each time it is asked."""
        with self._lock:
            self._victims = [victim for victim in self._victims if victim() is not None]
            if any(victim() is peer for victim in self._victims):
                return True
            if not 0 <= self._ooms < oom_kills():
                return False
            self._ooms += 1
            self._victims.append(ref(peer))
            return True

    def _question(self, peer: Peer) -> None:
        """See whether the nursery of a worker that ended without a reason is alive."""
        with self._lock:
            self._freeze_at_exit()
            nursery = self._home(peer)
            if nursery is not None and not nursery.wait(DEATH_PATIENCE):
                return
            if nursery is not None:
                self._bury(nursery)
        raise NurseryError(
            "The process that starts the workers was killed, and its workers with it."
        )

    def shutdown(self) -> None:
        """End all idle workers, and the nursery once no call uses a worker of it."""
        with self._lock:
            nursery = self._nursery
            if nursery is None:
                return
            self._close_idle()
            if nursery.in_use():
                self._retired.append(nursery)
                self._nursery = None
            else:
                self._bury(nursery)

    def end(self) -> None:
        """At the exit of the interpreter: end every worker, and wait for that."""
        self._ending = get_ident()
        with self._lock:
            for nursery in (self._nursery, *self._retired):
                if nursery is not None:
                    self._bury(nursery)

    def _freeze_at_exit(self) -> None:
        """Stop a daemon thread whose workers the exit of the interpreter has taken.

        It will be frozen anyway in a moment; an error would only be printed.
        """
        if self._ending not in (None, get_ident()):
            self._lock.release()
            never = allocate_lock()
            never.acquire()
            never.acquire()

    def forget(self) -> None:
        """In a forked child: none of this belongs to it."""
        for nursery in (self._nursery, *self._retired):
            if nursery is None:
                continue
            for owner in nursery.owners.values():
                peer = owner()
                if peer is not None:
                    peer.forget()
            nursery.forget()
        self.__init__()  # type: ignore[misc]


def new_starter() -> Starter:
    """What starts workers here, not yet started."""
    if start_method() == "spawn":
        from fastjob._pool.spawn import Spawner

        return Spawner()
    from fastjob._pool.launch import Nursery

    return Nursery()


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
register_at_fork(after_in_child=pool.forget)
atexit.register(pool.end)
