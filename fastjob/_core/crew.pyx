"""The workers of one call: leased, replaced when they die, and given back.

How a call ends.  All tasks done: `settle` hears the last replies, of batches of which
everything was taken back.  Early (an error, Ctrl-C, a closed stream): `abort` takes all
unclaimed tasks back, gives the workers a moment to finish the task that they are in,
and has the rest killed.  Either way `leave` then gives back workers that hold nothing
of the call, and no other.

A call belongs to the process that made it.  User code may fork in the middle of it
(while a task is pickled, or in a callback), and both processes then run the loop: the
child must not touch what it shares with the parent's workers (`check_process`).
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from fastjob._core.call cimport Call
from fastjob._core.libc cimport POLLIN, POLLOUT, now_ns, poll, pollfd
from fastjob._core.peer cimport Peer
from fastjob._core.wire cimport FINAL, RETIRED

from fastjob._core.forks import register_at_fork
from fastjob._core.wire import WireError
from fastjob.errors import NurseryError

cdef enum:
    # How long a running task may go on after its call has ended.
    GRACE_NS = 30_000_000
    # How long a worker without a task may take to say so; else it is let go.
    SETTLE_NS = 1_000_000_000
    # It is waited for in pieces of this many milliseconds: a signal that comes just
    # before a wait does not end it.
    SLICE_MS = 100
    # Workers that may end in a row, beyond one each, before the call gives up. The end
    # of one that a task is blamed for does not count: it is one of the task's attempts.
    MOST_LOSSES = 8
    # Interrupts that ending a call stands.
    MOST_TRIES = 100

#: How often this process, and those that it comes from, have been forked.
cdef long long forks = 0


def _note_fork():
    global forks
    forks += 1


register_at_fork(after_in_child=_note_fork)


@cython.final
cdef class Crew:
    """The workers that run one call.

    Parameters
    ----------
    call : Call
    pool : Pool
        Gives peers (``lease(n, peers, call)``), takes them back
        (``release(peers)``), kills one (``kill(peer)``), explains why one has ended
        (``explain(peer)``), and shows what a task had to say (``hear(body)``; an
        exception from it ends the call).
    state : bytes
        Process state and settings that every worker must have adopted.
    """

    def __init__(self, Call call, pool, state):
        self.call = call
        self.pool = pool
        self.state = state
        self.peers = []
        self.forks = forks

    cdef int check_process(self) except -1:
        """Refuse to go on in a child that the user's code has forked."""
        if self.forks != forks:
            raise RuntimeError(
                "This process was forked in the middle of a call of Parallel, which "
                "belongs to the parent. Make a new call, or leave with os._exit().")
        return 0

    cdef int lease(self, set live) except -1:
        """Get workers that know, of shared objects, none but those in `live`."""
        cdef Peer peer
        self.pool.lease(self.call.n_jobs, self.peers, self.call)
        for peer in self.peers:
            peer.measure(self.call.timeline is not None)
        if live is not None:
            for peer in self.peers:
                peer.forget_unshared(live)
        return 0

    cdef int leave(self, bint heavy) except -1:
        """Give the peers back, without anything of this call in them.

        `heavy`: what they hold of it is worth a message.
        """
        cdef Peer peer
        for peer in self.peers:
            if peer.lost or peer.batches:
                continue
            if not peer.fresh:
                peer.introduce(self.state)
            elif heavy:
                peer.reset()
        self.pool.release(self.peers)
        return 0

    cdef bint has_other(self, Peer peer) except -1:
        cdef Peer other
        for other in self.peers:
            if other is not peer and not other.lost and not other.retiring:
                return True
        return False

    cdef bint someone_idle(self) except -1:
        cdef Peer peer
        for peer in self.peers:
            if not peer.lost and not peer.batches:
                return True
        return False

    cdef int replace(self, Peer peer) except -1:
        """Put a new worker in the place of one that has ended."""
        cdef list fresh = []
        self.losses += 1
        self.note("death", peer, f"worker process {peer.slot.pid} ended")
        died = self.pool.explain(peer)
        if "unborn" in died:
            if self.has_other(peer):
                return 0    # no more processes to be had: go on with those there are
            raise NurseryError(f"No worker process can be started: {died['unborn']}.")
        if self.losses > MOST_LOSSES + len(self.peers):
            raise NurseryError(
                f"{self.losses} worker processes in a row ended before they finished "
                f"a task (the last one: {died}).")
        try:
            self.pool.lease(1, fresh, self.call)
        finally:
            if fresh:
                self.peers[self.peers.index(peer)] = fresh[0]
                (<Peer>fresh[0]).measure(self.call.timeline is not None)
        self.pool.release([peer])
        return 0

    cdef int settle(self) except -1:
        """Hear the last replies: of batches of which everything was taken back.

        All tasks are done, so no worker has anything to do but to reply.
        """
        cdef int64_t deadline = now_ns() + SETTLE_NS
        while True:
            busy = [p for p in self.peers if (<Peer>p).batches and not (<Peer>p).lost]
            if not busy or now_ns() > deadline:
                return 0
            self.drain(busy, SLICE_MS)

    cdef int abort(self) except -1:
        """End what is still running: the call has failed."""
        cdef Peer peer
        cdef int64_t deadline = now_ns() + GRACE_NS
        cdef int64_t left
        try:
            for peer in self.peers:
                peer.take_all_back()
            while True:
                busy = [p for p in self.peers if (<Peer>p).batches
                        and not (<Peer>p).lost]
                left = deadline - now_ns()
                if not busy or left <= 0:
                    break
                self.drain(busy, <int>(left // 1000000) + 1)
        finally:
            self.kill_busy()
        return 0

    def kill_busy(self):
        """Have every worker killed that is not idle, interrupts or not."""
        cdef Peer peer
        cdef int tries = 0
        interrupt = None
        for peer in self.peers:
            while peer.batches and not peer.lost and tries < MOST_TRIES:
                try:
                    self.pool.kill(peer)
                    peer.lost = True
                except BaseException as error:
                    # Ctrl-C, or whatever another thread sets: it waits its turn.
                    interrupt = error
                    tries += 1
        if interrupt is not None:
            raise interrupt

    def drain(self, list busy, int timeout):
        """Read and drop what workers still send, notes included."""
        cdef Peer peer
        cdef Py_ssize_t got, n
        cdef pollfd *waiting = <pollfd *>malloc(len(busy) * sizeof(pollfd))
        if waiting is NULL:
            raise MemoryError
        try:
            for i, peer in enumerate(busy):
                waiting[i].fd = peer.channel.fd
                waiting[i].events = POLLIN | (POLLOUT if peer.channel.pending() else 0)
            n = len(busy)
            with nogil:
                poll(waiting, n, timeout)
            for peer in busy:
                try:
                    peer.channel.flush(False)
                    got = peer.channel.receive(False)
                    while True:
                        body = peer.next()
                        if body is None:
                            break
                        peer.unpacked(body)
                        if peer.channel.header.flags & FINAL:
                            del peer.batches[0]
                        if peer.channel.header.flags & RETIRED:
                            peer.retiring = True
                except (BrokenPipeError, ConnectionResetError):
                    got = 0
                except (WireError, OSError, MemoryError):
                    # Out of step. The call has ended: its own error is the one to tell.
                    self.pool.kill(peer)
                    got = 0
                if got == 0:
                    peer.lost = True
        finally:
            free(waiting)

    cdef int note(self, object kind, Peer peer, object text) except -1:
        """Tell the timeline of something that is not a batch."""
        if self.call.timeline is not None:
            self.call.timeline.event(kind, peer.slot.pid, now_ns(), text)
        return 0
