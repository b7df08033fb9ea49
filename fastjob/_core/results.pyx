"""Results on their way from an engine's threads to the one thread that reads them.

Guarantees
----------
* Results come out in the order of the tasks, or (unordered) in the order in which they
  arrived; each exactly once.
* The first `fail` ends the stream: the reader raises that error at once, and results
  that it has not read are dropped.
* Back-pressure: `room` tells a producer how many more tasks it may take.  It counts
  tasks from when they are *taken*, not results that lie here, so that also results
  that come far out of order cannot pile up.
* Waiting can be interrupted: by Ctrl-C, and by an exception that another thread sets.
* A reader that goes away never waits for anything.

Assumes
-------
One reader at a time; a second one is refused, as generators refuse it.  Any number of
producers.  Each index is put once, and an index is put only if all before it have been
taken, so that the stream cannot run dry before a hole is filled.

Why this way
------------
One ring of pointers under one leaf lock (see locks.pxd).  Position in the ring is the
task's index, or the number of arrivals; nothing else distinguishes the two orders.
The list that `Parallel` returns is a stream without bound, taken as a whole.

Why no wake-up is lost, reader's side:

1. the reader finds nothing, sets `waiting` under the lock, releases it;
2. a producer stores a result under the lock, sees `waiting`, clears it, rings;
3. the reader wakes on the bell.  If 2 comes before the reader sleeps, the bell has
   been rung already and the reader does not sleep.  If the wait is interrupted, the
   reader looks under the lock whether `waiting` is still set; if not, the bell has
   been rung inside the same locked section, and is silenced.

Producer's side: `room` answers 0 and sets `starved` under the lock.  A producer that
then decides to sleep does so under a lock of its own, which `on_room` takes too:

1. producer, own lock held: `room` is 0, `starved` is set;
2. reader takes results, sees `starved` and enough room, clears it, calls `on_room`;
3. `on_room` waits for the producer's own lock, so it comes after the producer has
   noted that it sleeps, and finds it.

`on_room` is called when half of the capacity is free again, not for each result: two
switches of threads then serve many results.
"""


from cython cimport final, no_gc_clear

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.ref cimport Py_DECREF, Py_INCREF

from fastjob._core.locks cimport (
    await_bell_for, free_lock, lock_leaf, new_bell, new_leaf, ring, silence,
    unlock_leaf,
)


from fastjob._core.forks import register_at_fork

# An exception that another thread sets does not wake a sleeper, and a signal can
# arrive between the last check and the sleep; so the sleep is cut into pieces.  Ten
# wake-ups a second cost nothing and leave a wide margin to half a second.
cdef double SLICE = 0.1

# Calling a function of bytecode makes the interpreter handle what is pending: signals,
# and exceptions set from other threads.  Compiled code alone never does.
handle_pending = eval("lambda: [None for _ in (0, 1)]")

cdef long long NO_LIMIT = 1 << 62

cdef long long fork_count = 0


def _note_fork():
    global fork_count
    fork_count += 1


cdef enum:
    STORED = 0
    NO_MEMORY = 1
    TAKEN_TWICE = 2

register_at_fork(after_in_child=_note_fork)


