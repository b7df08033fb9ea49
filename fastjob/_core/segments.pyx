"""Memory that one process owns and others read: blocks of regions, and their store.

A *region* is a large, sparse file that processes map (see ``regions``).  A *block* is
a piece of a region that holds one buffer.  The *store* carves blocks out of regions,
fills them and takes them back.
Who may still be reading a block in another process is the business of the module
``lending``; here a block is in use for as long as its `Block` object lives.

What it guarantees

- Every byte of a block has memory, or disk space, behind it before anybody touches
  it through a mapping: no SIGBUS.  Space is reserved by writing with ``pwrite``,
  which reports a full file system as an error, works on any file system, and beats
  the obvious ``fallocate`` and copy: it neither zeroes the pages nor takes a page
  fault for each (80 MB into fresh memory: 37 ms with the later mapping of the pages,
  58 ms with fallocate, MADV_POPULATE_WRITE and memcpy).  A warm block is filled by
  memcpy through the mapping (6.5 ms), after its pages have been mapped by
  MADV_POPULATE_READ the first time (8 ms; write faults one by one would be 38 ms).
- Where there is no room the store goes on to the next place, for good: from the folder
  that the user named (with a warning), or anonymous memory, to /dev/shm, to the
  system's temporary folder.  Memory has room for a large buffer if the machine has it
  available: the kernel would promise it all the same, and end a process later.
- A region's size doubles the total so far, so the number of mappings and descriptors
  is logarithmic: 100 GB are 12 regions.  Regions are sparse: size costs nothing.
- A free block stays warm until the free ones exceed ``warm_limit``, or it has been
  idle for ``idle_seconds``; its memory is then given back (MADV_REMOVE) at the next
  `Store.collect`, the address range is kept for reuse.

Why size classes, four a doubling, and no coalescing: a free block is reused by the
next buffer of about its size without a search, and what a class wastes is address
space, not memory, since the pages beyond the buffer never get any.  Blocks start at
multiples of 64 kB (the smallest that is worth sharing), hence of pages: a page never
belongs to two blocks, so giving one back cannot touch another, and any dtype's
alignment is kept.

Locks.  One mutex for the process guards all the free lists here and the loans in
``lending``.  Nothing under it needs the interpreter: it is held for list surgery in C
alone, never while Python objects are made or dropped, memory is copied, or the
interpreter lock is waited for.  So a thread may wait for it with or without the GIL,
and a garbage collection cannot re-enter it.  None of the classes takes part in
garbage collection: they form no cycles, and their deallocators need their fields.
`Block.__dealloc__` takes no lock at
all: it pushes the extent on a lock-free stack that the next allocation takes whole
(so there is no ABA problem).

After a fork the child owns nothing: `enter_child` moves the epoch on, and every
object of an older epoch leaves the shared memory and the free lists alone.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastjob._core.libc cimport now_ns
from fastjob._core.regions cimport (
    GRANULE_BITS,
    MEMORY,
    PAGE,
    Region,
    current_epoch,
    fallback_folders,
    lock,
    no_room,
    open_file,
    unlock,
)
from fastjob._core.shm cimport (
    EINTR,
    ENOMEM,
    ENOSPC,
    errno,
    shm_exchange,
    shm_fill,
    shm_populate,
    shm_swap_pointer,
)

from libc.errno cimport EMFILE, ENFILE

import os

from fastjob._core.regions import available_memory, total_memory

cdef enum:
    FIRST_REGION = 67108864  # bytes
    ZEROS = 262144           # bytes; a reservation without data is written in these
    LARGE = 67108864         # bytes; not reserved in memory without asking for its size

cdef Reclaim reclaim = NULL
cdef char zeros[ZEROS]

cdef void set_reclaim(Reclaim function) noexcept:
    global reclaim
    reclaim = function


cdef inline int class_of(size_t nbytes) noexcept nogil:
    cdef size_t last = (nbytes - 1) >> GRANULE_BITS if nbytes else 0
    cdef int shift = 0
    while last >> shift >= 8:
        shift += 1
    return shift * 4 + <int>(last >> shift)


cdef inline size_t capacity_of(int size_class) noexcept nogil:
    cdef size_t granules
    if size_class < 8:
        granules = size_class + 1
    else:
        granules = <size_t>(size_class % 4 + 5) << (size_class // 4 - 1)
    return granules << GRANULE_BITS


cdef inline size_t whole_pages(size_t nbytes) noexcept nogil:
    return (nbytes + PAGE - 1) & ~<size_t>(PAGE - 1)


@cython.final
@cython.no_gc
cdef class Block:
    """A buffer in shared memory, in use for as long as this object lives.

    It supports the buffer protocol (writable) in the process that owns it.
    """

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.nbytes, not self.own, flags)

    def __len__(self):
        return self.nbytes

    def __dealloc__(self):
        cdef Extent *extent = self.extent
        cdef Store store
        cdef void *head
        if extent == NULL or self.epoch != current_epoch():
            return
        store = <Store>self.holder
        if store.epoch != current_epoch():
            return  # closed
        while True:
            head = store.returned
            extent.next = <Extent *>head
            if shm_swap_pointer(&store.returned, head, extent):
                return


cdef Block part_of(object holder, Region region, size_t offset, size_t nbytes):
    """A block inside a received region, which ``holder`` keeps from being reused."""
    cdef Block block = Block.__new__(Block)
    block.holder = holder
    block.region = region
    block.offset = offset
    block.nbytes = nbytes
    block.address = region.address + offset
    block.epoch = current_epoch()
    return block


cdef int fill(Extent *extent, int fd, char *address, const char *source,
              size_t nbytes) noexcept nogil:
    """Reserve the first ``nbytes`` of an extent and fill them; 0 or an errno.

    Without a source the bytes are left as they are, or zero.
    """
    cdef size_t done = min(nbytes, extent.warm), chunk
    cdef const char *start
    cdef Py_ssize_t written
    if extent.mapped < done:
        # Only an advice: without it the writer takes the page faults.
        shm_populate(address + extent.mapped, whole_pages(done) - extent.mapped)
        extent.mapped = whole_pages(done)
    if source != NULL and done:
        memcpy(address, source, done)
    while done < nbytes:
        chunk = nbytes - done
        if source == NULL:
            chunk = min(chunk, <size_t>ZEROS)
        if source == NULL:
            start = &zeros[0]
        else:
            start = source + done
        written = shm_fill(fd, extent.offset + done, address + done, start, chunk)
        if written > 0:
            done += written
        elif written == 0:
            return ENOSPC
        elif errno != EINTR:
            return errno
        extent.warm = max(extent.warm, whole_pages(done))
    return 0


@cython.final
@cython.no_gc
cdef class Store:
    """The shared memory that this process owns.

    Parameters
    ----------
    folder : str or None
        Where the memory's files lie (unlinked); None is anonymous memory.
    warm_limit : int or None
        Bytes of free memory that are kept for reuse.  None is a sixteenth of the
        machine's memory.
    idle_seconds : float
        Seconds after which free memory is given back.

    Attributes
    ----------
    copies, copied_bytes : int
        Buffers copied into the store so far.
    live_blocks, live_bytes : int
        Blocks in use, and the memory behind them, as of the last allocation or
        `collect`.
    warm_bytes : int
        Memory that is free and kept.
    """

    def __cinit__(self, folder=None, *, warm_limit=None, double idle_seconds=30.0):
        if warm_limit is None:
            warm_limit = total_memory() // 16
        self.warm_limit = warm_limit
        self.idle_seconds = idle_seconds
        self.regions = []
        if folder is not None and os.name == "nt":
            folder = None  # there, all of it lies in the paging file
        self.places = [None if folder is None else os.fspath(folder)]
        self.epoch = current_epoch()

    def __dealloc__(self):
        cdef Extent *extent = self.extents
        cdef Extent *following
        while extent != NULL:
            following = extent.sibling
            free(extent)
            extent = following

    @property
    def region_count(self):
        """Regions made so far, each with one mapping and one descriptor."""
        return len(self.regions)

    cpdef Block put(self, object buffer):
        """Copy a contiguous buffer into shared memory.

        Parameters
        ----------
        buffer : bytes-like
            Contiguous in C or Fortran order.

        Returns
        -------
        Block

        Raises
        ------
        OSError
            With ENOSPC if no backing store has room.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
        try:
            return self.put_memory(view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cpdef Block allocate(self, size_t nbytes):
        """Return a writable block whose contents are arbitrary.

        Parameters
        ----------
        nbytes : int

        Returns
        -------
        Block

        Raises
        ------
        OSError
            With ENOSPC if no backing store has room.
        """
        return self.put_memory(NULL, nbytes)

    cdef Block put_memory(self, const void *source, size_t nbytes):
        cdef Extent *extent
        cdef Region region
        cdef Block block
        cdef char *address
        cdef int error, fd = -1
        if self.epoch != current_epoch():
            raise RuntimeError("a store was used after it was closed, or by a forked "
                               "child; this is a bug in fastjob, please report it")
        while True:
            extent = self.take(nbytes)
            region = <Region>extent.region
            address = region.address + extent.offset
            fd = region.fd
            error = 0
            if nbytes >= extent.warm + LARGE and self.places[extent.place] in MEMORY:
                if available_memory() < <long long>(nbytes - extent.warm):
                    error = ENOMEM
            if error == 0:
                with nogil:
                    error = fill(extent, fd, address, <const char *>source, nbytes)
            if error == 0:
                break
            if extent.warm:
                region.remove(extent.offset, extent.warm)
                extent.warm = extent.mapped = 0
            lock()
            self.push_free(extent)
            unlock()
            self.pass_over(extent.place, error, nbytes)
        block = Block.__new__(Block)
        block.holder = self
        block.region = region
        block.offset = extent.offset
        block.nbytes = nbytes
        block.address = address
        block.own = True
        block.epoch = current_epoch()
        block.extent = extent
        lock()
        self.live_blocks = self.live_blocks + 1
        self.live_bytes = self.live_bytes + extent.warm
        if source != NULL:
            self.copies += 1
            self.copied_bytes += nbytes
        unlock()
        return block

    cdef Extent *take(self, size_t nbytes) except NULL:
        """Take a free extent off the lists, or make one."""
        cdef int size_class = class_of(nbytes)
        cdef Extent *extent
        cdef Extent *spare
        if size_class >= CLASSES:
            raise OverflowError(f"a buffer of {nbytes} bytes is too large to share")
        lock()
        self.drain()
        extent = self.pop_warm(size_class, nbytes)
        unlock()
        if extent != NULL:
            return extent
        if reclaim != NULL:
            reclaim()
        while True:
            spare = <Extent *>calloc(1, sizeof(Extent))
            if spare == NULL:
                raise MemoryError
            lock()
            self.drain()
            extent = self.pop_warm(size_class, nbytes)
            if extent == NULL:
                extent = self.pop_cold(size_class)
            if extent == NULL:
                extent = self.carve(size_class, spare)
            unlock()
            if extent != spare:
                free(spare)
            if extent != NULL:
                return extent
            self.grow(capacity_of(size_class))

    cdef int grow(self, size_t capacity) except -1:
        """Make another region, as large as all those before it."""
        cdef size_t total = 0, size
        cdef Region region
        cdef int place = self.place, fd
        for region in self.regions:
            total += region.size
        size = max(<size_t>FIRST_REGION, max(total, capacity))
        while True:
            try:
                fd = open_file(self.places[place], size)
            except OSError as error:
                if size == capacity:
                    return self.pass_over(place, error.errno or ENOSPC, capacity)
                size = capacity  # there may be a limit on the size of a file
                continue
            region = Region.__new__(Region)
            try:
                region.map(fd, size)
                break
            except OSError:
                if size == capacity:
                    raise  # address space is the same everywhere
                size = capacity
        self.regions.append(region)
        lock()
        if place == self.place:
            self.current = <void *>region
            self.carved = 0
        unlock()
        return 0

    cdef int pass_over(self, int place, int error, size_t nbytes) except -1:
        """Go on to the next backing store, since one has no room."""
        if place != self.place:
            return 0  # another thread has been here
        if error == EMFILE or error == ENFILE:
            # No other place can do without, nor can the module that looks for one.
            raise OSError(error, f"no descriptor for {nbytes} bytes of shared memory: "
                                 f"{os.strerror(error)}; raise the limit (ulimit -n)")
        if place == 0:
            for folder in fallback_folders():
                if folder not in self.places:
                    self.places.append(folder)
        failed = self.places[place]
        if place + 1 == len(self.places):
            raise OSError(ENOSPC, no_room(failed, nbytes, error))
        cdef int i
        lock()
        self.place = place + 1
        self.current = NULL
        for i in range(CLASSES):
            # These have no memory; their address space is given up.
            self.cold[i] = NULL
        unlock()
        if place == 0 and failed is not None:  # the one that the user named
            import warnings
            warnings.warn(
                f"{no_room(failed, nbytes, error)}; using {self.places[place + 1]!r}",
                RuntimeWarning, stacklevel=2)
        return 0

    cdef void drain(self) noexcept nogil:
        """Take the extents of dropped blocks back; under the mutex."""
        cdef Extent *stack = <Extent *>shm_exchange(&self.returned, NULL)
        cdef Extent *extent = NULL
        cdef Extent *following
        while stack != NULL:  # the first one returned comes first
            following = stack.next
            stack.next = extent
            extent = stack
            stack = following
        while extent != NULL:
            following = extent.next
            self.live_blocks = self.live_blocks - 1
            self.live_bytes = self.live_bytes - extent.warm
            self.push_free(extent)
            extent = following

    cdef void push_free(self, Extent *extent) noexcept nogil:
        """File an extent under the free ones; under the mutex."""
        cdef int size_class = extent.size_class
        if extent.warm == 0:
            if extent.place == self.place:
                extent.next = self.cold[size_class]
                self.cold[size_class] = extent
            return
        extent.before = NULL
        extent.next = self.warm[size_class]
        if extent.next != NULL:
            extent.next.before = extent
        self.warm[size_class] = extent
        extent.freed_at = now_ns()
        extent.newer = NULL
        extent.older = self.newest
        if self.newest != NULL:
            self.newest.newer = extent
        else:
            self.oldest = extent
        self.newest = extent
        self.warm_bytes = self.warm_bytes + extent.warm

    cdef void unlink_warm(self, Extent *extent) noexcept nogil:
        """Take an extent out of its class and the order of age; under the mutex."""
        if extent.before != NULL:
            extent.before.next = extent.next
        else:
            self.warm[extent.size_class] = extent.next
        if extent.next != NULL:
            extent.next.before = extent.before
        if extent.older != NULL:
            extent.older.newer = extent.newer
        else:
            self.oldest = extent.newer
        if extent.newer != NULL:
            extent.newer.older = extent.older
        else:
            self.newest = extent.older
        self.warm_bytes = self.warm_bytes - extent.warm

    cdef Extent *pop_warm(self, int size_class, size_t nbytes) noexcept nogil:
        """Take a free extent that has memory, the last used first; under the mutex.

        One that lies in a place without room must have all the memory it needs.
        """
        cdef Extent *extent = self.warm[size_class]
        while extent != NULL:
            if extent.place == self.place or extent.warm >= nbytes:
                self.unlink_warm(extent)
                return extent
            extent = extent.next
        return NULL

    cdef Extent *pop_cold(self, int size_class) noexcept nogil:
        """Take a free extent without memory; under the mutex."""
        cdef Extent *extent = self.cold[size_class]
        if extent != NULL:
            self.cold[size_class] = extent.next
        return extent

    cdef Extent *carve(self, int size_class, Extent *extent) noexcept nogil:
        """Make a new extent in the current region; under the mutex.

        NULL if there is no room for it.
        """
        cdef size_t capacity = capacity_of(size_class)
        if self.current == NULL:
            return NULL
        if self.carved + capacity > (<Region>self.current).size:
            return NULL
        extent.region = self.current
        extent.offset = self.carved
        extent.size_class = size_class
        extent.place = self.place
        extent.sibling = self.extents
        self.extents = extent
        self.carved = self.carved + capacity
        return extent

    cdef Extent *pop_excess(self, int64_t now) noexcept nogil:
        """Take the oldest free extent if it is to lose its memory; under the mutex."""
        cdef Extent *extent = self.oldest
        if extent == NULL:
            return NULL
        if (self.warm_bytes <= self.warm_limit
                and now - extent.freed_at < self.idle_seconds * 1e9):
            return NULL
        self.unlink_warm(extent)
        return extent

    cpdef bint collect(self):
        """Take back what receivers have dropped, and give back memory in excess.

        Returns
        -------
        bool
            Whether there is anything left that a later call could take or give back.
        """
        cdef Extent *extent
        cdef Region region
        if self.epoch != current_epoch():
            return False
        if reclaim != NULL:
            reclaim()
        while True:
            lock()
            self.drain()
            extent = self.pop_excess(now_ns())
            unlock()
            if extent == NULL:
                break
            region = <Region>extent.region
            with nogil:
                region.remove(extent.offset, extent.warm)
            extent.warm = extent.mapped = 0
            lock()
            self.push_free(extent)
            unlock()
        return self.live_blocks > 0 or self.warm_bytes > 0

    cpdef object close(self):
        """Let all memory go that no block holds; the store is of no further use."""
        cdef int i
        lock()
        self.epoch = -1
        self.place = -1
        self.current = NULL
        self.oldest = self.newest = NULL
        self.warm_bytes = 0
        for i in range(CLASSES):
            self.warm[i] = self.cold[i] = NULL
        unlock()
        self.regions.clear()
