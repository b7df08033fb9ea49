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

What runs twice: tasks that a worker had finished but not yet reported when it died;
tasks whose results came in one message of which something cannot be unpickled; and
failed tasks under ``retries``.

How the call ends early (an error, Ctrl-C, a closed stream): `abort` takes all
unclaimed tasks back, gives the workers a moment to finish the task they are in, and
has the rest killed.
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
from fastjob._core.intake cimport Intake
from fastjob._core.libc cimport POLLIN, POLLOUT, now_ns, poll, pollfd
from fastjob._core.peer cimport Peer
from fastjob._core.pickling cimport load, load_apart
from fastjob._core.results cimport ResultStream
from fastjob._core.status cimport claim_next, fj_load
from fastjob._core.wake cimport Wake
from fastjob._core.wire cimport APART, FAILED, FINAL, NOTE, REPLY, RETIRED, Header

import os

from fastjob._core.forks import register_at_fork
from fastjob._core.capture import type_name
from fastjob._core.wire import WireError
from fastjob.errors import (
    NurseryError, ResultPicklingError, ResultUnpicklingError, TaskError,
    TerminatedWorkerError,
)

cdef enum:
    # Collecting a batch is interrupted this often to look at the sockets.
    SERVICE_NS = 300_000
    # An idle worker takes tasks from another one if they would keep that one busy
    # for longer than this; moving them costs about half of it.
    WORTH_STEALING_NS = 100_000
    # A signal that comes just before the wait, or an exception that another thread
    # sets, does not end it: it is cut into pieces of this many milliseconds.
    SLICE_MS = 100
    # How long a running task may go on after its call has ended.
    GRACE_NS = 30_000_000
    # How long a worker without a task may take to say so; else it is let go.
    SETTLE_NS = 1_000_000_000
    # A batch whose workers died this often, without a task to blame, is blamed.
    MOST_DEATHS = 3
    # Workers that may end in a row, beyond one each, before the call gives up.
    MOST_LOSSES = 8

# Calling a function of bytecode makes the interpreter see to signals and to exceptions
# that other threads have set; compiled code alone never does.
handle_pending = eval("lambda: [None for _ in (0, 1)]")

#: How often this process, and those that it comes from, have been forked.
cdef long long forks = 0


def _note_fork():
    global forks
    forks += 1


register_at_fork(after_in_child=_note_fork)


