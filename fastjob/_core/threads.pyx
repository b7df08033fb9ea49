"""The engine that runs a call's tasks in threads.

Threads pull: each one takes the next task from the user's iterable, runs it, puts its
result into the stream of results, and comes back.  There is no dispatcher, no callback
and no hand-over of a task from one thread to another.

Guarantees
----------
* Never more than `window` tasks are taken from the input and not completed, and the
  window is kept full: whoever completes a task first takes the next one from the
  input, then runs the oldest task that waits.
* The first tasks are taken by the caller, before any thread runs: a producer that
  prints is called `window` times before the first task completes (unless that takes
  longer than `HOLD_BACK`, so that a slow producer delays nothing).
* The first failure ends the call.  The caller leaves at once; tasks that run then are
  not awaited.  Their threads drop what comes of them and go back to the pool.
* A task sees the context variables of the caller, and nobody else's changes to them.
* References to a task are dropped before its result can be seen.

Here is what the caller and the threads do.  What they share, who may touch it when, and
why no work is left lying while threads sleep, is in board.pyx.

Timeouts
--------
A thread cannot be stopped.  A task that has run for too long is looked for by the
caller while it waits; the thread that runs it is then given up: it is not counted any
more, another one takes its place, and what it brings in the end is dropped.
1. the caller marks the thread as abandoned under the lock;
2. a thread that comes out of its task asks under the lock whether it is abandoned, and
   only if not puts a result.  So each task has exactly one result.

The timeline
------------
Each thread joins its tasks into spans (spans.pyx), which it writes when it finds
nothing more to do.  The call must not be over before that, or they would be missing:
so it is not finished as long as `unwritten` threads are left.
1. a thread is counted, under the lock, when it takes a task;
2. before it sleeps or leaves it writes, gets the lock, is not counted any more, and
   looks at everything afresh: if it was the last one, it finishes the call itself.
A thread that is given up is not waited for; where a task can be given up, each one is
written as soon as it has ended.
"""

import time
from _thread import get_native_id
from contextvars import copy_context

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cython cimport final

from fastjob._core.board cimport Board
from fastjob._core.call cimport Call
from fastjob._core.delayed cimport as_task, run_task
from fastjob._core.locks cimport await_bell, lock_leaf, unlock_leaf
from fastjob._core.pace cimport pace_due
from fastjob._core.pending cimport Pending, pending_put, pending_take
from fastjob._core.results cimport ResultIterator, ResultStream, handle_pending
from fastjob._core.spans cimport Spans
from fastjob._core.warm_threads cimport WarmThread, current_epoch

from fastjob.budget import has_share, share_with
from fastjob.errors import TaskError
from fastjob.failure import attach, drop_frames

cdef extern from "Python.h":
    object PyContext_Copy(object context)
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    PyObject *PyIter_Next(object iterator) except? NULL

# Seconds for which the first tasks are held back until the window is full.
cdef double HOLD_BACK = 0.01

# A thread that waits for the input runs no task.  From so many seconds an item on, one
# thread more than there may be running tasks makes up for it.  The clock is read once
# in so many items; one long item says nothing, the thread may just have lost its turn.
cdef double SLOW_INPUT = 0.0002
cdef enum:
    MEASURE_EVERY = 8

# Stands for "no result".
cdef object NOTHING = object()


