"""What the threads of a call know together, and what each may do with it.

All of it is guarded by one lock, which is a leaf lock (see locks.pxd): no user code
runs under it.  The iterator over the input belongs to the thread that has set
`pulling`.  The order of locks is: board, stream of results; board, pool.

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
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.ref cimport Py_DECREF, Py_INCREF

from fastjob._core.call cimport Call
from fastjob._core.locks cimport (
    free_lock, lock_leaf, new_leaf, ring, unlock_leaf,
)
from fastjob._core.pace cimport pace_start
from fastjob._core.pending cimport Pending, Ring, pending_drop, pending_make
from fastjob._core.warm_threads cimport Service, WarmThread, lease

cdef double IDLE_TIMEOUT = 300.0


cdef class Board(Service):
    """The state of one call over threads.

    Parameters
    ----------
    call : Call
    """

    def __cinit__(self, Call call, *_):
        cdef long long batch = max(1, call.batch_size)
        self.call = call
        self.lock = new_leaf()
        self.limit = call.n_jobs
        self.window = call.ahead * batch if call.ahead_in_batches else call.ahead
        self.on_batch = call.on_batch
        pace_start(&self.pace, call.report_interval)
        self.idle_timeout = call.options.get("idle_worker_timeout", IDLE_TIMEOUT)
        self.serving = <void **>PyMem_RawCalloc(call.n_jobs + 1, sizeof(void *))
        self.sleepers = <void **>PyMem_RawCalloc(call.n_jobs + 1, sizeof(void *))
        if (not pending_make(&self.pending) or self.serving == NULL
                or self.sleepers == NULL):
            raise MemoryError()

    def __dealloc__(self):
        pending_drop(&self.pending)
        PyMem_RawFree(self.serving)
        PyMem_RawFree(self.sleepers)
        free_lock(self.lock)

    # -- with the lock held --------------------------------------------------------

    cdef bint can_pull(self) noexcept:
        return (
            not self.pulling
            and not self.exhausted
            and not self.stopped
            and (self.window == 0 or self.taken - self.completed < self.window)
            and (not self.bounded or self.results.room(self.taken) > 0)
        )

    # Whether a task waits, and may run.
    cdef bint can_run(self) noexcept:
        return self.pending.n > 0 and self.running < self.call.n_jobs

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

    # Choose whom to wake if there is work for one more thread; see `rouse`.
    cdef int choose(self, void **sleeper) noexcept:
        if self.waking or not (self.can_run() or self.can_pull()):
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

    # A leased thread has come.  A call that it served before may have ended with an
    # error in the midst of what it did.
    cdef void enlist(self, WarmThread thread) noexcept:
        self.waking -= 1
        thread.abandoned = thread.running = thread.unwritten = False
        self.serving[self.n_serving] = <void *>thread
        self.n_serving += 1

    # It is not counted any more.
    cdef void forget(self, WarmThread thread) noexcept:
        cdef int i
        for i in range(self.n_serving):
            if self.serving[i] == <void *>thread:
                self.n_serving -= 1
                self.serving[i] = self.serving[self.n_serving]
                self.leased -= 1
                return

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
            self.finish()
        self.rouse(whom, sleeper)
        return 0

    # Called by the reader's side, also from destructors.
    def on_room(self):
        if not self.results.wanted():
            self.stop()
        else:
            self.wake_one()

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
            self.finish()
        return 0

    # The input has nothing more, or has failed.
    cdef int end_input(self) except -1:
        self.iterator = None
        lock_leaf(self.lock)
        self.pulling = False
        self.exhausted = True
        self.dismiss()
        unlock_leaf(self.lock)
        return 0

    # -- the end of the call -------------------------------------------------------

    # All tasks are completed: the caller may leave.
    cdef int finish(self) except -1:
        return self.results.finish()

    # End the call with an error; the first one counts.
    cdef int fail(self, object error) except -1:
        self.results.fail(error)
        self.halt()
        return 0

    # Start no task any more; drop what waits.
    cdef int halt(self) except -1:
        cdef Ring pending
        cdef bint ours
        lock_leaf(self.lock)
        self.stopped = True
        pending = self.pending
        self.pending.places = NULL
        self.pending.n = 0
        ours = not self.pulling
        self.pulling = True  # the iterator is touched once more, by its owner
        self.dismiss()
        unlock_leaf(self.lock)
        pending_drop(&pending)
        if ours:
            self.iterator = None
        return 0

    cdef int stop(self) except -1:
        self.halt()
        if self.results is not None:
            self.results.close()
        return 0

    # -- tasks that can be given up ------------------------------------------------

    # Let the caller see, and give up, the task that the thread is about to run.
    cdef void expose(self, WarmThread thread, tuple task, const Pending *entry,
                     double started) noexcept:
        lock_leaf(self.lock)
        Py_INCREF(task)
        thread.task = <void *>task
        thread.index = entry.index
        thread.attempt = entry.attempt
        thread.started = started
        unlock_leaf(self.lock)

    # Whether what the thread's task has come to still counts.
    cdef bint claim(self, WarmThread thread) noexcept:
        cdef bint counts
        cdef void *task
        lock_leaf(self.lock)
        counts = not thread.abandoned
        task = thread.task
        thread.task = NULL
        unlock_leaf(self.lock)
        if task != NULL:
            Py_DECREF(<object>task)
        return counts
