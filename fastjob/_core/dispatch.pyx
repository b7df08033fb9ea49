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
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.call cimport Call
from fastjob._core.capture cimport Capture, Constant, plain
from fastjob._core.lending cimport Link
from fastjob._core.libc cimport POLLIN, POLLOUT, now_ns, poll, pollfd
from fastjob._core.pickling cimport load
from fastjob._core.results cimport ResultStream
from fastjob._core.status cimport (
    EXITED, FORK_FAILED, Slot, StatusPage, claim_end, claim_next, claim_word, fj_load,
    fj_store, take_back,
)
from fastjob._core.wake cimport Wake
from fastjob._core.wire cimport (
    BATCH, BLOCK, COLUMN, DEFINE, FAILED, FINAL, FORGET, LOANS, MIXED, REPLY, RESET, RETIRED, STATE,
    Channel, Header,
)

import os
import pickle
from types import FunctionType, MethodType, ModuleType

from fastjob._core.capture import function_name, type_name
from fastjob._core.wire import WireError
from fastjob.errors import (
    NurseryError, ResultPicklingError, ResultUnpicklingError, TaskError,
    TerminatedWorkerError,
)

cdef extern from "Python.h":
    PyObject *PyIter_Next(object iterator)
    PyObject *PyErr_Occurred()
    void Py_DECREF(PyObject *o)

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
    # A batch whose workers died this often, without a task to blame, is blamed.
    MOST_DEATHS = 3
    # A pickle from this size on goes through shared memory: the copies into and out of
    # the socket's buffer cost more than those of a warm block from about here on.
    LONG_BODY = 256 << 10
    # What a batch may hold of newly copied buffers.
    COPIED_BYTES = 16 << 20
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


os.register_at_fork(after_in_child=_note_fork)

cdef object dumps = pickle.dumps
cdef tuple PASSIVE = (type(iter([])), type(iter(())), type(iter(range(0))))


@cython.final
cdef class Batch:
    cdef Py_ssize_t size(self) noexcept:
        return PyList_GET_SIZE(self.items)

    cdef int64_t index(self, Py_ssize_t at) except -1:
        return self.first + at if self.indices is None else self.indices[at]

    cdef Batch tail(self, Py_ssize_t start):
        """Cut off the tasks from `start` on, as a batch of their own."""
        cdef Batch other = Batch.__new__(Batch)
        other.items = self.items[start:]
        del self.items[start:]
        other.function = self.function
        other.column = self.column
        other.first = self.first + start
        if self.functions is not None:
            other.functions = self.functions[start:]
            del self.functions[start:]
        if self.indices is not None:
            other.indices = self.indices[start:]
            del self.indices[start:]
        if self.refs is not None:
            other.refs = self.refs[start:]
            del self.refs[start:]
        if self.blocks is not None:
            other.blocks = self.blocks[start:]
            del self.blocks[start:]
        return other

    cdef Batch only(self, Py_ssize_t at):
        """One task as a batch of its own: what kills a worker takes nobody along."""
        cdef Batch one = Batch.__new__(Batch)
        one.items = [self.items[at]]
        one.column = self.column
        one.function = self.function
        one.first = self.index(at)
        if self.functions is not None:
            one.functions = [self.functions[at]]
        if self.refs is not None:
            one.refs = [self.refs[at]]
        if self.blocks is not None:
            one.blocks = [self.blocks[at]]
        return one

    cdef int separate(self) except -1:
        """Give each task a function of its own: they are about to differ."""
        if self.functions is None:
            self.functions = [self.function] * self.size()
            self.function = None
        if self.column:
            self.items = [(item,) for item in self.items]
            self.column = False
        return 0

    cdef int take_refs(self, list refs, list blocks) except -1:
        """Note what the task just appended refers to."""
        cdef Py_ssize_t before = self.size() - 1
        if refs or self.refs is not None:
            if self.refs is None:
                self.refs = [None] * before
            self.refs.append(refs or None)
        if blocks or self.blocks is not None:
            if self.blocks is None:
                self.blocks = [None] * before
            self.blocks.append(blocks)
        return 0


