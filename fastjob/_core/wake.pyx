"""Wake a thread that sleeps in ``poll``, from any thread and from a destructor."""

cimport cython

from fastjob._core.libc cimport close

import os

cdef extern from *:
    """
    #include <stdint.h>
    #include <unistd.h>
    static void fj_ring(int fd)
    {
        /* Eight bytes: what an eventfd takes.  A full pipe is as good as rung. */
        uint64_t one = 1;
        ssize_t done = write(fd, &one, sizeof one);
        (void)done;
    }
    static void fj_silence(int fd)
    {
        char bytes[64];
        while (read(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes) {}
    }
    """
    void fj_ring(int fd) nogil
    void fj_silence(int fd) nogil


@cython.final
cdef class Wake:
    """A descriptor that is readable once it has been called.

    The descriptor lives as long as the object, which both sides hold: nobody can write
    into one that has been closed and given to something else.
    """

    def __cinit__(self):
        self.fd = self.writer = -1
        if hasattr(os, "eventfd"):
            self.fd = self.writer = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fd, self.writer = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self.writer, False)

    def __dealloc__(self):
        if self.writer >= 0 and self.writer != self.fd:
            close(self.writer)
        if self.fd >= 0:
            close(self.fd)

    def __call__(self):
        """Make the descriptor readable."""
        fj_ring(self.writer)

    cdef void silence(self) noexcept:
        """Make the descriptor wait for the next call."""
        fj_silence(self.fd)
