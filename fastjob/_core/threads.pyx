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

Who owns what
-------------
The fields below `lock` are guarded by it; it is a leaf lock (see locks.pxd), so no
user code runs under it.  The iterator belongs to the thread that has set `pulling`.
The order of locks is: engine, stream of results; engine, pool.

Whom to wake
------------
Only one sleeper is on its way at any time (`waking`), and each thread that leaves the
lock to do something long (run a task, call the input) looks first whether there is
work for one more; so threads wake one another in a chain, as far as there is work.
With tiny tasks the interpreter lets one thread run for milliseconds; the others then
cost one wake-up each and not one a task.  Why no work is left lying while threads
sleep: work appears when a task is taken, when one completes, when the reader makes
room.  In the first two cases a thread of the engine holds the lock right then and,
before it leaves for long, either takes the work itself or wakes a sleeper, unless one
is on its way, and that one looks for work too when it gets the lock.  For the third
see results.pyx.

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

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cython cimport final

from fastjob._core.call cimport Call
from fastjob._core.delayed cimport as_task, run_task
from fastjob._core.locks cimport (
    PyThread_type_lock, await_bell, free_lock, lock_leaf, new_leaf, ring, unlock_leaf,
)
from fastjob._core.pace cimport Pace, pace_due, pace_start
from fastjob._core.results cimport ResultIterator, ResultStream, handle_pending
from fastjob._core.spans cimport Spans
from fastjob._core.warm_threads cimport Service, WarmThread, current_epoch, lease

from fastjob.budget import has_share, share_with
from fastjob.errors import TaskError
from fastjob.failure import attach

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

cdef double IDLE_TIMEOUT = 300.0

# Stands for "no result".
cdef object NOTHING = object()

# Answers of `choose`.
cdef enum:
    NOBODY
    SLEEPER
    NEWCOMER


# A task that has been taken from the input and not started.
cdef struct Pending:
    void *task           # a reference, owned by the queue
    long long index
    int attempt          # 1 for the first


