"""Tables in shared memory with one byte, a slot, for each loan from process to process.

There is one for each direction of a link. The owner sets a slot to LENT; the last act
of the deallocator of the receiver's view is to set it to RETURNED.  Each change is one
atomic operation on a byte: safe in any thread, in a finalizer, and while the
interpreter shuts down.  What the states mean, and who may change them, is in
``tables.pxd``; why no block is reused too early, in ``lending``.

A receiver's table lives as long as there are views that it has a slot for, even if the
link has been closed since.  All of them are in one list, since a fork concerns every
view that there is (see ``inheriting``).  The mutex of ``regions`` guards it, which the
last view of a closed link therefore takes when it goes.  That is safe in a finalizer:
whoever holds the mutex neither runs Python nor drops objects, and waits for nobody.

The file of a table is sparse.  A page is reserved by writing before it is touched, as
for blocks: no SIGBUS.
"""

cimport cython
from libc.stdlib cimport free, realloc

from fastjob._core.regions cimport (
    PAGE,
    current_epoch,
    fallback_folders,
    lock,
    open_file,
    unlock,
)
from fastjob._core.shm cimport (
    ENOSPC,
    errno,
    shm_close,
    shm_fill,
    shm_load,
    shm_load64,
    shm_map,
    shm_swap,
    shm_unmap,
)

import os

cdef unsigned int ANY = 0xFFFFFFFF

cdef char no_slots[PAGE]

cdef void *first = NULL  # of the borrowed tables; guarded by the mutex


