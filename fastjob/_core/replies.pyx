"""What a worker sends back: the results and the failures of some tasks of a batch.

Results that no two can share an object are pickled together, others one behind the
other; large buffers lie in blocks.  What cannot be sent becomes the failure of its own
task: a result that cannot be pickled is found by pickling each alone (`salvage`); where
there is no memory for the message, every task in it fails with that, in a message that
is small (`no_results`).  So each task that the worker has claimed is reported, unless
the worker dies.

One thread.  The notes' lock keeps what tasks say from the middle of a message.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int64_t, uint32_t

from fastjob._core.arrays cimport Sharer
from fastjob._core.lending cimport Link
from fastjob._core.libc cimport cpu_ns, now_ns
from fastjob._core.parts cimport plain
from fastjob._core.pickling cimport dump_apart, dump_cloud, dump_plain
from fastjob._core.status cimport StatusPage
from fastjob._core.wire cimport (
    APART, BLOCK, FAILED, FINAL, LOANS, LONG_BODY, REPLY, Channel, Header,
)

import copyreg
from sys import modules

from fastjob._core.pickling import by_name

cdef enum:
    # Results' buffers of this size, one granule of the store, go through shared memory.
    RESULT_BYTES = 64 << 10


@cython.final
cdef class Replies:
    """The replies of one worker.

    Parameters
    ----------
    channel : Channel
    link : Link
    page : StatusPage
    slot : int
    caller : object
        As the worker's.
    """

    def __init__(self, Channel channel, Link link, StatusPage page, int slot, caller):
        self.channel = channel
        self.link = link
        self.page = page
        self.slot = page.slot(slot)
        self.caller = caller
        self.notes = caller.notes

    cdef bint lent(self, bint look) except -1:
        """Whether results lie in shared memory, as far as is known.

        With `look`, see which of them the caller has dropped.
        """
        if self.results is None:
            return False
        return self.results.store.collect() if look else True

    cdef tuple failure(self, position, index, error, f, args, kwargs, int64_t since):
        """The record of a failed task: position, exception, text, seconds."""
        elapsed = (now_ns() - since) * 1e-9
        with self.caller.spare:
            from fastjob import failure

            text = failure.describe(error, index, f, args or (), kwargs or {},
                                    show_values=self.show_values)
            return position, failure.pack(error, text), text, elapsed

    cdef int send(self, Header head, list results, list failures, int flags,
                  int64_t busy) except -1:
        """Report the next tasks of a batch, and write all of it."""
        cdef object data
        cdef list blocks = None, what = results
        cdef int64_t ended = now_ns()
        cdef uint32_t count = <uint32_t>len(results)
        if self.slot.timed:
            self.slot.cpu += cpu_ns() - self.cpu
        if flags & FINAL:
            self.caller.batch_ended()
        try:
            if failures is not None:
                flags |= FAILED
                what = [*results, failures]
            if all_plain(what):
                data = dump_plain(what, None, None)
            elif "numpy" in modules:
                flags |= APART
                data = dump_apart(what, self.sharer(), self.reducers)
                blocks = self.results.blocks()
            else:
                flags |= APART
                data = dump_apart(what, None, None)
        except Exception:
            flags &= ~APART
            if self.results is not None:
                self.results.blocks()
            with self.caller.spare:
                data, failed = self.salvage(results, failures or [])
            if failed:
                flags |= FAILED
        if self.slot.timed:
            self.slot.packed += now_ns() - ended
        with self.notes.lock:
            self.notes.send_waiting(flags & FINAL)
            self.put(head, flags, count, busy, data, blocks, ended)
        if self.slot.timed:
            self.cpu = cpu_ns()
        return 0

    cdef int put(self, Header head, int flags, uint32_t count, int64_t busy,
                 bytes data, list blocks, int64_t ended) except -1:
        cdef bytes tokens = b""
        cdef list fds = None
        try:
            if PyBytes_GET_SIZE(data) > LONG_BODY:
                self.sharer()
                blocks = [self.results.store.put(data), *(blocks or ())]
                flags |= BLOCK
            if blocks:
                tokens = self.link.lend(blocks)
                fds = self.link.take_fds()
                flags |= LOANS
                data = tokens if flags & BLOCK else tokens + data
            self.channel.put(REPLY, flags, head.number, count, busy,
                             PyBytes_GET_SIZE(tokens), PyBytes_AS_STRING(data),
                             PyBytes_GET_SIZE(data), fds, ended)
        except (MemoryError, OSError) as error:
            # Neither the socket's buffer nor shared memory has room for the results.
            # What has been lent goes all the same: the caller gives it back, and it
            # must get each descriptor once.
            with self.caller.spare:
                data = tokens + dump_plain(no_results(count, error), None, None)
            flags = (flags | FAILED) & ~(APART | BLOCK)
            self.channel.put(REPLY, flags, head.number, count, busy,
                             PyBytes_GET_SIZE(tokens), PyBytes_AS_STRING(data),
                             PyBytes_GET_SIZE(data), fds, ended)
        self.channel.flush(True)
        return 0

    def sharer(self):
        """What takes large buffers out of results; made when first needed."""
        if self.results is None:
            self.results = Sharer(self.caller.store(), RESULT_BYTES, reuse=False)
        if self.reducers is None and "numpy" in modules:
            extra = self.results.dispatch_table()
            if extra:
                self.reducers = {**copyreg.dispatch_table, **extra}
        return self.results

    def salvage(self, results, failures):
        """Pickle results one of which plain pickle cannot carry.

        A failure without an exception is a result that cannot be pickled: the caller
        knows the task, and makes the error from type and reason.
        """
        from fastjob import failure
        from fastjob._core.capture import type_name

        failed = {record[0] for record in failures}
        failures = list(failures)
        for position, result in enumerate(results):
            if position in failed:
                continue
            try:
                dump_cloud(result, None, None, by_name)
            except MemoryError as error:
                failures.append((position, failure.pack(error, ""), "", 0.0))
            except BaseException as error:
                reason = str(error) or type_name(error)
                failures.append((position, None, (type_name(result), reason), 0.0))
            else:
                continue
            results[position] = None
        failures.sort(key=lambda record: record[0])
        what = [*results, failures] if failures else results
        try:
            return dump_cloud(what, None, None, by_name), bool(failures)
        except MemoryError as error:    # each alone fits, all together do not
            return dump_plain(no_results(len(results), error), None, None), True


def no_results(n, error):
    """Results and failures of tasks of which no result can be sent."""
    from fastjob import failure

    packed = failure.pack(error, "")
    return [None] * n + [[(position, packed, "", 0.0) for position in range(n)]]


cdef bint all_plain(list results):
    """Whether no two results can have an object in common that may be changed."""
    cdef Py_ssize_t i
    for i in range(PyList_GET_SIZE(results)):
        if not plain(<object>PyList_GET_ITEM(results, i), 4):
            return False
    return True
