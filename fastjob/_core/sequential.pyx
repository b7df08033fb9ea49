"""The engine that runs a call's tasks one after the other, where the call is made.

It is a loop.  A task is taken, run, and dropped before the next one is taken; the
results of a stream are computed when they are asked for.  There is no thread, no lock
and nothing to clean up, and therefore no timeout: nobody is there to look at a clock.

Calls of compiled functions with arguments from a list execute no bytecode, so that
nothing would ever look for Ctrl-C; the loop does, every so many tasks.
"""

import time
from _thread import get_native_id

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cython cimport final

from fastjob._core.call cimport Call, Counters
from fastjob._core.delayed cimport as_task, run_task
from fastjob._core.pace cimport Pace, pace_due, pace_start
from fastjob._core.results cimport handle_pending, raise_end
from fastjob._core.spans cimport Spans

from fastjob.errors import TaskError
from fastjob.failure import attach, drop_frames

cdef extern from "Python.h":
    PyObject *PyIter_Next(object iterator) except? NULL

# Looking for signals costs about 100 ns: nothing, once in so many tasks.
cdef enum:
    LOOK_AROUND = 256


cdef object END = object()


@final
cdef class SequentialEngine:
    """Runs one call in the calling thread.

    Parameters
    ----------
    call : Call
    """

    cdef Call call
    cdef Counters counters
    cdef object on_batch
    cdef Pace pace
    cdef long long unreported    # tasks completed since on_batch was called
    cdef long long batch
    cdef Spans spans             # None unless there is a timeline
    cdef bint timed
    cdef object iterator         # None before the call and after its end
    cdef bint inside             # a task or the input is running

    def __cinit__(self, Call call):
        self.call = call
        self.counters = call.counters
        self.on_batch = call.on_batch
        pace_start(&self.pace, call.report_interval)
        self.batch = max(1, call.batch_size)
        self.timed = call.return_errors

    def run(self, tasks):
        """Run all tasks and return their results in order."""
        cdef list results = []
        cdef object value
        self.begin(tasks, True)
        try:
            value = self.step()
            while value is not END:
                results.append(value)
                value = self.step()
        finally:
            self.finish()
        return results

    def stream(self, tasks):
        """Return an iterator over the results, each computed when it is asked for."""
        self.begin(tasks, False)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef object value
        if self.inside:
            raise ValueError("the next result is already being computed")
        if self.iterator is None:
            raise StopIteration
        self.inside = True
        try:
            value = self.step()
        except BaseException:
            self.iterator = None
            raise
        finally:
            self.inside = False
            if self.iterator is None:  # an error, or closed by the task
                self.finish()
        if value is END:
            self.finish()
            raise StopIteration
        return value

    def close(self):
        """End the call: no further task is taken."""
        self.finish()

    cdef int begin(self, tasks, bint alone) except -1:
        self.iterator = iter(tasks)
        if self.call.timeline is not None:
            self.spans = Spans(self.call.timeline, get_native_id(), alone)
        return 0

    cdef int finish(self) except -1:
        self.iterator = None
        if self.spans is not None and not self.inside:
            self.spans.flush()
        return 0

    # Take the next task, run it and return its result, or END.
    cdef object step(self):
        cdef long long index = self.counters.dispatched_tasks
        cdef object iterator = self.iterator
        cdef PyObject *item
        cdef tuple task
        cdef object value
        cdef double started = 0
        if iterator is None:  # closed by the task before, or by on_batch
            return END
        item = PyIter_Next(iterator)
        if item == NULL:
            self.report()
            return END
        try:
            task = as_task(<object>item, index)
        finally:
            Py_DECREF(<object>item)
        if index % LOOK_AROUND == 0:
            handle_pending()
        self.counters.dispatched_tasks = index + 1
        if index % self.batch == 0:
            self.counters.dispatched_batches += 1
        if self.timed:
            started = time.perf_counter()
        if self.spans is not None:
            self.spans.begin(index)
        try:
            value = run_task(task)
        except BaseException as error:
            value = self.recover(task, index, error, started)
        if self.spans is not None:
            self.spans.done()
        task = None
        self.counters.completed_tasks += 1
        if self.on_batch is not None:
            self.unreported += 1
            if pace_due(&self.pace):
                self.report()
        return value

    cdef int report(self) except -1:
        cdef long long n = self.unreported
        self.unreported = 0
        if n:
            self.on_batch(n)
        return 0

    # Run a failed task again, as often as the call says.  Returns the result, or what
    # stands in its place; raises what ends the call.
    cdef object recover(self, tuple task, long long index, object error,
                        double started):
        cdef int attempt = 1
        while isinstance(error, Exception) and attempt <= self.call.retries:
            attempt += 1
            self.counters.retried_tasks += 1
            if self.spans is not None:
                self.spans.tell("retry", f"task {index}, attempt {attempt}")
            started = time.perf_counter()
            try:
                return run_task(task)
            except BaseException as another:
                error = another
        self.counters.failed_tasks += 1
        elapsed = time.perf_counter() - started
        text = attach(error, index, task[0], task[1], task[2], self.call.show_values)
        if self.spans is not None:
            self.spans.tell("error", text.split("\n", 2)[1])
        if not (self.call.return_errors and isinstance(error, Exception)):
            raise_end(error)
        drop_frames(error)
        return TaskError(index, error, text, attempt, elapsed)
