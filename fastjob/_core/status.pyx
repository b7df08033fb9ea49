"""Memory shared by a caller, its nursery and its workers: a slot a worker.

It carries what must be known without a message: which tasks of a batch are still
unclaimed, since when the running task runs, and how a worker ended.

Claims.  A batch of n tasks starts as the word ``(next=0, end=n)``.  The worker claims
task ``next`` by a compare-and-swap that adds one; the caller takes back the tail by a
compare-and-swap that lowers ``end``.  Either changes the whole word at once, so that:

1. worker reads (3, 10); caller swaps to (3, 6); worker's swap to (4, 10) fails, it
   sees (3, 6) and claims 3.  Tasks 6 to 9 are the caller's, and nobody else's.
2. worker swaps to (4, 10) first; the caller's swap from (3, 10) fails, it sees
   (4, 10) and takes from what is left.  Task 3 is the worker's.

A task is therefore run by exactly one of them, whatever the interleaving, and the
number of results of a batch is the ``end`` that both see when ``next`` has reached
it.  A word is not used for another batch before the final reply of the last one has
come, so an old value cannot come back behind a reader's back.

A death.  The nursery writes ``pid``, ``status`` and ``peak``, then ``life``, and only
then shuts the worker's socket down.  Whoever sees the end of the stream therefore
sees why.
"""

cimport cython
from libc.stdint cimport int64_t

from fastjob._core.shm cimport shm_close, shm_create, shm_fill, shm_map, shm_unmap

import os

cdef enum:
    DEFAULT_SLOTS = 4096


def _shared_file(size):
    """An anonymous file of zeros: memfd, or an unlinked temporary file."""
    fd = shm_create(b"fastjob-status", size)
    if fd >= 0:
        return fd
    import tempfile

    with tempfile.TemporaryFile(prefix="fastjob-") as file:
        fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/prctl.h>
    #include <signal.h>
    static int fj_die_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL); }
    #else
    static int fj_die_with_parent(void) { return 0; }
    #endif
    """
    int fj_die_with_parent() nogil


def die_with_parent(int parent):
    """Have the kernel kill this process when its parent dies; False if it has died."""
    fj_die_with_parent()
    return os.getppid() == parent


@cython.final
cdef class StatusPage:
    """The slots of a nursery's workers.

    Parameters
    ----------
    fd : int, optional
        Descriptor of a page made by another process; by default a new one is made.
    """

    def __cinit__(self, int fd=-1):
        cdef void *base
        cdef size_t size = DEFAULT_SLOTS * sizeof(Slot)
        self.n_slots = DEFAULT_SLOTS
        self.fd = _shared_file(size) if fd < 0 else fd
        base = shm_map(self.fd, 0, size, False)
        if base is NULL:
            shm_close(self.fd)
            raise OSError("cannot map the status page of the workers")
        self.slots = <Slot *>base
        if fd < 0:
            self._reserve(size)

    def __dealloc__(self):
        if self.slots is not NULL:
            shm_unmap(self.slots, self.n_slots * sizeof(Slot))
            shm_close(self.fd)

    cdef int _reserve(self, size_t size) except -1:
        """See that all slots have memory, for there is no way to say that one has not.
        """
        cdef bytes zeros = bytes(size)
        if shm_fill(self.fd, 0, self.slots, <char *>zeros, size) != <Py_ssize_t>size:
            raise OSError("no memory for the status page of the workers")
        return 0

    cdef Slot *slot(self, int number) except NULL:
        if not 0 <= number < self.n_slots:
            raise IndexError(f"no slot {number}")
        return &self.slots[number]

    def clear(self, int number):
        """Make a slot ready for a new worker."""
        cdef Slot *slot = self.slot(number)
        slot.claim[0] = slot.claim[1] = 0
        slot.started = 0
        slot.running = slot.pid = slot.status = 0
        slot.peak = slot.timed = slot.cpu = slot.packed = slot.process = 0
        slot.life = STARTING

    def born(self, int number, int pid, int64_t process=0):
        """Nursery: the worker has been forked; or started, and runs in a moment."""
        cdef Slot *slot = self.slot(number)
        slot.pid = pid
        slot.process = process
        slot.life = ALIVE

    def failed(self, int number, int error):
        """Nursery: the fork failed."""
        cdef Slot *slot = self.slot(number)
        slot.status = error
        slot.life = FORK_FAILED

    def ended(self, int number):
        """Whether no process writes to the slot any more."""
        cdef Slot *slot = self.slot(number)
        return slot.life == EXITED or slot.life == FORK_FAILED

    def cannot_begin(self, int number, int error):
        """Worker: it is going to end, since the system does not give what it needs."""
        self.slot(number).status = error

    def exited(self, int number, int status, int64_t peak):
        """Nursery: the worker has been reaped."""
        cdef Slot *slot = self.slot(number)
        slot.peak = peak
        if slot.status:
            slot.life = FORK_FAILED     # it has said so itself
            return
        slot.status = status
        slot.life = EXITED