@final
cdef class ThreadEngine(Service):
    """Runs one call in threads.

    Parameters
    ----------
    call : Call
    enter : callable or None
        Called as ``enter(call.nested)`` in the context in which the tasks run, once a
        call.
    """

    # Fixed before the first thread is leased.
    cdef Call call
    cdef object enter
    cdef object context
    cdef ResultStream results
    cdef long long window        # tasks taken and not completed; 0 is no limit
    cdef bint bounded            # whether the reader of the results limits it too
    cdef bint timed
    cdef double timeout
    cdef object on_batch
    cdef double idle_timeout
    cdef long long epoch

    # Belongs to whoever has set `pulling`.
    cdef object iterator

    # Guarded by lock.
    cdef PyThread_type_lock lock
    cdef bint pulling            # a thread is inside the input
    cdef bint exhausted          # the input has nothing more
    cdef bint stopped            # no task is to be started any more
    cdef bint reporting          # a thread is inside on_batch
    cdef Pace pace               # when the next report is due
    cdef bint was_slow           # at the last measurement
    cdef long long taken         # tasks taken from the input
    cdef long long completed     # ... whose result has been put
    cdef long long reported      # ... and reported to on_batch
    cdef Pending *pending        # ring of n_pending tasks
    cdef long long pending_mask
    cdef long long pending_head
    cdef long long n_pending
    cdef void **serving          # the threads that serve this call, not owned
    cdef int n_serving
    cdef void **sleepers         # those of them that wait for work
    cdef int n_sleepers
    cdef int limit               # of leased: n_jobs, or one more if the input is slow
    cdef int leased              # threads that serve or are about to
    cdef int running             # threads inside a task, at most n_jobs
    cdef int waking              # leased or rung, and not come to the lock yet
    cdef int unwritten           # threads with tasks that are not in the timeline yet

    def __cinit__(self, Call call, enter=None):
        cdef long long batch = max(1, call.batch_size)
        self.call = call
        self.enter = enter
        self.lock = new_leaf()
        self.epoch = current_epoch()
        self.limit = call.n_jobs
        self.window = call.ahead * batch if call.ahead_in_batches else call.ahead
        self.timeout = call.timeout
        self.timed = call.timeout > 0 or call.return_errors
        self.on_batch = call.on_batch
        pace_start(&self.pace, call.report_interval)
        self.idle_timeout = call.options.get("idle_worker_timeout", IDLE_TIMEOUT)
        self.pending_mask = 15
        self.pending = <Pending *>PyMem_RawCalloc(16, sizeof(Pending))
        self.serving = <void **>PyMem_RawCalloc(call.n_jobs + 1, sizeof(void *))
        self.sleepers = <void **>PyMem_RawCalloc(call.n_jobs + 1, sizeof(void *))
        if self.pending == NULL or self.serving == NULL or self.sleepers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        drop_pending(self.pending, self.pending_mask)
        PyMem_RawFree(self.serving)
        PyMem_RawFree(self.sleepers)
        free_lock(self.lock)

    # -- the caller ----------------------------------------------------------------

    def run(self, tasks):
        """Run all tasks and return their results in order."""
        try:
            self.begin(tasks, True, 0)
            return self.results.take_all()
        except BaseException:
            self.stop()
            raise

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
        self.wake_one()
        return 0

    # Take the first tasks: the whole window if the user has chosen it, and else one
    # for each thread, as many as have to be there to begin.
    cdef int fill(self) except -1:
        cdef long long n = self.window
        cdef double end = time.monotonic() + HOLD_BACK
        if self.call.ahead_in_batches and n:
            n = min(n, self.call.n_jobs)
        lock_leaf(self.lock)
        while self.can_pull() and (n == 0 or self.taken < n):
            self.pulling = True
            unlock_leaf(self.lock)
            self.pull()
            if self.taken % 256 == 0:
                handle_pending()
            if time.monotonic() > end:
                return 0
            lock_leaf(self.lock)
        unlock_leaf(self.lock)
        return 0

    # Called by the reader's side, also from destructors.
    def on_room(self):
        if not self.results.wanted():
            self.stop()
        else:
            self.wake_one()

    # Called by the caller while it waits: look for tasks that have run for too long.
    def watch(self):
        cdef WarmThread thread
        cdef object task
        cdef long long index = 0, native_id = 0
        cdef int i, attempt = 0
        cdef double left, now, nearest
        while True:
            now = time.monotonic()
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
        self.waking -= 1
        thread.abandoned = False
        self.serving[self.n_serving] = <void *>thread
        self.n_serving += 1
        unlock_leaf(self.lock)
        try:
            context = PyContext_Copy(self.context)
            PyContext_Enter(context)
            try:
                # In a worker process None is the cap of that worker.
                if self.call.inner_max_num_threads is not None or has_share():
                    from fastjob.inner_threads import limit_inner_threads

                    with limit_inner_threads(self.call.inner_max_num_threads) as caps:
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
            elif self.n_pending and self.running < self.call.n_jobs:
                entry[0] = self.pending[self.pending_head & self.pending_mask]
                self.pending[self.pending_head & self.pending_mask].task = NULL
                self.pending_head += 1
                self.n_pending -= 1
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
            elif self.exhausted and not self.pulling and not self.n_pending:
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
            self.results.finish()
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
        cdef double began = time.monotonic() if measured else 0
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
            slow = time.monotonic() - began > SLOW_INPUT
        lock_leaf(self.lock)
        if self.stopped:
            dropped = True  # and `pulling` stays set: the iterator is still ours
        else:
            self.pulling = False
            if measured:
                if slow and self.was_slow and self.limit == self.call.n_jobs:
                    self.limit += 1
                self.was_slow = slow
            stored = self.push(task, self.taken, 1)
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

    cdef int end_input(self) except -1:
        self.iterator = None
        lock_leaf(self.lock)
        self.pulling = False
        self.exhausted = True
        self.dismiss()
        unlock_leaf(self.lock)
        return 0

    # Run a task and put its result.  False: it is not completed by this.
    cdef bint run_one(self, WarmThread thread, Pending *entry,
                      Spans spans) except -1:
        cdef tuple task = <tuple>entry.task
        cdef double started = 0
        cdef object value
        Py_DECREF(task)  # it was the queue's
        if self.timed:
            started = time.monotonic()
            self.expose(thread, task, entry, started)
        if spans is not None:
            spans.begin(entry.index)
        try:
            value = run_task(task)
        except BaseException as error:
            if spans is not None:
                spans.done()
                spans.flush()
            if not self.claim(thread):
                return False
            value = self.recover(task, entry, error, started, thread.native_id)
        else:
            if spans is not None:
                spans.done()
                if self.timeout > 0:
                    spans.flush()
            if not self.claim(thread):
                return False
            # The caller may not have been waiting, and so not have seen it.
            if self.timeout > 0 and time.monotonic() - started > self.timeout:
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

    # Let the caller see, and give up, the task that the thread is about to run.
    cdef int expose(self, WarmThread thread, tuple task, Pending *entry,
                    double started) noexcept:
        if self.timeout <= 0:
            return 0
        lock_leaf(self.lock)
        Py_INCREF(task)
        thread.task = <void *>task
        thread.index = entry.index
        thread.attempt = entry.attempt
        thread.started = started
        unlock_leaf(self.lock)
        return 0

    # Whether what the thread's task has come to still counts.
    cdef bint claim(self, WarmThread thread) noexcept:
        cdef bint counts
        cdef void *task
        if self.timeout <= 0:
            return True
        lock_leaf(self.lock)
        counts = not thread.abandoned
        task = thread.task
        thread.task = NULL
        unlock_leaf(self.lock)
        if task != NULL:
            Py_DECREF(<object>task)
        return counts

    # Whether the failed task shall be run again; if so it waits for that already.
    cdef bint again(self, tuple task, long long index, int attempt,
                    long long native_id) except -1:
        cdef bint stored = True
        if attempt > self.call.retries:
            return False
        self.tell("retry", native_id, f"task {index}, attempt {attempt + 1}")
        lock_leaf(self.lock)
        if not self.stopped:
            stored = self.push(task, index, attempt + 1)
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
        elapsed = time.monotonic() - started if self.timed else 0.0
        return self.settle_failure(task, entry.index, entry.attempt, error, elapsed,
                                   native_id)

    # Tell the timeline of what is not a task that has run.
    cdef int tell(self, str kind, long long native_id, str text) except -1:
        if self.call.timeline is not None:
            self.call.timeline.event(kind, native_id, time.monotonic_ns(), text)
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
        return TaskError(index, error, text, attempt, elapsed)

    # Count a task whose result has been put; report it; look whether it was the last.
    cdef int count_completed(self) except -1:
        cdef bint finished
        lock_leaf(self.lock)
        self.completed += 1
        self.call.counters.completed_tasks += 1
        if self.on_batch is not None:
            self.report()
        finished = self.is_finished()
        if finished:
            self.dismiss()
        unlock_leaf(self.lock)
        if finished:
            self.results.finish()
        return 0

    # Tell on_batch of the tasks completed since the last time.  The lock is held; it is
    # given up for each call, and not held after an exception.
    cdef int report(self) except -1:
        cdef long long n
        if self.reporting:
            # Whoever reports looks, under the lock, whether there is more before it
            # stops: what is completed meanwhile is left to that thread.
            return 0
        self.reporting = True
        while self.reported < self.completed and not self.stopped:
            n = self.completed - self.reported if self.pace.interval else 1
            self.reported += n
            unlock_leaf(self.lock)
            try:
                self.on_batch(n)
            except BaseException:
                lock_leaf(self.lock)
                self.reporting = False
                unlock_leaf(self.lock)
                raise
            lock_leaf(self.lock)
        self.reporting = False
        return 0

    # -- the end of the call -------------------------------------------------------

    # End the call with an error; the first one counts.
    cdef int fail(self, object error) except -1:
        self.results.fail(error)
        self.halt()
        return 0

    # Start no task any more; drop what waits.
    cdef int halt(self) except -1:
        cdef Pending *pending
        cdef bint ours
        lock_leaf(self.lock)
        self.stopped = True
        pending = self.pending
        self.pending = NULL
        self.n_pending = 0
        ours = not self.pulling
        self.pulling = True  # the iterator is touched once more, by its owner
        self.dismiss()
        unlock_leaf(self.lock)
        drop_pending(pending, self.pending_mask)
        if ours:
            self.iterator = None
        return 0

    cdef int stop(self) except -1:
        self.halt()
        if self.results is not None:
            self.results.close()
        return 0

    # -- with the lock held --------------------------------------------------------

    cdef bint can_pull(self) noexcept:
        return (
            not self.pulling
            and not self.exhausted
            and not self.stopped
            and (self.window == 0 or self.taken - self.completed < self.window)
            and (not self.bounded or self.results.room(self.taken) > 0)
        )

    cdef bint is_finished(self) noexcept:
        return (
            self.exhausted
            and not self.pulling
            and not self.stopped
            and self.completed == self.taken
            and self.unwritten == 0
            and (self.on_batch is None
                 or (self.reported == self.completed and not self.reporting))
        )

    cdef bint push(self, tuple task, long long index, int attempt) noexcept:
        cdef long long i, size = self.pending_mask + 1
        cdef Pending *wider
        cdef Pending *place
        if self.n_pending == size:
            wider = <Pending *>PyMem_RawCalloc(2 * size, sizeof(Pending))
            if wider == NULL:
                return False
            for i in range(self.pending_head, self.pending_head + size):
                wider[i & (2 * size - 1)] = self.pending[i & self.pending_mask]
            PyMem_RawFree(self.pending)
            self.pending = wider
            self.pending_mask = 2 * size - 1
        place = &self.pending[(self.pending_head + self.n_pending) & self.pending_mask]
        Py_INCREF(task)
        place.task = <void *>task
        place.index = index
        place.attempt = attempt
        self.n_pending += 1
        return True

    # Choose whom to wake if there is work for one more thread; see `rouse`.
    cdef int choose(self, void **sleeper) noexcept:
        if self.waking or not (
            (self.n_pending and self.running < self.call.n_jobs) or self.can_pull()
        ):
            return NOBODY
        if self.n_sleepers:
            self.n_sleepers -= 1
            sleeper[0] = self.sleepers[self.n_sleepers]
            self.waking = 1
            return SLEEPER
        if self.leased < self.limit:
            self.leased += 1
            self.waking = 1
            return NEWCOMER
        return NOBODY

    # Wake all sleepers, to find that there is nothing more to do.
    cdef void dismiss(self) noexcept:
        while self.n_sleepers:
            self.n_sleepers -= 1
            self.waking += 1
            ring((<WarmThread>self.sleepers[self.n_sleepers]).bell)

    cdef void forget(self, WarmThread thread) noexcept:
        cdef int i
        for i in range(self.n_serving):
            if self.serving[i] == <void *>thread:
                self.n_serving -= 1
                self.serving[i] = self.serving[self.n_serving]
                self.leased -= 1
                return

    # -- without the lock ----------------------------------------------------------

    # Wake whom `choose` has chosen.
    cdef int rouse(self, int whom, void *sleeper) except -1:
        if whom == SLEEPER:
            ring((<WarmThread>sleeper).bell)
        elif whom == NEWCOMER:
            try:
                lease(self, self.idle_timeout)
            except Exception as error:
                self.do_without(error)
        return 0

    # Another thread cannot be started: go on with those that there are.
    cdef int do_without(self, object error) except -1:
        cdef int left
        lock_leaf(self.lock)
        self.leased -= 1
        self.waking -= 1
        left = self.leased
        self.limit = left
        unlock_leaf(self.lock)
        if left == 0:
            self.fail(error)
        return 0

    cdef int wake_one(self) except -1:
        cdef void *sleeper = NULL
        cdef int whom
        cdef bint finished
        lock_leaf(self.lock)
        whom = self.choose(&sleeper)
        finished = self.is_finished()
        if finished:
            self.dismiss()
        unlock_leaf(self.lock)
        if finished:
            self.results.finish()
        self.rouse(whom, sleeper)
        return 0


cdef void drop_pending(Pending *pending, long long mask) noexcept:
    cdef long long i
    if pending == NULL:
        return
    for i in range(mask + 1):
        if pending[i].task != NULL:
            Py_DECREF(<object>pending[i].task)
    PyMem_RawFree(pending)