@cython.final
cdef class Dispatcher:
    """Run one call.

    Parameters
    ----------
    call : Call
    pool : Pool
        Gives peers (``lease(n, peers)``), kills one (``kill(peer)``), explains why
        one never lived (``explain(peer)``), and shows what a task had to say
        (``hear(body)``; an exception from it ends the call).
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
        self.pool = pool
        self.state = state
        self.tuner = AutoBatch(call.n_jobs, call.batch_size)
        self.intake = Intake(capture, self.tuner)
        self.peers = []
        self.ready = []
        self.attempts = {}
        self.forks = forks

    def run(self, tasks):
        """Run all tasks in the calling thread; the results, in task order."""
        self.out = []
        self.start(tasks)
        return self.out

    def run_into(self, tasks, ResultStream stream, Wake wake):
        """Run all tasks, handing results to a stream; `wake` ends a wait."""
        self.stream = stream
        self.wake = wake
        self.start(tasks)

    def start(self, tasks):
        self.intake.open(tasks)
        done = False
        try:
            self.pool.lease(self.call.n_jobs, self.peers, self.call.options)
            if self.live is not None:
                for peer in self.peers:
                    (<Peer>peer).forget_unshared(self.live)
            if self.call.ahead == 0:
                self.take_everything()
            self.loop()
            self.settle()
            done = True
        finally:
            self.intake.close()
            self.capture.sharer.clear()
            try:
                if not done:
                    self.abort()
            finally:
                self.leave()

    def leave(self):
        """Give the peers back, without anything of this call in them."""
        cdef Peer peer
        for peer in self.peers:
            if peer.lost or peer.batches:
                continue
            if not peer.fresh:
                peer.introduce(self.state)
            elif self.capture.bytes_pickled > 65536:
                peer.reset()
        self.pool.release(self.peers)

    cdef int check_process(self) except -1:
        """Refuse to go on in a child that the user's code has forked."""
        if self.forks != forks:
            raise RuntimeError(
                "This process was forked in the middle of a call of Parallel, which "
                "belongs to the parent. Make a new call, or leave with os._exit().")
        return 0

    def abort(self):
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

    def kill_busy(self):
        """Have every worker killed that is not idle, interrupts or not."""
        cdef Peer peer
        interrupt = None
        for peer in self.peers:
            while peer.batches and not peer.lost:
                try:
                    self.pool.kill(peer)
                    peer.lost = True
                except KeyboardInterrupt as error:
                    interrupt = error
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
                        body = peer.channel.next()
                        if body is None:
                            break
                        peer.unpacked(body)
                        if peer.channel.header.flags & FINAL:
                            del peer.batches[0]
                        if peer.channel.header.flags & RETIRED:
                            peer.retiring = True
                except (BrokenPipeError, ConnectionResetError):
                    got = 0
                except WireError:
                    self.pool.kill(peer)
                    got = 0
                if got == 0:
                    peer.lost = True
        finally:
            free(waiting)

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
            if self.intake.exhausted and self.completed == self.intake.taken:
                return 0
            if self.stream is not None and self.stream.closed:
                self.abort()
                return 0
            self.check_process()    # or it would wait for workers that it has not
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
        cdef int64_t room, n
        cdef Py_ssize_t i
        for i in range(len(self.ready)):
            batch = self.ready[i]
            if batch.avoid is peer and self.has_other(peer):
                continue
            del self.ready[i]
            if batch.size() > self.tuner.size:
                self.ready.insert(i, batch.tail(self.tuner.size))
            return batch
        if self.intake.exhausted:
            return None
        n = self.tuner.size
        if self.call.ahead > 0:
            if self.call.ahead_in_batches:
                room = self.call.ahead * n
            else:
                room = self.call.ahead
                n = min(n, max(1, room // (2 * self.call.n_jobs)))
            n = min(n, room - (self.intake.taken - self.completed))
        if self.stream is not None:
            # How far the reader may be behind: some batches, of the current size.
            self.stream.capacity = max(self.call.ahead, 4 * self.call.n_jobs * n)
            n = min(n, self.stream.room(self.intake.taken))
        if n <= 0:
            return None
        return self.take(n)

    cdef bint has_other(self, Peer peer) except -1:
        cdef Peer other
        for other in self.peers:
            if other is not peer and not other.lost and not other.retiring:
                return True
        return False

    cdef Batch take(self, Py_ssize_t n):
        """Up to `n` tasks from the input; None if there are no more."""
        cdef Batch batch = self.intake.begin()
        while not self.intake.fill(batch, n, SERVICE_NS):
            # A slow input: whoever waits gets what there is.
            self.service(0)
            if self.someone_idle() or (
                    self.stream is not None and self.stream.closed):
                break
        n = batch.size()
        if n == 0:
            return None
        if self.out is not None:
            self.out.extend([None] * n)
        self.counters.dispatched_tasks += n
        return batch

    cdef bint someone_idle(self) except -1:
        cdef Peer peer
        for peer in self.peers:
            if not peer.lost and not peer.batches:
                return True
        return False

    cdef int send(self, Peer peer, Batch batch) except -1:
        """Hand a batch to a peer; what the socket does not take goes later."""
        cdef Constant constant
        cdef Peer other
        self.check_process()    # pickling a task runs code of the user
        if peer.lost:
            # While the batch was collected. Its replacement, or another one, gets it.
            self.ready.insert(0, batch)
            self.changed = True
            return 0
        peer.send(batch, self.state, self.capture.sharer.store)
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
                left = peer.unclaimed()
                if left > most:
                    most = left
                    victim = peer
        if victim is None:
            return False
        began = victim.slot.started
        each = max(self.tuner.task_ns, <double>(now_ns() - began) if began else 0.0)
        if most * each < WORTH_STEALING_NS:
            return False
        self.ready.extend(victim.take_back((most + 1) // 2))
        if self.ready:
            part = self.next_batch(thief)
            if part is not None:
                self.send(thief, part)
                return True
        return False

    # -- waiting and reading ---------------------------------------------------

    cdef int wait_time(self) except -2:
        """Milliseconds to wait for the next event; -1 is for ever."""
        cdef Peer peer
        cdef int64_t now, left, least = -1
        cdef bint idle = False, more = False
        if self.call.timeout > 0:
            now = now_ns()
            least = <int64_t>(self.call.timeout * 1e9)
            for peer in self.peers:
                if peer.slot.started:
                    left = peer.slot.started + <int64_t>(self.call.timeout * 1e9) - now
                    least = min(least, max(left, 0))
        for peer in self.peers:
            if peer.lost:
                continue
            if not peer.batches:
                idle = True
            elif peer.unclaimed():
                more = True
        if idle and more and self.intake.exhausted:
            # Too little to be worth moving when it was looked at; if it still lies
            # there in a moment, it was more than it seemed.
            self.patience = min(2 * self.patience, 64.0) if self.patience else 1.0
            left = <int64_t>(self.patience * 1e6)
            least = left if least < 0 else min(least, left)
        else:
            self.patience = 0
        if least < 0:
            return -1
        return <int>min(least // 1000000 + 1, 1 << 30)

    cdef int service(self, int timeout) except -1:
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
            if timeout < 0 or timeout > SLICE_MS:
                timeout = SLICE_MS
            with nogil:
                ready = poll(waiting, n + 1, timeout)
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
                body = peer.channel.next()
                if body is None:
                    break
                self.reply(peer, body)
        except WireError:
            self.pool.kill(peer)
            got = 0
        if got == 0:
            self.lose(peer)
        return 0

    cdef int reply(self, Peer peer, bytes body) except -1:
        cdef Header head = peer.channel.header
        cdef Batch batch
        cdef list results
        cdef object failures = None
        cdef Py_ssize_t at
        cdef long long n_bytes = PyBytes_GET_SIZE(body)
        cdef int64_t decoded
        if head.kind not in (REPLY, NOTE) or not peer.batches:
            raise WireError("a reply that nothing was asked for")
        if head.kind == NOTE:
            self.pool.hear(body)
            self.check_process()
            return 0
        batch = peer.batches[0]
        if head.number != batch.number or batch.done + head.count > batch.size():
            raise WireError("a reply to another batch")
        decoded = now_ns()
        content = peer.unpacked(body)
        at = batch.done
        batch.done += head.count
        if head.flags & FINAL:
            del peer.batches[0]
        if head.flags & RETIRED:
            peer.retiring = True
        if type(content) is tuple:
            n_bytes = len((<tuple>content)[0])
            for view in (<tuple>content)[1]:
                n_bytes += len(view)
        body = None
        if head.count:
            self.tuner.ran(head.count, head.stamp, n_bytes)
            try:
                if head.flags & APART:
                    results = load_apart(
                        content, head.count + (1 if head.flags & FAILED else 0))
                else:
                    results = load(content)
                if head.flags & FAILED and results:
                    failures = results.pop()
                if results is None or PyList_GET_SIZE(results) != head.count:
                    raise WireError("a reply with another number of results")
            except Exception as error:
                self.unreadable(peer, batch, at, error)
            else:
                content = None
                if self.call.timeline is not None:
                    self.record(peer, batch, at, &head, now_ns() - decoded, n_bytes)
                if failures is None:
                    self.deliver(batch, at, results, n_bytes)
                else:
                    self.deliver_some(peer, batch, at, results, failures)
        if head.flags & FINAL and batch.done < batch.size():
            # Taken back, or not begun after a failure or a limit of the worker's.
            self.ready.insert(0, batch.tail(batch.done))
            self.changed = True
        return 0

    cdef int record(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                    int64_t decoded, long long n_bytes) except -1:
        """Tell the timeline of the tasks that a reply reports."""
        cdef int64_t start = head.ended - head.stamp
        cdef bint first = at == 0
        self.call.timeline.batch(
            peer.slot.pid, start, head.ended, head.count, batch.index(at),
            input_ns=batch.input_ns if first else 0,
            pickle_ns=batch.pickle_ns if first else 0,
            wait_ns=max(0, start - batch.sent_at) if first else 0,
            unpickle_ns=decoded, bytes_out=batch.nbytes if first else 0,
            bytes_in=n_bytes)
        return 0

    cdef int note(self, object kind, Peer peer, object text) except -1:
        """Tell the timeline of something that is not a batch."""
        if self.call.timeline is not None:
            self.call.timeline.event(kind, peer.slot.pid, now_ns(), text)
        return 0

    def unreadable(self, Peer peer, Batch batch, Py_ssize_t at, error):
        """Results from `at` to ``batch.done`` came, but unpickling them failed."""
        cdef Py_ssize_t i
        if batch.done - at > 1:
            # Whose result it is cannot be told: they are run again, one by one.
            for i in range(at, batch.done):
                self.ready.append(batch.only(i))
            self.changed = True
            return
        name, shown = self.described(batch, at)
        wrong = ResultUnpicklingError(
            batch.index(at), name, shown, f"{type_name(error)}: {error}")
        wrong.__cause__ = error
        self.fail(batch, at, wrong, None, 0.0, peer)

    cdef int deliver(self, Batch batch, Py_ssize_t at, list results,
                     long long n_bytes) except -1:
        """Hand over the results of consecutive tasks of a batch."""
        cdef Py_ssize_t n = PyList_GET_SIZE(results), i
        cdef int64_t first
        cdef list indices
        if batch.indices is None:
            first = batch.first + at
            if self.out is not None:
                self.out[first:first + n] = results
            else:
                self.stream.put_many(first, results, n_bytes)
        else:
            indices = batch.indices[at:at + n]
            if self.out is not None:
                for i in range(n):
                    self.out[indices[i]] = results[i]
            else:
                self.stream.put_scattered(indices, results, n_bytes)
        self.completed += n
        self.losses = 0
        self.counters.completed_tasks += n
        if self.call.on_batch is not None:
            self.capture.next_epoch()
            self.call.on_batch(n)
            self.check_process()
        return 0

    def deliver_some(self, Peer peer, Batch batch, Py_ssize_t at, results, failures):
        """Hand over results among which some tasks failed."""
        cdef Py_ssize_t start = 0
        for position, packed, text, elapsed in failures:
            if position > start:
                self.deliver(batch, at + start, results[start:position], 0)
            start = position + 1
            self.fail(batch, at + position, packed, text, elapsed, peer)
        if start < len(results):
            self.deliver(batch, at + start, results[start:], 0)

    cdef int fail(self, Batch batch, Py_ssize_t at, object error, object text,
                  double elapsed, Peer peer) except -1:
        """A task has failed: run it again, note it, or end the call."""
        cdef int64_t index = batch.index(at)
        cdef int attempts = self.attempts.get(index, 0) + 1
        cdef Batch again
        if attempts <= self.call.retries:
            self.attempts[index] = attempts
            self.counters.retried_tasks += 1
            self.note("retry", peer, f"task {index}, attempt {attempts + 1}")
            again = batch.only(at)
            again.avoid = peer
            self.ready.insert(0, again)
            self.changed = True
            return 0
        self.attempts.pop(index, None)
        if type(error) is bytes:
            from fastjob import failure

            error = failure.unpack(error)
        elif error is None:
            # The worker could not pickle the result; `text` is (type, reason).
            error = ResultPicklingError(index, *self.described(batch, at), *text)
            text = None
        self.counters.failed_tasks += 1
        self.note("error", peer, f"task {index}: {type_name(error)}")
        if not self.call.return_errors:
            raise error
        if text is None:
            text = str(error)
        self.deliver(batch, at, [TaskError(index, error, text, attempts, elapsed)], 0)
        return 0

    # -- workers that end, tasks that take too long ----------------------------

    cdef int lose(self, Peer peer) except -1:
        """A peer's stream has ended: put its tasks elsewhere, replace it."""
        cdef Batch batch, culprit = None
        cdef Py_ssize_t claimed, at
        cdef list batches = peer.batches
        peer.lost = True
        peer.batches = []
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
                # It died between two tasks, or while it pickled the results.
                batch.deaths += 1
                if batch.deaths < MOST_DEATHS:
                    self.ready.insert(0, batch.tail(batch.done))
                    (<Batch>self.ready[0]).deaths = batch.deaths
                    continue
                at = batch.done
            culprit = batch.only(at)
            if at + 1 < batch.size():
                self.ready.insert(0, batch.tail(at + 1))
            if at > batch.done:
                # Finished, but their results died with the worker.
                batch.tail(at)
                self.ready.insert(0, batch.tail(batch.done))
        self.replace(peer)
        if culprit is not None:
            self.fail(culprit, 0, self.verdict(culprit, peer), None, 0.0, peer)
        return 0

    def replace(self, Peer peer):
        """Put a new worker in the place of one that has ended."""
        cdef list fresh = []
        self.changed = True
        self.losses += 1
        self.note("death", peer, f"worker process {peer.slot.pid} ended")
        died = self.pool.explain(peer)
        if "unborn" in died:
            if self.has_other(peer):
                return      # no more processes to be had: go on with those there are
            raise NurseryError(f"No worker process can be started: {died['unborn']}.")
        if self.losses > MOST_LOSSES + len(self.peers):
            raise NurseryError(
                f"{self.losses} worker processes in a row ended before they finished "
                f"a task (the last one: {died}).")
        try:
            self.pool.lease(1, fresh, self.call.options)
        finally:
            if fresh:
                self.peers[self.peers.index(peer)] = fresh[0]
        self.pool.release([peer])

    def described(self, Batch batch, Py_ssize_t at):
        """Function and arguments of a task, shortened."""
        from fastjob import failure, peek

        cdef Constant c = (
            batch.function if batch.functions is None else batch.functions[at])
        f = None if c is None else c.value
        item = batch.items[at]
        kwargs = {}
        if batch.column:
            args = (item,)
        elif type(item) is tuple:
            args = item
        else:
            refs = {}
            for c in (batch.refs[at] if batch.refs is not None else None) or ():
                refs[c.number] = c.value
            f, args, kwargs = peek.task(item, f, refs)
        return failure.shorten_parts(f, args, kwargs, self.call.show_values)

    def verdict(self, Batch culprit, Peer peer):
        """The error of the task that a worker was running when it ended."""
        from fastjob import errors

        index = culprit.index(0)
        name, shown = self.described(culprit, 0)
        if peer.timed_out:
            return errors.TaskTimeoutError(index, name, shown, self.call.timeout,
                                           pid=peer.slot.pid)
        return TerminatedWorkerError(index, name, shown, **self.pool.explain(peer))

    cdef int check_timeouts(self) except -1:
        """Have workers killed whose task has run for too long."""
        cdef Peer peer
        cdef int64_t began, now
        if self.call.timeout <= 0:
            return 0
        now = now_ns()
        for peer in self.peers:
            began = peer.slot.started
            if (began and not peer.lost and peer.batches
                    and now - began > <int64_t>(self.call.timeout * 1e9)):
                # Its other tasks go elsewhere at once; the end of its stream, which
                # follows, tells whether this one has finished in the meantime.
                peer.take_all_back()
                peer.timed_out = True
                self.note("timeout", peer, f"over {self.call.timeout} s")
                self.pool.kill(peer)
        return 0
