"""The dispatch loop of a call over worker processes.

It runs in one thread, which alone owns everything here: the leased peers, the input,
the batches.  A turn of the loop:

1. feed: every peer gets work, the idle ones first: batches that came back, then new
   ones from the input, then the tail of somebody else's batch.
2. service: one ``poll`` over the peers' sockets; what has come is decoded.

What is shared with the workers is the claim words in the status page; how those stay
right is argued in ``status.pyx``.  The rest of the argument for "no task is lost and
none is run by two" is the batch's life:

- A task is in exactly one `Batch`, and a batch in exactly one place: being filled,
  in `ready`, or in a peer's `batches`.
- Tasks leave a peer's batch by a result in a reply, by a steal (the claim word says
  which), or by the peer's end: then the tasks that it had claimed and not reported go
  back to `ready`, except the one that it was running, which is what killed it.
- Nothing else removes a task, so the loop ends only when `completed == taken` and the
  input is exhausted.

What becomes of results and failures is in ``outcomes.pyx``, how the workers come and go
in ``crew.pyx``.  Besides what runs again there, the tasks run twice that a worker had
finished but not yet reported when it died.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.call cimport Call
from fastjob._core.capture cimport Capture, Constant
from fastjob._core.crew cimport Crew
from fastjob._core.history cimport recalled, remember
from fastjob._core.intake cimport Intake
from fastjob._core.libc cimport POLLIN, POLLOUT, fj_poll, now_ns, pollfd
from fastjob._core.outcomes cimport Outcomes
from fastjob._core.peer cimport Peer
from fastjob._core.results cimport ResultStream
from fastjob._core.status cimport claim_next, fj_load
from fastjob._core.wake cimport Wake
from fastjob._core.wire cimport FINAL, NOTE, RETIRED, Header

import os

from fastjob._core.wire import WireError

cdef enum:
    # Collecting a batch is interrupted this often to look at the sockets.
    SERVICE_NS = 300_000
    # An idle worker takes tasks from another one if they would keep that one busy
    # for longer than this; moving them costs about half of it.
    WORTH_STEALING_NS = 100_000
    # A signal that comes just before the wait, or an exception that another thread
    # sets, does not end it: it is cut into pieces of this length.
    SLICE_NS = 100_000_000
    # How long tasks may lie before idle workers that seem not to be needed; doubled
    # each time, up to a limit.
    PATIENCE_NS = 150_000
    MOST_PATIENCE_NS = 64_000_000
    # A batch whose workers died this often, without a task to blame, is blamed.
    MOST_DEATHS = 3
    # Pickles of constants from this many bytes on are dropped as soon as the call ends,
    # and so are constants that keep shared memory.
    HEAVY_BYTES = 64 << 10

# Calling a function of bytecode makes the interpreter see to signals and to exceptions
# that other threads have set; compiled code alone never does.
handle_pending = eval("lambda: [None for _ in (0, 1)]")


@cython.final
cdef class Dispatcher:
    """Run one call.

    Parameters
    ----------
    call : Call
    pool : Pool
        Where the workers come from; see `Crew`.
    capture : Capture
    state : bytes
        Process state and settings that every worker must have adopted.
    live : set, optional
        Numbers of the objects that ``fastjob.share`` shares now.
    """

    def __init__(self, Call call, pool, Capture capture, state, set live=None):
        self.live = live
        self.call = call
        self.counters = call.counters
        self.capture = capture
        self.tuner = AutoBatch(call.n_jobs, call.batch_size)
        self.intake = Intake(capture, self.tuner, call.return_errors)
        self.ready = []
        self.crew = Crew(call, pool, state)
        self.peers = self.crew.peers
        self.outcomes = Outcomes(call, capture, self.tuner, self.crew, self.ready)

    def run(self, tasks):
        """Run all tasks in the calling thread; the results, in task order."""
        self.outcomes.out = []
        self.start(tasks)
        return self.outcomes.out

    def run_into(self, tasks, ResultStream stream, Wake wake):
        """Run all tasks, handing results to a stream; `wake` ends a wait."""
        self.stream = self.outcomes.stream = stream
        self.wake = wake
        self.start(tasks)

    def start(self, tasks):
        self.intake.open(tasks, self.stream is not None)
        done = False
        try:
            self.crew.lease(self.live)
            if self.call.ahead == 0:
                self.take_everything()
            self.loop()
            self.crew.settle()
            self.leave_behind()
            done = True
        finally:
            self.intake.close()
            self.capture.sharer.clear()
            try:
                if not done:
                    self.crew.abort()
            finally:
                self.crew.leave(self.capture.lends
                                or self.capture.bytes_pickled > HEAVY_BYTES)

    # -- giving work -----------------------------------------------------------

    def take_everything(self):
        """The whole input at once: pre_dispatch='all'."""
        cdef Batch batch
        while not self.intake.exhausted:
            batch = self.take(1 << 20)
            if batch is not None:
                self.ready.append(batch)
                self.feed()     # it ended early because somebody is idle

    cdef int loop(self) except -1:
        while True:
            self.changed = True
            while self.changed:
                self.changed = False
                self.feed()
            if self.intake.exhausted and self.outcomes.completed == self.intake.taken:
                return 0
            if self.stream is not None and self.stream.closed:
                self.crew.abort()
                return 0
            self.crew.check_process()    # or it would wait for workers that it has not
            self.service(self.wait_time())
            self.check_timeouts()

    cdef int feed(self) except -1:
        cdef Peer peer
        cdef Batch batch
        cdef Py_ssize_t level
        for level in range(2):
            for peer in self.peers:
                if (peer.lost or peer.retiring
                        or PyList_GET_SIZE(peer.batches) != level):
                    continue
                batch = self.next_batch(peer)
                if batch is not None:
                    self.send(peer, batch)
                elif level == 0:
                    self.steal(peer)
                elif self.intake.exhausted and not self.ready:
                    break
        return 0

    cdef Batch next_batch(self, Peer peer):
        cdef Batch batch
        cdef int64_t n
        cdef Py_ssize_t i
        for i in range(len(self.ready)):
            batch = self.ready[i]
            if batch.avoid is peer and self.crew.has_other(peer):
                continue
            del self.ready[i]
            if batch.size() > self.tuner.size:
                self.ready.insert(i, batch.tail(self.tuner.size))
            return batch
        if self.intake.exhausted:
            return None
        n = self.allowed()
        return self.take(n) if n > 0 else None

    cdef int64_t allowed(self) except? -1:
        """How many tasks may be taken from the input for one batch; 0 or less: none."""
        cdef int64_t room, n = self.tuner.size
        if self.call.ahead > 0:
            if self.call.ahead_in_batches:
                room = self.call.ahead * n
            else:
                room = self.call.ahead
                n = min(n, max(1, room // (2 * self.call.n_jobs)))
            n = min(n, room - (self.intake.taken - self.outcomes.completed))
        if self.stream is not None:
            # How far the reader may be behind: some batches, of the current size.
            self.stream.capacity = max(self.call.ahead, 4 * self.call.n_jobs * n)
            n = min(n, self.stream.room(self.intake.taken))
        return n

    cdef Batch take(self, Py_ssize_t n):
        """Up to `n` tasks from the input; None if none can be had now."""
        cdef Batch batch = self.intake.begin()
        cdef bint first = self.intake.taken == 0
        self.fill(batch, 1 if first else n)
        if first and batch.size() == 1 and not self.intake.exhausted:
            if self.intake.last_f is not None and self.call.batch_size == 0:
                # Now that the function is known, so may be how long its tasks take.
                self.tuner.expect(recalled(self.intake.last_f))
                n = max(n, self.allowed())
            self.fill(batch, n)
        n = batch.size()
        self.outcomes.expect(self.intake.taken - batch.first)
        if self.intake.refused is not None:
            refused, self.intake.refused = self.intake.refused, None
            self.outcomes.refuse(self.intake.taken - 1, refused)
            self.changed = True     # there may be more behind it
        return batch if n else None

    cdef int fill(self, Batch batch, Py_ssize_t n) except -1:
        """Add tasks from the input to a batch until it has `n`, or had better go."""
        while not self.intake.fill(batch, n, SERVICE_NS):
            # A slow input: whoever waits gets what there is.
            self.service(0)
            if self.crew.someone_idle() or (
                    self.stream is not None and self.stream.closed):
                break
        return 0

    cdef int leave_behind(self) except -1:
        """Leave behind, for the next call, how long the tasks of this one took."""
        if self.tuner.seen and not self.intake.several:
            if self.intake.last_f is not None:
                remember(self.intake.last_f, self.tuner.busy_ns / self.tuner.seen)
        return 0

    cdef int send(self, Peer peer, Batch batch) except -1:
        """Hand a batch to a peer; what the socket does not take goes later."""
        cdef Constant constant
        cdef Peer other
        self.crew.check_process()    # pickling a task runs code of the user
        if peer.lost:
            # While the batch was collected. Its replacement, or another one, gets it.
            self.ready.insert(0, batch)
            self.changed = True
            return 0
        peer.send(batch, self.crew.state, self.capture.sharer.store)
        self.counters.dispatched_batches += 1
        for constant in self.capture.expired:
            # Behind the batch: it may be the last to need them.
            for other in self.peers:
                other.forget_constant(constant.number)
        self.capture.expired.clear()
        return 0

    cdef bint steal(self, Peer thief) except -1:
        """Give an idle peer about half of what the slowest one has not begun."""
        cdef Peer peer, victim = None
        cdef Batch part
        cdef uint32_t left, most = 0
        cdef int64_t began
        cdef double each
        for peer in self.peers:
            if peer is not thief and not peer.lost:
                left = peer.unclaimed(thief)
                if left > most:
                    most = left
                    victim = peer
        if victim is None:
            return False
        began = abs(victim.slot.started)
        each = max(self.tuner.task_ns, <double>(now_ns() - began) if began else 0.0)
        if most * each < WORTH_STEALING_NS:
            return False
        self.ready.extend(victim.take_back((most + 1) // 2, thief))
        if self.ready:
            part = self.next_batch(thief)
            if part is not None:
                self.send(thief, part)
                return True
        return False

    # -- waiting and reading ---------------------------------------------------

    cdef int64_t wait_time(self) except -2:
        """Nanoseconds to wait for the next event; -1 is for ever."""
        cdef Peer peer
        cdef int64_t now, left, least = -1
        cdef bint idle = False, more = False
        if self.call.timeout > 0:
            now = now_ns()
            least = <int64_t>(self.call.timeout * 1e9)
            for peer in self.peers:
                if peer.slot.started > 0 and not peer.timed_out:
                    left = peer.slot.started + <int64_t>(self.call.timeout * 1e9) - now
                    least = min(least, max(left, 1_000_000))
        for peer in self.peers:
            if peer.lost:
                continue
            if not peer.batches:
                idle = True
            elif peer.unclaimed(None):
                more = True
        if idle and more and self.intake.exhausted:
            # Too little to be worth moving when it was looked at; if it still lies
            # there in a moment, it was more than it seemed.
            self.patience = min(max(2 * self.patience, PATIENCE_NS), MOST_PATIENCE_NS)
            least = self.patience if least < 0 else min(least, self.patience)
        else:
            self.patience = 0
        return least

    cdef int service(self, int64_t timeout) except -1:
        """Wait for events, write what is pending, read what has come."""
        cdef Py_ssize_t n = PyList_GET_SIZE(self.peers), i
        cdef Peer peer
        cdef int ready
        cdef pollfd few[16]
        cdef pollfd *waiting = few
        cdef list peers = self.peers
        if n > 15:
            waiting = <pollfd *>malloc((n + 1) * sizeof(pollfd))
            if waiting is NULL:
                raise MemoryError
        try:
            for i in range(n):
                peer = <Peer>peers[i]
                waiting[i].fd = -1 if peer.lost else peer.channel.fd
                waiting[i].revents = 0
                waiting[i].events = POLLIN
                if peer.channel.pending():
                    waiting[i].events = POLLIN | POLLOUT
            waiting[n].fd = -1 if self.wake is None else self.wake.fd
            waiting[n].events = POLLIN
            waiting[n].revents = 0
            if timeout < 0 or timeout > SLICE_NS:
                timeout = SLICE_NS
            with nogil:
                ready = fj_poll(waiting, n + 1, timeout)
            if ready < 0:
                if errno != EINTR:
                    raise OSError(errno, os.strerror(errno))
                PyErr_CheckSignals()
                return 0
            if timeout != 0:
                handle_pending()
            if waiting[n].revents:
                self.wake.silence()
            for i in range(n):
                if waiting[i].revents == 0:
                    continue
                peer = <Peer>peers[i]
                if waiting[i].revents & POLLOUT:
                    peer.flush()
                if waiting[i].revents & ~POLLOUT:
                    self.receive(peer)
        finally:
            if waiting is not few:
                free(waiting)
        return 0

    cdef int receive(self, Peer peer) except -1:
        cdef Py_ssize_t got
        cdef bytes body
        try:
            got = peer.channel.receive(False)
            while True:
                body = peer.next()
                if body is None:
                    break
                self.reply(peer, body)
        except WireError:
            self.crew.pool.kill(peer)
            got = 0
        if got == 0:
            self.lose(peer)
        return 0

    cdef int reply(self, Peer peer, bytes body) except -1:
        cdef Header head = peer.channel.header
        cdef Batch batch
        cdef Py_ssize_t at
        cdef Py_ssize_t n_body = PyBytes_GET_SIZE(body)
        if head.kind == NOTE:
            self.crew.pool.hear(body)
            self.capture.next_epoch()
            self.crew.check_process()
            return 0
        batch = peer.batches[0]
        if head.number != batch.number or batch.done + head.count > batch.size():
            raise WireError("a reply to another batch")
        content = peer.unpacked(body)
        body = None
        at = batch.done
        batch.done += head.count
        if head.flags & FINAL:
            del peer.batches[0]
        if head.flags & RETIRED:
            peer.retiring = True
        self.changed = True
        if head.count:
            self.outcomes.came(peer, batch, at, &head, content, n_body)
        if head.flags & FINAL and batch.done < batch.size():
            # Taken back, or not begun after a failure or a limit of the worker's.
            self.ready.insert(0, batch.tail(batch.done))
        return 0

    # -- workers that end, tasks that take too long ----------------------------

    cdef int lose(self, Peer peer) except -1:
        """A peer's stream has ended: put its tasks elsewhere, replace it."""
        cdef Batch batch, alone, culprit = None
        cdef Py_ssize_t claimed, at
        cdef int64_t began
        cdef int deaths
        cdef list batches = peer.batches
        peer.lost = True
        peer.batches = []
        self.changed = True
        for batch in batches:
            claimed = claim_next(fj_load(&peer.slot.claim[batch.number & 1]))
            if claimed <= batch.done:
                # Not begun, or all that was begun has been reported.
                if batch.size() > batch.done:
                    self.ready.insert(0, batch.tail(batch.done))
                continue
            if peer.slot.started and peer.slot.running == (batch.number & 1):
                at = claimed - 1
            else:
                # It died between two tasks, or while it pickled the results. Each goes
                # alone from now on, so that the one to blame can be told.
                deaths = batch.deaths + 1
                if deaths < MOST_DEATHS or claimed - batch.done > 1:
                    if claimed < batch.size():
                        self.ready.insert(0, batch.tail(claimed))
                    for at in range(claimed - 1, batch.done - 1, -1):
                        alone = batch.only(at)
                        alone.deaths = deaths
                        self.ready.insert(0, alone)
                    continue
                at = batch.done
            culprit = batch.only(at)
            if at + 1 < batch.size():
                self.ready.insert(0, batch.tail(at + 1))
            if at > batch.done:
                # Finished, but their results died with the worker.
                batch.tail(at)
                self.ready.insert(0, batch.tail(batch.done))
        self.crew.replace(peer)
        if culprit is not None:
            began = abs(peer.slot.started)
            self.outcomes.fail(
                culprit, 0, self.outcomes.verdict(culprit, peer), None,
                (now_ns() - began) * 1e-9 if began else 0.0, peer)
        return 0

    cdef int check_timeouts(self) except -1:
        """Have workers killed whose task has run for too long."""
        cdef Peer peer
        cdef int64_t began, now
        if self.call.timeout <= 0:
            return 0
        now = now_ns()
        for peer in self.peers:
            began = peer.slot.started
            if (began > 0 and peer.batches and not peer.lost and not peer.timed_out
                    and now - began > <int64_t>(self.call.timeout * 1e9)):
                # Its other tasks go elsewhere at once. From here on it claims none; so
                # if it has not ended this one yet, the kill takes no other one's place.
                peer.take_all_back()
                if peer.slot.started != began:
                    continue
                peer.timed_out = True
                self.crew.note("timeout", peer, f"over {self.call.timeout} s")
                self.crew.pool.kill(peer)
        return 0