@final
cdef class ResultStream:
    """A thread-safe queue of results, bounded at the producer's end.

    Parameters
    ----------
    ordered : bool
        Hand results out by index; else as they arrive.
    capacity : int
        How many tasks may be taken ahead of the reader; 0 is no limit.
    max_bytes : int
        Size in bytes of the results held from which there is no room; 0 is no limit.
        It counts what the producer states as ``nbytes``.
    on_room : callable or None
        Called without arguments, in the reader's thread, when there is room again
        after `room` has said 0, and when the reader closes the stream.  Must not
        block or raise; it may run in a destructor.
    watch : callable or None
        Called in the reader's thread while it waits; returns the seconds after which
        it wants to be called again.  What it raises ends the call.
    """

    def __cinit__(self, bint ordered=True, long long capacity=0,
                  long long max_bytes=0, on_room=None, watch=None):
        self.ordered = ordered
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.on_room = on_room
        self.watch = watch
        self.fork_count = fork_count
        self.lock = new_leaf()
        self.bell = new_bell()
        self.mask = 15
        self.places = <Place *>PyMem_RawCalloc(16, sizeof(Place))
        if self.places == NULL:
            raise MemoryError()

    def __dealloc__(self):
        drop_places(self.places, self.mask)
        free_lock(self.bell)
        free_lock(self.lock)

    # -- for producers -------------------------------------------------------------

    cpdef int put(self, long long index, object value, long long nbytes=0) except -1:
        """Store the result of task `index`.  After the end it is dropped."""
        cdef int failed = 0
        lock_leaf(self.lock)
        if not self.closed:
            failed = self.store(index if self.ordered else self.arrived, value, nbytes)
            self.announce()
        unlock_leaf(self.lock)
        if failed:
            refuse(failed, index)
        return 0

    cpdef int put_many(self, long long first, list values,
                       long long nbytes=0) except -1:
        """Store the results of the tasks `first`, `first` + 1, ...; `nbytes` in all."""
        cdef Py_ssize_t i, n = len(values)
        cdef int failed = 0
        lock_leaf(self.lock)
        if not self.closed:
            for i in range(n):
                failed = self.store(first + i if self.ordered else self.arrived,
                                    values[i], nbytes // n)
                if failed:
                    break
            self.announce()
        unlock_leaf(self.lock)
        if failed:
            refuse(failed, first)
        return 0

    cpdef int put_scattered(self, list indices, list values,
                            long long nbytes=0) except -1:
        """Store the results of the tasks `indices`; `nbytes` in all."""
        cdef Py_ssize_t i, n = len(values)
        for i in range(n):
            self.put(indices[i], values[i], nbytes // n)
        return 0

    cpdef int finish(self) except -1:
        """Say that all results have been put."""
        lock_leaf(self.lock)
        self.finished = True
        self.announce()
        unlock_leaf(self.lock)
        return 0

    cpdef int fail(self, object error) except -1:
        """End the stream: the reader raises `error`.  Only the first one counts."""
        lock_leaf(self.lock)
        if not self.closed and not self.finished:
            self.closed = True
            self.finished = True
            Py_INCREF(error)  # the assignment drops None, never the last reference
            self.error = error
            Py_DECREF(error)
            self.announce()
        unlock_leaf(self.lock)
        return 0

    cpdef bint wanted(self) noexcept:
        """Whether anybody still wants results."""
        cdef bint wanted
        lock_leaf(self.lock)
        wanted = not self.closed
        unlock_leaf(self.lock)
        return wanted

    cpdef long long room(self, long long taken) noexcept:
        """How many more tasks may be taken by a producer that has taken so many."""
        cdef long long room
        lock_leaf(self.lock)
        if self.closed:
            room = 0
        elif self.max_bytes and self.held_bytes >= self.max_bytes:
            room = 0
        elif self.capacity:
            room = max(0, self.head + self.capacity - taken)
        else:
            room = NO_LIMIT
        if room == 0:
            self.starved = True
            self.refused_at = taken
        unlock_leaf(self.lock)
        return room

    # -- for the reader ------------------------------------------------------------

    cpdef int close(self) except -1:
        """Drop all results; the producer is told that no more are wanted.

        Never waits; may be called from any thread, from a destructor, and twice.
        """
        cdef Place *places
        cdef long long mask
        if self.fork_count != fork_count:
            return 0  # the producers live in the parent process
        lock_leaf(self.lock)
        on_room = self.on_room
        watch = self.watch  # a reference, so that nothing is freed under the lock
        self.on_room = None
        self.watch = None
        self.closed = True
        self.finished = True
        places = self.places
        mask = self.mask
        self.places = NULL
        self.held_bytes = 0
        self.announce()
        unlock_leaf(self.lock)
        watch = None
        drop_places(places, mask)
        if on_room is not None:
            on_room()
        return 0

    cpdef list take_all(self):
        """Wait for the end and return all results, in order."""
        cdef list results = []
        cdef Place *places
        cdef Place *place
        cdef long long position, head, arrived, mask
        self.check_process()
        lock_leaf(self.lock)
        self.begin_reading()
        try:
            self.wait(True)
            lock_leaf(self.lock)
            places = self.places
            mask = self.mask
            head = self.head
            arrived = self.arrived if places != NULL else head
            self.places = NULL
            self.closed = True
            unlock_leaf(self.lock)
            try:
                for position in range(head, arrived):
                    place = &places[position & mask]
                    results.append(<object>place.value)
                    Py_DECREF(<object>place.value)
                    place.value = NULL
            finally:
                drop_places(places, mask)
        finally:
            self.reading = False
            self.close()
        return results

    def __iter__(self):
        return self

    def __next__(self):
        cdef Place *place
        cdef object value
        cdef bint wake = False
        self.check_process()
        lock_leaf(self.lock)
        if self.reading or not self.ready(False) or self.error is not None:
            self.begin_reading()
            try:
                self.wait(False)
            except BaseException:
                self.reading = False
                self.close()
                raise
            lock_leaf(self.lock)
            self.reading = False
        if self.closed or self.head == self.arrived:
            unlock_leaf(self.lock)
            self.close()
            raise StopIteration
        place = &self.places[self.head & self.mask]
        value = <object>place.value
        place.value = NULL
        self.head += 1
        self.held_bytes -= place.nbytes
        if self.starved and self.has_recovered():
            self.starved = False
            wake = True
        on_room = self.on_room
        unlock_leaf(self.lock)
        Py_DECREF(value)  # the ring's reference
        if wake and on_room is not None:
            on_room()
        return value

    # Refuse a second reader.  Entered with the lock held, left without it.
    cdef int begin_reading(self) except -1:
        cdef bint busy = self.reading
        self.reading = True
        unlock_leaf(self.lock)
        if busy:
            raise ValueError("another thread is waiting for the next result")
        return 0

    # A lock may be held, for ever, by a thread that did not survive the fork.
    cdef int check_process(self) except -1:
        if self.fork_count != fork_count:
            raise RuntimeError(
                "these results belong to the process that this one was forked from; "
                "make the call again in this process"
            )
        return 0

    # Wait for the next result or, with wants_all, for the end.  Raises the error
    # that ended the stream, and whatever interrupts the wait.
    cdef int wait(self, bint wants_all) except -1:
        lock_leaf(self.lock)
        while not self.ready(wants_all):
            self.waiting = True
            self.wants_all = wants_all
            watch = self.watch
            unlock_leaf(self.lock)
            try:
                self.sleep(watch)
            except BaseException:
                lock_leaf(self.lock)
                if self.waiting:
                    self.waiting = False
                else:  # rung in the meantime: silence it
                    silence(self.bell)
                unlock_leaf(self.lock)
                raise
            lock_leaf(self.lock)
        error = self.error
        self.error = None
        unlock_leaf(self.lock)
        if error is not None:
            raise_end(error)
        return 0

    cdef int sleep(self, object watch) except -1:
        cdef double pause = SLICE
        while True:
            if watch is not None:
                pause = min(SLICE, <double>watch())
            if await_bell_for(self.bell, pause):
                return 0
            handle_pending()

    # -- with the lock held --------------------------------------------------------

    cdef bint ready(self, bint wants_all) noexcept:
        if self.finished:
            return True
        if wants_all or self.closed:
            return self.closed
        return self.places[self.head & self.mask].value != NULL

    cdef void announce(self) noexcept:
        if self.waiting and self.ready(self.wants_all):
            self.waiting = False
            ring(self.bell)

    cdef bint has_recovered(self) noexcept:
        if self.max_bytes and self.held_bytes > self.max_bytes // 2:
            return False
        return (not self.capacity
                or self.head + self.capacity - self.refused_at >= self.capacity // 2)

    cdef int store(self, long long position, object value,
                   long long nbytes) noexcept:
        cdef Place *place
        if position < self.head:
            return TAKEN_TWICE
        while position - self.head > self.mask:
            if not self.enlarge():
                return NO_MEMORY
        place = &self.places[position & self.mask]
        if place.value != NULL:
            return TAKEN_TWICE
        Py_INCREF(value)
        place.value = <void *>value
        place.nbytes = nbytes
        self.arrived += 1
        self.held_bytes += nbytes
        return STORED

    cdef bint enlarge(self) noexcept:
        cdef long long size = self.mask + 1, i
        cdef Place *wider = <Place *>PyMem_RawCalloc(2 * size, sizeof(Place))
        if wider == NULL:
            return False
        for i in range(self.head, self.head + size):
            wider[i & (2 * size - 1)] = self.places[i & self.mask]
        PyMem_RawFree(self.places)
        self.places = wider
        self.mask = 2 * size - 1
        return True


cdef int raise_end(object error) except -1:
    """Raise the error that ends a call.

    A StopIteration would be taken for the end of its results, so that those that are
    missing are not missed: it becomes what a generator makes of it.
    """
    if isinstance(error, StopIteration):
        raise RuntimeError("a task raised StopIteration") from error
    raise error


cdef int refuse(int why, long long index) except -1:
    if why == NO_MEMORY:
        raise MemoryError("no memory for the results")
    raise RuntimeError(
        f"Task {index} has two results. This is a bug in fastjob, please report it."
    )


cdef void drop_places(Place *places, long long mask) noexcept:
    cdef long long i
    if places == NULL:
        return
    for i in range(mask + 1):
        if places[i].value != NULL:
            Py_DECREF(<object>places[i].value)
    PyMem_RawFree(places)


@final
@no_gc_clear
cdef class ResultIterator:
    """What the reader of a stream holds.

    No producer refers to it, so it is destroyed when the reader drops it, and closes
    the stream, however far it has been read.
    """

    def __cinit__(self, ResultStream stream):
        self.stream = stream

    def __dealloc__(self):
        # Without gc-clear the stream is whole here, also at the end of a cycle.
        if self.stream is not None:
            self.stream.close()

    def __iter__(self):
        return self

    def __next__(self):
        return self.stream.__next__()

    def close(self):
        """Stop the call; what has been computed and not read is dropped."""
        self.stream.close()


def feed(pump, run):
    """Run a call in a thread of its own; its stream ends in any case.

    Compiled, because an exception that somebody sets in this thread is raised between
    two instructions of Python: also before a ``try``, or within its ``finally``. Here
    it can only hit `run`. (CPython to 3.11 lets a new thread share its maker's number
    for a moment, and what is meant for the one can hit the other.)

    Parameters
    ----------
    pump : Pump
    run : callable
        ``run(stream, wake)`` puts the results.
    """
    cdef ResultStream stream = pump.stream
    try:
        run(stream, pump.wake)
    except BaseException as error:
        stream.fail(error)
    else:
        stream.finish()
    finally:
        pump.running.discard(pump)
        pump.ended.release()