@cython.final
cdef class Peer:
    """A worker process, as its caller sees it.

    Parameters
    ----------
    channel : Channel
    page : StatusPage
    number : int
        The worker's slot in the page.
    profile : object
        What the worker was made for; compared by the pool when it leases.
    """

    def __init__(self, Channel channel, StatusPage page, int number, profile):
        self.channel = channel
        self.page = page
        self.slot = page.slot(number)
        self.number = number
        self.profile = profile
        # Descriptors of what workers lend are not kept: there may be many workers.
        self.link = Link(keep_fds=False)
        self.batches = []
        self.known = set()

    @property
    def pid(self):
        """Process number; 0 until the worker has been forked."""
        return self.slot.pid

    def fate(self):
        """How it ended: ``(life, pid, status, peak KiB)``."""
        life = "alive"
        if self.slot.life == EXITED:
            life = "ended"
        elif self.slot.life == FORK_FAILED:
            life = "unborn"
        return life, self.slot.pid, self.slot.status, self.slot.peak

    def usable(self):
        """Whether another call can have it; forgets what belongs to this one."""
        self.known.clear()
        self.fresh = False
        return not (self.lost or self.retiring or self.batches)

    def close(self):
        """Close the socket: the worker ends as soon as it is idle."""
        self.lost = True
        self.channel.close()
        self.link.close()

    def forget(self):
        """In a forked child: let go, and touch nothing that is shared."""
        self.batches = []
        self.lost = True
        self.channel.close()

    def take_all_back(self):
        """Take back every task that the worker has not begun."""
        cdef Batch batch
        for batch in self.batches:
            take_back(&self.slot.claim[batch.number & 1], 0xFFFFFFFF)

    def poll_closed(self):
        """Whether the worker has closed its end while it was idle."""
        cdef pollfd waiter
        waiter.fd = self.channel.fd
        waiter.events = POLLIN
        return poll(&waiter, 1, 0) != 0