@cython.final
@cython.no_gc
cdef class Table:
    """The slots of one direction of a link, mapped; its end of the descriptor."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.listed and self.epoch == current_epoch():
            self.unlist()
            # Not in a child: another thread may have been at it.
            free(self.spans)
        if self.head != NULL:
            shm_unmap(self.head, TABLE_BYTES)
        if self.fd >= 0:
            shm_close(self.fd)

    cdef int map(self, int fd) except -1:
        """Map the file and own ``fd``, whatever happens."""
        self.fd = fd
        cdef void *address = shm_map(fd, 0, TABLE_BYTES, False)
        if address == NULL:
            raise OSError(errno, f"cannot map a table: {os.strerror(errno)}")
        self.head = <TableHead *>address
        self.slots = <unsigned char *>address + TABLE_HEADER
        self.epoch = current_epoch()
        return 0

    cdef void drop_fd(self) noexcept nogil:
        """Close the descriptor, which only the owner needs."""
        shm_close(self.fd)
        self.fd = -1

    cdef int reserve(self, unsigned long long slot) noexcept nogil:
        """See that the file has room for the next slot; 0 or an errno.  The owner."""
        if slot % PAGE:
            return 0
        return self.clear(TABLE_HEADER + slot, PAGE)

    cdef int clear(self, size_t start, size_t size) noexcept nogil:
        """Fill a part of the file with zeros; 0 or an errno."""
        cdef Py_ssize_t written = shm_fill(
            self.fd, start, <char *>self.head + start, no_slots, size)
        if written == <Py_ssize_t>size:
            return 0
        return ENOSPC if written >= 0 else errno

    cdef void enlist(self) noexcept nogil:
        """Enter the list of borrowed tables; the receiver."""
        global first
        lock()
        self.next = first
        if self.next != NULL:
            (<Table>self.next).previous = <void *>self
        first = <void *>self
        self.listed = True
        unlock()

    cdef void unlist(self) noexcept nogil:
        global first
        lock()
        if self.previous != NULL:
            (<Table>self.previous).next = self.next
        else:
            first = self.next
        if self.next != NULL:
            (<Table>self.next).previous = self.previous
        unlock()

    cdef void release(self, unsigned int slot) noexcept nogil:
        """Say that this process no longer reads through ``slot``; the receiver."""
        cdef unsigned char *state = self.slots + slot
        while not (shm_swap(state, LENT, RETURNED)
                   or shm_swap(state, INHERITED, INHERITED_DROPPED)):
            # Between the two a fork may have changed it: again. Any other state means
            # that a damaged token had the slot of another view, which has returned it.
            if shm_load(state) not in (LENT, INHERITED):
                return

    cdef void pin(self, unsigned int fork) noexcept nogil:
        """Make all that is lent inherited; the receiver, under the mutex."""
        cdef size_t slot, high = shm_load64(&self.head.high)
        self.grow(high)
        for slot in range(high):
            if shm_swap(self.slots + slot, LENT, INHERITED):
                if slot < self.spans_size:
                    self.spans[slot].first = self.spans[slot].last = fork
            elif slot < self.spans_size and shm_load(self.slots + slot) == INHERITED:
                self.spans[slot].last = fork

    cdef void grow(self, size_t size) noexcept nogil:
        """Make room for spans; without room a slot is taken to be visible to all."""
        cdef void *grown
        if size <= self.spans_size:
            return
        size = max(size, 2 * self.spans_size)
        grown = realloc(self.spans, size * sizeof(Span))
        if grown == NULL:
            return
        self.spans = <Span *>grown
        while self.spans_size < size:
            self.spans[self.spans_size].first = 0
            self.spans[self.spans_size].last = ANY
            self.spans_size += 1

    cdef void pin_one(self, unsigned int slot) noexcept nogil:
        """Make a slot inherited by every child; the receiver."""
        lock()
        if (shm_swap(self.slots + slot, LENT, INHERITED)
                and slot < self.spans_size):
            self.spans[slot].first = 0
            self.spans[slot].last = ANY
        unlock()

    cdef void unpin(self, unsigned int *living, size_t n) noexcept nogil:
        """Undo `pin` where none of these forks sees it; the receiver, under the mutex.
        """
        cdef size_t slot
        cdef unsigned char state
        for slot in range(shm_load64(&self.head.high)):
            state = shm_load(self.slots + slot)
            if state != INHERITED and state != INHERITED_DROPPED:
                continue
            if n and (slot >= self.spans_size or covers(self.spans + slot, living, n)):
                continue
            if not shm_swap(self.slots + slot, INHERITED, LENT):
                shm_swap(self.slots + slot, INHERITED_DROPPED, RETURNED)


cdef bint covers(Span *span, unsigned int *forks, size_t n) noexcept nogil:
    """Whether one of these numbers, which ascend, is in the span."""
    while n and forks[n - 1] > span.last:
        n -= 1
    return n != 0 and forks[n - 1] >= span.first


cdef bint any_borrowed() noexcept nogil:
    return first != NULL


cdef void pin_all(unsigned int fork) noexcept nogil:
    cdef void *table = first
    while table != NULL:
        (<Table>table).pin(fork)
        table = (<Table>table).next


cdef void unpin_all(unsigned int *living, size_t n) noexcept nogil:
    cdef void *table = first
    while table != NULL:
        (<Table>table).unpin(living, n)
        table = (<Table>table).next


cdef void forget_borrowed() noexcept nogil:
    """Forget the tables that were the parent's, in a forked child."""
    global first
    first = NULL


cdef Table new_table():
    """Make a table in the first place that has room for its head.

    /dev/shm comes last: in a container it is small, and what room it has is for blocks.
    """
    try:
        return table_in(None)
    except OSError as error:
        failed = error
    for folder in reversed(fallback_folders()):
        try:
            return table_in(folder)
        except OSError as error:
            failed = error
    raise OSError(failed.errno, f"cannot make a table: {failed.strerror}") from failed


cdef Table table_in(str place):
    cdef Table table = Table.__new__(Table)
    cdef int error
    table.map(open_file(place, TABLE_BYTES))
    error = table.clear(0, TABLE_HEADER)
    if error:
        raise OSError(error, os.strerror(error))
    return table
