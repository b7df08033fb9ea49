"""Threads that wait for work between calls.

Starting a thread costs some 50 microseconds, waking one some 5; so threads are kept.
A call leases threads, one at a time as it finds work for them, and no thread serves
two calls: calls made from several threads, or from inside a task, share none.

Guarantees
----------
* `lease` never waits for a busy thread: where none is idle it starts one.
* An idle thread ends after its ``idle_timeout``, or when it is told to.
* The threads are daemons: they never hold up the end of the interpreter.
* After ``os.fork`` the child starts with no threads and a lock of its own.

Who owns what: the list of idle threads is guarded by `pool_lock`, a leaf lock (see
locks.pxd).  A thread is on the list, or leased, or ending.  Why a lease cannot be lost
when it meets the end of the idle time:

1. the thread's wait times out;
2. it takes `pool_lock` and looks whether it is still on the list.  If so it removes
   itself and ends.  If not, a lessee has removed it and is about to ring: it waits
   for the bell.
"""

import atexit
import time

from fastjob._core.forks import register_at_fork
from fastjob._core.starting import start_thread

from cython cimport final

from fastjob._core.locks cimport (
    await_bell, await_bell_for, free_lock, lock_leaf, new_bell, new_leaf, ring,
    unlock_leaf,
)

cdef PyThread_type_lock pool_lock = new_leaf()
cdef list idle = []
cdef long long epoch = 0
cdef long long generation = 0  # changes when the threads made so far shall end
cdef long long n_started = 0

cdef double LONGEST_WAIT = 1e8  # seconds; three years, and it fits the lock's argument


cdef class Service:
    cdef int serve(self, WarmThread thread) except -1:
        raise NotImplementedError


@final
cdef class WarmThread:
    def __cinit__(self):
        self.epoch = epoch
        self.generation = generation
        self.bell = new_bell()

    def __dealloc__(self):
        free_lock(self.bell)

    def run(self):
        """Serve one lease after the other; the body of the thread."""
        cdef Service service = self.service
        while service is not None and self.epoch == epoch:
            self.service = None
            service.serve(self)
            service = None  # an idle thread keeps no call alive
            if not self.park():
                return
            service = self.service

    # Wait to be leased; False if the thread shall end.
    cdef bint park(self) except -1:
        cdef double patience = min(self.idle_timeout, LONGEST_WAIT)
        cdef double now, end = time.perf_counter() + patience
        cdef bint ending = False
        lock_leaf(pool_lock)
        if self.epoch != epoch or self.generation != generation:
            unlock_leaf(pool_lock)
            return False
        idle.append(self)
        unlock_leaf(pool_lock)
        while True:
            now = time.perf_counter()
            if await_bell_for(self.bell, end - now):
                return True
            if now < end:
                continue
            lock_leaf(pool_lock)
            if self in idle:
                idle.remove(self)
                ending = True
            unlock_leaf(pool_lock)
            if ending:
                return False
            await_bell(self.bell)
            return True


cdef long long current_epoch() noexcept:
    return epoch


cdef int lease(Service service, double idle_timeout) except -1:
    global n_started
    cdef WarmThread thread = None
    cdef long long number = 0
    lock_leaf(pool_lock)
    if idle:
        thread = idle.pop()
    else:
        n_started += 1
        number = n_started
    unlock_leaf(pool_lock)
    if thread is not None:
        thread.service = service
        thread.idle_timeout = idle_timeout
        ring(thread.bell)
        return 0
    thread = WarmThread()
    thread.service = service
    thread.idle_timeout = idle_timeout
    start_thread(thread.run, f"fastjob-thread-{number}")
    return 0


def end_idle_threads():
    """Tell all idle threads to end now, and the others when they have nothing to do."""
    global generation, idle
    cdef list ending
    cdef WarmThread thread
    nobody = []
    lock_leaf(pool_lock)
    generation += 1
    ending = idle
    idle = nobody
    unlock_leaf(pool_lock)
    for thread in ending:
        thread.service = None
        ring(thread.bell)


def count_idle_threads():
    """Count the threads that wait for a call."""
    lock_leaf(pool_lock)
    n = len(idle)
    unlock_leaf(pool_lock)
    return n


def _forget_threads():
    # The threads did not survive the fork, and the lock may be held by one of them.
    global pool_lock, idle, epoch
    pool_lock = new_leaf()
    idle = []
    epoch += 1


def _begin_exit():
    global epoch
    lock_leaf(pool_lock)
    epoch += 1
    unlock_leaf(pool_lock)


register_at_fork(after_in_child=_forget_threads)
atexit.register(_begin_exit)