@cython.final
cdef class Dispatcher:
    """Run one call.

    Parameters
    ----------
    call : Call
    pool : Pool
        Gives peers (``lease(n, peers)``), kills one (``kill(peer)``) and explains why
        one never lived (``explain(peer)``).
    capture : Capture
    state : bytes
        Process state and settings that every worker must have adopted.
    """

    def __init__(self, Call call, pool, Capture capture, state):
        self.call = call
        self.counters = call.counters
        self.capture = capture
        self.pool = pool
        self.state = state
        self.tuner = AutoBatch(call.n_jobs, call.batch_size)
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
        self.tasks = tasks
        self.passive = type(tasks) in PASSIVE
        done = False
        try:
            self.pool.lease(self.call.n_jobs, self.peers, self.call.options)
            if self.call.ahead == 0:
                self.take_everything()
            self.loop()
            done = True
        finally:
            self.tasks = None
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
            if peer.lost or peer.batches or not peer.fresh:
                continue
            if self.capture.bytes_pickled > 65536:
                # The next call would have it forgotten too, but that may be late.
                peer.channel.put(RESET, 0, 0, 0, 0, 0, NULL, 0, None)
                try:
                    peer.channel.flush(False)
                except OSError:
                    peer.lost = True
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
        """Read and drop what workers still send."""
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
                        self.unpacked(peer, body)
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
        while not self.exhausted:
            batch = self.take(1 << 20)
            if batch is not None:
                self.ready.append(batch)

    cdef int loop(self) except -1:
        while True:
            self.changed = True
            while self.changed:
                self.changed = False
                self.feed()
            if self.exhausted and self.completed == self.taken:
                return 0
            if self.stream is not None and self.stream.closed:
                self.abort()
                return 0
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
                elif self.exhausted and not self.ready:
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
        if self.exhausted:
            return None
        n = self.tuner.size
        if self.call.ahead > 0:
            if self.call.ahead_in_batches:
                room = self.call.ahead * n
            else:
                room = self.call.ahead
                n = min(n, max(1, room // (2 * self.call.n_jobs)))
            n = min(n, room - (self.taken - self.completed))
        if self.stream is not None:
            # How far the reader may be behind: some batches, of the current size.
            self.stream.capacity = max(self.call.ahead, 4 * self.call.n_jobs * n)
            n = min(n, self.stream.room(self.taken))
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
        cdef Batch batch = Batch.__new__(Batch)
        cdef Py_ssize_t i = 0, last = 0
        cdef int64_t began = now_ns(), now
        cdef PyObject *raw
        cdef object task
        cdef Py_ssize_t stride = 8 if self.tuner.produce_ns < 20000 else 1
        cdef long long pickled = self.capture.bytes_pickled
        cdef long long copied = self.capture.sharer.store.copied_bytes
        batch.items = []
        batch.first = self.taken
        batch.column = True
        self.serviced = began
        while i < n:
            if not self.passive:
                self.capture.next_epoch()
            raw = PyIter_Next(self.tasks)
            self.check_process()
            if raw is NULL:
                if PyErr_Occurred() is not NULL:
                    raise_pending()
                self.exhausted = True
                break
            task = <object>raw
            Py_DECREF(raw)
            self.add(batch, task)
            task = None
            i += 1
            self.taken += 1
            if (self.capture.bytes_pickled - pickled > LONG_BODY
                    or self.capture.sharer.store.copied_bytes - copied > COPIED_BYTES):
                break
            if i - last >= stride:
                last = i
                now = now_ns()
                if now - self.serviced > SERVICE_NS:
                    # A slow input: whoever waits gets what there is.
                    self.service(0)
                    self.serviced = now
                    if self.someone_idle() or (
                            self.stream is not None and self.stream.closed):
                        break
        if i == 0:
            return None
        batch.input_ns = now_ns() - began
        self.tuner.produced(i, batch.input_ns)
        if self.out is not None:
            self.out.extend([None] * i)
        self.counters.dispatched_tasks += i
        return batch

    cdef bint someone_idle(self) except -1:
        cdef Peer peer
        for peer in self.peers:
            if not peer.lost and not peer.batches:
                return True
        return False

    cdef int add(self, Batch batch, object task) except -1:
        """Capture one task into a batch, in the cheapest form that holds it."""
        cdef object f, kwargs, item = None
        cdef tuple args
        cdef Constant constant
        cdef bint eager = False
        if type(task) is not tuple or PyTuple_GET_SIZE(task) != 3:
            task = checked_task(task, self.taken)
        f = <object>PyTuple_GET_ITEM(task, 0)
        item = <object>PyTuple_GET_ITEM(task, 1)
        args = item if type(item) is tuple else tuple(item)
        kwargs = <object>PyTuple_GET_ITEM(task, 2)
        if f is self.last_f:
            constant = self.last_constant
        else:
            if type(f) is MethodType and not isinstance(f.__self__, (type, ModuleType)):
                # The object may change between tasks, as an argument may.
                args = (f.__self__, *args)
                f = f.__func__
            constant = self.function(f)
            if constant is not None:
                self.last_f = f
                self.last_constant = constant
        if constant is None or kwargs or not plain_args(args):
            item = self.capture.arguments(
                self.taken, f, f if constant is None else None, args, kwargs)
            eager = True
        else:
            item = args

        if not batch.items:
            batch.function = constant
            if constant is None:
                batch.functions = []
        elif batch.functions is None and constant is not batch.function:
            batch.separate()
        if batch.column and (eager or PyTuple_GET_SIZE(args) != 1
                             or batch.functions is not None):
            batch.column = False
            batch.items = [(x,) for x in batch.items]
        if batch.functions is not None:
            batch.functions.append(constant)
        if batch.column:
            batch.items.append(<object>PyTuple_GET_ITEM(args, 0))
        else:
            batch.items.append(item)
        if eager:
            batch.take_refs(self.capture.refs, self.capture.blocks)
            self.capture.refs = None
            self.capture.blocks = None
        elif batch.refs is not None or batch.blocks is not None:
            batch.take_refs(None, None)
        return 0

    def function(self, f):
        """The constant of a callable, or None if it must travel with its tasks."""
        if not callable(f):
            raise TypeError(
                f"task {self.taken}: {type_name(f)} is not callable. A task is "
                "delayed(function)(arguments) or a tuple (function, args, kwargs)")
        try:
            return self.capture.function(f)
        except (KeyboardInterrupt, MemoryError, OSError):
            raise
        except Exception as error:
            from fastjob.errors import TaskPicklingError

            raise TaskPicklingError(self.taken, function_name(f), None,
                                    type_name(f), str(error)) from error

    cdef list in_block(self, bytes data):
        """A block for a pickle that is too long for the socket; None if it is not."""
        if PyBytes_GET_SIZE(data) < LONG_BODY:
            return None
        return [self.capture.sharer.store.put(data)]

    cdef int define(self, Peer peer, Constant constant) except -1:
        """Send a constant, and those that it needs, unless the peer has them."""
        cdef Constant other
        cdef int flags = 0
        cdef bytes tokens
        if constant is None or constant.number in peer.known:
            return 0
        if constant.needs:
            for other in constant.needs:
                self.define(peer, other)
        peer.known.add(constant.number)
        if type(constant.data) is bytes:
            block = self.in_block(constant.data)
            if block is not None:
                constant.data = block[0]    # for the other workers too
        blocks = constant.blocks
        if type(constant.data) is not bytes:
            flags |= BLOCK
            blocks = [constant.data, *(blocks or ())]
        if blocks is None:
            peer.channel.put(DEFINE, 0, constant.number, 0, 0, 0,
                             PyBytes_AS_STRING(constant.data),
                             PyBytes_GET_SIZE(constant.data), None)
            return 0
        tokens = peer.link.lend(blocks)
        body = tokens if flags else tokens + constant.data
        peer.channel.put(DEFINE, flags | LOANS, constant.number,
                         <uint32_t>PyBytes_GET_SIZE(tokens), 0, 0,
                         PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                         peer.link.take_fds())
        return 0

    cdef int send(self, Peer peer, Batch batch) except -1:
        """Hand a batch to a peer; what the socket does not take goes later."""
        cdef Constant constant
        cdef bytes body
        cdef int flags = 0
        cdef uint32_t n = <uint32_t>batch.size()
        cdef int64_t number = 0, began = now_ns()
        self.check_process()    # pickling a task runs code of the user
        if peer.lost:
            # While the batch was collected. Its replacement, or another one, gets it.
            self.ready.insert(0, batch)
            self.changed = True
            return 0
        if not peer.fresh:
            peer.fresh = True
            peer.channel.put(RESET, 0, 0, 0, 0, 0, NULL, 0, None)
            if peer.state != self.state:
                peer.channel.put(STATE, 0, 0, 0, 0, 0,
                                 PyBytes_AS_STRING(self.state),
                                 PyBytes_GET_SIZE(self.state), None)
            peer.state = self.state
        if batch.refs is not None:
            for refs in batch.refs:
                if refs is not None:
                    for constant in refs:
                        self.define(peer, constant)
        if batch.functions is not None:
            for constant in batch.functions:
                self.define(peer, constant)
        else:
            self.define(peer, batch.function)
        if batch.column:
            flags |= COLUMN
        if (batch.functions is not None or batch.indices is not None
                or batch.blocks is not None):
            flags |= MIXED
            if batch.functions is None:
                functions = [batch.function.number] * n
            else:
                functions = [-1 if c is None else (<Constant>c).number
                             for c in batch.functions]
            items = batch.items
            if batch.column:
                items = [(x,) for x in items]
                flags &= ~COLUMN
            tokens = None
            if batch.blocks is not None:
                tokens = [None if b is None else peer.link.lend(b)
                          for b in batch.blocks]
            body = dumps((items, functions, batch.indices, tokens), 5)
        else:
            number = batch.function.number
            body = dumps(batch.items, 5)
        block = self.in_block(body)
        if block is not None:
            flags |= BLOCK
            body = peer.link.lend(block)
        batch.number = peer.sent
        batch.done = 0
        batch.sent_at = now_ns()
        batch.pickle_ns = batch.sent_at - began
        batch.nbytes = PyBytes_GET_SIZE(body)
        peer.sent += 1
        fj_store(&peer.slot.claim[batch.number & 1], claim_word(0, n))
        peer.batches.append(batch)
        peer.channel.put(BATCH, flags, batch.number, n, number, batch.first,
                         PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                         peer.link.take_fds())
        for constant in self.capture.expired:
            # Behind the batch: it may be the last to need them.
            for other in self.peers:
                if constant.number in (<Peer>other).known:
                    (<Peer>other).known.remove(constant.number)
                    (<Peer>other).channel.put(FORGET, 0, constant.number, 0, 0, 0,
                                              NULL, 0, None)
        self.capture.expired.clear()
        self.counters.dispatched_batches += 1
        self.flush(peer)
        return 0

    cdef int flush(self, Peer peer) except -1:
        """Write what the peer's socket takes now."""
        try:
            peer.channel.flush(False)
        except (BrokenPipeError, ConnectionResetError):
            # It has died. What it sent before is still to be read; then comes the
            # end of the stream, which is where its tasks are dealt with.
            peer.channel.discard()
        return 0

    cdef bint steal(self, Peer thief) except -1:
        """Give an idle peer about half of what the slowest one has not begun."""
        cdef Peer peer, victim = None
        cdef Batch batch, part
        cdef uint32_t left, most = 0, want, got
        cdef uint64_t word
        cdef int64_t now = now_ns(), began
        cdef double each
        for peer in self.peers:
            if peer is thief or peer.lost:
                continue
            left = 0
            for batch in peer.batches:
                word = fj_load(&peer.slot.claim[batch.number & 1])
                if claim_end(word) > claim_next(word):
                    left += claim_end(word) - claim_next(word)
            if left > most:
                most = left
                victim = peer
        if victim is None:
            return False
        began = victim.slot.started
        each = max(self.tuner.task_ns, <double>(now - began) if began else 0.0)
        if most * each < WORTH_STEALING_NS:
            return False
        want = (most + 1) // 2
        for batch in reversed(victim.batches):
            if want == 0:
                break
            got = take_back(&victim.slot.claim[batch.number & 1], want)
            if got == 0:
                continue
            want -= got
            part = batch.tail(batch.size() - got)
            if part.size() > 0:
                self.ready.append(part)
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
            elif self.unclaimed(peer):
                more = True
        if idle and more and self.exhausted:
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

    cdef bint unclaimed(self, Peer peer) noexcept:
        cdef Batch batch
        cdef uint64_t word
        for batch in peer.batches:
            word = fj_load(&peer.slot.claim[batch.number & 1])
            if claim_end(word) > claim_next(word):
                return True
        return False

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
                    self.flush(peer)
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

    cdef object unpacked(self, Peer peer, bytes body):
        """The pickle of a reply, or the pickle and its buffers.

        To be called for every frame: it keeps the link in step with the worker's.
        """
        cdef Header head = peer.channel.header
        cdef Py_ssize_t n_tokens = head.extra
        if head.n_fds:
            peer.link.give_fds(peer.channel.take_fds())
        if not head.flags & LOANS:
            return body
        views = peer.link.open(body[:n_tokens], "r+")
        if head.flags & BLOCK:
            return views[0], views[1:]
        return body[n_tokens:], views

    cdef int reply(self, Peer peer, bytes body) except -1:
        cdef Header head = peer.channel.header
        cdef Batch batch
        cdef list results
        cdef object failures = None
        cdef Py_ssize_t at
        cdef long long n_bytes = PyBytes_GET_SIZE(body)
        cdef int64_t decoded
        if head.kind != REPLY or not peer.batches:
            raise WireError("a reply that nothing was asked for")
        batch = peer.batches[0]
        if head.number != batch.number or batch.done + head.count > batch.size():
            raise WireError("a reply to another batch")
        decoded = now_ns()
        content = self.unpacked(peer, body)
        at = batch.done
        batch.done += head.count
        if head.flags & FINAL:
            del peer.batches[0]
        if head.flags & RETIRED:
            peer.retiring = True
        if type(content) is tuple:
            for view in (<tuple>content)[1]:
                n_bytes += len(view)
        body = None
        if head.count:
            self.tuner.ran(head.count, head.stamp, n_bytes)
            try:
                if head.flags & FAILED:
                    results, failures = load(content)
                else:
                    results = load(content)
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
        cdef Peer other
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


cdef int raise_pending() except -1:
    """Let an exception that a C call has set propagate."""
    return -1


cdef inline bint plain_args(tuple args) noexcept:
    cdef Py_ssize_t i
    for i in range(PyTuple_GET_SIZE(args)):
        if not plain(<object>PyTuple_GET_ITEM(args, i), 4):
            return False
    return True


def checked_task(task, index):
    """A task from whatever the input gave, or a TypeError that says what is wrong."""
    try:
        f, args, kwargs = task
    except (TypeError, ValueError):
        raise TypeError(
            f"task {index} is {type_name(task)}, not a task. Write "
            "delayed(function)(arguments) or a tuple (function, args, kwargs)"
        ) from None
    return f, tuple(args), kwargs

