"""What comes of the tasks of a call: results, failures, and tasks to be run again.

Guarantees: each task that `came`, `fail` or `refuse` is told of is delivered once, or
is put into `again`, or ends the call with an exception; so `completed` counts every
task once.

What runs again: failed tasks under ``retries``, and tasks whose results came in one
message of which something cannot be unpickled: whose it is cannot be told.
"""

cimport cython
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.call cimport Call
from fastjob._core.capture cimport Capture
from fastjob._core.crew cimport Crew
from fastjob._core.libc cimport now_ns
from fastjob._core.peer cimport Peer
from fastjob._core.pickling cimport load, load_apart
from fastjob._core.results cimport raise_end
from fastjob._core.wire cimport APART, FAILED, LOANS, Header

import functools
import os

from fastjob._core.capture import type_name
from fastjob._core.quiet import Overhearing
from fastjob._core.wire import WireError
from fastjob.errors import (
    ResultPicklingError, ResultUnpicklingError, TaskError, TerminatedWorkerError,
)


cdef list in_order(list failures, Py_ssize_t n):
    """Failures of some of `n` tasks, their positions checked: batches are cut there."""
    cdef Py_ssize_t last = -1
    for position, _, _, _ in failures:
        if not last < position < n:
            raise WireError("a failure of another task")
        last = position
    return failures


@cython.final
cdef class Outcomes:
    """The results of one call, on their way to whoever has asked for them.

    Parameters
    ----------
    call : Call
    capture : Capture
        Is told when the user's code may have run.
    tuner : AutoBatch
        Is told how long tasks took.
    crew : Crew
    again : list
        Takes the batches that must be run again.
    """

    def __init__(self, Call call, Capture capture, AutoBatch tuner, Crew crew,
                 list again):
        self.call = call
        self.counters = call.counters
        self.capture = capture
        self.tuner = tuner
        self.crew = crew
        self.again = again
        self.attempts = {}
        self.overhear = functools.partial(Overhearing, (<object>capture).next_epoch)

    cdef int expect(self, Py_ssize_t n) except -1:
        """Tasks have been taken from the input, and will have results."""
        if self.out is not None:
            self.out.extend([None] * n)
        self.counters.dispatched_tasks += n
        return 0

    cdef int came(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                  object content, Py_ssize_t n_body) except -1:
        """The results of some tasks of a batch, from `at` on, have come."""
        cdef list results
        cdef object failures = None
        cdef long long n_bytes = n_body
        cdef int64_t began = now_ns()
        if type(content) is tuple:
            n_bytes = len((<tuple>content)[0])
            for view in (<tuple>content)[1]:
                n_bytes += len(view)
        self.tuner.ran(head.count, head.stamp, n_bytes)
        listen = self.overhear if self.capture.quiet else None
        try:
            if head.flags & APART:
                results = load_apart(
                    content, head.count + (1 if head.flags & FAILED else 0), listen)
            else:
                results = load(content, listen)
            if head.flags & FAILED and results:
                failures = in_order(results.pop(), head.count)
            if results is None or PyList_GET_SIZE(results) != head.count:
                raise WireError("a reply with another number of results")
        except Exception as error:
            self.unreadable(peer, batch, at, error)
            return 0
        content = None
        if self.call.timeline is not None:
            self.record(peer, batch, at, head, now_ns() - began, n_bytes)
        if failures is None:
            self.deliver(batch, at, results, n_bytes)
        else:
            self.deliver_some(peer, batch, at, results, failures)
        return 0

    def unreadable(self, Peer peer, Batch batch, Py_ssize_t at, error):
        """Results from `at` to ``batch.done`` came, but unpickling them failed."""
        cdef Py_ssize_t i
        if batch.done - at > 1:
            # Whose result it is cannot be told: they are run again, one by one.
            for i in range(at, batch.done):
                self.again.append(batch.only(i))
            return
        name, shown = batch.described(at, self.call.show_values)
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
        self.crew.losses = 0
        self.counters.completed_tasks += n
        if self.call.on_batch is not None:
            self.capture.next_epoch()
            self.call.on_batch(n)
            self.crew.check_process()
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
        # An attempt has been used up: that is progress, of which there is an end.
        self.crew.losses = 0
        if attempts <= self.call.retries:
            self.attempts[index] = attempts
            self.counters.retried_tasks += 1
            self.crew.note("retry", peer, f"task {index}, attempt {attempts + 1}")
            again = batch.only(at)
            again.avoid = peer
            self.again.insert(0, again)
            return 0
        self.attempts.pop(index, None)
        self.capture.next_epoch()   # the error's own code will run
        if type(error) is bytes:
            from fastjob import failure

            error = failure.unpack(error)
        elif error is None:
            # The worker could not pickle the result; `text` is (type, reason).
            name, shown = batch.described(at, self.call.show_values)
            error = ResultPicklingError(index, name, shown, *text)
            text = None
        self.counters.failed_tasks += 1
        self.crew.note("error", peer, f"task {index}: {type_name(error)}")
        if not self.call.return_errors:
            raise_end(error)
        if text is None:
            text = str(error)
        self.deliver(batch, at, [TaskError(index, error, text, attempts, elapsed)], 0)
        return 0

    cdef int refuse(self, int64_t index, object error) except -1:
        """A task that was taken cannot be sent to any worker."""
        cdef Batch alone = Batch.__new__(Batch)
        alone.first = index
        self.counters.failed_tasks += 1
        self.capture.next_epoch()   # the error's own code will run
        if self.call.timeline is not None:
            self.call.timeline.event("error", os.getpid(), now_ns(),
                                     f"task {index}: {type_name(error)}")
        self.deliver(alone, 0, [TaskError(index, error, str(error))], 0)
        return 0

    cdef object verdict(self, Batch culprit, Peer peer):
        """The error of the task that a worker was running when it ended."""
        from fastjob import errors

        index = culprit.index(0)
        name, shown = culprit.described(0, self.call.show_values)
        if peer.timed_out:
            return errors.TaskTimeoutError(index, name, shown, self.call.timeout,
                                           pid=peer.slot.pid)
        return TerminatedWorkerError(index, name, shown, **self.crew.pool.explain(peer))

    cdef int record(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                    int64_t decoded, long long n_bytes) except -1:
        """Tell the timeline of the tasks that a reply reports.

        What the worker noted in its slot may include some of the next reply, which
        then has so much less: the sums are right.
        """
        cdef int64_t start = head.ended - head.stamp
        cdef int64_t cpu = peer.slot.cpu, packed = peer.slot.packed
        cdef int64_t packing = packed - peer.packed
        cdef bint copied = head.flags & LOANS
        cdef bint first = at == 0
        self.call.timeline.batch(
            peer.slot.pid, start, head.ended, head.count, batch.index(at),
            batch.input_ns if first else 0,
            (batch.pickle_ns if first else 0) + (0 if copied else packing),
            max(0, start - batch.sent_at) if first else 0,
            packing if copied else 0, decoded, cpu - peer.cpu,
            batch.nbytes if first else 0, n_bytes)
        peer.cpu, peer.packed = cpu, packed
        return 0
