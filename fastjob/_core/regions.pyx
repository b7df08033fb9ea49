"""Regions: large, sparse files of shared memory, and where they may lie.

A *region* is mapped once by its owner and once by each process that receives blocks of
it: a memfd, or an unlinked file where a folder is named, where there is no memfd, and
where ``FASTJOB_MEMFD=0`` says so.  It costs nothing until something is written to it.

Here is also what all the modules of shared memory stand on: their one mutex, and the
epoch, which tells a forked child's objects from its parent's (see ``segments``).
"""

cimport cython

from fastjob._core.shm cimport (
    errno,
    shm_close,
    shm_count,
    shm_create,
    shm_init,
    shm_lock,
    shm_machine,
    shm_map,
    shm_mutex,
    shm_remove,
    shm_store,
    shm_unlock,
    shm_unmap,
    shm_zeros,
)

import os
import sys

# The places that are memory: anonymous, and the folder of shared memory.
cdef tuple MEMORY = (None, "/dev/shm")

cdef shm_mutex mutex
cdef int epoch = 0

cdef void *first_orphan = NULL

shm_init(&mutex)


cdef void lock() noexcept nogil:
    shm_lock(&mutex)


cdef void unlock() noexcept nogil:
    shm_unlock(&mutex)


cdef int current_epoch() noexcept nogil:
    return epoch


cdef void enter_child() noexcept:
    """Disown everything; in the child, whose only thread is this one."""
    global epoch, first_orphan
    first_orphan = NULL
    epoch += 1
    shm_init(&mutex)


@cython.final
@cython.no_gc
cdef class Region:
    """A sparse shared file and this process's mapping of it."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.orphaned and self.epoch == epoch:
            self.unlist()
        if self.address != NULL:
            shm_unmap(self.address, self.size)
        if self.holders != NULL:
            shm_unmap(self.holders, (self.size >> GRANULE_BITS) * sizeof(Holders))
        if self.fd >= 0:
            shm_close(self.fd)

    cdef int map(self, int fd, size_t size) except -1:
        """Map the file and own ``fd``, whatever happens."""
        self.fd = fd
        cdef void *address = shm_map(fd, 0, size, False)
        if address == NULL:
            raise OSError(errno, f"cannot map {size} bytes of shared memory: "
                                 f"{os.strerror(errno)}")
        self.address = <char *>address
        self.size = size
        return 0

    cdef int track(self) except -1:
        """Make room to count the views on each block; for received regions."""
        cdef size_t size = (self.size >> GRANULE_BITS) * sizeof(Holders)
        cdef void *address = shm_zeros(size)
        if address == NULL:
            raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
        self.holders = <Holders *>address
        return 0

    cdef void remove(self, size_t offset, size_t nbytes) noexcept nogil:
        """Give memory back that nobody reads any more."""
        shm_remove(self.address + offset, nbytes)

    cdef void orphan(self) noexcept nogil:
        """Note that the owner is dead: who drops the last view gives memory back."""
        global first_orphan
        lock()
        self.epoch = epoch
        self.next = first_orphan
        if self.next != NULL:
            (<Region>self.next).previous = <void *>self
        first_orphan = <void *>self
        shm_store(&self.orphaned, 1)
        unlock()

    cdef void unlist(self) noexcept nogil:
        global first_orphan
        lock()
        if self.previous != NULL:
            (<Region>self.previous).next = self.next
        else:
            first_orphan = self.next
        if self.next != NULL:
            (<Region>self.next).previous = self.previous
        unlock()

    cdef void remove_unread(self) noexcept nogil:
        """Give back the memory of a dead peer's region that no view covers."""
        cdef size_t granule = 0, end = self.size >> GRANULE_BITS, start = 0
        cdef bint read = False
        for granule in range(end):
            if shm_count(&self.holders[granule].views):
                read = True
                break
        if not read:
            return  # the mapping is about to go, and all the memory with it
        granule = 0
        while granule < end:
            if shm_count(&self.holders[granule].views):
                if granule > start:
                    self.remove(start << GRANULE_BITS,
                                (granule - start) << GRANULE_BITS)
                granule += self.holders[granule].granules
                start = granule
            else:
                granule += 1
        if end > start:
            self.remove(start << GRANULE_BITS, (end - start) << GRANULE_BITS)


cdef void remove_all_unread() noexcept nogil:
    cdef void *region = first_orphan
    while region != NULL:
        (<Region>region).remove_unread()
        region = (<Region>region).next


cdef int open_file(str place, size_t size) except -1:
    cdef int fd = -1
    if place is None:
        fd = shm_create(b"fastjob", size)
        if fd < 0:
            raise OSError(errno, os.strerror(errno))
        return fd
    import tempfile
    with tempfile.TemporaryFile(dir=place) as file:
        fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


cdef list fallback_folders():
    """Where files may lie if the place meant for them is full, the best one first."""
    if os.name == "nt":
        return []
    found = []
    for folder in ("/dev/shm", temporary_folder()):
        if folder is not None and folder not in found and os.path.isdir(folder):
            found.append(folder)
    return found


def temporary_folder():
    """The folder of `tempfile`; None if it would find none.

    `tempfile` itself looks by writing a file, which a worker that is killed in the
    middle leaves behind, and passes over a folder that is full at that moment.
    """
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and tempfile.tempdir is not None:
        return os.fsdecode(tempfile.tempdir)
    for folder in (*map(os.environ.get, ("TMPDIR", "TEMP", "TMP")),
                   "/tmp", "/var/tmp", "/usr/tmp", os.curdir):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return os.path.abspath(folder)
    return None


def available_memory():
    """Bytes that can be used without making the kernel end processes.

    Memory is promised by the kernel without limit, and the promise is broken by
    killing; so a large reservation asks first.
    """
    cdef unsigned long long total, available
    shm_machine(&total, &available)
    if available:
        return available
    try:
        with open("/proc/meminfo") as info:
            for line in info:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass  # no such file on this system: there is nothing to go by
    return 1 << 62


def total_memory():
    """Bytes of memory that the machine has."""
    cdef unsigned long long total, available
    shm_machine(&total, &available)
    return total


cdef str no_room(str place, size_t nbytes, int error):
    """Say which place has no room, for how much, and how much it has."""
    if place is None:
        return f"no room for {nbytes} bytes of shared memory: {os.strerror(error)}"
    try:
        state = os.statvfs(place)
        found = f"{state.f_bavail * state.f_frsize} bytes are free"
    except OSError as missing:
        found = missing.strerror
    return (f"cannot put {nbytes} bytes of shared memory into folder {place!r}: "
            f"{os.strerror(error)} ({found})")