@final
cdef class ThreadEngine(Board):
    """Runs one call in threads.

    Parameters
    ----------
    call : Call
    enter : callable or None
        Called as ``enter(call.nested)`` in the context in which the tasks run, once a
        call.
    """

    # Fixed before the first thread is leased.
    cdef object enter
    cdef object context
    cdef object common           # what the call asks of process-wide pools, or None
    cdef bint timed
    cdef double timeout
    cdef long long epoch

    # Guarded by lock.
    cdef bint was_slow           # the input, at the last measurement

    def __cinit__(self, Call call, enter=None):
        self.enter = enter
        self.epoch = current_epoch()
        self.timeout = call.timeout
        self.timed = call.timeout > 0 or call.return_errors

    # -- the caller ----------------------------------------------------------------

    def run(self, tasks):
        """Run all tasks and return their results in order."""
        try:
            self.begin(tasks, True, 0)
            return self.results.take_all()
        except BaseException:
            self.stop()
            raise
        finally:
            if self.common is not None:
                self.common.end()

    def stream(self, tasks):
        """Start the tasks; return an iterator over the results."""
        cdef long long capacity = max(2 * self.call.n_jobs, self.window)
        try:
            self.begin(tasks, self.call.ordered, capacity)
        except BaseException:
            self.stop()
            raise
        return ResultIterator(self.results)

    cdef int begin(self, tasks, bint ordered, long long capacity) except -1:
        if self.results is not None:
            raise RuntimeError("an engine runs one call; open another one")
        self.bounded = capacity > 0
        self.results = ResultStream(
            ordered,
            capacity,
            0,
            self.on_room if self.bounded else None,
            self.watch if self.timeout > 0 else None,
        )
        self.iterator = iter(tasks)
        self.context = copy_context()
        self.context.run(share_with, self.call.n_jobs)
        if self.enter is not None and self.call.nested is not None:
            self.context.run(self.enter, self.call.nested)
        self.fill()
        if self.call.inner_max_num_threads is not None:
            from fastjob.inner_threads import common_limit

            self.common = common_limit(self.call.inner_max_num_threads)
            self.common.begin()
        self.wake_one()
        return 0

    # The call is over: undo what it asked of the process before the caller can leave,
    # whatever its threads still do.
    cdef int finish(self) except -1:
        if self.common is not None:
            self.common.end()
        return self.results.finish()

    cdef int stop(self) except -1:
        self.halt()
        if self.results is not None:
            self.results.close()
        if self.common is not None:
            self.common.end(False)  # this may be a destructor
        return 0

    # Take the first tasks: the whole window if the user has chosen it, and else one
    # for each thread, as many as have to be there to begin.
    cdef int fill(self) except -1:
        cdef long long n = self.window
        cdef double end = time.perf_counter() + HOLD_BACK
        if self.call.ahead_in_batches and n:
            n = min(n, self.call.n_jobs)
        lock_leaf(self.lock)
        while self.can_pull() and (n == 0 or self.taken < n):
            self.pulling = True
            unlock_leaf(self.lock)
            self.pull()
            if self.taken % 256 == 0:
                handle_pending()
            if time.perf_counter() > end:
                return 0
            lock_leaf(self.lock)
        unlock_leaf(self.lock)
        return 0

    # Called by the caller while it waits: look for tasks that have run for too long.
    def watch(self):
        cdef WarmThread thread
        cdef object task
        cdef long long index = 0, native_id = 0
        cdef int i, attempt = 0
        cdef double left, now, nearest
        while True:
            now = time.perf_counter()
            nearest = self.timeout
            task = None
            lock_leaf(self.lock)
            for i in range(self.n_serving):
                thread = <WarmThread>self.serving[i]
                if thread.task == NULL:
                    continue
                left = thread.started + self.timeout - now
                if left > 0:
                    nearest = min(nearest, left)
                    continue
                thread.abandoned = True
                task = <object>thread.task
                index = thread.index
                attempt = thread.attempt
                Py_DECREF(task)  # the thread's reference; `task` holds another
                thread.task = NULL
                self.running -= 1
                if thread.unwritten:
                    thread.unwritten = False
                    self.unwritten -= 1
                self.forget(thread)
                native_id = thread.native_id
                break
            unlock_leaf(self.lock)
            thread = None
            if task is None:
                return nearest
            self.give_up(task, index, attempt, native_id)

    cdef int give_up(self, tuple task, long long index, int attempt,
                     long long native_id) except -1:
        import warnings

        error = self.timeout_error(task, index)
        self.tell("timeout", native_id, f"task {index}: over {self.timeout} s")
        if not self.again(task, index, attempt, native_id):
            value = self.settle_failure(task, index, attempt, error, self.timeout,
                                        native_id)
            if value is not NOTHING:
                self.results.put(index, value)
                self.count_completed()
        self.wake_one()
        warnings.warn(
            f"A thread cannot be stopped: the one that runs task {index}, "
            f"{error.function}, was given up, and goes on in the background until the "
            "task returns.",
            RuntimeWarning,
            stacklevel=2,
        )
        return 0

    # -- the threads ---------------------------------------------------------------

    cdef int serve(self, WarmThread thread) except -1:
        cdef object context
        lock_leaf(self.lock)
        self.enlist(thread)
        unlock_leaf(self.lock)
        try:
            context = PyContext_Copy(self.context)
            PyContext_Enter(context)
            try:
                # In a worker process None is the cap of that worker.
                if self.call.inner_max_num_threads is not None or has_share():
                    from fastjob.inner_threads import limit_inner_threads

                    with limit_inner_threads(self.call.inner_max_num_threads,
                                             self.common) as caps:
                        self.work(thread, caps)
                else:
                    self.work(thread, None)
            finally:
                PyContext_Exit(context)
        except BaseException as error:
            self.fail(error)
        lock_leaf(self.lock)
        if not thread.abandoned:
            self.forget(thread)
        unlock_leaf(self.lock)
        return 0

    cdef int work(self, WarmThread thread, object caps) except -1:
        cdef Pending entry
        cdef bint completed = False
        cdef Spans spans = None
        if self.call.timeline is not None:
            thread.native_id = get_native_id()
            spans = Spans(self.call.timeline, thread.native_id, False)
        while self.next_task(thread, &entry, completed, spans):
            if caps is not None:
                caps.refresh()  # libraries that a task has loaded meanwhile
            completed = self.run_one(thread, &entry, spans)
        return 0

    # Wait for a task.  False: there is nothing more to do for this thread.
    cdef bint next_task(self, WarmThread thread, Pending *entry, bint completed,
                        Spans spans) except -1:
        cdef void *sleeper = NULL
        cdef int whom
        cdef bint finished
        lock_leaf(self.lock)
        if completed:
            self.completed += 1
            self.call.counters.completed_tasks += 1
            if self.on_batch is not None and pace_due(&self.pace):
                self.report()
        if thread.running:
            thread.running = False
            if not thread.abandoned:
                self.running -= 1
        while not (self.stopped or thread.abandoned or self.epoch != current_epoch()):
            if self.can_pull():
                self.pulling = True
                whom = self.choose(&sleeper)
                unlock_leaf(self.lock)
                self.rouse(whom, sleeper)
                self.pull()
                lock_leaf(self.lock)
            elif self.can_run():
                entry[0] = pending_take(&self.pending)
                self.running += 1
                thread.running = True
                if spans is not None and not thread.unwritten:
                    thread.unwritten = True
                    self.unwritten += 1
                whom = self.choose(&sleeper)
                unlock_leaf(self.lock)
                self.rouse(whom, sleeper)
                return True
            elif thread.unwritten:
                self.write(thread, spans)
            elif self.exhausted and not self.pulling and not self.pending.n:
                break
            else:
                self.sleepers[self.n_sleepers] = <void *>thread
                self.n_sleepers += 1
                unlock_leaf(self.lock)
                await_bell(thread.bell)
                lock_leaf(self.lock)
                self.waking -= 1
        if thread.unwritten:
            self.write(thread, spans)
        if self.on_batch is not None:
            self.report()
        finished = self.is_finished()
        # Others may sleep because as many tasks ran as may; nobody else wakes them.
        self.dismiss()
        unlock_leaf(self.lock)
        if finished:
            self.finish()
        return False

    # Write what the thread has run to the timeline.  The lock is held; it is given up
    # for that, and not held after an exception.
    cdef int write(self, WarmThread thread, Spans spans) except -1:
        thread.unwritten = False
        unlock_leaf(self.lock)
        try:
            spans.flush()
        except BaseException:
            lock_leaf(self.lock)
            self.unwritten -= 1
            unlock_leaf(self.lock)
            raise
        lock_leaf(self.lock)
        self.unwritten -= 1
        return 0

    # Take one task from the input.  The caller has set `pulling`.
    cdef int pull(self) except -1:
        cdef PyObject *item
        cdef tuple task = None
        cdef bint dropped = False, stored = True
        cdef long long batch = max(1, self.call.batch_size)
        cdef bint measured = self.taken % MEASURE_EVERY == 0, slow = False
        cdef double began = time.perf_counter() if measured else 0
        try:
            item = PyIter_Next(self.iterator)
            if item != NULL:
                task = as_task(<object>item, self.taken)
                Py_DECREF(<object>item)
        except BaseException:
            self.end_input()
            raise
        if task is None:
            self.end_input()
            return 0
        if measured:
            slow = time.perf_counter() - began > SLOW_INPUT
        lock_leaf(self.lock)
        if self.stopped:
            dropped = True  # and `pulling` stays set: the iterator is still ours
        else:
            self.pulling = False
            if measured:
                if slow and self.was_slow and self.limit == self.call.n_jobs:
                    self.limit += 1
                self.was_slow = slow
            stored = pending_put(&self.pending, task, self.taken, 1)
            self.call.counters.dispatched_tasks += 1
            if self.taken % batch == 0:
                self.call.counters.dispatched_batches += 1
            self.taken += 1
        unlock_leaf(self.lock)
        if not stored:
            raise MemoryError("no memory for the tasks that wait")
        if dropped:
            self.iterator = None
        return 0

    # Run a task and put its result.  False: it is not completed by this.
    cdef bint run_one(self, WarmThread thread, Pending *entry,
                      Spans spans) except -1:
        cdef tuple task = <tuple>entry.task
        cdef double started = 0
        cdef object value
        Py_DECREF(task)  # it was the queue's
        if self.timed:
            started = time.perf_counter()
        if self.timeout > 0:
            self.expose(thread, task, entry, started)
        if spans is not None:
            spans.begin(entry.index)
        try:
            value = run_task(task)
        except BaseException as error:
            if spans is not None:
                spans.done()
                spans.flush()
            if self.timeout > 0 and not self.claim(thread):
                return False
            value = self.recover(task, entry, error, started, thread.native_id)
        else:
            if spans is not None:
                spans.done()
                if self.timeout > 0:
                    spans.flush()
            if self.timeout > 0 and not self.claim(thread):
                return False
            # The caller may not have been waiting, and so not have seen it.
            if self.timeout > 0 and time.perf_counter() - started > self.timeout:
                error = self.timeout_error(task, entry.index)
                self.tell("timeout", thread.native_id,
                          f"task {entry.index}: over {self.timeout} s")
                value = self.recover(task, entry, error, started, thread.native_id)
        if value is NOTHING:
            return False
        task = None
        self.results.put(entry.index, value)
        return True

    # -- the end of a task ---------------------------------------------------------

    # Whether the failed task shall be run again; if so it waits for that already.
    cdef bint again(self, tuple task, long long index, int attempt,
                    long long native_id) except -1:
        cdef bint stored = True
        if attempt > self.call.retries:
            return False
        self.tell("retry", native_id, f"task {index}, attempt {attempt + 1}")
        lock_leaf(self.lock)
        if not self.stopped:
            stored = pending_put(&self.pending, task, index, attempt + 1)
            self.call.counters.retried_tasks += 1
        unlock_leaf(self.lock)
        if not stored:
            raise MemoryError("no memory for the tasks that wait")
        return True

    # What comes of a task that has failed in its thread: what stands in its place, or
    # NOTHING if it is run again or the call has been ended.
    cdef object recover(self, tuple task, Pending *entry, object error,
                        double started, long long native_id):
        if isinstance(error, Exception) and self.again(task, entry.index,
                                                       entry.attempt, native_id):
            return NOTHING
        elapsed = time.perf_counter() - started if self.timed else 0.0
        return self.settle_failure(task, entry.index, entry.attempt, error, elapsed,
                                   native_id)

    # Tell the timeline of what is not a task that has run.
    cdef int tell(self, str kind, long long native_id, str text) except -1:
        if self.call.timeline is not None:
            self.call.timeline.event(kind, native_id, time.perf_counter_ns(), text)
        return 0

    cdef object timeout_error(self, tuple task, long long index):
        from fastjob.errors import TaskTimeoutError
        from fastjob.failure import shorten_parts

        name, arguments = shorten_parts(*task, self.call.show_values)
        return TaskTimeoutError(index, name, arguments, self.timeout)

    # What stands in the place of the failed task; NOTHING if the call ends with it.
    cdef object settle_failure(self, tuple task, long long index, int attempt,
                               object error, double elapsed, long long native_id):
        cdef bint ends = not (self.call.return_errors and isinstance(error, Exception))
        if ends:
            self.halt()  # before the text is made, which takes time
        lock_leaf(self.lock)
        self.call.counters.failed_tasks += 1
        unlock_leaf(self.lock)
        text = attach(error, index, task[0], task[1], task[2], self.call.show_values)
        self.tell("error", native_id, text.split("\n", 2)[1])
        if ends:
            self.fail(error)
            return NOTHING
        drop_frames(error)
        return TaskError(index, error, text, attempt, elapsed)
