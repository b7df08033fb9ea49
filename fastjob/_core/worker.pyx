"""The loop of a worker process: read a batch, run it, reply.

One thread, one socket, no lock.  The worker may block in reading and in writing; the
caller always reads before it waits (``wire.pyx``).  Which tasks of a batch it runs is
settled task by task in the status page (``status.pyx``), so that the caller can give
the rest to somebody else.

What it guarantees for each batch: one final reply, with a result or a failure for
every task that it claimed, in order; unless it dies, and then the page says which task
it was running.  What goes into a reply: ``replies.pyx``.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastjob._core.constants cimport constant, define, forget, known, reset
from fastjob._core.inheriting cimport settle
from fastjob._core.lending cimport Link, Token
from fastjob._core.libc cimport POLLIN, cpu_ns, now_ns, poll, pollfd
from fastjob._core.pickling cimport load
from fastjob._core.replies cimport Replies
from fastjob._core.status cimport Slot, StatusPage, claim_next, claim_one, fj_load
from fastjob._core.wire cimport (
    BATCH, BLOCK, COLUMN, DEFINE, FINAL, FORGET, LOANS, MIXED, NOTE, RESET, RETIRED,
    STATE, Channel, Header,
)

import os
import sys
from mmap import PAGESIZE

from fastjob._core.wire import WireError

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyObject_CallOneArg(object callable, object arg)
    object PyObject_Call(object callable, object args, PyObject *kwargs)

cdef enum:
    # A batch that has run this long reports what it has and goes on: generators,
    # progress and the autotuner then see a phase of slow tasks at once.
    FLUSH_NS = 50_000_000
    # How often an idle worker looks whether the caller has dropped results.
    COLLECT_MS = 1000
    # Thirty years; what is longer would not fit its integer.
    MOST_IDLE_SECONDS = 1000000000


@cython.final
cdef class Worker:
    """Serve one caller until it closes the socket.

    Parameters
    ----------
    channel : Channel
    page : StatusPage
    slot : int
        This worker's slot.
    caller : object
        Keeps to the caller's state. ``caller.begin()`` is called when a call begins;
        False ends the worker. ``caller.batch_ended()`` is called before the last reply
        to a batch. ``caller.notes`` sends what tasks say (`_pool/notes.py`).
        ``caller.adopt(body)`` is called with the body of a
        STATE frame; it returns
        ``(return_errors, show_values, idle_seconds, max_tasks, max_memory,
        mmap_mode)``.  ``caller.store()`` makes the store for large results.  Within
        ``with caller.spare`` modules can be imported though a task has every
        descriptor (`_pool/spare.py`).
    """

    cdef Channel channel
    cdef StatusPage page
    cdef Slot *slot
    cdef object caller
    cdef Link link
    cdef Replies replies
    cdef str mode           # in which tasks see large arguments
    cdef bint mode_is_none
    cdef object notes       # what tasks say; guards writing to the socket
    cdef object broken      # why no task can run: the caller's state was not adopted
    cdef bint out_of_step   # buffers that the caller has lent could not be taken
    cdef object context     # in which the tasks of this call run
    cdef bint return_errors
    cdef double idle_seconds
    cdef long long max_tasks, max_memory, n_tasks

    def __init__(self, Channel channel, StatusPage page, int slot, caller):
        self.channel = channel
        self.page = page
        self.slot = page.slot(slot)
        self.caller = caller
        self.idle_seconds = -1
        self.link = Link(keep_fds=True)
        self.notes = caller.notes
        self.notes.send = self.send_note
        self.replies = Replies(channel, self.link, page, slot, caller)
        self.mode = "r"

    def serve(self):
        """Run until the caller closes the socket or the worker is to be replaced."""
        try:
            self.loop()
        except (BrokenPipeError, ConnectionResetError):
            return      # the caller wants no more
        except WireError:
            self.slot.started = 0   # no task is to blame
            raise

    def loop(self):
        cdef bytes body
        cdef Header head
        while True:
            body = self.channel.next()
            if body is None:
                if not self.wait() or self.channel.receive(True) == 0:
                    return
                continue
            head = self.channel.header
            try:
                if head.n_fds:
                    self.link.give_fds(self.channel.take_fds())
                if head.kind == DEFINE:
                    define(head.number, self.received(body, head))
            except (MemoryError, OSError) as error:
                # A limit of this process. It ends after the next batch, since the link
                # is no more in step with the caller's; see `run`.
                self.out_of_step = True
                self.broken = error
            if head.kind == BATCH:
                if not self.run(body, head):
                    return
            elif head.kind == FORGET:
                forget(head.number)
            elif head.kind == RESET:
                if self.out_of_step:
                    return
                reset()
                self.broken = None
                if not self.begin():
                    return
            elif head.kind == STATE:
                self.adopt(body)
            elif head.kind != DEFINE:
                raise WireError("a message that is not for a worker")

    def send_note(self, bytes note):
        """Tell the caller what a task has to say; `notes` guards the socket."""
        self.channel.put(NOTE, 0, 0, 0, 0, 0, PyBytes_AS_STRING(note),
                         PyBytes_GET_SIZE(note), None)
        self.channel.flush(True)

    def begin(self):
        """A call begins; False if this worker is no longer what a new one would be."""
        self.leave_context()
        try:
            return self.caller.begin()
        except BaseException as error:
            self.broken = error
            return True
        finally:
            self.enter_context()

    def adopt(self, body):
        """Become what a new worker of the caller would be."""
        self.leave_context()
        self.broken = None      # whatever was wrong with the state before this one
        try:
            (self.return_errors, self.replies.show_values, self.idle_seconds,
             self.max_tasks, self.max_memory, mode) = self.caller.adopt(body)
            self.mode = mode or "r"
            self.mode_is_none = mode is None
        except BaseException as error:
            self.broken = error
        finally:
            self.enter_context()

    # The tasks of a call run in a copy of the thread's context: what they do to context
    # variables ends with the call.

    cdef int enter_context(self) except -1:
        self.context = PyContext_CopyCurrent()
        PyContext_Enter(self.context)
        return 0

    cdef int leave_context(self) except -1:
        if self.context is not None:
            PyContext_Exit(self.context)
            self.context = None
        return 0

    cdef bint wait(self) except -1:
        """Wait for the caller; False when it has been silent for too long."""
        cdef pollfd waiter
        cdef int ready
        cdef int64_t began = now_ns(), left, pause
        cdef bint lent
        # With a part of a message here it is not silent.
        cdef bint limited = self.idle_seconds >= 0 and self.channel.in_end == 0
        waiter.fd = self.channel.fd
        waiter.events = POLLIN
        while True:
            left = -1
            if limited:
                left = max(0, <int64_t>(min(self.idle_seconds, MOST_IDLE_SECONDS) * 1e3)
                           - (now_ns() - began) // 1000000)
            pause = left
            # The caller drops results whenever it likes, without a message.
            lent = self.replies.lent(now_ns() - began > COLLECT_MS * 1000000)
            if settle() or lent:
                pause = COLLECT_MS if left < 0 else min(left, COLLECT_MS)
            with nogil:
                ready = poll(&waiter, 1, <int>min(pause, 1 << 30))
            if ready > 0 or (ready < 0 and errno != EINTR):
                return True
            if left == 0:
                return False

    def received(self, bytes body, Header head):
        """The pickle of a definition, or the pickle and its buffers."""
        cdef Py_ssize_t n_tokens = head.count
        if not head.flags & LOANS:
            return body
        if n_tokens > PyBytes_GET_SIZE(body):
            raise WireError("a definition without the tokens of its buffers")
        views = self.link.open(body[:n_tokens], self.mode)
        if head.flags & BLOCK:
            if not views:
                raise WireError("a definition without the token of its block")
            data = bytes(views.pop(0))
        else:
            data = body[n_tokens:]
        return data, self.writable(views)

    cdef list writable(self, list views):
        """Views as the call wants them: without a mode, each task has copies."""
        if self.mode_is_none:
            return [bytearray(view) for view in views]
        return views

    cdef list opened(self, list tokens, int64_t at):
        """The large buffers of a task; None if it has none."""
        if tokens is None or tokens[at] is None:
            return None
        return self.writable(self.link.open(tokens[at], self.mode))

    cdef int discard(self, list tokens, Py_ssize_t start) except -1:
        """Give back the buffers of tasks that somebody else runs."""
        if tokens is not None:
            for one in tokens[start:]:
                if one is not None:
                    self.link.discard(one)
        return 0

    cdef bint run(self, bytes body, Header head) except -1:
        """Run a batch; False when the worker is to exit."""
        cdef list items, results = []
        cdef list failures = None
        cdef object f, item, task, result, args, kwargs, body_view = None
        cdef list functions = None, indices = None, tokens = None, views = None
        cdef int64_t at, since, last
        cdef bint column = head.flags & COLUMN
        cdef bint mixed = head.flags & MIXED
        cdef bint one_function = not mixed
        cdef int64_t number = head.stamp
        cdef uint32_t parity = head.number & 1
        cdef uint64_t *claim = &self.slot.claim[parity]
        cdef int flags = FINAL

        f = None
        self.notes.open = True
        self.replies.cpu = cpu_ns() if self.slot.timed else 0
        last = since = now_ns()
        self.slot.running = parity
        if self.out_of_step and self.n_tasks > 0:
            # An earlier task may have set the limit: let a new worker try.
            self.replies.send(head, results, failures, FINAL | RETIRED, 0)
            return False
        at = claim_one(claim)
        if not head.flags & BLOCK:
            body_view = body
        elif self.broken is None:
            if PyBytes_GET_SIZE(body) != sizeof(Token):
                raise WireError("a batch without the token of its block")
            body_view = self.link.open(body, "r")[0]
        if at < 0:
            if self.broken is not None:
                flags |= RETIRED
            elif mixed:
                items, functions, indices, tokens = load(body_view)
                self.discard(tokens, 0)
            self.replies.send(head, results, failures, flags, 0)
            return self.broken is None
        self.slot.started = -since
        try:
            if self.broken is not None:
                raise self.broken
            if mixed:
                items, functions, indices, tokens = load(body_view)
            else:
                items = load(body_view)
                f = constant(<uint32_t>number)
            for whole in (items, functions, indices, tokens):
                if whole is not None and len(whole) != head.count:
                    raise WireError("a batch of another size")
        except WireError:
            raise
        except BaseException as error:
            # Everything of the batch depends on it: every task fails with it.
            failures = []
            while at >= 0:
                index = head.extra + at if indices is None else indices[at]
                results.append(None)
                failures.append(self.replies.failure(
                    len(results) - 1, index, error, None, (), {}, since))
                if not self.return_errors:
                    break
                at = claim_one(claim)
            self.slot.started = 0
            flags |= RETIRED if self.broken is not None else 0
            self.replies.send(head, results, failures, flags, now_ns() - last)
            return self.broken is None
        body = body_view = None
        since = now_ns()
        while True:
            if at >= head.count:
                raise WireError("a batch of another number")
            item = items[at]
            self.n_tasks += 1
            try:
                if column:
                    self.slot.started = since
                    result = PyObject_CallOneArg(f, item)
                elif one_function and type(item) is tuple:
                    self.slot.started = since
                    result = PyObject_Call(f, item, NULL)
                else:
                    self.slot.started = -since
                    # Before anything that may fail: what is opened is given back.
                    views = self.opened(tokens, at)
                    if mixed:
                        f = None
                        number = functions[at]
                        if number >= 0:
                            f = constant(<uint32_t>number)
                    if type(item) is tuple:
                        args, kwargs = item, {}
                    else:
                        task = load(item if views is None else (item, views))
                        views = None
                        if f is not None:
                            args, kwargs = task
                        else:
                            f, args, kwargs = task
                        task = None
                    item = None
                    since = now_ns()
                    self.slot.started = since
                    result = f(*args, **kwargs)
                    args = kwargs = None
                results.append(result)
                result = None
            except WireError:
                raise
            except BaseException as error:
                if self.channel.fd < 0:
                    end_child(error)
                views = None
                if failures is None:
                    failures = []
                index = head.extra + at if indices is None else indices[at]
                results.append(None)
                if type(item) is bytes and not column:
                    # It could not be rebuilt.
                    from fastjob import peek

                    f, args, kwargs = peek.task(item, f, known())
                elif item is not None:
                    args = (item,) if column else item
                    kwargs = {}
                failures.append(self.replies.failure(
                    len(results) - 1, index, error, f, args, kwargs, since))
                args = kwargs = None
                if not self.return_errors:
                    break
            if self.channel.fd < 0:
                end_child(None)
            # Before the next one is claimed: see `check_timeouts` in dispatch.pyx.
            self.slot.started = 0
            items[at] = None
            if 0 < self.max_tasks <= self.n_tasks:
                break
            at = claim_one(claim)
            if at < 0:
                break
            since = now_ns()
            if since - last > FLUSH_NS:
                self.replies.send(head, results, failures, 0, since - last)
                results = []
                failures = None
                last = since = now_ns()
        self.slot.started = 0
        self.discard(tokens, claim_next(fj_load(claim)))
        item = items = None
        settle()    # what the tasks' children had, which have ended
        if self.worn():
            flags |= RETIRED
        self.replies.send(head, results, failures, flags, now_ns() - last)
        return not flags & RETIRED

    cdef bint worn(self) except -1:
        """Whether the worker should be replaced before it takes another batch."""
        if self.max_tasks > 0 and self.n_tasks >= self.max_tasks:
            return True
        if self.max_memory > 0:
            return resident_bytes() > self.max_memory
        return False


# On Windows it would be a file on the current drive.
STATM = "" if os.name == "nt" else "/proc/self/statm"


def resident_bytes(statm=STATM):
    """Memory of this process that is not swapped out."""
    try:
        with open(statm, "rb") as file:
            return int(file.read().split()[1]) * PAGESIZE
    except FileNotFoundError:   # no such file on this system
        import psutil

        return psutil.Process().memory_info().rss


def end_child(error):
    """End a process that a task has forked and that came back from the task.

    It is no worker: nobody would hear what it does.
    """
    from fastjob._pool.child import flush_streams

    flush_streams()
    code = 0
    if type(error) is SystemExit:
        code = error.code if type(error.code) is int else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    os._exit(code)
