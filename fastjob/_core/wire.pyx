"""Frames on a stream socket between a caller and one worker.

A frame is a fixed header and a body.  Descriptors (of shared memory regions) travel
with, or before, the bytes of their frame; the kernel keeps their order, so a receiver
hands each frame as many as its header names.  Where descriptors cannot travel (Windows)
the body begins with the sender's handles, and the receiver copies them out of the
sending process before it looks at the rest.

Who may block.  The caller never blocks in writing: what the socket does not take
stays in `out` and goes when ``poll`` says so, while the caller goes on reading.  A
worker may block in writing: the only reader is the caller, which always reads before
it waits.  So there is no state in which both wait for the other's reading.

A frame that cannot be one (the header's check word is wrong, an unknown kind, a body
larger than `MAX_BODY`) raises `WireError` and nothing of it is interpreted; the caller
then treats the worker as dead, and a worker ends.  Without the check word a damaged
header could ask for bytes that never come, or take a reply's place, and both ends would
wait for each other.  Bodies are unpickled, and only by the two ends of an inherited
socketpair: nothing else can reach it.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EMFILE, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from fastjob._core.libc cimport (
    DESCRIPTORS_TRAVEL, POLLOUT, fj_close, fj_fetch, fj_prepare, fj_recv, fj_send, poll,
    pollfd,
)
from fastjob._core.shm cimport shm_close

import os

from fastjob._core.sockets import stream_pair

cdef enum:
    HEADER_WORDS = 6        # of 8 bytes
    FIRST_ROOM = 1 << 16
    NAME_BYTES = 4          # of a descriptor, where they do not travel
    KEEP_ROOM = 1 << 20     # a buffer that grew above this is given back when empty

cdef uint64_t MAX_BODY = <uint64_t>1 << 40
cdef uint64_t SPREAD = 0x9E3779B97F4A7C15   # odd, so no two words have one product


class WireError(Exception):
    """A message that this version of fastjob cannot have sent."""


cdef uint32_t check_of(const Header *head) noexcept nogil:
    """The check word of a header: what stands in its place does not matter."""
    cdef uint64_t words[HEADER_WORDS]
    cdef uint64_t mixed = SPREAD
    cdef size_t i
    memcpy(words, head, sizeof(Header))
    memset(words, 0, sizeof(uint32_t))
    for i in range(HEADER_WORDS):
        mixed = (mixed ^ words[i]) * SPREAD
        mixed ^= mixed >> 32
    return <uint32_t>mixed


cdef char *grown(char *data, size_t start, size_t end, size_t room,
                 size_t need, size_t *new_room) except NULL:
    """Room for `need` more bytes behind the live ones, which move to the front."""
    cdef size_t live = end - start, size = room
    cdef char *fresh
    if live + need <= room:
        memmove(data, data + start, live)
        new_room[0] = room
        return data
    while size < live + need:
        size *= 2
    fresh = <char *>malloc(size)
    if fresh is NULL:
        raise MemoryError(f"no memory for a message of {live + need} bytes")
    memcpy(fresh, data + start, live)
    free(data)
    new_room[0] = size
    return fresh


def pair():
    """Two channels that are connected with each other.

    In compiled code, so that no interrupt comes between the making of a descriptor
    and the object that will close it.
    """
    cdef int ours, theirs
    ours, theirs = stream_pair()
    return Channel(ours), Channel(theirs)


@cython.final
cdef class Channel:
    """One end of the socketpair between a caller and a worker.

    Parameters
    ----------
    fd : int
        A connected stream socket; the channel owns it from now on.
    """

    def __cinit__(self, int fd):
        self.fd = fd
        self.fds_in = []
        self.fds_out = []
        self.out_room = self.in_room = FIRST_ROOM
        self.out = <char *>malloc(FIRST_ROOM)
        self.inp = <char *>malloc(FIRST_ROOM)
        if self.out is NULL or self.inp is NULL:
            raise MemoryError
        if fj_prepare(fd) < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        self._close()
        free(self.out)
        free(self.inp)

    def reach(self, int64_t process):
        """Name the process at the other end, for where descriptors do not travel.

        Parameters
        ----------
        process : int
            A handle of it, which stays the giver's.
        """
        self.process = process

    def close(self):
        """Close the socket and every descriptor received but not claimed."""
        self._close()

    cdef void _close(self) noexcept:
        if self.fd >= 0:
            fj_close(self.fd)
            self.fd = -1
        if self.fds_in is not None:
            for fd in self.fds_in:
                shm_close(<int>fd)
            self.fds_in = []

    cdef int put(self, Kind kind, int flags, uint32_t number, uint32_t count,
                 int64_t stamp, int64_t extra, const void *body, size_t size,
                 list fds, int64_t ended=0) except -1:
        """Append a frame to what is to be written; `flush` writes."""
        cdef Header header
        cdef size_t need = sizeof(Header) + size
        cdef int n_fds = 0 if fds is None else <int>len(fds)
        cdef bytes names = b""
        if n_fds and not DESCRIPTORS_TRAVEL:
            names = b"".join([(<int>fd).to_bytes(NAME_BYTES, "little") for fd in fds])
            need += len(names)
        if self.out_end + need > self.out_room:
            self.out = grown(self.out, self.out_start, self.out_end, self.out_room,
                             need, &self.out_room)
            self.out_end -= self.out_start
            self.out_start = 0
        header.kind = <unsigned char>kind
        header.flags = <unsigned char>flags
        header.n_fds = <unsigned short>n_fds
        header.number = number
        header.count = count
        header.size = need - sizeof(Header)
        header.stamp = stamp
        header.extra = extra
        header.ended = ended
        header.check = check_of(&header)
        memcpy(self.out + self.out_end, &header, sizeof(Header))
        self.out_end += sizeof(Header)
        if names:
            memcpy(self.out + self.out_end, <char *>names, len(names))
            self.out_end += len(names)
        if size:
            memcpy(self.out + self.out_end, body, size)
            self.out_end += size
        if n_fds and DESCRIPTORS_TRAVEL:
            self.fds_out.extend(fds)
        return 0

    cdef void discard(self) noexcept:
        """Drop what has not been written: nobody will read it."""
        self.out_start = self.out_end = 0
        self.fds_out.clear()

    cdef bint pending(self) noexcept:
        return self.out_end > self.out_start

    cdef int flush(self, bint wait) except -1:
        """Write what the socket takes; with `wait`, all of it.

        Raises BrokenPipeError or ConnectionResetError when the peer is gone.
        """
        cdef ssize_t done
        cdef pollfd waiter
        cdef int fds[FJ_MAX_FDS]
        cdef int n_fds, i
        cdef size_t size
        while self.out_end > self.out_start:
            n_fds = <int>min(len(self.fds_out), FJ_MAX_FDS)
            for i in range(n_fds):
                fds[i] = self.fds_out[i]
            size = self.out_end - self.out_start
            if n_fds < len(self.fds_out):
                size = 1    # no frame may be complete before its descriptors are there
            with nogil:
                done = fj_send(self.fd, self.out + self.out_start, size,
                               fds, n_fds)
            if done >= 0:
                self.out_start += done
                del self.fds_out[:n_fds]
                self.n_sends += 1
                self.bytes_sent += done
            elif errno == EINTR:
                PyErr_CheckSignals()
            elif errno == EAGAIN:
                if not wait:
                    return 0
                waiter.fd = self.fd
                waiter.events = POLLOUT
                with nogil:
                    poll(&waiter, 1, -1)
                PyErr_CheckSignals()
            else:
                raise OSError(errno, os.strerror(errno))
        self.out_start = self.out_end = 0
        if self.out_room > KEEP_ROOM:
            free(self.out)
            self.out_room = FIRST_ROOM
            self.out = <char *>malloc(FIRST_ROOM)
            if self.out is NULL:
                self.out_room = 0
                raise MemoryError
        return 0

    cdef Py_ssize_t receive(self, bint wait) except -2:
        """Read once.  Bytes got; 0 at the end of the stream; -1 if there is nothing."""
        cdef ssize_t got
        cdef int fds[FJ_MAX_FDS]
        cdef int n_fds, i
        cdef size_t need = FIRST_ROOM // 2
        cdef Header head
        if self.peek(&head):
            need = max(need, sizeof(Header) + head.size
                       - min(<size_t>(self.in_end - self.in_start),
                             sizeof(Header) + head.size))
        if self.in_start == self.in_end:
            self.in_start = self.in_end = 0
        if self.in_room - self.in_end < need:
            self.inp = grown(self.inp, self.in_start, self.in_end, self.in_room,
                             need, &self.in_room)
            self.in_end -= self.in_start
            self.in_start = 0
        while True:
            with nogil:
                got = fj_recv(self.fd, self.inp + self.in_end,
                              self.in_room - self.in_end, fds, &n_fds,
                              wait)
            if got >= 0:
                break
            if got == -2:
                self.broken = True
                raise OSError(
                    EMFILE, "Too many open files: descriptors of shared memory were "
                    "lost; raise the limit (ulimit -n)")
            if errno == EINTR:
                PyErr_CheckSignals()
            elif errno == EAGAIN:
                return -1
            elif errno == ECONNRESET:
                return 0        # reset: the peer died with our bytes unread
            else:
                raise OSError(errno, os.strerror(errno))
        for i in range(n_fds):
            self.fds_in.append(fds[i])
        self.in_end += got
        self.n_receives += 1
        self.bytes_received += got
        return got

    cdef bint peek(self, Header *head) except -1:
        """Whether a header has come; a copy of it, since frames begin anywhere."""
        if self.in_end - self.in_start < sizeof(Header):
            return False
        memcpy(head, self.inp + self.in_start, sizeof(Header))
        if (head.check != check_of(head) or head.kind >= KIND_LIMIT
                or head.size > MAX_BODY):
            raise WireError(
                "a worker and its caller disagree about a message; this is a bug in "
                "fastjob, or memory of one of them was overwritten")
        return True

    cdef bytes next(self):
        """The body of the next whole frame, its header in `header`; None if none."""
        cdef Header head
        cdef size_t have = self.in_end - self.in_start, named = 0
        cdef char *start
        cdef bytes body
        if self.broken:
            raise WireError("what comes after lost descriptors cannot be told")
        if not self.peek(&head) or have < sizeof(Header) + head.size:
            return None
        self.header = head
        start = self.inp + self.in_start + sizeof(Header)
        if head.n_fds and not DESCRIPTORS_TRAVEL:
            self.fetch(start)
            named = head.n_fds * NAME_BYTES
        body = PyBytes_FromStringAndSize(start + named, head.size - named)
        self.in_start += sizeof(Header) + self.header.size
        if self.in_start == self.in_end:
            self.in_start = self.in_end = 0
            if self.in_room > KEEP_ROOM:
                free(self.inp)
                self.in_room = FIRST_ROOM
                self.inp = <char *>malloc(FIRST_ROOM)
                if self.inp is NULL:
                    self.in_room = 0
                    raise MemoryError
        return body

    cdef int fetch(self, const char *names) except -1:
        """Get the descriptors whose names are the first bytes of the body."""
        cdef int i, fd
        cdef int32_t name
        if self.header.size < self.header.n_fds * NAME_BYTES:
            raise WireError("a message came without its descriptors")
        for i in range(self.header.n_fds):
            memcpy(&name, names + i * NAME_BYTES, NAME_BYTES)
            fd = fj_fetch(self.process, name)
            if fd < 0:
                raise WireError(
                    f"the sender's memory is out of reach: {os.strerror(errno)}")
            self.fds_in.append(fd)
        return 0

    cdef list take_fds(self):
        """The descriptors of the frame that `next` returned."""
        cdef int n = self.header.n_fds
        cdef list mine
        if n == 0:
            return []
        if len(self.fds_in) < n:
            raise WireError("a message came without its descriptors")
        mine = self.fds_in[:n]
        del self.fds_in[:n]
        return mine
